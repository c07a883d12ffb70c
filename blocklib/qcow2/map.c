/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where is a guest range?  The two-level walk, without locks of its own.
 *
 *   guest offset:  [ L1 index | L2 index | in cluster ]
 *                      |           |
 *        s->l1[] ------+--> L2 ----+--> entry -> host cluster  (l2.c)
 *
 * Tickets.  A mapping that was handed out must stay true while its bytes are
 * moved: the cluster may be unlinked meanwhile, but not reused.  A request that
 * maps counts itself in users[epoch & 1] *before* it loads the entry.  A
 * cluster unlinked in epoch e is released when the epoch has reached e + 2, and
 * the epoch advances from x to x + 1 only while users[(x + 1) & 1] is zero: so
 * every request that could have seen the old entry has dropped its ticket.
 *
 * Subclusters.  The place of a cluster and the bits of its subclusters are two
 * words, and a reader gets both of one moment (l2-entry.h): a count of changes
 * in the table tells it to look again.  It never sees a place with bits of
 * another time, so it never goes to the backing file for what the guest has
 * written.  A bit says that a subcluster has data only once the data is there.
 */
#include <errno.h>

#include "nbdelta/graph.h"
#include "qcow2/copied.h"
#include "qcow2/encrypt.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"

unsigned qcow2_ticket_take(struct qcow2 *s)
{
    unsigned ticket = atomic_load(&s->epoch) & 1;
    atomic_fetch_add(&s->users[ticket], 1);
    return ticket;
}

void qcow2_ticket_drop(struct qcow2 *s, unsigned ticket)
{
    atomic_fetch_sub(&s->users[ticket], 1);
}

int qcow2_l2_get(struct qcow2 *s, uint64_t offset, bool nowait,
                 struct qcow2_table **tp)
{
    uint64_t entry = atomic_load(&s->l1[offset / qcow2_l2_span(s)]);
    uint64_t host = entry & QCOW2_OFFSET_MASK;

    if (host == 0) {
        *tp = NULL;
        return 0;
    }
    if (qcow2_in_cluster(s, host) != 0) {
        return qcow2_corrupt_at(s, host, s->cluster_size,
                                "an L2 table has no cluster of its own");
    }
    return qcow2_cache_get(s->l2, host, nowait, tp);
}

/* Bytes from @offset on without any L2 table, counted by whole L1 entries. */
static uint64_t unallocated_run(const struct qcow2 *s, uint64_t offset,
                                uint64_t bytes)
{
    uint64_t span = qcow2_l2_span(s);
    uint64_t end = offset + qcow2_l2_rest(s, offset);

    while (end < offset + bytes &&
           !(atomic_load(&s->l1[end / span]) & QCOW2_OFFSET_MASK)) {
        end += span;
    }
    return min_u64(bytes, end - offset);
}

/* @own: nobody else refers to the table. */
static int fill_mapping(struct qcow2 *s, const struct qcow2_at *at, bool own,
                        unsigned flags, struct mapping *m)
{
    if (at->wrong || at->contradicts) {
        return qcow2_l2_check(s, at);
    }
    *m = (struct mapping){.kind = MAP_DATA};
    m->length = at->bytes;
    switch (at->kind) {
    case QCOW2_KIND_UNALLOCATED_ALLOC:
        m->file = s->data;
        m->host = at->host;
        m->kind = MAP_UNALLOCATED;
        break;
    case QCOW2_KIND_UNALLOCATED:
        m->kind = MAP_UNALLOCATED;
        break;
    case QCOW2_KIND_ZERO_ALLOC:
        m->file = s->data;
        m->host = at->host;
        m->host_zero = true;
        m->coded = s->luks != NULL;
        m->kind = MAP_ZERO;
        break;
    case QCOW2_KIND_ZERO_PLAIN:
        m->kind = MAP_ZERO;
        break;
    case QCOW2_KIND_COMPRESSED:
        m->kind = MAP_OPAQUE;
        m->compressed = true;
        break;
    case QCOW2_KIND_NORMAL:
        if (!s->data || qcow2_is_locked(s)) {
            return -ENOMEDIUM;
        }
        m->kind = MAP_DATA;
        m->file = s->data;
        m->host = at->host;
        m->coded = s->luks != NULL;
        break;
    }
    if (!(flags & MAP_WRITE)) {
        return 0;
    }
    if (m->kind != MAP_DATA || !own || !at->copied ||
        atomic_load(&s->copied.mending)) {
        m->kind = MAP_OPAQUE;
    }
    if (m->kind != MAP_DATA) {
        return 0;
    }
    qcow2_copied_overwrite(s, m->host, m->length);
    return s->external ? 0 : qcow2_overlap_check(s, 0, m->host, m->length);
}

/* So many are looked up at once; they are on the stack. */
#define MAPPINGS_AT_ONCE 32

/* Fill in mappings from the L2 table @t, which is pinned: to the end of the
 * range or of the table, or until there are *count.  What is wrong behind the
 * first one is found by who asks for that. */
static int look_in_table(struct qcow2 *s, const struct qcow2_table *t, bool own,
                         uint64_t offset, uint64_t bytes, unsigned flags,
                         struct mapping *m, unsigned *count)
{
    struct qcow2_at at[MAPPINGS_AT_ONCE];
    unsigned n = *count < MAPPINGS_AT_ONCE ? *count : MAPPINGS_AT_ONCE;
    int r = 0;

    n = qcow2_l2_look_many(s, t, offset, bytes, at, n);
    for (*count = 0; *count < n; (*count)++) {
        r = fill_mapping(s, &at[*count], own, flags, &m[*count]);
        if (r < 0) {
            break;
        }
    }
    return *count > 0 ? 0 : r;
}

/* Fill in mappings from the L2 table, or from the fact that there is none. */
static int look_up(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                   unsigned flags, struct mapping *m, unsigned *count)
{
    /* It is looked at before the table: it comes at any time, and goes only
     * while the tree is drained. */
    bool own = atomic_load(&s->l1[offset / qcow2_l2_span(s)]) & QCOW2_COPIED;
    struct qcow2_table *t = NULL;
    int r = qcow2_l2_get(s, offset, flags & MAP_NOWAIT, &t);
    if (r < 0) {
        return r;
    }
    if (!t) {
        *m = (struct mapping){
            .kind = flags & MAP_WRITE ? MAP_OPAQUE : MAP_UNALLOCATED,
            .length = unallocated_run(s, offset, bytes),
        };
        *count = 1;
        return 0;
    }
    r = look_in_table(s, t, own, offset, bytes, flags, m, count);
    qcow2_cache_put(s->l2, t);
    return r;
}

int qcow2_map_many(struct node *n, uint64_t offset, uint64_t bytes,
                   unsigned flags, struct mapping *m, unsigned *count)
{
    struct qcow2 *s = n->state;

    if ((flags & MAP_WRITE) && atomic_load(&s->corrupt)) {
        return -EIO;
    }
    unsigned ticket = qcow2_ticket_take(s);
    int r = look_up(s, offset, bytes, flags, m, count);
    if (r < 0) {
        qcow2_ticket_drop(s, ticket);
        return r;
    }
    m->ticket = ticket;
    return 0;
}

int qcow2_map(struct node *n, uint64_t offset, uint64_t bytes, unsigned flags,
              struct mapping *m)
{
    unsigned one = 1;

    return qcow2_map_many(n, offset, bytes, flags, m, &one);
}

void qcow2_map_put(struct node *n, struct mapping *m)
{
    qcow2_ticket_drop(n->state, m->ticket);
}
