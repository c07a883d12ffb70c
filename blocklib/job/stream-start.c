/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The start of a stream job: finds the nodes that are meant, checks whether the
 * job may start, and then
 *
 *   top is made writable | the filter is inserted above top | all nodes that
 *   take part are blocked for others | the job gets users on them
 *
 * Base takes no part: other jobs may exchange it for a node that reads the
 * same. So the job remembers the node above it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/activity.h"
#include "core/blocker.h"
#include "core/chain.h"
#include "core/copy-up.h"
#include "core/graph.h"
#include "job/filter.h"
#include "job/stream.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

/* With a speed, data are copied in steps of so many bytes, as in QEMU. */
#define STREAM_STEP (512 * KiB)

struct plan {
    struct node *top;
    struct node *base;    /* NULL: the chain ends above it */
    struct node *overlay; /* the lowest image to copy from */
    struct node *above_base;
};

/* --- Which nodes? --- */

static int find_base(const struct stream_options *o, struct plan *p,
                     struct error **errp)
{
    if (o->base) {
        p->base = chain_find_file(p->top, o->base);
        return p->base
                   ? 0
                   : error_set(errp, ENOENT,
                               "Can't find '%s' in the backing chain", o->base);
    }
    if (o->base_node) {
        p->base = o->base_node;
        return p->top != p->base && chain_contains(p->top, p->base)
                   ? 0
                   : error_set(errp, EINVAL,
                               "Node '%s' is not a backing image of '%s'",
                               o->base_node_name, o->device);
    }
    if (!o->bottom) {
        return 0;
    }
    if (o->bottom->drv->is_filter) {
        return error_set(errp, EINVAL,
                         "Node '%s' is a filter, use a non-filter node as "
                         "'bottom'",
                         o->bottom_name);
    }
    if (!chain_contains(p->top, o->bottom)) {
        return error_set(errp, EINVAL,
                         "Node '%s' is not in a chain starting from '%s'",
                         o->bottom_name, o->device);
    }
    p->base = chain_next(o->bottom);
    return 0;
}

/* Find the image whose backing node is base, or leads to it. */
static int find_overlay(struct plan *p, struct error **errp)
{
    const struct node *base = node_skip_filters(p->base);
    struct node *n = node_skip_filters(p->top);

    if (base == n) { /* base is a filter above the image, or below top */
        return error_set(errp, EINVAL,
                         "'%s' is not in the backing chain of '%s'",
                         node_name(p->base), node_name(p->top));
    }
    while (node_skip_filters(node_child(n, CHILD_BACKING)) != base) {
        n = node_skip_filters(node_child(n, CHILD_BACKING));
    }
    p->overlay = p->above_base = n;
    while (chain_next(p->above_base) != p->base) {
        p->above_base = chain_next(p->above_base);
    }
    return 0;
}

/* Does no other job work on the nodes, or end by taking one of them away? */
static int check_chain(const struct plan *p, struct error **errp)
{
    const struct node *above = NULL;
    const struct node *filter = NULL;

    for (struct node *n = p->top; n && n != p->base; n = chain_next(n)) {
        bool goes = n->drv == &driver_commit_top ||
                    n->drv == &driver_mirror_top;
        int r = goes && above ? 0 : node_check_jobs(n, errp);

        if (r < 0) {
            return r;
        }
        filter = goes && !filter ? n : filter;
        above = n;
    }
    return filter ? error_set(errp, EPERM, "Cannot freeze '%s' link to '%s'",
                              "backing", node_name(filter))
                  : 0;
}

static int make_plan(const struct stream_options *o, struct plan *p,
                     struct error **errp)
{
    int r;

    *p = (struct plan){.top = o->node};
    if ((r = find_base(o, p, errp)) < 0 || (r = check_chain(p, errp)) < 0) {
        return r;
    }
    if (o->backing_file && (o->bottom || !p->base)) {
        return error_set(errp, EINVAL,
                         "backing file specified, but streaming the entire "
                         "chain");
    }
    if ((r = find_overlay(p, errp)) < 0) {
        return r;
    }
    r = node_check_filter(p->top, "file", o->filter_node_name, errp);
    if (r < 0) {
        error_prefix(errp, "Could not create node: ");
    }
    return r;
}

/* --- Arming --- */

static int block_node(struct stream *s, struct node *n)
{
    size_t size = (s->node_count + 1) * sizeof(*s->nodes);
    struct stream_node *nodes = realloc(s->nodes, size);

    if (!nodes) {
        return -ENOMEM;
    }
    s->nodes = nodes;
    s->nodes[s->node_count++] = (struct stream_node){.n = n};
    node_ref(n);
    node_block(n, "stream");
    return 0;
}

static int make_stream_copy(struct stream *s, const struct plan *p,
                            struct error **errp)
{
    const struct copy_up_scope up = {
        .layers = copy_up_layers(p->top, p->base),
        .hidden = p->base ? node_size(p->base) : 0,
    };
    const struct copy_options o = {
        .size = node_size(p->top),
        .cluster = copy_cluster_for(p->top),
        .merge = true,
        .up = &up,
        .find_zeroes = true,
        .step = STREAM_STEP,
        .uncached = true,
    };

    s->copy = copy_new(&o);
    if (!s->copy) {
        return error_nomem(errp);
    }
    if (p->overlay != node_skip_filters(p->top)) { /* else there is nothing */
        copy_add(s->copy, 0, o.size);
    }
    copy_set_ends(s->copy, s->filter, p->top, p->top);
    return 0;
}

static int arm_stream_locked(struct stream *s, const struct stream_options *o,
                             const struct plan *p, struct error **errp)
{
    graph_drain(s->graph, p->top);
    s->top = p->top;
    s->above_base = p->above_base;
    bool read_only = s->top->flags.read_only;
    int r = chain_set_read_only(s->top, false, errp);
    if (r < 0) {
        return r;
    }
    s->top_read_only = read_only;
    r = jobfilter_insert(&driver_stream_top, s->top, o->filter_node_name,
                         &s->filter, errp);
    for (struct node *n = s->filter; r == 0 && n != p->base;
         n = chain_next(n)) {
        r = block_node(s, n);
        if (r < 0) {
            (void)error_nomem(errp);
        }
    }
    return r < 0 ? r : make_stream_copy(s, p, errp);
}

/* Declare what the job does with the nodes. */
static int attach_users(struct stream *s, struct error **errp)
{
    char user[200];

    (void)snprintf(user, sizeof(user), "stream job '%.100s'", s->job.id);
    s->failures = node_flush_failures(node_skip_filters(s->top));
    int r = blk_new(s->graph, s->filter, PERM_READ, PERM_READ | PERM_WRITE,
                    user, &s->user, errp);
    for (size_t i = 0; r == 0 && i < s->node_count; i++) {
        struct stream_node *at = &s->nodes[i];

        if (at->n != s->filter && at->n != s->top &&
            at->n != node_skip_filters(s->top)) {
            r = blk_new(s->graph, at->n, 0, PERM_READ, user, &at->keep, errp);
        }
    }
    return r;
}

static int arm_stream(struct stream *s, const struct stream_options *o,
                      const struct plan *p, struct error **errp)
{
    graph_lock(s->graph);
    int r = arm_stream_locked(s, o, p, errp);
    graph_unlock(s->graph);
    return r < 0 ? r : attach_users(s, errp);
}

static int begin_stream(struct jobs *j, struct stream *s, struct error **errp)
    REQUIRES(j->lock)
{
    struct job_txn *txn = job_txn_new();

    if (!txn) {
        return error_nomem(errp);
    }
    int r = job_enlist(j, &s->job, txn, errp);
    if (r == 0) {
        job_go(j, &s->job);
    }
    job_txn_unref(txn);
    return r;
}

static struct stream *stream_new(struct jobs *j, const struct stream_options *o)
{
    struct stream *s = calloc(1, sizeof(*s));

    if (!s) {
        return NULL;
    }
    s->graph = jobs_graph(j);
    s->on_error = o->on_error;
    s->backing_file = o->backing_file ? strdup(o->backing_file) : NULL;
    if (o->backing_file && !s->backing_file) {
        free(s);
        return NULL;
    }
    return s;
}

int job_stream(struct jobs *j, const struct stream_options *o,
               struct error **errp)
{
    struct job_options job = {
        .id = o->job_id ? o->job_id : o->device,
        .manual_finalize = o->manual_finalize,
        .manual_dismiss = o->manual_dismiss,
        .speed = o->speed,
    };
    struct graph *g = jobs_graph(j);
    struct plan p;

    graph_lock(g);
    int r = make_plan(o, &p, errp);
    graph_unlock(g);
    if (r < 0) {
        return r;
    }
    struct stream *s = stream_new(j, o);
    if (!s) {
        return error_nomem(errp);
    }
    r = job_create(j, &s->job, &stream_driver, &job, errp);
    if (r < 0) {
        stream_driver.free(&s->job);
        return r;
    }
    r = arm_stream(s, o, &p, errp);
    if (r == 0) {
        r = begin_stream(j, s, errp);
    }
    if (r < 0) {
        stream_disarm(s);
        job_unref(j, &s->job);
    }
    return r;
}
