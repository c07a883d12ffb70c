/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The start of a commit job: finds the nodes that are meant, checks whether the
 * job may start, and then
 *
 *   base is made writable | the filter is inserted above top | all nodes that
 *   take part are blocked for others | the active layer gets its bitmap
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/activity.h"
#include "core/blocker.h"
#include "core/chain.h"
#include "core/graph.h"
#include "job/commit.h"
#include "job/filter.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

/* Bytes of the active layer that are copied before the speed counts. */
#define ACTIVE_BURST (16 * MiB)

/* With a speed, what lies below is copied in steps of so many bytes: callers
 * that expect QEMU find its `offset` after the first one. */
#define COMMIT_STEP (512 * KiB)

struct plan {
    struct node *root;
    struct node *top;
    struct node *base;
    bool active;
};

/* --- Which nodes? --- */

static int not_in_chain(const struct node *n, struct error **errp)
{
    return error_set(errp, EINVAL, "'%s' is not in this backing file chain",
                     node_name(n));
}

static int find_top(const struct commit_options *o, struct plan *p,
                    struct error **errp)
{
    p->top = p->root;
    if (o->top_node && o->top) {
        return error_set(errp, EINVAL,
                         "'top-node' and 'top' are mutually exclusive");
    }
    if (o->top_node) {
        p->top = o->top_node;
        return chain_contains(p->root, p->top) ? 0 : not_in_chain(p->top, errp);
    }
    if (o->top && strcmp(node_filename(p->root), o->top) != 0) {
        p->top = chain_find_file(p->root, o->top);
        if (!p->top) {
            return error_set(errp, ENOENT, "Top image file %s not found",
                             o->top);
        }
    }
    return 0;
}

/* The lowest node of the chain. */
static struct node *chain_end(struct node *n)
{
    while (node_skip_filters(n) && chain_next(node_skip_filters(n))) {
        n = chain_next(node_skip_filters(n));
    }
    return n;
}

static int find_base(const struct commit_options *o, struct plan *p,
                     struct error **errp)
{
    if (o->base_node && o->base) {
        return error_set(errp, EINVAL,
                         "'base-node' and 'base' are mutually exclusive");
    }
    if (o->base_node) {
        p->base = o->base_node;
        return chain_contains(p->top, p->base) ? 0
                                               : not_in_chain(p->base, errp);
    }
    p->base = o->base ? chain_find_file(p->top, o->base) : chain_end(p->top);
    if (!p->base) {
        return error_set(errp, ENOENT, "Can't find '%s' in the backing chain",
                         o->base);
    }
    return 0;
}

static bool has_writer(const struct node *n)
{
    list_for_each (at, &n->parents) {
        if (list_entry(at, struct edge, on_child)->perm & PERM_WRITE) {
            return true;
        }
    }
    return false;
}

static int check_active(const struct commit_options *o, struct plan *p,
                        struct error **errp)
{
    bool is_root = node_skip_filters(p->top) == node_skip_filters(p->root);

    p->active = is_root || has_writer(p->top);
    if (p->active && o->backing_file) {
        return error_set(errp, EINVAL,
                         is_root ? "'backing-file' specified, but 'top' is "
                                   "the active layer"
                                 : "'backing-file' specified, but 'top' has a "
                                   "writer on it");
    }
    return 0;
}

/* Does no node use it, but only devices, exports and the like? */
static bool is_root_of_chain(const struct node *n)
{
    list_for_each (at, &n->parents) {
        if (list_entry(at, struct edge, on_child)->parent) {
            return false;
        }
    }
    return n->job_count == 0;
}

/* The image whose backing node is top, or leads to it. */
static struct node *image_above(const struct plan *p)
{
    struct node *n = node_skip_filters(p->root);

    while (node_skip_filters(chain_next(n)) != node_skip_filters(p->top)) {
        n = node_skip_filters(chain_next(n));
    }
    return n;
}

static int make_plan(const struct commit_options *o, struct plan *p,
                     struct error **errp)
{
    int r;

    *p = (struct plan){.root = o->root};
    if (!is_root_of_chain(p->root)) {
        return error_set(errp, EINVAL, "Need a root block node");
    }
    if ((r = find_top(o, p, errp)) < 0 || (r = find_base(o, p, errp)) < 0 ||
        (r = chain_check_jobs(p->top, chain_next(p->base), errp)) < 0) {
        return r;
    }
    if (p->top == p->base) {
        return error_set(errp, EINVAL, "cannot commit an image into itself");
    }
    r = node_check_filter(p->top, "backing", o->filter_node_name, errp);
    if (r == 0) {
        r = check_active(o, p, errp);
    }
    if (r == 0 && node_skip_filters(p->top) == node_skip_filters(p->base)) {
        return error_set(errp, EINVAL,
                         "Invalid files for merge: top and base are the same");
    }
    /* The image above top is changed, too. */
    return r < 0 || p->active ? r : node_check_jobs(image_above(p), errp);
}

/* --- Arming --- */

static unsigned layers(struct node *from, const struct node *to)
{
    unsigned count = 0;

    for (struct node *n = from; n != to; n = chain_next(n)) {
        count += !n->drv->is_filter;
    }
    return count;
}

static int block_node(struct commit *c, struct node *n)
{
    struct node **nodes = realloc(c->nodes,
                                  (c->node_count + 1) * sizeof(struct node *));

    if (!nodes) {
        return -ENOMEM;
    }
    c->nodes = nodes;
    c->nodes[c->node_count++] = n;
    node_ref(n);
    node_block(n, "commit");
    return 0;
}

/* Block the nodes from the filter above top down, and the root. */
static int block_chain(struct commit *c, const struct plan *p,
                       struct error **errp)
{
    int r = p->active ? 0 : block_node(c, p->root);

    for (struct node *n = c->filter; r == 0; n = chain_next(n)) {
        r = block_node(c, n);
        if (n == p->base) {
            break;
        }
    }
    return r < 0 ? error_nomem(errp) : 0;
}

static int make_commit_copy(struct commit *c, struct error **errp)
{
    const struct copy_options o = {
        .size = node_size(c->top),
        .cluster = COMMIT_GRANULARITY,
        .merge = true,
        .layers = layers(c->top, c->base),
        .zero_from = node_size(c->base), /* base will grow from here */
        .burst = c->active ? ACTIVE_BURST : 0,
        .step = c->active ? 0 : COMMIT_STEP,
    };

    c->copy = copy_new(&o);
    c->follow.copy = c->copy;
    c->follow.source = c->top;
    c->follow.dirty = c->active
                          ? bitmap_new_anonymous(c->top, COMMIT_GRANULARITY)
                          : NULL;
    if (!c->copy || (c->active && !c->follow.dirty)) {
        return error_nomem(errp);
    }
    copy_add(c->copy, 0, o.size);
    copy_set_ends(c->copy, c->filter, c->top, c->base);
    return 0;
}

static int arm_commit_locked(struct commit *c, const struct commit_options *o,
                             const struct plan *p, struct error **errp)
{
    graph_drain(c->graph, p->top);
    c->base = p->base;
    c->top = p->top;
    bool read_only = c->base->flags.read_only;
    int r = chain_set_read_only(c->base, false, errp);
    if (r < 0) {
        return r;
    }
    c->base_read_only = read_only;
    r = jobfilter_insert(c->active ? &driver_mirror_top : &driver_commit_top,
                         p->top, o->filter_node_name, &c->filter, errp);
    if (r == 0) {
        r = block_chain(c, p, errp);
    }
    return r < 0 ? r : make_commit_copy(c, errp);
}

/* Declare what the job does with the two nodes. */
static int attach_users(struct commit *c, struct error **errp)
{
    unsigned grow = node_size(c->base) < node_size(c->top) ? PERM_RESIZE : 0;
    int r = blk_new(c->graph, c->base, PERM_READ | PERM_WRITE | grow, PERM_READ,
                    "an unnamed block device", &c->to, errp);

    c->failures = node_flush_failures(c->base);
    return r < 0 ? r
                 : blk_new(c->graph, c->filter, PERM_READ, PERM_ALL,
                           "an unnamed block device", &c->from, errp);
}

static int arm_commit(struct commit *c, const struct commit_options *o,
                      const struct plan *p, struct error **errp)
{
    graph_lock(c->graph);
    int r = arm_commit_locked(c, o, p, errp);
    graph_unlock(c->graph);
    return r < 0 ? r : attach_users(c, errp);
}

static int begin_commit(struct jobs *j, struct commit *c, struct error **errp)
    REQUIRES(j->lock)
{
    struct job_txn *txn = job_txn_new();

    if (!txn) {
        return error_nomem(errp);
    }
    int r = job_enlist(j, &c->job, txn, errp);
    if (r == 0) {
        job_go(j, &c->job);
    }
    job_txn_unref(txn);
    return r;
}

static struct commit *commit_new(struct jobs *j, const struct commit_options *o,
                                 bool active)
{
    struct commit *c = calloc(1, sizeof(*c));

    if (!c) {
        return NULL;
    }
    c->graph = jobs_graph(j);
    c->active = active;
    c->follow.on_error[COPY_READ] = o->on_error;
    c->follow.on_error[COPY_WRITE] = o->on_error;
    c->backing_file = o->backing_file ? strdup(o->backing_file) : NULL;
    commit_follow(c);
    if (o->backing_file && !c->backing_file) {
        commit_driver.free(&c->job);
        return NULL;
    }
    return c;
}

/* Start the job.  *cp: the caller has no reference. */
static int start_commit(struct jobs *j, const struct commit_options *o,
                        const struct plan *p, bool empties, struct commit **cp,
                        struct error **errp) REQUIRES(j->lock)
{
    const struct job_options job = {
        .id = o->job_id ? o->job_id : o->device,
        .manual_finalize = o->manual_finalize,
        .manual_dismiss = o->manual_dismiss,
        .internal = empties,
        .speed = o->speed,
    };
    struct commit *c = *cp = commit_new(j, o, p->active);

    if (!c) {
        return error_nomem(errp);
    }
    int r = job_create(j, &c->job, &commit_driver, &job, errp);
    if (r < 0) {
        commit_driver.free(&c->job);
        return r;
    }
    if (empties) {
        c->empties = true;
        follow_ask_for_end(&c->follow, false); /* nobody else will */
    }
    r = arm_commit(c, o, p, errp);
    if (r == 0) {
        r = begin_commit(j, c, errp);
    }
    if (r < 0) {
        commit_disarm(c);
        job_unref(j, &c->job);
    }
    return r;
}

int job_commit(struct jobs *j, const struct commit_options *o,
               struct error **errp)
{
    struct graph *g = jobs_graph(j);
    struct commit *c;
    struct plan p;

    graph_lock(g);
    int r = make_plan(o, &p, errp);
    graph_unlock(g);
    return r < 0 ? r : start_commit(j, o, &p, false, &c, errp);
}

/* The image, and what is right below it. */
static int plan_emptying(struct commit_options *o, struct plan *p,
                         struct error **errp)
{
    o->base_node = node_child(o->root, CHILD_BACKING);
    if (!o->base_node) {
        return error_set(errp, ENOTSUP, "'%s' has no backing file",
                         node_name(o->root));
    }
    if (o->root->flags.read_only) {
        return error_set(errp, EPERM, "Block node is read-only");
    }
    int r = chain_check_jobs(o->root, chain_next(o->base_node), errp);
    return r < 0 ? r : make_plan(o, p, errp);
}

int job_commit_and_empty(struct jobs *j, struct node *image, const char *device,
                         struct error **errp)
{
    struct commit_options o = {.root = image, .device = device};
    struct graph *g = jobs_graph(j);
    struct commit *c = NULL;
    struct plan p;

    graph_lock(g);
    int r = plan_emptying(&o, &p, errp);
    graph_unlock(g);
    if (r == 0) {
        r = start_commit(j, &o, &p, true, &c, errp);
    }
    if (r < 0) {
        return r;
    }
    c->job.refs++;
    r = job_wait(j, &c->job, errp);
    job_unref(j, &c->job);
    return r;
}
