/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * References of a disk, table by table: raised when a snapshot begins to share
 * them, lowered when it ends.
 *
 *   L1 entry --> L2 table    one reference
 *                  \--> each cluster of data, and each that compressed bytes
 *                       touch: one reference
 *
 * Two disks that share an L2 table count the table twice, and all that it leads
 * to.
 */
#include <errno.h>

#include "qcow2/alloc.h"
#include "qcow2/census.h"
#include "qcow2/l2.h"
#include "qcow2/snapshot-change.h"

/* Called for references that lie in a row. */
typedef int ref_fn(struct qcow2 *s, uint64_t host, uint64_t bytes);

/* What the entries at @offset lead to; without bytes: nothing.  *@alike: the
 * answer is for so many of @bytes.  False: to where nothing can be. */
static bool look(const struct qcow2 *s, const struct qcow2_table *t,
                 uint64_t offset, uint64_t bytes, struct qcow2_run *run,
                 uint64_t *alike)
{
    struct qcow2_at at;

    /* Compressed clusters are alike, and yet each has its own place: a run of
     * them would be measured from each again. */
    qcow2_l2_look_whole(s, t, offset, min_u64(bytes, s->cluster_size), &at);
    if (at.kind != QCOW2_KIND_COMPRESSED) {
        qcow2_l2_look_whole(s, t, offset, bytes, &at);
    }
    *alike = at.bytes;
    *run = (struct qcow2_run){at.host, at.bytes};
    switch (at.kind) {
    case QCOW2_KIND_NORMAL:
    case QCOW2_KIND_ZERO_ALLOC:
    case QCOW2_KIND_UNALLOCATED_ALLOC:
        break;
    case QCOW2_KIND_COMPRESSED:
        *run = at.packed;
        break;
    case QCOW2_KIND_UNALLOCATED:
    case QCOW2_KIND_ZERO_PLAIN:
        run->bytes = 0;
        return true;
    }
    return !at.wrong && !qcow2_overlap_others(s, 0, run->host, run->bytes);
}

static int each_ref(struct qcow2 *s, const struct qcow2_table *t,
                    uint64_t offset, uint64_t bytes, ref_fn *fn, uint64_t *done)
{
    int r = 0;

    for (*done = 0; *done < bytes;) {
        struct qcow2_run run;
        uint64_t alike;

        if (!look(s, t, offset + *done, bytes - *done, &run, &alike)) {
            return qcow2_mark_corrupt(s);
        }
        r = run.bytes > 0 ? fn(s, run.host, run.bytes) : 0;
        if (r < 0) { /* also -EIO of a refcount block: that is no corruption */
            break;
        }
        *done += alike;
    }
    return r;
}

static int undo_ref(struct qcow2 *s, uint64_t host, uint64_t bytes)
    REQUIRES(s->meta)
{
    qcow2_ref_undo(s, host, bytes);
    return 0;
}

int qcow2_refs_raise(struct qcow2 *s, const struct qcow2_table *t,
                     uint64_t offset, uint64_t bytes)
{
    uint64_t done;
    uint64_t undone;
    int r = each_ref(s, t, offset, bytes, qcow2_ref_add, &done);

    if (r < 0) {
        (void)each_ref(s, t, offset, done, undo_ref, &undone);
    }
    return r;
}

/* The last reference goes through limbo, because its cluster is discarded
 * before it is free. */
int qcow2_ref_drop(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    uint64_t first = align_down(host, s->cluster_size);
    int r = 0;

    for (uint64_t at = first; at < host + bytes && r == 0;
         at += s->cluster_size) {
        uint64_t count = 0;

        r = qcow2_refcount_get(s, at >> s->cluster_bits, &count);
        if (r == 0 && count == 0) {
            r = qcow2_mark_corrupt(s);
        } else if (r == 0 && count == 1) {
            r = qcow2_free_later(s, at, 1);
        } else if (r == 0) {
            qcow2_ref_undo(s, at, 1);
        }
    }
    return r;
}

int qcow2_refs_lower(struct qcow2 *s, const struct qcow2_table *t,
                     uint64_t offset, uint64_t bytes)
{
    uint64_t done;

    return each_ref(s, t, offset, bytes, qcow2_ref_drop, &done);
}

int qcow2_refs_own(struct qcow2 *s, struct qcow2_table *t, uint64_t offset,
                   uint64_t bytes)
{
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0; done += s->cluster_size) {
        struct qcow2_at at;
        uint64_t count = 0;

        qcow2_l2_look_whole(s, t, offset + done, s->cluster_size, &at);
        if (at.wrong || (at.kind != QCOW2_KIND_NORMAL &&
                         at.kind != QCOW2_KIND_ZERO_ALLOC)) {
            continue;
        }
        r = qcow2_refcount_get(s, at.host >> s->cluster_bits, &count);
        if (r == 0 && at.copied != (count == 1)) {
            at.copied = count == 1;
            qcow2_l2_mend(s, t, offset + done, &at);
            qcow2_cache_mark_dirty(s->l2, t);
        }
    }
    return r;
}

/* --- Do they fit? --- */

bool qcow2_refs_count(struct qcow2 *s, const struct qcow2_table *t,
                      uint64_t offset, uint64_t bytes, uint32_t times,
                      struct qcow2_census *n)
{
    bool sound = true;

    for (uint64_t done = 0, alike; done < bytes; done += alike) {
        struct qcow2_run run;

        if (!look(s, t, offset + done, bytes - done, &run, &alike)) {
            sound = false;
            continue;
        }
        for (uint64_t c = run.host >> s->cluster_bits;
             run.bytes > 0 &&
             c <= (run.host + run.bytes - 1) >> s->cluster_bits;
             c++) {
            qcow2_census_add(n, c, times, CENSUS_DATA);
        }
    }
    return sound;
}

/* Count the references of one table, and its own. */
static void count_table(struct qcow2 *s, struct qcow2_census *n,
                        const struct qcow2_table *t)
{
    qcow2_census_add(n, t->offset >> s->cluster_bits, 1, CENSUS_L2);
    /* What leads nowhere will be found again, and told. */
    (void)qcow2_refs_count(s, t, 0, qcow2_l2_span(s), 1, n);
}

static int count_disk(struct qcow2 *s, struct qcow2_census *n)
{
    int r = 0;

    for (uint64_t i = 0; i < s->l1_size && r == 0; i++) {
        struct qcow2_table *t;

        r = qcow2_l2_get(s, i * qcow2_l2_span(s), false, &t);
        if (r == 0 && t) {
            count_table(s, n, t);
            qcow2_cache_put(s->l2, t);
        }
    }
    return r;
}

int qcow2_refs_fit(struct qcow2 *s)
{
    uint64_t max = qcow2_refcount_max(s);
    uint64_t highest;
    int r = qcow2_refcount_highest(s, &highest);

    if (r < 0 || highest <= max / 2) { /* a disk has not more than all */
        return r;
    }
    uint64_t clusters = max_u64(node_size(s->file), s->virgin) >>
                        s->cluster_bits;
    struct qcow2_census *n = qcow2_census_new(clusters + 1);
    if (!n) {
        return -ENOMEM;
    }
    r = count_disk(s, n);
    for (uint64_t c = 0; c <= clusters && r == 0; c++) {
        uint64_t more = qcow2_census_count(n, c);
        uint64_t count = 0;

        if (more > 0) {
            mutex_lock(&s->meta);
            r = qcow2_refcount_get(s, c, &count);
            mutex_unlock(&s->meta);
        }
        if (r == 0 && more > 0 && count > max - min_u64(more, max)) {
            r = -EOVERFLOW;
        }
    }
    qcow2_census_free(n);
    return r;
}
