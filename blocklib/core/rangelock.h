/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_RANGELOCK_H
#define NBDELTA_CORE_RANGELOCK_H

/*
 * Locks on byte ranges.  Requests that overlap, one of them exclusive, take
 * turns in the order in which they came.  A request waits only for older
 * ones, so that there is no deadlock as long as a thread that holds a range
 * asks for no second one of the same lock.  A range past UINT64_MAX ends
 * there; an empty one overlaps nothing.
 */
#include "nbdelta/list.h"
#include "nbdelta/thread.h"

struct range_lock {
    mutex_t lock;
    struct list requests; /* oldest first; guarded by lock */
};

/* On the stack of the request.  Filled in by range_lock(). */
struct range_req {
    uint64_t offset;
    uint64_t end;
    bool exclusive;
    unsigned blockers; /* older requests in conflict that are still there */
    cond_t turn;       /* in use while it waits */
    struct list in_lock;
};

void range_lock_init(struct range_lock *l);
void range_lock_destroy(struct range_lock *l);

/* Wait until no older request overlaps in conflict. */
void range_lock(struct range_lock *l, struct range_req *r, uint64_t offset,
                uint64_t bytes, bool exclusive);
/* As range_lock(), but false instead of waiting; then @r holds nothing. */
bool range_trylock(struct range_lock *l, struct range_req *r, uint64_t offset,
                   uint64_t bytes, bool exclusive);
void range_unlock(struct range_lock *l, struct range_req *r);

#endif /* NBDELTA_CORE_RANGELOCK_H */
