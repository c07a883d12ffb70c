/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Calls of librbd that somebody waits for no longer than a limit.
 *
 *     caller   begin ------- wait ----- until it has ended, or the limit
 *     thread          work ....................... late
 *
 * No call of librbd can be ended, and while a cluster does not answer none
 * ends.  So a thread makes it.  When the caller has given up, the thread undoes
 * what it has done in the end, if there is anything (`late`).  It has a
 * reference to the image, which so outlives its node.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/rbd.h"
#include "nbdelta/bytes.h"
#include "nbdelta/module.h"

#define CLOSE_NS UINT64_C(1000000000)

/* --- Calls that are late --- */

/* It outlives the node while there are calls. */
struct rbd_late {
    _Atomic unsigned refs;
    _Atomic unsigned calls;
};

struct rbd_late *rbd_late_new(void)
{
    struct rbd_late *l = calloc(1, sizeof(*l));

    if (l) {
        atomic_init(&l->refs, 1);
    }
    return l;
}

void rbd_late_put(struct rbd_late *l)
{
    if (l && atomic_fetch_sub(&l->refs, 1) == 1) {
        free(l);
    }
}

bool rbd_late_any(const struct rbd_late *l)
{
    return atomic_load(&l->calls) > 0;
}

/* --- Calls --- */

struct rbd_call *rbd_call_new(struct node *n, int (*work)(struct rbd_call *c),
                              const char *name, const char *to)
{
    const struct rbd *s = n->state;
    struct rbd_call *c = calloc(1, sizeof(*c));

    if (!c) {
        return NULL;
    }
    c->work = work;
    c->m = s->m;
    c->image = s->image;
    c->name = name ? strdup(name) : NULL;
    c->to = to ? strdup(to) : NULL;
    c->count = s->late;
    c->refs = 1;
    if ((name && !c->name) || (to && !c->to)) {
        free(c->name);
        free(c->to);
        free(c);
        return NULL;
    }
    c->m->ref(c->image);
    atomic_fetch_add(&c->count->refs, 1);
    mutex_init(&c->lock, LOCK_RBD, NULL);
    cond_init(&c->ended_cond);
    return c;
}

void rbd_call_free(struct rbd_call *c)
{
    if (!c) {
        return;
    }
    mutex_lock(&c->lock);
    bool last = --c->refs == 0;
    mutex_unlock(&c->lock);
    if (!last) {
        return;
    }
    if (c->list) {
        c->m->snapshots_free(c->list, c->list_count);
    }
    if (c->image) {
        c->m->unref(c->image);
    }
    rbd_late_put(c->count);
    cond_destroy(&c->ended_cond);
    mutex_destroy(&c->lock);
    free(c->extents);
    free(c->name);
    free(c->to);
    free(c);
}

static void *call_thread(void *arg)
{
    struct rbd_call *c = arg;
    int r = c->work(c);

    mutex_lock(&c->lock);
    c->result = r;
    c->ended = true;
    bool given_up = c->given_up;
    cond_broadcast(&c->ended_cond);
    mutex_unlock(&c->lock);
    if (given_up && r == 0 && c->late) {
        c->late(c);
    }
    if (given_up) {
        atomic_fetch_sub(&c->count->calls, 1);
    }
    rbd_call_free(c);
    module_leave();
    return NULL;
}

int rbd_call_begin(struct rbd_call *c)
{
    pthread_t thread;

    c->refs++; /* there is no thread yet */
    module_enter();
    int r = thread_start(&thread, "rbd-call", call_thread, c);
    if (r < 0) {
        c->refs--;
        module_leave();
        return r;
    }
    (void)pthread_detach(thread);
    return 0;
}

int rbd_call_wait(struct rbd_call *c, uint64_t until)
{
    uint64_t now;

    mutex_lock(&c->lock);
    while (!c->ended && (now = now_ns()) < until) {
        (void)cond_wait_ms(&c->ended_cond, &c->lock,
                           div_up(until - now, 1000000));
    }
    c->given_up = !c->ended;
    atomic_fetch_add(&c->count->calls, c->given_up);
    int r = c->ended ? c->result : -ETIMEDOUT;
    mutex_unlock(&c->lock);
    return r;
}

int rbd_call_run(struct rbd_call *c, unsigned seconds)
{
    int r = rbd_call_begin(c);

    return r < 0 ? r
                 : rbd_call_wait(c, now_ns() + seconds * UINT64_C(1000000000));
}

static int do_close(struct rbd_call *c)
{
    struct ceph_image *image = c->image;

    c->image = NULL;
    c->m->unref(image);
    c->m->close(image);
    return 0;
}

void rbd_close_soon(struct node *n)
{
    const struct rbd *s = n->state;
    struct rbd_call *c = rbd_call_new(n, do_close, NULL, NULL);

    if (c && rbd_call_begin(c) == 0) {
        (void)rbd_call_wait(c, now_ns() + CLOSE_NS);
    } else {
        s->m->close(s->image);
    }
    rbd_call_free(c);
}
