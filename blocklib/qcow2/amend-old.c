/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From version 3 down to version 2: what that cannot have, and zero clusters.
 *
 *   zero cluster of version 3         becomes
 *   there is no backing file          unallocated, its place freed
 *   there is one                      data: zeroes are written to it
 *
 * Each of these reads as zeroes in both versions.  So the image can stay at any
 * of them, and the version changes afterwards.
 */
#include "qcow2/amend.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "qcow2/alloc.h"
#include "qcow2/l2.h"

#define WRITTEN (1 * MiB) /* at once */

/* --- Snapshots --- */

struct past {
    struct qcow2 *s;
    uint64_t *l1; /* as on disk */
    uint32_t l1_size;
    void *table; /* room for an L2 table */
    bool zeroes; /* there are some */
};

static int look_at_table(struct past *p, uint32_t index)
{
    struct qcow2 *s = p->s;
    struct qcow2_table t = {.data = p->table};
    uint64_t start = index * qcow2_l2_span(s);
    struct qcow2_at at;
    int r = node_pread(s->file, p->table, s->cluster_size,
                       be64toh(p->l1[index]) & QCOW2_OFFSET_MASK, 0);

    for (uint64_t done = 0; r == 0 && done < qcow2_l2_span(s);
         done += at.bytes) {
        qcow2_l2_look(s, &t, start + done, qcow2_l2_span(s) - done, &at);
        p->zeroes |= at.kind == QCOW2_KIND_ZERO_PLAIN ||
                     at.kind == QCOW2_KIND_ZERO_ALLOC;
    }
    return r;
}

static int look_at_snapshot(struct past *p, const struct qcow2_snapshot *sn)
{
    struct qcow2 *s = p->s;
    uint64_t bytes = sn->l1_size * UINT64_C(8);

    if (!qcow2_snapshot_has_l1(s, sn)) {
        return -EUCLEAN;
    }
    free(p->l1);
    p->l1 = malloc(bytes + 1);
    int r = p->l1 ? node_pread(s->file, p->l1, bytes, sn->l1_offset, 0)
                  : -ENOMEM;
    for (uint32_t i = 0; i < sn->l1_size && r == 0 && !p->zeroes; i++) {
        if (be64toh(p->l1[i]) & QCOW2_OFFSET_MASK) {
            r = look_at_table(p, i);
        }
    }
    return r;
}

static int check_snapshot(struct past *p, uint32_t i, uint64_t size,
                          struct error **errp)
{
    struct qcow2_snapshot sn;

    qcow2_snapshot_get(&p->s->snapshots, i, &sn);
    if (sn.vm_state_size != 0) {
        return error_set(errp, ENOTSUP,
                         "compat=0.10: snapshot '%.*s' has the state of a "
                         "machine",
                         (int)sn.name_len, sn.name);
    }
    if (sn.disk_size != size) {
        return error_set(errp, ENOTSUP,
                         "compat=0.10: snapshot '%.*s' has another size than "
                         "the disk",
                         (int)sn.name_len, sn.name);
    }
    int r = look_at_snapshot(p, &sn);
    if (r < 0) {
        return error_set(errp, -r,
                         "cannot read the tables of snapshot '%.*s': "
                         "%s",
                         (int)sn.name_len, sn.name, strerror(-r));
    }
    return p->zeroes ? error_set(errp, ENOTSUP,
                                 "compat=0.10: snapshot '%.*s' has zero "
                                 "clusters",
                                 (int)sn.name_len, sn.name)
                     : 0;
}

static int check_snapshots(struct qcow2 *s, uint64_t size, struct error **errp)
{
    CLEANUP_FREE void *table = malloc(s->cluster_size);
    struct past p = {.s = s, .table = table};
    int r = table ? 0 : error_nomem(errp);

    for (uint32_t i = 0; i < s->snapshots.count && r == 0; i++) {
        r = check_snapshot(&p, i, size, errp);
    }
    free(p.l1);
    return r;
}

/* --- */

int qcow2_check_old(struct qcow2 *s, uint64_t size, struct error **errp)
{
    const char *why = NULL;

    if (s->external) {
        why = "the image has an external data file";
    } else if (s->refcount_order != 4) {
        why = "it needs refcount_bits=16";
    } else if (s->compression != QCOW2_ZLIB) {
        why = "the image has compression_type=zstd";
    } else if (s->extended) {
        why = "the image has extended L2 entries";
    } else if (s->bitmaps.ext.count > 0) {
        why = "the image has bitmaps";
    } else if (s->incompatible != 0) {
        why = "the image has incompatible features";
    }
    return why ? error_set(errp, ENOTSUP, "compat=0.10: %s", why)
               : check_snapshots(s, size, errp);
}

/* --- Zero clusters --- */

/* The driver zeroes the rest of a cluster that the disk ends in. */
static int write_zeroes(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                        const void *zeroes)
{
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0; done += WRITTEN) {
        r = node_pwrite(s->node, zeroes, min_u64(WRITTEN, bytes - done),
                        offset + done, 0);
    }
    return r;
}

static int unallocate_in_table(struct qcow2 *s, uint64_t offset, uint64_t bytes)
    REQUIRES(s->meta)
{
    struct qcow2_table *t;
    int r = qcow2_l2_get_writable(s, offset, &t);

    if (r == 0) {
        r = qcow2_l2_put(s, t, offset, bytes, QCOW2_KIND_UNALLOCATED, 0);
        qcow2_cache_put(s->l2, t);
    }
    return r;
}

static int unallocate(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    uint64_t seen = atomic_load(&s->released);
    int r = 0;

    while (bytes > 0 && r == 0) {
        uint64_t part = min_u64(bytes, qcow2_l2_rest(s, offset));

        do {
            mutex_lock(&s->meta);
            r = unallocate_in_table(s, offset, part);
            mutex_unlock(&s->meta);
        } while (qcow2_try_again(s, &r, &seen));
        offset += part;
        bytes -= part;
    }
    return r;
}

int qcow2_expand_zeroes(struct qcow2 *s, const struct image_amend *how)
{
    struct node *n = s->node;
    CLEANUP_FREE void *zeroes = calloc(1, WRITTEN);
    int r = zeroes ? 0 : -ENOMEM;
    struct mapping m;

    for (uint64_t at = 0; at < n->size && r == 0; at += m.length) {
        r = node_map(n, at, n->size - at, MAP_STATUS, &m);
        if (r < 0) {
            break;
        }
        node_map_put(n, &m); /* nobody else changes the image */
        if (m.kind == MAP_ZERO) {
            r = n->image_backing ? write_zeroes(s, at, m.length, zeroes)
                                 : unallocate(s, at, m.length);
        }
        r = r == 0 ? qcow2_relieve(s) : r;
        if (how->progress) {
            how->progress((double)at / (double)n->size, how->opaque);
        }
    }
    return r;
}
