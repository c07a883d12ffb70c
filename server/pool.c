/* SPDX-License-Identifier: BSD-3-Clause */
#include "pool.h"

#include <stdlib.h>

#include "nbdelta/thread.h"

#define IDLE_MS 5000

struct pool {
    unsigned max;

    /* Guarded by lock. */
    mutex_t lock;
    cond_t work;   /* something was queued, or stop */
    cond_t exited; /* a thread has left */
    struct list queue;
    unsigned queued;
    unsigned idle; /* threads that wait for work */
    unsigned threads;
    unsigned waiting; /* of these, for somebody (thread_wait_begin) */
    bool stop;
    /* The thread that left last; each that leaves joins the one before. */
    pthread_t last;
    bool have_last;
};

struct pool *pool_new(unsigned max)
{
    struct pool *p = calloc(1, sizeof(*p));

    if (p) {
        p->max = max;
        mutex_init(&p->lock);
        cond_init(&p->work);
        cond_init(&p->exited);
        list_init(&p->queue);
    }
    return p;
}

void pool_free(struct pool *p)
{
    if (!p) {
        return;
    }
    mutex_lock(&p->lock);
    p->stop = true;
    cond_broadcast(&p->work);
    while (p->threads > 0) {
        cond_wait(&p->exited, &p->lock);
    }
    mutex_unlock(&p->lock);
    if (p->have_last) {
        thread_join(p->last);
    }
    cond_destroy(&p->exited);
    cond_destroy(&p->work);
    mutex_destroy(&p->lock);
    free(p);
}

/* The next piece of work, or NULL: leave. */
static struct work *next_locked(struct pool *p) REQUIRES(p->lock)
{
    if (p->threads > p->max + p->waiting) {
        return NULL; /* those who waited are back */
    }
    while (list_empty(&p->queue)) {
        bool woken = true;

        if (!p->stop) {
            p->idle++;
            woken = cond_wait_ms(&p->work, &p->lock, IDLE_MS);
            p->idle--;
        }
        if (list_empty(&p->queue) && (p->stop || !woken)) {
            return NULL;
        }
    }
    struct work *w = list_entry(p->queue.next, struct work, link);
    list_remove(&w->link);
    p->queued--;
    return w;
}

static void *worker(void *arg);

/* Is there a thread that will take what is queued? */
static bool enough_threads(struct pool *p) REQUIRES(p->lock)
{
    pthread_t t;

    if (p->queued > p->idle && p->threads < p->max + p->waiting &&
        thread_start(&t, "nbd-worker", worker, p) == 0) {
        p->threads++;
    }
    return p->threads > 0;
}

/* One that waits is as good as none, for those in the queue. */
static void on_wait(void *opaque, bool waits)
{
    struct pool *p = opaque;

    mutex_lock(&p->lock);
    if (waits) {
        p->waiting++;
        (void)enough_threads(p);
    } else {
        p->waiting--;
    }
    mutex_unlock(&p->lock);
}

static void *worker(void *arg)
{
    struct pool *p = arg;
    struct work *w;

    thread_on_wait(on_wait, p);
    mutex_lock(&p->lock);
    while ((w = next_locked(p)) != NULL) {
        mutex_unlock(&p->lock);
        w->fn(w);
        mutex_lock(&p->lock);
    }
    pthread_t before = p->last;
    bool join = p->have_last;
    p->last = pthread_self();
    p->have_last = true;
    p->threads--;
    cond_signal(&p->exited);
    mutex_unlock(&p->lock);
    if (join) {
        thread_join(before);
    }
    return NULL;
}

void pool_submit(struct pool *p, struct work *w)
{
    mutex_lock(&p->lock);
    list_append(&p->queue, &w->link);
    p->queued++;
    bool queued = enough_threads(p);
    if (queued) {
        cond_signal(&p->work);
    } else {
        list_remove(&w->link);
        p->queued--;
    }
    mutex_unlock(&p->lock);
    if (!queued) {
        w->fn(w);
    }
}
