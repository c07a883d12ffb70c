/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Points in time: copy-before-write into scratch, and a node to read it by.
 *
 *   prepare   makes the scratch, its file and the copy engine
 *   act       the instant, drained: takes the bits of `since`, which it shares
 *             with the bitmap, puts the filter below all users of the node, and
 *             snapshot-access above it
 *   undo, end the same backwards
 *
 * Several points of one node stack up.  The filter of the newest point is next
 * to the node, and each point copies for itself.
 */
#include "nbdelta/point.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "copy/copy-before-write.h"
#include "copy/scratch.h"
#include "copy/snapshot-access.h"
#include "core/dirty.h"
#include "core/graph.h"
#include "job/point-priv.h"
#include "nbdelta/action.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/tell.h"

/* The largest cluster that is tried. */
#define CLUSTER_MAX (1 * MiB)

/* Units of a point: 128 MiB of bits for each of its sets, at the most. */
#define UNITS_MAX (UINT64_C(1) << 30)

/* Bytes that one point keeps in memory before it needs its file. */
#define MEMORY_MAX (16 * MiB)

/* --- Losing it --- */

static const char *reason(const struct point *p, int r, enum copy_side side)
{
    struct scratch_usage u;

    if (r == -ETIMEDOUT) {
        return "timeout";
    }
    if (side == COPY_READ) {
        return "read-error";
    }
    if (r != -ENOSPC && r != -EDQUOT) {
        return "scratch-error";
    }
    scratch_usage(p->scratch, &u);
    return u.quota_was_hit ? "quota" : "no-space";
}

static void on_lost(void *opaque, int r, enum copy_side side)
{
    struct point *p = opaque;

    const char *why = reason(p, r, side);

    atomic_store(&p->why, why);
    tell_event(TELL_ERROR, "a point in time of node '%.200s' is lost: %s (%s)",
               node_name(p->source), why, strerror(-r));
    if (p->lost) {
        p->lost(p->opaque);
    }
}

const char *point_lost_why(const struct point *p)
{
    return atomic_load(&p->why);
}

/* --- Begin --- */

struct point_start {
    struct action action;
    struct graph *graph;
    struct point_options o;
    struct point *p; /* ours until commit */
    bool committed;
};

static struct point_start *point_start_of(struct action *a)
{
    return list_entry(a, struct point_start, action);
}

/* NULL: no memory. */
static struct copy *try_copy(const struct copy_options *o, bool whole)
{
    struct copy *c = copy_new(o);

    if (c && whole) {
        copy_add(c, 0, o->size);
    }
    if (c && copy_show(c) < 0) {
        copy_free(c);
        c = NULL;
    }
    return c;
}

static int make_point_copy(struct point_start *s, struct error **errp)
{
    struct point *p = s->p;
    const struct point_options *o = &s->o;
    unsigned delay = o->max_delay_ms ? o->max_delay_ms : POINT_DELAY_MS;
    struct copy_options c = {
        .size = node_size(o->node),
        .cluster = p->scratch->limits.pref,
        .quick = true,
        .target_zero = true,
        .policy =
            {
                .break_write = o->break_guest_write,
                .wait_room = true,
                .once = o->once,
                .max_wait_ms = delay,
                .lost_errno = -EIO,
                .lost = on_lost,
                .opaque = p,
            },
    };

    /* As small as what guests write, so that they wait for no more than that.
     * A begin uses hardly any memory for the sets, but guests that write all
     * over the disk can have them use all of it. */
    while (c.cluster < CLUSTER_MAX && c.size / c.cluster > UNITS_MAX) {
        c.cluster *= 2;
    }
    /* It is refused where the kernel promises no more than it has. */
    while (!p->copy && c.cluster <= CLUSTER_MAX) {
        p->copy = try_copy(&c, !o->since || o->whole);
        c.cluster *= 2;
    }
    return p->copy ? 0 : error_nomem(errp);
}

static int point_start_prepare(struct action *a, struct error **errp)
{
    struct point_start *s = point_start_of(a);
    const struct scratch_options so = {
        .dir = s->o.scratch,
        .quota = s->o.quota,
        .keep_free = s->o.keep_free,
        .memory = s->o.quota ? min_u64(s->o.quota, MEMORY_MAX) : MEMORY_MAX,
    };

    scratch_clean(so.dir);
    graph_lock(s->graph);
    int r = scratch_new(s->graph, s->o.node, &so, &s->p->scratch, errp);
    graph_unlock(s->graph);
    return r < 0 ? r : make_point_copy(s, errp);
}

static void point_start_drain(struct action *a)
{
    const struct point_start *s = point_start_of(a);

    graph_drain(s->graph, s->o.node);
}

int point_add_context(struct point *p, const char *name, struct hbitmap *bits,
                      struct error **errp)
{
    struct bitmap *bm;
    int r = bitmap_add_locked(p->access, name, hbitmap_granularity(bits), false,
                              true, &bm, errp);

    if (r == 0) {
        bits = bitmap_swap_bits(bm, bits);
    }
    hbitmap_free(bits);
    return r;
}

static int take_since(struct point_start *s, struct error **errp)
{
    struct bitmap *bm;
    int r = bitmap_lookup(s->o.node, s->o.since, BITMAP_USE_ANY, &bm, errp);

    if (r < 0) {
        return r;
    }
    if (atomic_load(&bm->inconsistent)) {
        return error_set(errp, EINVAL,
                         "Bitmap '%s' is inconsistent and cannot be used",
                         s->o.since);
    }
    if (hbitmap_size(bm->bits) != copy_size(s->p->copy)) {
        return error_set(errp, EBUSY, "Bitmap '%s' is of another size",
                         s->o.since);
    }
    struct hbitmap *bits = bitmap_share_bits(bm);
    struct hbitmap *context = bits && s->o.context ? hbitmap_share(bits) : NULL;
    if (!bits || (s->o.context && !context)) {
        hbitmap_free(bits);
        return error_nomem(errp);
    }
    if (s->o.whole) { /* the set has all already */
        hbitmap_free(bits);
    } else {
        copy_take_bits(s->p->copy, bits);
    }
    return context ? point_add_context(s->p, s->o.context, context, errp) : 0;
}

int point_make_access(struct point *p, struct node *below, struct error **errp)
{
    struct node *n;
    int r = node_new(p->graph, &driver_snapshot_access, NULL, p->source, &n,
                     errp);

    if (r < 0) {
        return r;
    }
    n->flags = (struct node_flags){.unmap = true};
    r = node_attach(n, CHILD_FILE, below, "file", 0, PERM_ALL, errp);
    if (r < 0) {
        node_unref(n);
        return r;
    }
    node_refresh_limits(n);
    p->access = n;
    return 0;
}

void point_take_down(struct point *p)
{
    if (p->access) {
        snapshot_access_end(p->access); /* it may have other users by now */
        node_unref(p->access);
        p->access = NULL;
    }
    if (p->filter) {
        cbw_remove(p->filter);
        p->filter = NULL;
    }
    if (p->view) {
        node_unref(p->view);
        p->view = NULL;
    }
    if (p->storage) {
        node_unref(p->storage);
        p->storage = NULL;
    }
    if (p->source) {
        node_unref(p->source);
        p->source = NULL;
    }
}

static int point_start_act(struct action *a, struct error **errp)
{
    struct point_start *s = point_start_of(a);
    struct point *p = s->p;

    if (node_size(s->o.node) != copy_size(p->copy)) {
        return error_set(errp, EBUSY, "Node '%s' is being resized",
                         node_name(s->o.node));
    }
    int r = cbw_insert(s->graph, s->o.node, p->scratch, p->copy, NULL,
                       &p->filter, errp);
    if (r == 0) {
        node_ref(s->o.node);
        p->source = s->o.node;
        r = point_make_access(p, p->filter, errp);
    }
    if (r == 0 && s->o.since) {
        r = take_since(s, errp);
    }
    if (r < 0) {
        point_take_down(p);
    }
    return r;
}

static void point_start_undo(struct action *a)
{
    point_take_down(point_start_of(a)->p);
}

static void point_start_commit(struct action *a)
{
    point_start_of(a)->committed = true;
}

void point_free(struct point *p)
{
    graph_lock(p->graph);
    point_take_down(p);
    if (p->scratch) {
        node_unref(p->scratch);
    }
    graph_unlock(p->graph);
    if (p->copy) {
        copy_free(p->copy);
    }
    point_free_stored(p);
    free(p);
}

static void point_start_free(struct action *a)
{
    struct point_start *s = point_start_of(a);

    if (!s->committed) {
        point_free(s->p);
    }
    free(s);
}

static const struct action_ops point_start_ops = {
    .prepare = point_start_prepare,
    .drain = point_start_drain,
    .act = point_start_act,
    .undo = point_start_undo,
    .commit = point_start_commit,
    .free = point_start_free,
};

struct node *point_source(struct graph *g, struct node *n)
{
    graph_lock(g);
    n = node_skip_job_filters(n);
    graph_unlock(g);
    return n;
}

int point_action(struct graph *g, const struct point_options *o,
                 struct point **pp, struct action **ap, struct error **errp)
{
    struct point_start *s = calloc(1, sizeof(*s));
    struct point *p = calloc(1, sizeof(*p));

    if (!s || !p) {
        free(s);
        free(p);
        return error_nomem(errp);
    }
    p->graph = g;
    p->quota = o->quota;
    p->lost = o->lost;
    p->opaque = o->opaque;
    s->action.ops = &point_start_ops;
    s->graph = g;
    s->o = *o;
    s->o.node = point_source(g, o->node);
    s->p = p;
    *pp = p;
    *ap = &s->action;
    return 0;
}

/* --- Queries --- */

struct node *point_node(const struct point *p)
{
    return p->access;
}

static json_t *integer(uint64_t v)
{
    return json_integer((json_int_t)v);
}

static json_t *query_scratch(const struct point *p)
{
    struct scratch_usage u;
    json_t *o = json_object();

    scratch_usage(p->scratch, &u);
    (void)json_object_set_new(o, "bytes", integer(u.bytes));
    if (p->quota) {
        (void)json_object_set_new(o, "quota", integer(p->quota));
    }
    if (u.kept_free) {
        (void)json_object_set_new(o, "keep-free", integer(u.kept_free));
    }
    (void)json_object_set_new(o, "where",
                              json_string(u.in_file ? "file" : "memory"));
    return o;
}

json_t *point_query(const struct point *p)
{
    if (p->snapshot) {
        return point_query_stored(p);
    }
    const struct copy_counters *k = copy_counters(p->copy);
    const char *why = point_lost_why(p);
    json_t *o = json_object();

    (void)json_object_set_new(o, "scratch", query_scratch(p));
    (void)json_object_set_new(o, "copied", integer(atomic_load(&k->saved)));
    (void)json_object_set_new(o, "pulled", integer(atomic_load(&k->pulled)));
    (void)json_object_set_new(o, "discarded",
                              integer(atomic_load(&k->discarded)));
    (void)json_object_set_new(o, "left", integer(copy_visible(p->copy)));
    if (why) {
        (void)json_object_set_new(o, "lost", json_string(why));
    }
    (void)json_object_set_new(o, "delay", copy_query_delay(p->copy));
    return o;
}

/* --- End --- */

void point_stop(struct point *p)
{
    if (p && p->access) {
        graph_lock(p->graph);
        snapshot_access_end(p->access);
        graph_unlock(p->graph);
    }
}

void point_end(struct point *p)
{
    if (p) {
        point_free(p);
    }
}

void point_clean(const char *dir)
{
    scratch_clean(dir);
}
