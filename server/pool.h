/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_POOL_H
#define NBDELTA_SERVER_POOL_H

/*
 * Threads for work that blocks.  They are started when work waits and nobody
 * is idle, up to a limit, and end when they have been idle for a while.
 */
struct pool;

/* Embedded in what is to be done. */
struct work {
    void (*run)(struct work *w);
    struct work *next;
};

struct pool *pool_new(unsigned max_threads);

/* All work is done, no new one comes.  NULL is fine. */
void pool_free(struct pool *p);

/* Have w->run(w) called by some thread; by the caller if there is none and
 * none can be started. */
void pool_submit(struct pool *p, struct work *w);

/* Around a wait for a client: such a thread does not count towards the limit,
 * so that stuck clients cannot use up the pool. */
void pool_wait_begin(struct pool *p);
void pool_wait_end(struct pool *p);

#endif /* NBDELTA_SERVER_POOL_H */
