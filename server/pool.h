/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_POOL_H
#define NBDELTA_SERVER_POOL_H

/* Threads for what may block, shared by all connections. */
#include "nbdelta/list.h"

struct pool;

/* Embed it in what the work is about. */
struct work {
    struct list link;
    void (*fn)(struct work *w);
};

/* At most @max threads that work; those that wait for somebody
 * (thread_wait_begin) do not count: it may be for other work in here.  They
 * are made when there is work for them, and leave when there has been none for
 * a while.  NULL: no memory. */
struct pool *pool_new(unsigned max);

/* No work is left or comes any more. */
void pool_free(struct pool *p);

/* Run w->fn(w) in one of the threads, in the order of submission.  It must not
 * wait for a client.  (When no thread can be had: here and now.) */
void pool_submit(struct pool *p, struct work *w);

#endif /* NBDELTA_SERVER_POOL_H */
