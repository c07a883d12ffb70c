/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NBD_POOL_H
#define NBDELTA_SERVER_NBD_POOL_H

/*
 * Threads for what may block, shared by all connections
 * =====================================================
 *
 * Work that blocks may block for ever, because storage that hangs gives nothing
 * back.  So each disk has a share, in whose name its work is done:
 *
 *   - a share has at most three quarters of the threads,
 *   - and SHARE_MIN of its own, beside all others, whenever it needs them;
 *   - threads that wait for somebody (thread_wait_begin) do not count, because
 *     they may wait for other work in here, up to SHARE_WAITING of a share.
 *
 * So whatever other disks do, the work of a healthy disk finds a thread, and
 * the number of threads has a bound.
 */
#include "nbdelta/list.h"

#define SHARE_MIN     4
#define SHARE_WAITING 64

struct pool;
struct share;

/* Embed it in the object that the work is about. */
struct work {
    struct list link;
    void (*fn)(struct work *w);
    struct share *share; /* used by the pool until fn is called */
};

/* A pool of at most @max threads that work, beside the SHARE_MIN of each share.
 * Threads are started when there is work for them, and leave when there has
 * been none for a while.  NULL: no memory. */
struct pool *pool_new(unsigned max);

/* Call it when no work is left or comes any more. */
void pool_free(struct pool *p);

/* A share with one reference.  NULL: no memory. */
struct share *share_new(void);
struct share *share_ref(struct share *s);
void share_unref(struct share *s); /* NULL is fine */

/* Run w->fn(w) in one of the threads, in the order of submission to @s.  When
 * no thread can be had, run it here and now.  The function must not wait for a
 * client.  @s may lose its last other reference meanwhile. */
void pool_submit(struct pool *p, struct share *s, struct work *w);

#endif /* NBDELTA_SERVER_NBD_POOL_H */
