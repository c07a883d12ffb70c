/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NBD_POOL_H
#define NBDELTA_SERVER_NBD_POOL_H

/*
 * Threads for what may block, shared by all connections
 * =====================================================
 *
 * What blocks may block for ever: storage that hangs gives nothing back.  So
 * work is done in the name of a share, which is one disk's:
 *
 *   - a share has at most three quarters of the threads,
 *   - and SHARE_MIN of its own, beside all others, whenever it needs them;
 *   - those that wait for somebody (thread_wait_begin) do not count, as it may
 *     be for other work in here, up to SHARE_WAITING of a share.
 *
 * So whatever other disks do, work of a healthy one finds a thread, and the
 * number of threads has a bound.
 */
#include "nbdelta/list.h"

#define SHARE_MIN     4
#define SHARE_WAITING 64

struct pool;
struct share;

/* Embed it in what the work is about. */
struct work {
    struct list link;
    void (*fn)(struct work *w);
    struct share *share; /* the pool's, until fn is called */
};

/* At most @max threads that work, beside those that shares have of their own.
 * They are made when there is work for them, and leave when there has been
 * none for a while.  NULL: no memory. */
struct pool *pool_new(unsigned max);

/* No work is left or comes any more. */
void pool_free(struct pool *p);

/* With one reference.  NULL: no memory. */
struct share *share_new(void);
struct share *share_ref(struct share *s);
void share_unref(struct share *s); /* NULL is fine */

/* Run w->fn(w) in one of the threads, in the order of submission to @s, which
 * may lose its last other reference meanwhile.  It must not wait for a client.
 * (When no thread can be had: here and now.) */
void pool_submit(struct pool *p, struct share *s, struct work *w);

#endif /* NBDELTA_SERVER_NBD_POOL_H */
