/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The commit job.
 *
 *     users                      what is copied: all that a layer from top
 *       |                        down to above base decides
 *    (filter)
 *      top      --.
 *      ...        | read
 *      base    <--'  write
 *
 * Below the active layer nothing changes meanwhile: one pass from the start
 * to the end of the disk is all.  The active layer has a dirty bitmap, and a
 * set that is still to do.  It begins as what there is to copy; when it is
 * empty, it becomes what the bitmap has, which is clean then.  Bits are taken
 * in a drained section, while no request is in flight: so what was written
 * under a bit that is taken can be read, and what is written later sets a new
 * one.  When there is little to take, the job is ready; the last bits are
 * copied in the drained section that ends the job.
 *
 * What is written to base is never seen through top: there, one of the layers
 * that are copied decides.  So a job that fails has changed nothing but the
 * content of base.
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

/* A pass that finds no more than this is the last one, or comes before the
 * job is ready. */
#define LITTLE (4 * MiB)

/* So much of the active layer may go before the speed counts. */
#define BURST (16 * MiB)

/* How often a job that is ready looks for what was written. */
#define SYNC_MS 100

static struct commit *commit_of(struct job *job)
{
    return list_entry(job, struct commit, job);
}

/* --- Copying a range --- */

/* How the parts are moved: by requests of the job's, or, in a drained
 * section, by nodes. */
struct mover {
    int (*extents)(struct commit *c, uint64_t offset, uint64_t bytes,
                   extent_fn *fn, void *opaque);
    int (*read)(struct commit *c, uint64_t offset, uint64_t bytes);
    int (*write)(struct commit *c, uint64_t offset, uint64_t bytes);
    int (*zero)(struct commit *c, uint64_t offset, uint64_t bytes);
};

static int job_extents(struct commit *c, uint64_t offset, uint64_t bytes,
                       extent_fn *fn, void *opaque)
{
    return blk_extents(c->from, offset, bytes, 0, fn, opaque);
}

static int job_read(struct commit *c, uint64_t offset, uint64_t bytes)
{
    return blk_pread(c->from, c->buf, bytes, offset, 0);
}

static int job_write(struct commit *c, uint64_t offset, uint64_t bytes)
{
    return blk_pwrite(c->to, c->buf, bytes, offset, 0);
}

static int job_zero(struct commit *c, uint64_t offset, uint64_t bytes)
{
    return blk_zero(c->to, offset, bytes, REQ_MAY_UNMAP);
}

static const struct mover by_requests = {
    job_extents,
    job_read,
    job_write,
    job_zero,
};

static int drained_extents(struct commit *c, uint64_t offset, uint64_t bytes,
                           extent_fn *fn, void *opaque)
{
    return node_extents(c->top, offset, bytes, 0, fn, opaque);
}

static int drained_read(struct commit *c, uint64_t offset, uint64_t bytes)
{
    return node_pread(c->top, c->buf, bytes, offset, 0);
}

static int drained_write(struct commit *c, uint64_t offset, uint64_t bytes)
{
    return node_pwrite(c->base, c->buf, bytes, offset, 0);
}

static int drained_zero(struct commit *c, uint64_t offset, uint64_t bytes)
{
    return node_zero(c->base, offset, bytes, REQ_MAY_UNMAP);
}

static const struct mover by_nodes = {
    drained_extents,
    drained_read,
    drained_write,
    drained_zero,
};

static int take_first(const struct extent *e, void *opaque)
{
    *(struct extent *)opaque = *e;
    return 1;
}

/* Move what has to be moved of a range that is alike and starts at @offset;
 * *bytes becomes its length.  *moved counts what took time. */
static int copy_some(struct commit *c, const struct mover *m, uint64_t offset,
                     uint64_t *bytes, uint64_t *moved, bool *reading)
{
    struct extent e = {.length = 0};
    int r = m->extents(c, offset, *bytes, take_first, &e);

    *reading = true;
    if (r < 0) {
        return r;
    }
    *bytes = min_u64(*bytes, e.length);
    if (e.depth >= c->depth) {
        return 0;
    }
    *moved += *bytes;
    if (e.flags & EXTENT_ZERO) {
        /* Where base has grown it has zeroes. */
        bool fresh = offset >= c->base_size && !(e.flags & EXTENT_ALLOCATED);
        *reading = false;
        return fresh ? 0 : m->zero(c, offset, *bytes);
    }
    r = m->read(c, offset, *bytes);
    if (r == 0) {
        *reading = false;
        r = m->write(c, offset, *bytes);
    }
    return r;
}

static int copy_range(struct commit *c, const struct mover *m, uint64_t offset,
                      uint64_t bytes, uint64_t *moved, bool *reading)
{
    *moved = 0;
    while (bytes > 0) {
        uint64_t len = bytes;
        int r = copy_some(c, m, offset, &len, moved, reading);
        if (r < 0) {
            return r;
        }
        offset += len;
        bytes -= len;
    }
    return 0;
}

/* --- Pace --- */

/* Wait until the speed allows more, or for @ms.  False: stop now. */
static bool pace(struct commit *c)
{
    mutex_lock(&c->lock);
    for (;;) {
        uint64_t now = now_ns();
        if (c->stop || c->speed == 0 || now >= c->next_ns) {
            break;
        }
        (void)cond_wait_ms(&c->wake, &c->lock,
                           (c->next_ns - now) / 1000000 + 1);
    }
    bool go = !c->stop;
    mutex_unlock(&c->lock);
    return go;
}

static void count_speed(struct commit *c, uint64_t bytes)
{
    mutex_lock(&c->lock);
    if (c->speed > 0 && (!c->active || atomic_load(&c->done) + bytes > BURST)) {
        c->next_ns = max_u64(c->next_ns, now_ns()) +
                     (uint64_t)((double)bytes * 1e9 / (double)c->speed);
    }
    mutex_unlock(&c->lock);
}

/* --- Passes --- */

static int failed(struct commit *c, bool reading, int r)
{
    struct jobs *j = c->job.jobs;

    mutex_lock(&j->lock);
    bool again = job_retries(j, &c->job, c->on_error, reading, r);
    mutex_unlock(&j->lock);
    return again ? JOB_STOPPED : r;
}

static int copy_chunk(struct commit *c, uint64_t offset, uint64_t bytes)
{
    uint64_t moved;
    bool reading;

    if (!pace(c)) {
        return JOB_STOPPED;
    }
    int r = copy_range(c, &by_requests, offset, bytes, &moved, &reading);
    if (r < 0) {
        return failed(c, reading, r);
    }
    count_speed(c, moved);
    atomic_fetch_add(&c->done, bytes);
    return 0;
}

static int grow_base(struct commit *c)
{
    uint64_t size = blk_size(c->from);
    int r = 0;

    graph_lock(c->graph);
    if (node_size(c->base) < size) { /* blocked for all but us */
        graph_drain(c->graph, c->base);
        r = node_resize(c->base, size, NULL);
    }
    graph_unlock(c->graph);
    return r < 0 ? failed(c, false, r) : 0;
}

/* All there is, below the active layer. */
static int only_pass(struct commit *c)
{
    uint64_t size = blk_size(c->from);
    int r = 0;

    while (r == 0 && c->at < size) {
        uint64_t len = min_u64(COMMIT_CHUNK, size - c->at);
        r = copy_chunk(c, c->at, len);
        if (r == 0) {
            c->at += len;
        }
    }
    return r;
}

static int note_extent(const struct extent *e, void *opaque)
{
    struct commit *c = opaque;
    uint64_t size = hbitmap_size(c->todo);

    if (e->depth < c->depth && e->offset < size) {
        hbitmap_set(c->todo, e->offset, min_u64(e->length, size - e->offset));
    }
    return 0;
}

/* Find out what there is to copy of the active layer. */
static int look_around(struct commit *c)
{
    uint64_t size = blk_size(c->from);
    int r = 0;

    if (c->at == 0) {
        hbitmap_free(c->todo);
        c->todo = hbitmap_new(size, COMMIT_GRANULARITY);
    }
    if (!c->todo) {
        return -ENOMEM;
    }
    while (r == 0 && c->at < size) {
        uint64_t len = min_u64(GiB, size - c->at);
        if (!pace(c)) {
            return JOB_STOPPED;
        }
        r = blk_extents(c->from, c->at, len, 0, note_extent, c);
        if (r == 0) {
            c->at += len;
        }
    }
    if (r < 0) {
        return failed(c, true, r);
    }
    atomic_store(&c->total, hbitmap_count(c->todo));
    c->looked = true;
    return 0;
}

/* The next piece of todo from @at on; false: there is none. */
static bool next_piece(const struct commit *c, uint64_t at, uint64_t *start,
                       uint64_t *bytes)
{
    uint64_t size = hbitmap_size(c->todo);

    if (at >= size || !hbitmap_next_dirty(c->todo, at, size, start, bytes)) {
        return false;
    }
    *bytes = min_u64(*bytes, COMMIT_CHUNK);
    return true;
}

/* Copy what is set in todo, and free it. */
static int copy_todo(struct commit *c)
{
    uint64_t at = 0;
    uint64_t bytes = 0;

    while (next_piece(c, at, &at, &bytes)) {
        int r = copy_chunk(c, at, bytes);
        if (r != 0) {
            return r;
        }
        hbitmap_reset(c->todo, at, bytes);
    }
    hbitmap_free(c->todo);
    c->todo = NULL;
    return 0;
}

/* In a control section. */
static int take_bits(struct commit *c)
{
    graph_drain(c->graph, c->top);
    struct hbitmap *empty = hbitmap_new(node_size(c->top),
                                        hbitmap_granularity(c->dirty->bits));
    if (!empty) {
        return -ENOMEM;
    }
    c->todo = bitmap_swap_bits(c->dirty, empty);
    atomic_fetch_add(&c->total, hbitmap_count(c->todo));
    /* Who resizes top itself comes past the filter. */
    return node_size(c->base) < node_size(c->top)
               ? node_resize(c->base, node_size(c->top), NULL)
               : 0;
}

/* Copy what is to do; when nothing was, what was *found in the bitmap. */
static int next_pass(struct commit *c, uint64_t *found)
{
    int r = 0;

    *found = UINT64_MAX;
    if (!c->todo) {
        graph_lock(c->graph);
        r = take_bits(c);
        graph_unlock(c->graph);
        if (r < 0) {
            return r;
        }
        *found = hbitmap_count(c->todo);
    }
    return copy_todo(c);
}

/* Wait a little.  True: the job shall end. */
static bool wait_for_end(struct commit *c, bool *stop)
{
    mutex_lock(&c->lock);
    if (!c->complete && !c->end && !c->stop) {
        (void)cond_wait_ms(&c->wake, &c->lock, SYNC_MS);
    }
    bool end = c->complete || c->end;
    *stop = c->stop;
    mutex_unlock(&c->lock);
    return end;
}

static int become_ready(struct commit *c)
{
    int r = blk_flush(c->to);

    if (r < 0) {
        return failed(c, false, r);
    }
    struct jobs *j = c->job.jobs;
    mutex_lock(&j->lock);
    if (!c->job.cancelled) {
        job_ready(j, &c->job);
        c->ready = true;
    }
    mutex_unlock(&j->lock);
    return c->ready ? 0 : JOB_STOPPED;
}

static int keep_up(struct commit *c)
{
    bool stop = false;
    bool end = false;

    while (!stop) {
        uint64_t found;
        int r = next_pass(c, &found);
        if (r != 0) {
            return r;
        }
        if (found > LITTLE) {
            continue;
        }
        if (!c->ready) {
            r = become_ready(c);
            if (r != 0) {
                return r;
            }
        } else if (end) {
            return 0;
        }
        end = wait_for_end(c, &stop);
    }
    return JOB_STOPPED;
}

static int commit_run(struct job *job)
{
    struct commit *c = commit_of(job);
    int r = grow_base(c);

    if (r == 0 && !c->active) {
        return only_pass(c);
    }
    if (r == 0 && !c->looked) {
        r = look_around(c);
    }
    return r == 0 ? keep_up(c) : r;
}

/* --- The end --- */

static void release_users(struct commit *c)
{
    blk_free(c->from);
    blk_free(c->to);
    c->from = NULL;
    c->to = NULL;
}

/* In a drained section from here on. */

/* What was written since the last pass. */
static int catch_up(struct commit *c)
{
    uint64_t at = 0;
    uint64_t bytes = 0;
    uint64_t moved;
    bool reading;
    int r = take_bits(c);

    while (r == 0 && next_piece(c, at, &at, &bytes)) {
        r = copy_range(c, &by_nodes, at, bytes, &moved, &reading);
        atomic_fetch_add(&c->done, bytes);
        at += bytes;
    }
    return r < 0 ? r : node_flush(c->base);
}

/* All images that have @n, or a filter above it, as their backing node. */
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

/* All users of top, through the filter or past it, who came meanwhile: what
 * they would have below them is base, which changes from now on. */
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
    int r = name ? node_flush(c->base) : -ENOENT;

    if (r == 0) {
        r = rename_backing(c, c->top, name);
    }
    return r < 0 ? r : switch_to_base(c);
}

static int end_active(struct commit *c)
{
    int r = catch_up(c);

    if (r < 0 || !c->complete) {
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
    if (c->dirty) {
        bitmap_drop(c->dirty);
        c->dirty = NULL;
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
    struct commit *c = commit_of(job);

    mutex_lock(&c->lock);
    c->stop = stop;
    cond_broadcast(&c->wake);
    mutex_unlock(&c->lock);
}

static void commit_set_speed(struct job *job, uint64_t speed)
{
    struct commit *c = commit_of(job);

    mutex_lock(&c->lock);
    c->speed = speed;
    c->next_ns = 0;
    cond_broadcast(&c->wake);
    mutex_unlock(&c->lock);
}

static void ask_for_end(struct commit *c, bool *how)
{
    mutex_lock(&c->lock);
    *how = true;
    cond_broadcast(&c->wake);
    mutex_unlock(&c->lock);
}

static int commit_complete(struct job *job, struct error **errp)
{
    struct commit *c = commit_of(job);

    if (!c->ready) {
        return error_set(errp, EPERM,
                         "The active block job '%s' cannot be completed",
                         job->id);
    }
    ask_for_end(c, &c->complete);
    return 0;
}

/* When base has it all, to stop is no failure. */
static bool commit_cancel(struct job *job)
{
    struct commit *c = commit_of(job);

    if (c->ready) {
        ask_for_end(c, &c->end);
    }
    return !c->ready;
}

static void commit_progress(struct job *job, uint64_t *done, uint64_t *total)
{
    const struct commit *c = commit_of(job);

    *done = atomic_load(&c->done);
    *total = atomic_load(&c->total);
}

static void commit_free(struct job *job)
{
    struct commit *c = commit_of(job);

    hbitmap_free(c->todo);
    cond_destroy(&c->wake);
    mutex_destroy(&c->lock);
    free(c->backing_file);
    free(c->nodes);
    free(c->buf);
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
