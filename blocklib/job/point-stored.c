/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Points in time that are snapshots of the storage.
 *
 *      guests                point_node(), to be exported
 *        |                         |
 *        |                   snapshot-access (plain)
 *        |                         |
 *      node                       view: a node of the driver's
 *        |                         |
 *      image  ------ snapshot -----+   the storage's
 *
 * Nothing is copied and nothing is held up.  What has changed since another
 * snapshot is asked of the storage after the instant, while guests go on: both
 * snapshots stay as they are.
 *
 * A snapshot that somebody removes may read as zeroes for a moment before it
 * gives errors.  So whoever believes what was read asks point_check() after
 * that: ids are never used again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "copy/snapshot-access.h"
#include "core/dirty.h"
#include "core/graph.h"
#include "job/point-priv.h"
#include "nbdelta/action.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/tell.h"

/* Of the context where no bitmap gives one. */
#define GRANULARITY (64 * KiB)

/* --- The instant --- */

struct stored_start {
    struct action action;
    struct point *p; /* ours until commit */
    bool committed;
};

static struct stored_start *stored_start_of(struct action *a)
{
    return list_entry(a, struct stored_start, action);
}

static void stored_drain(struct action *a)
{
    const struct point *p = stored_start_of(a)->p;

    if (p->bitmap) {
        graph_drain(p->graph, p->source);
    }
}

static int stored_act(struct action *a, struct error **errp)
{
    struct point *p = stored_start_of(a)->p;
    struct bitmap *bm;

    if (!p->bitmap) {
        return 0;
    }
    int r = bitmap_lookup(p->source, p->bitmap, BITMAP_USE_ANY, &bm, errp);
    if (r < 0) {
        return r;
    }
    p->bits = bitmap_share_bits(bm);
    return p->bits ? 0 : error_nomem(errp);
}

static void stored_commit(struct action *a)
{
    stored_start_of(a)->committed = true;
}

static void stored_free(struct action *a)
{
    struct stored_start *s = stored_start_of(a);

    if (!s->committed) {
        point_free(s->p);
    }
    free(s);
}

static const struct action_ops stored_ops = {
    .drain = stored_drain,
    .act = stored_act,
    .commit = stored_commit,
    .free = stored_free,
};

static int copy_text(char **to, const char *text)
{
    *to = text ? strdup(text) : NULL;
    return text && !*to ? -ENOMEM : 0;
}

int point_stored_action(struct graph *g, const struct point_stored_options *o,
                        struct point **pp, struct action **ap,
                        struct error **errp)
{
    struct stored_start *s = calloc(1, sizeof(*s));
    struct point *p = calloc(1, sizeof(*p));

    if (!s || !p) {
        free(s);
        free(p);
        return error_nomem(errp);
    }
    s->action.ops = &stored_ops;
    s->p = p;
    p->graph = g;
    p->source = point_source(g, o->node);
    graph_lock(g);
    node_ref(p->source);
    p->storage = storage_below(p->source);
    if (p->storage) {
        node_ref(p->storage);
    }
    graph_unlock(g);
    if (!p->storage) {
        stored_free(&s->action);
        return error_set(errp, ENOTSUP,
                         "the storage of node '%s' makes no snapshots",
                         node_name(o->node));
    }
    if (copy_text(&p->snapshot, o->snapshot) < 0 ||
        copy_text(&p->since, o->since) < 0 ||
        copy_text(&p->bitmap, o->bitmap) < 0 ||
        copy_text(&p->context, o->context) < 0) {
        stored_free(&s->action);
        return error_nomem(errp);
    }
    *pp = p;
    *ap = &s->action;
    return 0;
}

/* --- Reading it --- */

/* The id by which it is known from now on. */
static int find_id(struct point *p, struct error **errp)
{
    CLEANUP_STORAGE struct storage_snapshots list = {0};
    int r = storage_snapshots_get(p->storage, &list, errp);
    const struct storage_snapshot *s =
        r == 0 ? storage_snapshot_find(&list, p->snapshot) : NULL;

    if (r == 0 && !s) {
        r = error_set(errp, ENOENT,
                      "the snapshot '%.200s' of node '%s' was removed",
                      p->snapshot, node_name(p->source));
    }
    p->id = s ? s->id : 0;
    return r;
}

static int open_view(struct point *p, struct error **errp)
{
    struct node *view;
    int r = storage_view(p->graph, p->storage, p->snapshot, &view, errp);

    if (r < 0) {
        return r;
    }
    graph_lock(p->graph);
    node_ref(view);
    p->view = view;
    r = point_make_access(p, view, errp);
    if (r == 0) {
        p->access->size = node_size(view); /* as the source was then */
        snapshot_access_plain(p->access);
    }
    graph_unlock(p->graph);
    graph_forget(p->graph, view); /* it goes with the last reference */
    return r;
}

static int set_bits(uint64_t offset, uint64_t bytes, void *opaque)
{
    hbitmap_set_alone(opaque, offset, bytes);
    return 0;
}

/* The bits of the context, in p->bits. */
static int ask_what_differs(struct point *p, enum storage_diff_how *how,
                            struct error **errp)
{
    p->bits = hbitmap_new(node_size(p->view), GRANULARITY);
    return p->bits
               ? storage_diff(p->view, p->since, set_bits, p->bits, how, errp)
               : error_nomem(errp);
}

static int add_context(struct point *p, struct error **errp)
{
    struct hbitmap *bits = p->bits;
    int r = 0;

    p->bits = NULL;
    graph_lock(p->graph);
    graph_drain(p->graph, p->access);
    if (hbitmap_size(bits) != node_size(p->access)) {
        r = error_set(errp, EBUSY, "Node '%s' is being resized",
                      node_name(p->source));
        hbitmap_free(bits);
    } else {
        r = point_add_context(p, p->context, bits, errp);
    }
    graph_unlock(p->graph);
    return r;
}

int point_stored_open(struct point *p, enum storage_diff_how *how,
                      struct error **errp)
{
    int r = find_id(p, errp);

    *how = STORAGE_DIFF_FAST;
    if (r < 0 || (r = open_view(p, errp)) < 0 || !p->context) {
        return r;
    }
    if (p->since) {
        r = ask_what_differs(p, how, errp);
    }
    return r == 0 && p->bits ? add_context(p, errp) : r;
}

/* --- The rest --- */

const char *point_snapshot(const struct point *p,
                           const struct storage_snapshots *list)
{
    for (size_t i = 0; i < list->count; i++) {
        if (list->at[i].id == p->id) {
            return list->at[i].name;
        }
    }
    return NULL;
}

void point_check(struct point *p, const struct storage_snapshots *list)
{
    if (!point_snapshot(p, list) &&
        !atomic_exchange(&p->why, "snapshot-removed")) {
        tell_event(TELL_ERROR,
                   "a point in time of node '%.200s' is lost: somebody has "
                   "removed the snapshot '%.200s'",
                   node_name(p->source), p->snapshot);
    }
}

json_t *point_query_stored(const struct point *p)
{
    const char *why = point_lost_why(p);
    json_t *o = json_pack("{s:{s:i, s:s}, s:i, s:i, s:i, s:i, s:s}", "scratch",
                          "bytes", 0, "where", "storage", "copied", 0, "pulled",
                          0, "discarded", 0, "left", 0, "snapshot",
                          p->snapshot);

    if (why) {
        (void)json_object_set_new(o, "lost", json_string(why));
    }
    return o;
}

void point_free_stored(struct point *p)
{
    hbitmap_free(p->bits);
    free(p->snapshot);
    free(p->since);
    free(p->bitmap);
    free(p->context);
}
