/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Applying a snapshot: the disk becomes what the snapshot is.
 *
 *     before                      after
 *     header --> old L1           header --> new L1 --\
 *     snapshot's L1 --> tables    snapshot's L1 -------+--> tables
 *
 * The new L1 table leads to the snapshot's own L2 tables, each of which has one
 * reference more by then.  So nothing is copied, and the old disk is whole
 * until the header leads to the new table.  VM state, which lies behind the end
 * of the disk, stays the snapshot's alone.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/dirty.h"
#include "nbdelta/error.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"
#include "qcow2/snapshot-change.h"

/* Entries under one hold of the meta lock; tables in one step. */
#define ENTRIES_AT_ONCE 1024
#define TABLES_AT_ONCE  64

int qcow2_apply_check(struct qcow2_change *c, const struct qcow2_snapshot *sn,
                      struct error **errp)
{
    struct qcow2 *s = c->s;
    uint64_t size = sn->disk_size == UINT64_MAX ? s->node->size : sn->disk_size;

    c->new_size = size;
    c->l1_needed = (uint32_t)div_up(min_u64(size, BLK_SIZE_MAX),
                                    qcow2_l2_span(s));
    if (size > BLK_SIZE_MAX || c->l1_needed > sn->l1_size) {
        return error_set(errp, EUCLEAN,
                         "the L1 table of the snapshot is too short for its "
                         "disk: run 'nbdelta check' on the image");
    }
    if (size != s->node->size && s->version < 3) {
        return error_set(errp, ENOTSUP,
                         "the snapshot is of a disk of %" PRIu64
                         " bytes: Can't resize a version 2 image which has "
                         "snapshots",
                         size);
    }
    if (size == 0 && s->bitmaps.ext.count > 0) {
        return error_set(errp, ENOTSUP,
                         "the snapshot is of an empty disk, which can have no "
                         "persistent bitmaps: remove them");
    }
    return size == s->node->size ? 0
                                 : qcow2_check_bitmaps_fit(s->node, size, errp);
}

static uint64_t end_of(const struct qcow2_change *c)
{
    return c->l1_needed * qcow2_l2_span(c->s);
}

/* A part of the table at guest @at: raised, or lowered again. */
static int change_part(struct qcow2 *s, struct qcow2_table *t, uint64_t at,
                       uint64_t bytes, bool raise)
{
    bool first = at % qcow2_l2_span(s) == 0;

    mutex_lock(&s->meta);
    int r = first && raise ? qcow2_ref_add(s, t->offset, 1) : 0;
    if (r == 0) {
        r = raise ? qcow2_refs_raise(s, t, at, bytes)
                  : qcow2_refs_lower(s, t, at, bytes);
    }
    if (first && (raise ? r < 0 : r == 0)) {
        qcow2_ref_undo(s, t->offset, 1);
    }
    mutex_unlock(&s->meta);
    return r;
}

/* The part that begins at @at; @bytes: its length. */
static int change_at(struct qcow2_change *c, uint64_t at, uint64_t bytes,
                     bool raise)
{
    struct qcow2 *s = c->s;
    uint64_t host = c->l1[at / qcow2_l2_span(s)] & QCOW2_OFFSET_MASK;
    struct qcow2_table *t;
    int r = host == 0 ? 0 : qcow2_drop_check(s, host);

    if (r < 0 || host == 0) {
        return r;
    }
    r = qcow2_cache_get(s->l2, host, false, &t);
    if (r == 0) {
        r = change_part(s, t, at, bytes, raise);
        qcow2_cache_put(s->l2, t);
    }
    return r;
}

int qcow2_apply_raise(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;
    int r = 0;

    for (unsigned n = 0; n < TABLES_AT_ONCE && c->next < end_of(c) && r == 0;
         n++) {
        uint64_t bytes = min_u64(qcow2_l2_rest(s, c->next),
                                 (uint64_t)ENTRIES_AT_ONCE << s->cluster_bits);

        r = change_at(c, c->next, bytes, true);
        c->next += r == 0 ? bytes : 0;
    }
    if (r == 0) {
        r = qcow2_relieve(s);
    }
    return r < 0 ? r : c->next < end_of(c);
}

/* Take back what was raised.  1: there is more. */
int qcow2_apply_abort(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;
    int r = 0;

    for (unsigned n = 0; n < TABLES_AT_ONCE && c->next > 0 && r == 0; n++) {
        uint64_t begin = align_down(c->next - 1, qcow2_l2_span(s));
        uint64_t part = (c->next - begin) %
                        ((uint64_t)ENTRIES_AT_ONCE << s->cluster_bits);

        part = part ? part
                    : min_u64(c->next - begin,
                              (uint64_t)ENTRIES_AT_ONCE << s->cluster_bits);
        r = change_at(c, c->next - part, part, false);
        c->next -= part;
    }
    return r < 0 ? r : c->next > 0;
}

/* The new L1 table, durable with all that it leads to. */
int qcow2_apply_write(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;
    uint64_t *be = calloc(c->l1_needed + 1UL, sizeof(*be));
    int r = be ? qcow2_flush(s->node) : -ENOMEM;

    for (uint32_t i = 0; r == 0 && i < c->l1_needed; i++) {
        be[i] = htobe64(c->l1[i] & QCOW2_OFFSET_MASK);
    }
    if (r == 0 && c->l1_needed > 0) {
        r = node_pwrite(s->file, be, c->l1_needed * sizeof(*be),
                        c->new_l1_offset, 0);
    }
    free(be);
    return r < 0 ? r : qcow2_flush_file(s);
}

/* --- The switch; drained --- */

static int write_header(struct qcow2 *s, const struct qcow2_disk *to)
{
    unsigned char be[QCOW2_HDR_DISK_END]; /* with the kind of encryption */
    int r = node_pread(s->file, be, sizeof(be), 0, 0);

    if (r < 0) {
        return r;
    }
    qcow2_disk_put(to, be);
    r = node_pwrite(s->file, be + QCOW2_HDR_SIZE, sizeof(be) - QCOW2_HDR_SIZE,
                    QCOW2_HDR_SIZE, 0);
    return r < 0 ? r : qcow2_flush_file(s);
}

/* Nobody knows which disk the header leads to. */
static void doubt_header(struct qcow2_change *c)
{
    c->in_doubt = true;
    atomic_store(&c->s->corrupt, true); /* what is written could be lost */
}

static int switch_plain(struct qcow2_change *c, const struct qcow2_disk *to)
{
    struct qcow2 *s = c->s;
    const struct qcow2_disk had = {s->node->size, true, s->l1_size,
                                   s->l1_offset};
    int r = write_header(s, to);

    if (r < 0 && write_header(s, &had) < 0) {
        doubt_header(c);
    }
    return r;
}

/* The same write leads to bitmaps of the other length. */
static int switch_with_bitmaps(struct qcow2_change *c,
                               const struct qcow2_disk *to)
{
    int r = qcow2_bitmaps_resize(c->s, to);

    if (r < 0 && c->s->bitmaps.header_doubt) {
        doubt_header(c);
    }
    return r;
}

/* Bitmaps in memory are never shorter than those in the image. */
static int switch_disk(struct qcow2_change *c, const struct qcow2_disk *to)
{
    struct node *n = c->s->node;
    uint64_t had = n->size;
    int r = to->size > had ? bitmap_resize_all(n, had, to->size, NULL) : 0;

    if (r < 0) {
        return r;
    }
    r = to->size != had && c->s->bitmaps.ext.count > 0
            ? switch_with_bitmaps(c, to)
            : switch_plain(c, to);
    if (r < 0 && to->size > had) {
        (void)bitmap_resize_all(n, to->size, had, NULL);
    } else if (r == 0 && to->size < had) {
        (void)bitmap_resize_all(n, had, to->size, NULL);
    }
    return r;
}

/* The active disk has this table now.  Without memory, nothing guards it. */
static void note_table(struct qcow2 *s, uint64_t host) REQUIRES(s->meta)
{
    if (host &&
        !(qcow2_overlap_find(s, host, s->cluster_size) & QCOW2_META_L2)) {
        (void)qcow2_overlap_add(s, QCOW2_META_L2, host, s->cluster_size);
    }
}

/* Memory follows.  c->l1 becomes the old disk's, whose references are to be
 * dropped. */
static void follow(struct qcow2_change *c, _Atomic uint64_t *l1, uint64_t *old)
{
    struct qcow2 *s = c->s;

    mutex_lock(&s->meta);
    for (uint32_t i = 0; i < c->l1_needed; i++) {
        atomic_init(&l1[i], c->l1[i] & QCOW2_OFFSET_MASK);
        note_table(s, c->l1[i] & QCOW2_OFFSET_MASK);
    }
    for (uint32_t i = 0; i < s->l1_size; i++) {
        old[i] = atomic_load(&s->l1[i]);
    }
    free(c->l1);
    free(s->l1);
    c->l1 = old;
    c->l1_size = s->l1_size;
    c->l1_offset = s->l1_offset;
    s->l1 = l1;
    s->l1_size = c->l1_needed;
    s->l1_offset = c->new_l1_offset;
    mutex_unlock(&s->meta);
    c->next = 0;
    atomic_store(&s->node->size, c->new_size);
}

int qcow2_apply_act(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;
    struct node *n = s->node;
    _Atomic uint64_t *l1 = calloc(c->l1_needed + 1UL, sizeof(*l1));
    uint64_t *old = calloc(s->l1_size + 1UL, sizeof(*old));
    int r = l1 && old ? bitmap_mark(n, 0, n->size, 0) : -ENOMEM;

    if (r == 0) {
        r = qcow2_flush(n);
    }
    if (r == 0) {
        const struct qcow2_disk to = {c->new_size, true, c->l1_needed,
                                      c->new_l1_offset};

        r = switch_disk(c, &to);
    }
    if (r == 0) {
        follow(c, l1, old);
        c->begun = true;
    } else {
        free(l1);
        free(old);
    }
    return r;
}
