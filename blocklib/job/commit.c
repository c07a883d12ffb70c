/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The commit job: what its thread does, and how it ends.
 *
 *     users                      what is copied: all that a layer from top
 *       |                        down to above base decides
 *    (filter)
 *      top      --.
 *      ...        | read
 *      base    <--'  write
 *
 * The copy engine copies (copy/copy.h).  This file decides what its set has.
 * Below the active layer nothing changes meanwhile: the set is the whole disk,
 * once.  The active layer is followed (follow.h): the set begins as what there
 * is to copy, and has what guests have written afterwards.
 *
 * Nobody sees through top what is written to base: there, one of the layers
 * that are copied decides.  So a job that fails has changed nothing except the
 * content of base.
 *
 * A command may ask for a commit that empties the active layer instead of
 * leading its users away (commit-empty.c).
 *
 * The end, below the active layer, in this order: base is flushed, the image
 * above top names base (durable), the nodes between are dropped.
 */
#include "job/commit.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/blocker.h"
#include "core/chain.h"
#include "core/graph.h"
#include "job/filter.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

static struct commit *commit_of(struct job *job)
{
    return list_entry(job, struct commit, job);
}

/* --- The work --- */

static int grow_base(struct commit *c)
{
    graph_lock(c->graph);
    bool shorter = node_size(c->base) < node_size(c->top);
    graph_unlock(c->graph);
    int r = shorter ? graph_lock_drained(c->graph, c->base) : 0;
    if (r < 0 || !shorter) {
        return r;
    }
    if (node_size(c->base) < node_size(c->top)) { /* only we may resize it */
        r = node_resize(c->base, node_size(c->top), NULL);
    }
    graph_unlock(c->graph);
    return r < 0 ? follow_failed(&c->follow, COPY_WRITE, r) : 0;
}

/* Find out what there is to copy of the active layer. */
static int look_around(struct commit *c)
{
    int r = copy_skip_below(c->copy);

    if (r == COPY_STOPPED) {
        return JOB_STOPPED;
    }
    if (r < 0) {
        return follow_failed(&c->follow, COPY_READ, r);
    }
    atomic_store(&c->looked, true);
    return 0;
}

static int flush_base(struct follow *f)
{
    struct commit *c = list_entry(f, struct commit, follow);

    return blk_flush(c->to);
}

/* A resize of top itself comes past the filter. */
static int follow_size(struct follow *f)
{
    struct commit *c = list_entry(f, struct commit, follow);

    return node_size(c->base) < node_size(c->top)
               ? node_resize(c->base, node_size(c->top), NULL)
               : 0;
}

void commit_follow(struct commit *c)
{
    c->follow.job = &c->job;
    c->follow.graph = c->graph;
    c->follow.granularity = COMMIT_GRANULARITY;
    c->follow.flush = flush_base;
    c->follow.sized = follow_size;
    follow_init(&c->follow);
}

static int commit_run(struct job *job)
{
    struct commit *c = commit_of(job);
    int r = grow_base(c);

    if (r == 0 && !c->active) {
        return follow_copy_set(&c->follow);
    }
    if (r == 0 && !atomic_load(&c->looked)) {
        r = look_around(c);
    }
    if (r == 0) {
        r = follow_run(&c->follow);
    }
    return r == 0 && c->empties ? commit_empty(c) : r;
}

/* --- The end --- */

static void release_users(struct commit *c)
{
    blk_free(c->from);
    blk_free(c->to);
    c->from = NULL;
    c->to = NULL;
}

/* From here down to commit_prepare: in a drained section. */

/* Rename the backing file of all images that have @n, or a filter above it, as
 * their backing node. */
static int rename_backing(struct commit *c, struct node *n, const char *name)
{
    int r = 0;

    list_for_each (at, &n->parents) {
        const struct edge *e = list_entry(at, struct edge, on_child);
        if (r < 0 || !e->parent) {
            continue;
        }
        if (e->parent->drv->is_filter) {
            r = rename_backing(c, e->parent, name);
        } else if (e == e->parent->child[CHILD_BACKING]) {
            r = chain_set_backing_name(e->parent, name,
                                       chain_backing_format(c->base), NULL);
        }
    }
    return r;
}

/* Lead all users of top to base: users of the filter, and users that have come
 * to top past it meanwhile.  Base, which they would have below top, changes
 * from now on. */
static int switch_to_base(struct commit *c)
{
    int r = node_check_replace(c->filter, c->base, NULL);

    if (r == 0) {
        r = node_check_replace(c->top, c->base, NULL);
    }
    if (r < 0) {
        return r;
    }
    node_replace(c->top, c->base);
    node_replace(c->filter, c->base);
    node_refresh_above(c->base);
    node_unref(c->filter);
    c->filter = NULL;
    return 0;
}

static int end_below(struct commit *c)
{
    CLEANUP_FREE char *name = c->backing_file
                                  ? strdup(c->backing_file)
                                  : chain_backing_name(c->base, NULL);
    int r = name ? node_flush_since(c->base, c->failures) : -ENOENT;

    if (r == 0) {
        r = rename_backing(c, c->top, name);
    }
    return r < 0 ? r : switch_to_base(c);
}

static int end_active(struct commit *c)
{
    int r = follow_last(&c->follow);

    if (r == 0) {
        r = node_flush_since(c->base, c->failures);
    }
    if (r < 0 || !c->follow.complete) {
        return r;
    }
    r = switch_to_base(c);
    if (r == 0) {
        c->base_read_only = c->top->flags.read_only;
    }
    return r;
}

static int commit_prepare(struct job *job)
{
    struct commit *c = commit_of(job);

    if (c->empties) { /* all is done */
        return 0;
    }
    release_users(c);
    graph_lock(c->graph);
    graph_drain(c->graph, c->top);
    int r = c->active ? end_active(c) : end_below(c);
    graph_unlock(c->graph);
    return r;
}

void commit_disarm(struct commit *c)
{
    release_users(c);
    graph_lock(c->graph);
    if (c->base) {
        graph_drain(c->graph, c->base);
    }
    if (c->follow.dirty) {
        bitmap_drop(c->follow.dirty);
        c->follow.dirty = NULL;
    }
    if (c->filter) {
        jobfilter_remove(c->filter);
        c->filter = NULL;
    }
    if (c->base_read_only) {
        (void)chain_set_read_only(c->base, true, NULL);
        c->base_read_only = false;
    }
    for (size_t i = 0; i < c->node_count; i++) {
        node_unblock(c->nodes[i]);
        node_unref(c->nodes[i]);
    }
    c->node_count = 0;
    graph_unlock(c->graph);
}

static void commit_clean(struct job *job)
{
    commit_disarm(commit_of(job));
}

/* --- Verbs --- */

static void commit_kick(struct job *job, bool stop)
{
    follow_kick(&commit_of(job)->follow, stop);
}

static void commit_set_speed(struct job *job, uint64_t speed)
{
    copy_set_speed(commit_of(job)->copy, speed);
}

static int commit_complete(struct job *job, struct error **errp)
{
    struct commit *c = commit_of(job);

    if (!c->follow.ready) {
        return error_set(errp, EPERM,
                         "The active block job '%s' cannot be completed",
                         job->id);
    }
    follow_ask_for_end(&c->follow, true);
    return 0;
}

/* When base has all data, to stop is no failure. */
static bool commit_cancel(struct job *job)
{
    struct commit *c = commit_of(job);

    if (c->follow.ready) {
        follow_ask_for_end(&c->follow, false);
    }
    return !c->follow.ready;
}

static void commit_progress(struct job *job, uint64_t *done, uint64_t *total)
{
    const struct commit *c = commit_of(job);

    copy_progress(c->copy, done, total);
    if (c->active && !atomic_load(&c->looked)) {
        *total = 0; /* not known yet */
    }
}

static void commit_free(struct job *job)
{
    struct commit *c = commit_of(job);

    copy_free(c->copy);
    follow_destroy(&c->follow);
    free(c->backing_file);
    free(c->nodes);
    free(c);
}

static bool commit_uses(struct job *job, const struct node *n)
{
    const struct commit *c = list_entry(job, struct commit, job);
    size_t i = 0;

    while (i < c->node_count && c->nodes[i] != n) {
        i++;
    }
    return i < c->node_count;
}

const struct job_driver commit_driver = {
    .type = "commit",
    .run = commit_run,
    .prepare = commit_prepare,
    .clean = commit_clean,
    .kick = commit_kick,
    .set_speed = commit_set_speed,
    .complete = commit_complete,
    .cancel = commit_cancel,
    .uses = commit_uses,
    .progress = commit_progress,
    .free = commit_free,
};
