/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dropping all references of a disk that nothing on disk leads to any more: a
 * snapshot that was removed, or the old disk after a snapshot was applied.
 *
 *   for each L2 table of it
 *     its data, then the table itself: one reference less
 *     the active disk's table for the same guest range, if only that has it
 *     now: its entries get COPIED where they are the only ones, then the L1
 *     entry does
 *
 * The guest goes on.  COPIED comes after the counts, in memory and by the order
 * of flush.c on disk, too.
 */
#include <errno.h>

#include "qcow2/alloc.h"
#include "qcow2/l2.h"
#include "qcow2/snapshot-change.h"

/* Entries under one hold of the meta lock; tables in one step. */
#define ENTRIES_AT_ONCE 1024
#define TABLES_AT_ONCE  64

static uint64_t part_of(const struct qcow2 *s, uint64_t at)
{
    return min_u64(qcow2_l2_span(s) - at,
                   (uint64_t)ENTRIES_AT_ONCE << s->cluster_bits);
}

/* A table that a disk of the past leads to may be the active disk's, too. */
int qcow2_drop_check(struct qcow2 *s, uint64_t host)
{
    const unsigned own = QCOW2_META_L2 | QCOW2_META_INACTIVE_L2;
    unsigned others = qcow2_overlap_others(s, own, host, s->cluster_size) &
                      ~(unsigned)QCOW2_META_TWICE;

    return qcow2_in_cluster(s, host) != 0
               ? qcow2_corrupt_at(s, host, s->cluster_size,
                                  "an L2 table of a snapshot is at a place "
                                  "where none can be")
           : others != 0
               ? qcow2_overlap_corrupt(s, others, host, s->cluster_size)
               : 0;
}

static int drop_table(struct qcow2 *s, uint64_t host)
{
    struct qcow2_table *t;
    int r = qcow2_drop_check(s, host);

    r = r < 0 ? r : qcow2_cache_get(s->l2, host, false, &t);
    if (r < 0) {
        return r;
    }
    for (uint64_t at = 0; at < qcow2_l2_span(s) && r == 0;
         at += part_of(s, at)) {
        mutex_lock(&s->meta);
        r = qcow2_refs_lower(s, t, at, part_of(s, at));
        mutex_unlock(&s->meta);
    }
    qcow2_cache_put(s->l2, t);
    if (r == 0) {
        mutex_lock(&s->meta);
        r = qcow2_ref_drop(s, host, 1);
        mutex_unlock(&s->meta);
    }
    return r;
}

/* --- What the active disk has alone now --- */

/* Is @t what the L1 entry leads to, and nothing else? */
static bool is_alone(struct qcow2 *s, uint64_t index,
                     const struct qcow2_table *t) REQUIRES(s->meta)
{
    uint64_t entry = atomic_load(&s->l1[index]);
    uint64_t count = 0;

    return (entry & QCOW2_OFFSET_MASK) == t->offset &&
           qcow2_l2_is_table(s, entry) &&
           qcow2_refcount_get(s, t->offset >> s->cluster_bits, &count) == 0 &&
           count == 1;
}

static int own_part(struct qcow2 *s, uint64_t index, struct qcow2_table *t,
                    uint64_t at) REQUIRES(s->meta)
{
    if (!is_alone(s, index, t)) {
        return -EAGAIN;
    }
    int r = qcow2_keep_room(s, t);
    if (r == 0) {
        r = qcow2_refs_own(s, t, at, part_of(s, at));
    }
    if (r == 0 && at + part_of(s, at) == qcow2_l2_span(s) &&
        !(atomic_load(&s->l1[index]) & QCOW2_COPIED)) {
        /* Memory may have COPIED from before a snapshot; the disk has not. */
        qcow2_cache_mark_dirty(s->l2, t);
        atomic_fetch_or(&s->l1[index], QCOW2_COPIED);
        qcow2_span_add(&s->l1_dirty, (uint32_t)index, (uint32_t)index + 1);
    }
    return r;
}

/*
 * -EAGAIN: it is shared, or the guest has got another table meanwhile.  A
 * writer that is copying a cluster has to end first: when COPIED is there,
 * others write in place, and the copy would not have what they write.
 */
static int own_table(struct qcow2 *s, uint64_t index, struct qcow2_table *t)
{
    struct range_req req;
    int r = 0;

    range_lock(&s->range, &req, index * qcow2_l2_span(s), qcow2_l2_span(s),
               true);
    for (uint64_t at = 0; at < qcow2_l2_span(s) && r == 0;
         at += part_of(s, at)) {
        mutex_lock(&s->meta);
        r = own_part(s, index, t, at);
        mutex_unlock(&s->meta);
    }
    range_unlock(&s->range, &req);
    return r;
}

int qcow2_own_entries(struct qcow2 *s, uint64_t index)
{
    uint64_t before;
    int r;

    do {
        struct qcow2_table *t;

        before = atomic_load(&s->l1[index]) & QCOW2_OFFSET_MASK;
        r = qcow2_l2_get(s, index * qcow2_l2_span(s), false, &t);
        if (r == 0 && t) {
            r = own_table(s, index, t);
            qcow2_cache_put(s->l2, t);
        }
    } while (r == -EAGAIN &&
             before != (atomic_load(&s->l1[index]) & QCOW2_OFFSET_MASK));
    return r == -EAGAIN ? 0 : r;
}

/* --- */

int qcow2_drop_disk(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;
    int r = 0;

    for (unsigned n = 0; n < TABLES_AT_ONCE && c->next < c->l1_size && r == 0;
         n++) {
        uint64_t index = c->next++;
        uint64_t host = c->l1[index] & QCOW2_OFFSET_MASK;

        r = host ? drop_table(s, host) : 0;
        if (r == 0 && host && index < s->l1_size) {
            r = qcow2_own_entries(s, index);
        }
    }
    if (r == 0) {
        r = qcow2_relieve(s);
    }
    return r < 0 ? r : c->next < c->l1_size;
}
