/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening an image of Ceph: it is far away, and may not answer at all.
 *
 *     graph_open   section:  open -> toil_leave -> -EINPROGRESS
 *                  outside:  run: a thread opens, we wait for it or give up
 *                  section:  open -> toil_find: the image
 *
 * librbd's calls wait without a limit, and nothing ends them.  So a thread of
 * its own makes them.  When the opener has given up, that thread closes what it
 * has opened in the end.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph-priv.h"
#include "core/toil.h"
#include "drivers/rbd.h"
#include "nbdelta/error.h"
#include "nbdelta/module.h"

/* An opener waits so long. */
#define OPEN_MS 60000
/* How often it looks whether it is to stop. */
#define LOOK_MS 100

int rbd_module(const struct ceph_module **m, struct error **errp)
{
    static _Atomic(const void *) loaded;
    const void *table = atomic_load(&loaded);

    if (!table) {
        int r = module_load(CEPH_MODULE, "rbd", NBDELTA_VERSION, &table, errp);

        if (r < 0) {
            error_prefix(errp, "driver 'rbd' needs the package "
                               "" CEPH_MODULE_PACKAGE ": ");
            return r;
        }
        atomic_store(&loaded, table);
    }
    *m = table;
    return 0;
}

/* --- The thread --- */

struct opening {
    const struct ceph_module *m;
    struct ceph_place place;

    mutex_t lock;
    cond_t ended_cond;

    /* Guarded by lock. */
    unsigned refs; /* the toil and the thread */
    bool ended;
    int result;
    struct error *error;
    struct ceph_image *image; /* of success, until it is taken */
};

static void opening_put(struct opening *o)
{
    mutex_lock(&o->lock);
    bool last = --o->refs == 0;
    mutex_unlock(&o->lock);
    if (!last) {
        return;
    }
    if (o->image) {
        o->m->close(o->image);
    }
    error_free(o->error);
    rbd_place_free(&o->place);
    cond_destroy(&o->ended_cond);
    mutex_destroy(&o->lock);
    free(o);
}

static void *open_thread(void *arg)
{
    struct opening *o = arg;
    struct ceph_image *image = NULL;
    struct error *err = NULL;
    int r = o->m->open(&o->place, &image, &err);

    mutex_lock(&o->lock);
    o->result = r;
    o->error = err;
    o->image = image;
    o->ended = true;
    cond_broadcast(&o->ended_cond);
    mutex_unlock(&o->lock);
    opening_put(o);
    module_leave();
    return NULL;
}

/* False: it has not ended in time. */
static bool wait_for_end(struct opening *o, bool (*stop)(void *opaque),
                         void *opaque)
{
    bool ended = false;

    for (unsigned waited = 0;
         !ended && waited < OPEN_MS && !stop(opaque); /* that takes a lock */
         waited += LOOK_MS) {
        mutex_lock(&o->lock);
        if (!o->ended) {
            (void)cond_wait_ms(&o->ended_cond, &o->lock, LOOK_MS);
        }
        ended = o->ended;
        mutex_unlock(&o->lock);
    }
    return ended;
}

static int opening_run(struct opening *o, bool (*stop)(void *opaque),
                       void *opaque, struct error **errp)
{
    pthread_t thread;

    o->refs++; /* there is no thread yet */
    module_enter();
    int r = thread_start(&thread, "rbd-open", open_thread, o);
    if (r < 0) {
        o->refs--;
        module_leave();
        return error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
    }
    (void)pthread_detach(thread);
    if (!wait_for_end(o, stop, opaque)) {
        return error_set(errp, ETIMEDOUT,
                         "error connecting: the cluster of '%s/%s' does not "
                         "answer",
                         o->place.pool, o->place.image);
    }
    if (o->result < 0 && errp) {
        error_free(*errp); /* that it takes seconds */
        *errp = o->error;
        o->error = NULL;
    }
    return o->result;
}

/* --- The toil --- */

static const char toil_kind;

struct open_toil {
    struct toil toil;
    const json_t *options; /* of the node, which stays: in the caller's */
    struct opening *o;
};

static struct open_toil *toil_of(struct toil *t)
{
    return list_entry(t, struct open_toil, toil);
}

static void toil_free_(struct toil *t)
{
    struct open_toil *ot = toil_of(t);

    json_decref((json_t *)(uintptr_t)ot->options);
    opening_put(ot->o);
    free(ot);
}

static int toil_run(struct toil *t, bool (*stop)(void *opaque), void *opaque,
                    struct error **errp)
{
    return opening_run(toil_of(t)->o, stop, opaque, errp);
}

/* The image for a node of these options, which nobody has taken yet. */
static bool toil_fits(const struct toil *t, const void *opaque)
{
    const struct open_toil *ot = list_entry((struct toil *)(uintptr_t)t,
                                            struct open_toil, toil);
    const struct node *n = opaque;

    return ot->o->image && ot->o->place.read_only == node_read_only(n) &&
           ot->o->place.cache == !n->flags.direct &&
           json_equal(ot->options, n->options);
}

static struct opening *opening_new(const struct ceph_module *m,
                                   struct ceph_place *p)
{
    struct opening *o = calloc(1, sizeof(*o));

    if (o) {
        o->m = m;
        o->place = *p;
        *p = (struct ceph_place){0};
        o->refs = 1;
        mutex_init(&o->lock, LOCK_RBD, NULL);
        cond_init(&o->ended_cond);
    }
    return o;
}

static int leave(struct node *n, struct opening *o, struct error **errp)
{
    struct open_toil *ot = calloc(1, sizeof(*ot));

    if (!ot) {
        opening_put(o);
        return error_nomem(errp);
    }
    ot->toil.kind = &toil_kind;
    ot->toil.run = toil_run;
    ot->toil.free = toil_free_;
    list_init(&ot->toil.in_set);
    ot->options = json_incref(n->options);
    ot->o = o;
    return toil_leave(n->graph, &ot->toil, errp);
}

static bool never(void *opaque)
{
    (void)opaque;
    return false;
}

int rbd_open_image(struct node *n, struct ceph_place *p,
                   struct ceph_image **imagep, struct error **errp)
{
    struct rbd *s = n->state;
    struct toil *t = toil_find(n->graph, &toil_kind, toil_fits, n);
    struct opening *o = t ? toil_of(t)->o : opening_new(s->m, p);

    if (!o) {
        return error_nomem(errp);
    }
    if (!t && n->graph->toils) {
        return leave(n, o, errp);
    }
    int r = t ? 0 : opening_run(o, never, NULL, errp);
    if (r == 0) {
        *imagep = o->image;
        o->image = NULL;
    }
    if (!t) {
        opening_put(o);
    }
    return r;
}
