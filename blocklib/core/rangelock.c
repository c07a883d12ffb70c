/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Range locks: a queue of all requests.  Requests that hold their range and
 * requests that wait stand in one list, in the order in which they came.  Each
 * counts the older ones that it conflicts with.  A request that leaves counts
 * down the younger ones, and wakes each that comes to zero:
 *
 *     A [0, 8) excl   B [4, 6) excl   C [5, 9) shared   D [8, 12) shared
 *     blockers 0      1: A            2: A, B           0
 *
 * A conflict cannot appear or vanish while both are in the list, so that
 * counting once is enough, and nobody is overtaken.
 */
#include "core/rangelock.h"

void range_lock_init(struct range_lock *l)
{
    mutex_init(&l->lock, LOCK_RANGE, NULL);
    list_init(&l->requests);
}

void range_lock_destroy(struct range_lock *l)
{
    mutex_destroy(&l->lock);
}

static bool ranges_conflict(const struct range_req *a,
                            const struct range_req *b)
{
    return (a->exclusive || b->exclusive) && a->offset < b->end &&
           b->offset < a->end && a->offset < a->end && b->offset < b->end;
}

/* Fill in @r, which is not in the list yet, and count the requests in its
 * way. */
static void request_init_locked(struct range_lock *l, struct range_req *r,
                                uint64_t offset, uint64_t bytes, bool exclusive)
    REQUIRES(l->lock);
static void request_init_locked(struct range_lock *l, struct range_req *r,
                                uint64_t offset, uint64_t bytes, bool exclusive)
{
    r->offset = offset;
    r->end = bytes <= UINT64_MAX - offset ? offset + bytes : UINT64_MAX;
    r->exclusive = exclusive;
    r->blockers = 0;
    list_for_each (e, &l->requests) {
        if (ranges_conflict(list_entry(e, struct range_req, in_lock), r)) {
            r->blockers++;
        }
    }
}

void range_lock(struct range_lock *l, struct range_req *r, uint64_t offset,
                uint64_t bytes, bool exclusive)
{
    mutex_lock(&l->lock);
    request_init_locked(l, r, offset, bytes, exclusive);
    list_append(&l->requests, &r->in_lock);
    if (r->blockers > 0) {
        cond_init(&r->turn);
        while (r->blockers > 0) {
            cond_wait(&r->turn, &l->lock);
        }
        cond_destroy(&r->turn);
    }
    mutex_unlock(&l->lock);
}

bool range_trylock(struct range_lock *l, struct range_req *r, uint64_t offset,
                   uint64_t bytes, bool exclusive)
{
    bool ok;

    mutex_lock(&l->lock);
    request_init_locked(l, r, offset, bytes, exclusive);
    ok = r->blockers == 0;
    if (ok) {
        list_append(&l->requests, &r->in_lock);
    }
    mutex_unlock(&l->lock);
    return ok;
}

void range_unlock(struct range_lock *l, struct range_req *r)
{
    mutex_lock(&l->lock);
    /* Look at younger requests only: an older one did not wait for this one. */
    for (struct list *e = r->in_lock.next; e != &l->requests; e = e->next) {
        struct range_req *younger = list_entry(e, struct range_req, in_lock);

        if (ranges_conflict(younger, r) && --younger->blockers == 0) {
            cond_signal(&younger->turn);
        }
    }
    list_remove(&r->in_lock);
    mutex_unlock(&l->lock);
}
