/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The pool of worker threads: which work gets a thread, and when (pool.h).
 *
 *     pool_submit --> share's queue --> go --> a thread
 *                            |           |
 *             while the share has enough |    counted from here on, in
 *             threads, or the pool has   |    `active` or `waiting`
 *
 * Work that may have a thread is counted at once and put into `go`; there are
 * as many threads as `go` needs.  Work that ends, or begins to wait, lets other
 * work follow (let_go_and_start).
 */
#include "nbd/pool.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "nbdelta/thread.h"

#define IDLE_MS 5000

struct share {
    _Atomic unsigned refs;

    /* Guarded by the lock of the pool. */
    struct list queue;   /* of work that has no thread yet */
    struct list in_pool; /* in `crowd`, while the queue has something */
    unsigned active;     /* works that have a thread, or are about to */
    unsigned waiting;    /* works that have a thread and wait for somebody */
};

struct pool {
    unsigned max;

    /* Guarded by lock. */
    mutex_t lock;
    cond_t work;   /* something was put into `go`, or stop */
    cond_t exited; /* a thread has left */
    struct list go;
    struct list crowd; /* shares with a queue: after a turn, one goes last */
    unsigned going;    /* works in `go` */
    unsigned active;   /* in all shares */
    unsigned idle;     /* threads that wait for work */
    unsigned threads;
    bool stop;
    /* The thread that left last; each that leaves joins the one before. */
    pthread_t last;
    bool have_last;
};

/* A thread, and the share whose work it does. */
struct worker {
    struct pool *pool;
    struct share *share;
};

struct pool *pool_new(unsigned max)
{
    struct pool *p = calloc(1, sizeof(*p));

    if (p) {
        p->max = max;
        mutex_init(&p->lock, LOCK_POOL, NULL);
        cond_init(&p->work);
        cond_init(&p->exited);
        list_init(&p->go);
        list_init(&p->crowd);
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

/* --- Shares --- */

struct share *share_new(void)
{
    struct share *s = calloc(1, sizeof(*s));

    if (s) {
        atomic_init(&s->refs, 1);
        list_init(&s->queue);
        list_init(&s->in_pool);
    }
    return s;
}

struct share *share_ref(struct share *s)
{
    atomic_fetch_add(&s->refs, 1);
    return s;
}

void share_unref(struct share *s)
{
    if (s && atomic_fetch_sub(&s->refs, 1) == 1) {
        free(s);
    }
}

/* --- Who may have a thread --- */

static bool may_have_thread(const struct pool *p, const struct share *s)
    REQUIRES(p->lock)
{
    unsigned most = p->max - p->max / 4;

    return s->active < most && s->active + s->waiting < most + SHARE_WAITING &&
           (p->active < p->max || s->active < SHARE_MIN);
}

static void give_thread(struct pool *p, struct share *s) REQUIRES(p->lock)
{
    struct list *first = s->queue.next;

    list_remove(first);
    list_append(&p->go, first);
    p->going++;
    p->active++;
    s->active++;
    list_remove(&s->in_pool);
    if (!list_empty(&s->queue)) {
        list_append(&p->crowd, &s->in_pool);
    }
    cond_signal(&p->work);
}

static bool let_one_go(struct pool *p) REQUIRES(p->lock)
{
    list_for_each (at, &p->crowd) {
        struct share *s = list_entry(at, struct share, in_pool);

        if (may_have_thread(p, s)) {
            give_thread(p, s);
            return true;
        }
    }
    return false;
}

static void *worker_thread(void *arg);

/* Let all work go that may go.  Start threads for it, as many as can be had. */
static void let_go_and_start(struct pool *p) REQUIRES(p->lock)
{
    pthread_t t;

    while (let_one_go(p)) {
    }
    while (p->going > p->idle &&
           thread_start(&t, "nbd-worker", worker_thread, p) == 0) {
        p->threads++;
        p->idle++; /* the thread looks into `go` before it waits */
    }
}

/* --- Threads --- */

/* The next piece of work, or NULL: leave. */
static struct work *next_work_locked(struct pool *p) REQUIRES(p->lock)
{
    while (list_empty(&p->go)) {
        bool woken = !p->stop && cond_wait_ms(&p->work, &p->lock, IDLE_MS);

        if (list_empty(&p->go) && (p->stop || !woken)) {
            return NULL;
        }
    }
    struct work *w = list_entry(p->go.next, struct work, link);
    list_remove(&w->link);
    p->going--;
    return w;
}

/* A worker that waits does not count: work in the queue takes its place. */
static void on_worker_wait(void *opaque, bool waits)
{
    const struct worker *me = opaque;
    struct pool *p = me->pool;

    mutex_lock(&p->lock);
    if (waits) {
        p->active--;
        me->share->active--;
        me->share->waiting++;
        let_go_and_start(p);
    } else {
        p->active++;
        me->share->active++;
        me->share->waiting--;
    }
    mutex_unlock(&p->lock);
}

static void *worker_thread(void *arg)
{
    struct pool *p = arg;
    struct worker me = {.pool = p};
    struct work *w;

    thread_on_wait(on_worker_wait, &me);
    mutex_lock(&p->lock);
    while ((w = next_work_locked(p)) != NULL) {
        p->idle--;
        me.share = w->share;
        mutex_unlock(&p->lock);
        w->fn(w);
        mutex_lock(&p->lock);
        p->idle++; /* if there is more to do, this thread does it next */
        p->active--;
        me.share->active--;
        share_unref(me.share);
        let_go_and_start(p);
    }
    p->idle--;
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

/* Without any thread the submitter does the work itself.  The work is the only
 * one in `go`, because earlier work was done in the same way. */
static bool take_back(struct pool *p, const struct work *w) REQUIRES(p->lock)
{
    if (p->threads > 0) {
        return false;
    }
    list_remove(p->go.next);
    p->going--;
    p->active--;
    w->share->active--;
    return true;
}

void pool_submit(struct pool *p, struct share *s, struct work *w)
{
    w->share = share_ref(s);
    mutex_lock(&p->lock);
    if (list_empty(&s->queue)) {
        list_append(&p->crowd, &s->in_pool);
    }
    list_append(&s->queue, &w->link);
    let_go_and_start(p);
    bool here = take_back(p, w);
    mutex_unlock(&p->lock);
    if (here) {
        w->fn(w);
        share_unref(s);
    }
}
