/* SPDX-License-Identifier: BSD-3-Clause */
/* Step 3 of a repair: copies, and tables and clusters of zeroes, behind the end
 * of the image. */
#include "qcow2/l2.h"
#include "qcow2/repair.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "nbdelta/cleanup.h"

#define COPY_STEP (1 * MiB)

/* --- 3. Write behind the end --- */

static int copy_bytes(struct repair *p, uint64_t from, uint64_t to,
                      uint64_t bytes)
{
    CLEANUP_FREE void *buf = malloc(min_u64(bytes, COPY_STEP));
    int r = buf ? 0 : -ENOMEM;

    for (uint64_t at = 0; r == 0 && at < bytes; at += COPY_STEP) {
        uint64_t n = min_u64(bytes - at, COPY_STEP);

        r = qcow2_image_pread(&p->k->im, buf, n, from + at);
        if (r == 0) {
            r = node_pwrite(p->file, buf, n, to + at, 0);
        }
    }
    return r;
}

static int write_moves(struct repair *p)
{
    unsigned bits = p->k->im.shape.cluster_bits;
    uint64_t size = p->k->im.shape.cluster_size;
    int r = 0;

    qcow2_moves_sort(&p->moves);
    for (size_t i = 0; r == 0 && i < p->moves.count; i++) {
        struct qcow2_move *m = &p->moves.all[i];
        uint64_t first;

        if (m->times > p->highest) {
            qcow2_check_tell(p->o, IMAGE_CORRUPT,
                             "what is at 0x%" PRIx64 " stays there: %" PRIu64
                             " references are more than this image can count",
                             m->from, m->times);
            continue;
        }
        r = qcow2_annex_take(&p->annex, div_up(m->bytes, size), m->times,
                             &first);
        if (r == 0) {
            m->to = first << bits;
            r = copy_bytes(p, m->from, m->to, m->bytes);
        }
    }
    return r;
}

/* Clusters of zeroes, for entries of version 2; each may have `highest`
 * references, and is never filled by more than half with one of them. */
static int write_zero_clusters(struct repair *p, uint64_t references)
{
    uint64_t count = references / (p->highest / 2 + 1) + 1;
    uint64_t first = 0;
    int r = qcow2_annex_take(&p->annex, count, p->highest, &first);

    p->zero_cluster = first << p->k->im.shape.cluster_bits;
    for (uint64_t i = 0; r == 0 && i < count; i++) {
        r = node_zero(p->file,
                      p->zero_cluster + (i << p->k->im.shape.cluster_bits),
                      p->k->im.shape.cluster_size, 0);
    }
    return r;
}

/* The next reference to such a cluster. */
static uint64_t take_zero_cluster(struct repair *p, uint64_t times)
{
    uint64_t half = p->highest / 2 + 1;
    uint64_t index = p->zero_used / half;

    p->zero_used += times;
    return p->zero_cluster + (index << p->k->im.shape.cluster_bits);
}

void qcow2_repair_zero_entry(struct repair *p, struct qcow2_table *t,
                             uint64_t offset, uint64_t times)
{
    const struct qcow2 *s = &p->k->im.shape;
    struct qcow2_at at = {.kind = QCOW2_KIND_UNALLOCATED};

    if (s->version >= 3) {
        qcow2_l2_mend_zero(s, t, offset);
        return;
    }
    if (qcow2_repair_needs_zeroes(p)) {
        at.kind = QCOW2_KIND_NORMAL;
        at.host = take_zero_cluster(p, times);
    }
    qcow2_l2_mend(s, t, offset, &at);
}

/* The place of the table of zeroes for the @user-th L1 entry. */
uint64_t qcow2_repair_zero_table(const struct repair *p, uint64_t user)
{
    return p->zero_table +
           (user / (p->highest / 2 + 1) << p->k->im.shape.cluster_bits);
}

/* L2 tables of nothing but zeroes, each for as many L1 entries as it may have
 * clusters of zeroes in common with. */
static int write_zero_tables(struct repair *p)
{
    const struct qcow2 *s = &p->k->im.shape;
    uint64_t share = p->highest / 2 + 1;
    uint64_t count = div_up(p->zero_tables, share);
    CLEANUP_FREE void *bytes = calloc(1, s->cluster_size);
    struct qcow2_table t = {.data = bytes};
    uint64_t first = 0;
    int r = bytes ? qcow2_annex_take(&p->annex, count, p->highest, &first)
                  : -ENOMEM;

    p->zero_table = first << s->cluster_bits;
    for (uint64_t i = 0; r == 0 && i < count; i++) {
        for (uint64_t at = 0; at < qcow2_l2_span(s); at += s->cluster_size) {
            qcow2_repair_zero_entry(p, &t, at,
                                    min_u64(p->zero_tables - i * share, share));
        }
        r = node_pwrite(p->file, bytes, s->cluster_size,
                        p->zero_table + (i << s->cluster_bits), 0);
    }
    return r;
}

static int write_zeroes(struct repair *p)
{
    const struct qcow2 *s = &p->k->im.shape;
    uint64_t per_table = qcow2_l2_span(s) >> s->cluster_bits;
    int r = 0;

    if (!qcow2_repair_needs_zeroes(p)) {
        return 0;
    }
    if (s->version < 3 && p->zero_entries + p->zero_tables > 0) {
        r = write_zero_clusters(p,
                                p->zero_entries + p->zero_tables * per_table);
    }
    return r == 0 && p->zero_tables > 0 ? write_zero_tables(p) : r;
}

/* The active L1 table at another place, longer or empty. */
static int write_l1(struct repair *p)
{
    const struct qcow2_image *im = &p->k->im;
    uint64_t bytes = p->l1_size * UINT64_C(8);
    uint64_t room = align_up(max_u64(bytes, 1), im->shape.cluster_size);
    uint64_t old = p->l1_lost ? 0 : im->h.l1_size;
    CLEANUP_FREE unsigned char *l1 = calloc(1, room);
    uint64_t first = 0;
    int r = l1 ? qcow2_annex_take(&p->annex, room >> im->shape.cluster_bits, 1,
                                  &first)
               : -ENOMEM;

    if (r == 0 && old > 0) {
        r = qcow2_image_pread(im, l1, old * 8, im->h.l1_offset);
    }
    for (uint64_t i = old;
         r == 0 && qcow2_repair_needs_zeroes(p) && i < p->l1_size; i++) {
        store_be64(l1 + i * 8, qcow2_repair_zero_table(p, i - old));
    }
    p->l1_host = first << im->shape.cluster_bits;
    return r == 0 ? node_pwrite(p->file, l1, room, p->l1_host, 0) : r;
}

int qcow2_repair_write(struct repair *p)
{
    int r = write_moves(p);

    if (r == 0) {
        r = write_zeroes(p);
    }
    return r == 0 && p->new_l1 ? write_l1(p) : r;
}
