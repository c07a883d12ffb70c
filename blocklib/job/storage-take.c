/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Storage snapshots of several nodes at one instant, as an action.
 *
 *   prepare   does the storage answer?
 *   act       all of them, side by side, in the drained section
 *   undo      they are removed, after the section: that may take its time
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph.h"
#include "nbdelta/action.h"
#include "nbdelta/error.h"
#include "nbdelta/storage-snapshot.h"
#include "nbdelta/tell.h"

struct take {
    struct action action;
    struct graph *graph;
    bool taken;
    unsigned count;
    struct storage_ref refs[]; /* of the nodes that make snapshots, with
                                  references */
};

static struct take *take_of(struct action *a)
{
    return list_entry(a, struct take, action);
}

static const struct driver_storage *driver_of(const struct take *t)
{
    return t->refs[0].node->drv->storage;
}

static int take_prepare(struct action *a, struct error **errp)
{
    const struct take *t = take_of(a);
    int r = 0;

    for (unsigned i = 0; r == 0 && i < t->count; i++) {
        r = driver_of(t)->ready(t->refs[i].node, errp);
    }
    return r;
}

static void take_drain(struct action *a)
{
    const struct take *t = take_of(a);

    for (unsigned i = 0; i < t->count; i++) {
        graph_drain(t->graph, t->refs[i].node);
    }
}

static int take_act(struct action *a, struct error **errp)
{
    struct take *t = take_of(a);
    int r = driver_of(t)->take(t->refs, t->count, errp);

    t->taken = r == 0;
    return r;
}

/* What was taken and not wanted in the end. */
static void take_abort(struct action *a)
{
    struct take *t = take_of(a);

    for (unsigned i = 0; t->taken && i < t->count; i++) {
        struct error *err = NULL;

        if (driver_of(t)->remove(t->refs[i].node, t->refs[i].name, &err) < 0) {
            tell_event(TELL_ERROR, "a snapshot is left: %.400s",
                       error_message(err));
        }
        error_free(err);
    }
}

static void take_free(struct action *a)
{
    struct take *t = take_of(a);

    graph_lock(t->graph);
    for (unsigned i = 0; i < t->count; i++) {
        if (t->refs[i].node) {
            node_unref(t->refs[i].node);
        }
        free((char *)(uintptr_t)t->refs[i].name);
    }
    graph_unlock(t->graph);
    free(t);
}

static const struct action_ops take_ops = {
    .prepare = take_prepare,
    .drain = take_drain,
    .act = take_act,
    .abort = take_abort,
    .free = take_free,
};

static int add_ref(struct take *t, unsigned i, const struct storage_ref *ref,
                   struct error **errp)
{
    struct node *n = storage_below(ref->node);

    if (!n || (i > 0 && n->drv->storage != driver_of(t))) {
        return error_set(
            errp, ENOTSUP, "the storage of node '%s' makes no snapshots%s",
            node_name(ref->node), n ? " together with that of others" : "");
    }
    t->refs[i].name = strdup(ref->name);
    if (!t->refs[i].name) {
        return error_nomem(errp);
    }
    graph_lock(t->graph);
    node_ref(n);
    graph_unlock(t->graph);
    t->refs[i].node = n;
    return 0;
}

int storage_take_action(struct graph *g, const struct storage_ref *refs,
                        unsigned count, struct action **ap, struct error **errp)
{
    struct take *t = calloc(1, sizeof(*t) + count * sizeof(t->refs[0]));
    int r = 0;

    if (!t) {
        return error_nomem(errp);
    }
    t->action.ops = &take_ops;
    t->graph = g;
    t->count = count;
    for (unsigned i = 0; r == 0 && i < count; i++) {
        r = add_ref(t, i, &refs[i], errp);
    }
    if (r < 0) {
        take_free(&t->action);
        return r;
    }
    *ap = &t->action;
    return 0;
}

int storage_take(struct graph *g, const struct storage_ref *refs,
                 unsigned count, struct error **errp)
{
    struct action *a;
    int r = storage_take_action(g, refs, count, &a, errp);

    return r < 0 ? r : action_run(g, a, errp);
}
