/* SPDX-License-Identifier: BSD-3-Clause */
/* Putting an overlay on a node, as an action: see snapshot.h. */
#include "nbdelta/snapshot.h"

#include <errno.h>
#include <stdlib.h>

#include "core/activity.h"
#include "core/blocker.h"
#include "core/chain.h"
#include "core/create.h"
#include "core/graph.h"
#include "core/reopen.h"
#include "nbdelta/action.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"

struct snapshot {
    struct action action;
    struct snapshot_options o;
    struct graph *graph;
    struct node *overlay; /* with a reference, once it is there */
    bool put_to_rest;     /* it was active, and is not any more */
};

static struct snapshot *snapshot_of(struct action *a)
{
    return list_entry(a, struct snapshot, action);
}

static const char *overlay_format(const struct snapshot *s)
{
    return s->o.format ? s->o.format : "qcow2";
}

/* --- The overlay's file --- */

static int create_file(const struct snapshot *s, struct file_make *how,
                       struct error **errp)
{
    const struct node *n = s->o.node;
    CLEANUP_FREE char *backing = chain_backing_name(n, errp);

    if (!backing) {
        return -EINVAL;
    }
    CLEANUP_JSON json_t *options =
        json_pack("{s:I, s:s, s:s, s:b}", "size", (json_int_t)node_size(n),
                  "backing_file", backing, "backing_fmt",
                  chain_backing_format(n), "backing_unchecked", 1);

    if (!options) {
        return error_set(errp, EINVAL, "'%s' cannot be a backing file",
                         node_filename(n));
    }
    const struct driver *drv = driver_find(graph_drivers(s->graph),
                                           overlay_format(s));
    if (drv && drv->image && !drv->has_backing) {
        return error_set(errp, EINVAL,
                         "Backing file not supported for file format '%s'",
                         drv->name);
    }
    graph_lock(s->graph);
    node_access(n, &how->access);
    graph_unlock(s->graph);
    return image_create_as(graph_drivers(s->graph), s->o.overlay_file,
                           overlay_format(s), options, how, errp);
}

/* The overlay's options: the node's flags, and not the backing file that the
 * overlay names. */
static int open_options(const struct snapshot *s, json_t **options,
                        struct error **errp)
{
    const struct node_flags *f = &s->o.node->flags;
    const struct driver *drv = driver_find(graph_drivers(s->graph),
                                           overlay_format(s));
    int r = options_from_image(s->o.overlay_file, overlay_format(s), options,
                               errp);

    if (r < 0) {
        return r;
    }
    CLEANUP_JSON json_t *more =
        json_pack("{s:b, s:s, s:{s:b, s:b}, s:s*}", "read-only",
                  (int)f->read_only, "discard", f->unmap ? "unmap" : "ignore",
                  "cache", "direct", (int)f->direct, "no-flush",
                  (int)f->no_flush, "node-name", s->o.node_name);
    if (!more || json_object_update_missing(*options, more) < 0 ||
        (drv && drv->has_backing &&
         json_object_set_new(*options, "backing", json_null()) < 0)) {
        return error_nomem(errp);
    }
    return 0;
}

/* @made: the file, if we have made it. */
static int open_overlay_file(struct snapshot *s, const struct file_make *made,
                             struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    int r = open_options(s, &options, errp);

    if (r == 0) {
        graph_lock(s->graph);
        r = graph_open_locked(s->graph, options, &s->overlay, errp);
        if (r == 0 && made) {
            r = node_check_made(s->overlay, made, errp);
        }
        graph_unlock(s->graph);
    }
    return r;
}

/* --- The action --- */

static int check_node(struct snapshot *s, struct error **errp)
{
    graph_lock(s->graph);
    int r = node_check_unblocked(s->o.node, errp);
    if (r == 0) {
        r = chain_check_room(s->o.node, errp);
    }
    graph_unlock(s->graph);
    return r;
}

static int snapshot_prepare(struct action *a, struct error **errp)
{
    struct snapshot *s = snapshot_of(a);
    int r = check_node(s, errp);

    if (r < 0) {
        return r;
    }
    if (s->o.overlay) {
        graph_lock(s->graph);
        node_ref(s->o.overlay);
        graph_unlock(s->graph);
        s->overlay = s->o.overlay;
        return 0;
    }
    if (s->o.needs_name && !s->o.node_name) {
        return error_set(errp, EINVAL, "New overlay node-name missing");
    }
    if (s->o.node_name && graph_find(s->graph, s->o.node_name)) {
        return error_set(errp, EEXIST, "New overlay node-name already in use");
    }
    struct file_make made = {.access = FILE_ACCESS_ANY};
    r = s->o.existing ? 0 : create_file(s, &made, errp);
    return r < 0 ? r : open_overlay_file(s, s->o.existing ? NULL : &made, errp);
}

static void snapshot_drain(struct action *a)
{
    struct snapshot *s = snapshot_of(a);

    graph_drain(s->graph, s->o.node);
    graph_drain(s->graph, s->overlay);
}

static int check_overlay(const struct snapshot *s, struct error **errp)
{
    const struct node *n = s->overlay;

    if (n != s->o.node && node_is_below(s->o.node, n) && n->drv->has_backing &&
        !n->child[CHILD_BACKING]) {
        return error_set(errp, EINVAL,
                         "Making '%s' a backing child of '%s' would create a "
                         "cycle",
                         node_name(s->o.node), node_name(n));
    }
    if (!list_empty(&n->parents)) {
        return error_set(errp, EBUSY, "The overlay is already in use");
    }
    if (n->drv->is_filter) {
        return error_set(errp, EINVAL, "Filters cannot be used as overlays");
    }
    if (n->child[CHILD_BACKING]) {
        return error_set(errp, EINVAL,
                         "The overlay already has a backing image");
    }
    if (!n->drv->has_backing) {
        return error_set(errp, EINVAL,
                         "The overlay does not support backing images");
    }
    return 0;
}

/* A disk that is inactive stays so, as QEMU's callers expect: they need not
 * know that it is. */
static int match_activity(struct snapshot *s, struct error **errp)
{
    if (node_active(s->o.node) || !node_active(s->overlay)) {
        return 0;
    }
    int r = node_set_active(s->overlay, false, errp);
    s->put_to_rest = r == 0;
    return r;
}

static void have_activity_back(struct snapshot *s)
{
    if (s->put_to_rest) {
        (void)node_set_active(s->overlay, true, NULL);
    }
}

static int snapshot_act(struct action *a, struct error **errp)
{
    struct snapshot *s = snapshot_of(a);
    struct node *n = s->o.node;
    int r;

    if ((r = node_check_unblocked(n, errp)) < 0) {
        return r;
    }
    if (!n->flags.read_only && node_flush(n) < 0) {
        return error_set(errp, EIO, "An IO error has occurred");
    }
    if ((r = check_overlay(s, errp)) < 0 || (r = match_activity(s, errp)) < 0 ||
        (r = node_attach(s->overlay, CHILD_BACKING, n, "backing", PERM_READ,
                         PERM_ALL, errp)) < 0) {
        have_activity_back(s);
        return r;
    }
    r = node_check_replace(n, s->overlay, errp);
    if (r < 0) {
        node_detach(s->overlay, CHILD_BACKING);
        have_activity_back(s);
        return r;
    }
    node_ref(n); /* for commit or undo */
    node_replace(n, s->overlay);
    node_refresh_above(s->overlay);
    return 0;
}

static void snapshot_undo(struct action *a)
{
    struct snapshot *s = snapshot_of(a);

    node_replace(s->overlay, s->o.node);
    node_refresh_above(s->o.node);
    node_detach(s->overlay, CHILD_BACKING);
    have_activity_back(s);
    node_unref(s->o.node);
}

/* Make the node read-only, because nobody writes to it any more.  If a writer
 * has come in between, the node stays writable. */
static void snapshot_commit(struct action *a)
{
    struct snapshot *s = snapshot_of(a);

    graph_lock(s->graph);
    graph_drain(s->graph, s->o.node);
    (void)node_set_read_only(s->o.node, true, NULL);
    node_unref(s->o.node);
    node_unref(s->overlay);
    graph_unlock(s->graph);
}

static void snapshot_abort(struct action *a)
{
    struct snapshot *s = snapshot_of(a);

    if (s->overlay) {
        graph_lock(s->graph);
        node_unref(s->overlay);
        graph_unlock(s->graph);
    }
}

static void snapshot_free(struct action *a)
{
    free(snapshot_of(a));
}

static const struct action_ops snapshot_ops = {
    .prepare = snapshot_prepare,
    .drain = snapshot_drain,
    .act = snapshot_act,
    .undo = snapshot_undo,
    .commit = snapshot_commit,
    .abort = snapshot_abort,
    .free = snapshot_free,
};

int snapshot_action(const struct snapshot_options *o, struct action **ap,
                    struct error **errp)
{
    struct snapshot *s = calloc(1, sizeof(*s));

    if (!s) {
        return error_nomem(errp);
    }
    s->action.ops = &snapshot_ops;
    s->o = *o;
    s->graph = o->node->graph;
    *ap = &s->action;
    return 0;
}
