/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots as actions: see internal-snapshot.h.  The driver does the
 * work (struct driver_snapshots). */
#include "nbdelta/internal-snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph.h"
#include "nbdelta/action.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/tell.h"

struct internal {
    struct action action;
    struct node *node; /* with a reference */
    struct internal_change change;
    json_t **info;
};

static struct internal *internal_of(struct action *a)
{
    return list_entry(a, struct internal, action);
}

static int internal_prepare(struct action *a, struct error **errp)
{
    struct internal *s = internal_of(a);
    const struct driver_snapshots *d = s->node->drv->snapshots;
    int r;

    do {
        struct tree *tree = node_enter(s->node, false);
        r = d->begin(s->node, &s->change, errp);
        node_leave(tree);
    } while (r > 0);
    return r;
}

static void internal_drain(struct action *a)
{
    const struct internal *s = internal_of(a);

    graph_drain(s->node->graph, s->node);
}

static int internal_act(struct action *a, struct error **errp)
{
    struct internal *s = internal_of(a);

    return s->node->drv->snapshots->act(s->node, &s->change, errp);
}

static void internal_undo(struct action *a)
{
    struct internal *s = internal_of(a);

    s->node->drv->snapshots->undo(s->node, &s->change);
}

static void end_change(struct internal *s, bool done)
{
    const struct driver_snapshots *d = s->node->drv->snapshots;
    int r;

    do {
        struct tree *tree = node_enter(s->node, false);
        r = d->end(s->node, &s->change, done);
        node_leave(tree);
    } while (r > 0);
    if (r < 0) {
        tell_event(TELL_ERROR,
                   "image '%.200s': room that a snapshot had is not free: %s "
                   "('nbdelta check -r leaks' frees it)",
                   node_filename(s->node), strerror(-r));
    }
}

static void internal_commit(struct action *a)
{
    struct internal *s = internal_of(a);

    end_change(s, true);
    if (s->info) {
        *s->info = json_incref(s->change.info);
    }
}

static void internal_abort(struct action *a)
{
    end_change(internal_of(a), false);
}

static void internal_free(struct action *a)
{
    struct internal *s = internal_of(a);

    json_decref(s->change.info);
    graph_lock(s->node->graph);
    node_unref(s->node);
    graph_unlock(s->node->graph);
    free(s);
}

static const struct action_ops internal_ops = {
    .prepare = internal_prepare,
    .drain = internal_drain,
    .act = internal_act,
    .undo = internal_undo,
    .commit = internal_commit,
    .abort = internal_abort,
    .free = internal_free,
};

int snapshot_internal_action(const struct internal_options *o,
                             struct action **ap, struct error **errp)
{
    struct internal *s;

    if (!o->node->drv->snapshots) {
        return error_set(
            errp, ENOTSUP,
            "Block format '%s' used by device '%s' does not support "
            "internal snapshots",
            o->node->drv->name, node_name(o->node));
    }
    s = calloc(1, sizeof(*s));
    if (!s) {
        return error_nomem(errp);
    }
    s->action.ops = &internal_ops;
    s->node = o->node;
    s->info = o->info;
    s->change = (struct internal_change){
        .verb = o->verb, .id = o->id, .name = o->name, .only = o->only};
    graph_lock(o->node->graph);
    node_ref(o->node);
    graph_unlock(o->node->graph);
    *ap = &s->action;
    return 0;
}
