/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_MISCHIEF_H
#define NBDELTA_TESTS_MISCHIEF_H

/* A filter that can hold up or fail the requests that go through it, for tests
 * of jobs. */
#include <check.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

struct trap {
    _Atomic int reads;      /* seen */
    _Atomic int writes;     /* seen, with zeroes */
    _Atomic int looks;      /* questions what is where */
    _Atomic int read_error; /* 0 or what all reads fail with */
    _Atomic int write_error;
    _Atomic int flush_error;
    mutex_t lock;
    cond_t moved;
    bool closed; /* the gate: requests that arrive wait */
    int most;    /* but no more than so many, the others pass; 0: all wait */
    int waiting;
};

static inline void trap_gate(struct trap *t, bool closed)
{
    mutex_lock(&t->lock);
    t->closed = closed;
    cond_broadcast(&t->moved);
    mutex_unlock(&t->lock);
}

static inline bool trap_is_closed(struct trap *t)
{
    mutex_lock(&t->lock);
    bool closed = t->closed;
    mutex_unlock(&t->lock);
    return closed;
}

/* Until @count requests stand at the gate. */
static inline void trap_wait(struct trap *t, int count)
{
    mutex_lock(&t->lock);
    while (t->waiting < count) {
        cond_wait(&t->moved, &t->lock);
    }
    mutex_unlock(&t->lock);
}

static inline void trap_pass(struct trap *t)
{
    mutex_lock(&t->lock);
    if (t->most == 0 || t->waiting < t->most) {
        t->waiting++;
        cond_broadcast(&t->moved);
        while (t->closed) {
            cond_wait(&t->moved, &t->lock);
        }
        t->waiting--;
    }
    mutex_unlock(&t->lock);
}

static inline int trap_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                              const struct iovec *iov, int cnt, unsigned flags)
{
    struct trap *t = n->state;

    if ((flags & REQ_NOWAIT) && trap_is_closed(t)) {
        return -EAGAIN;
    }
    t->reads++;
    trap_pass(t);
    return t->read_error ? t->read_error
                         : node_preadv(node_child(n, CHILD_FILE), offset, bytes,
                                       iov, cnt, flags);
}

static inline int trap_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                               const struct iovec *iov, int cnt, unsigned flags)
{
    struct trap *t = n->state;

    t->writes++;
    trap_pass(t);
    return t->write_error ? t->write_error
                          : node_pwritev(node_child(n, CHILD_FILE), offset,
                                         bytes, iov, cnt, flags);
}

static inline int trap_zero(struct node *n, uint64_t offset, uint64_t bytes,
                            unsigned flags)
{
    struct trap *t = n->state;

    t->writes++;
    trap_pass(t);
    return t->write_error
               ? t->write_error
               : node_zero(node_child(n, CHILD_FILE), offset, bytes, flags);
}

static inline int trap_flush(struct node *n)
{
    struct trap *t = n->state;
    return t->flush_error ? t->flush_error
                          : node_flush(node_child(n, CHILD_FILE));
}

/* A user asks what is where. */
static int trap_status(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct trap *t = n->state;

    (void)offset;
    (void)bytes;
    atomic_fetch_add(&t->looks, 1);
    return 0;
}

static const struct driver driver_trap = {
    .name = "trap",
    .is_filter = true,
    .state_size = sizeof(struct trap),
    .flags_zero = REQ_MAY_UNMAP,
    .preadv = trap_preadv,
    .pwritev = trap_pwritev,
    .zero = trap_zero,
    .flush = trap_flush,
    .status = trap_status,
};

#endif /* NBDELTA_TESTS_MISCHIEF_H */
