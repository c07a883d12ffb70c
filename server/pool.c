/* SPDX-License-Identifier: BSD-3-Clause */
#include "pool.h"

#include <stdlib.h>

#include "nbdelta/thread.h"

#define IDLE_MS 10000

struct pool {
    unsigned max; /* threads that are at work */

    mutex_t lock;
    cond_t wanted;  /* there is work, or the end has come */
    cond_t drained; /* the last thread has gone */

    /* Guarded by lock. */
    struct work *first;
    struct work **last;
    unsigned threads;
    unsigned idle;
    unsigned waiting; /* for clients: beyond the limit */
    bool stopping;
};

struct pool *pool_new(unsigned max_threads)
{
    struct pool *p = calloc(1, sizeof(*p));

    if (p) {
        p->max = max_threads;
        p->last = &p->first;
        mutex_init(&p->lock);
        cond_init(&p->wanted);
        cond_init(&p->drained);
    }
    return p;
}

void pool_free(struct pool *p)
{
    if (!p) {
        return;
    }
    mutex_lock(&p->lock);
    p->stopping = true;
    cond_broadcast(&p->wanted);
    while (p->threads > 0) {
        cond_wait(&p->drained, &p->lock);
    }
    mutex_unlock(&p->lock);
    cond_destroy(&p->wanted);
    cond_destroy(&p->drained);
    mutex_destroy(&p->lock);
    free(p);
}

static struct work *take_locked(struct pool *p) REQUIRES(p->lock)
{
    struct work *w = p->first;

    if (w) {
        p->first = w->next;
        if (!p->first) {
            p->last = &p->first;
        }
    }
    return w;
}

/* Work, or NULL when the thread shall end. */
static struct work *wait_for_work(struct pool *p) REQUIRES(p->lock)
{
    struct work *w = take_locked(p);
    bool in_time = true;

    p->idle++;
    while (!w && !p->stopping && in_time) {
        in_time = cond_wait_ms(&p->wanted, &p->lock, IDLE_MS);
        w = take_locked(p);
    }
    p->idle--;
    return w;
}

static void *pool_thread(void *arg)
{
    struct pool *p = arg;
    struct work *w;

    mutex_lock(&p->lock);
    while ((w = wait_for_work(p))) {
        mutex_unlock(&p->lock);
        w->run(w);
        mutex_lock(&p->lock);
    }
    if (--p->threads == 0) {
        cond_broadcast(&p->drained);
    }
    mutex_unlock(&p->lock);
    return NULL;
}

static void grow_locked(struct pool *p) REQUIRES(p->lock)
{
    pthread_t t;

    if (p->threads - p->waiting < p->max &&
        thread_start(&t, "worker", pool_thread, p) == 0) {
        (void)pthread_detach(t);
        p->threads++;
    }
}

void pool_submit(struct pool *p, struct work *w)
{
    w->next = NULL;
    mutex_lock(&p->lock);
    if (p->idle == 0) {
        grow_locked(p);
    }
    bool alone = p->threads == 0;
    if (!alone) {
        *p->last = w;
        p->last = &w->next;
        cond_signal(&p->wanted);
    }
    mutex_unlock(&p->lock);
    if (alone) {
        w->run(w);
    }
}

void pool_wait_begin(struct pool *p)
{
    mutex_lock(&p->lock);
    p->waiting++;
    if (p->first && p->idle == 0) {
        grow_locked(p);
    }
    mutex_unlock(&p->lock);
}

void pool_wait_end(struct pool *p)
{
    mutex_lock(&p->lock);
    p->waiting--;
    mutex_unlock(&p->lock);
}
