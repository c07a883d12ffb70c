/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The start of a mirror: checks what must be refused, makes or opens the target
 * unless it is given, and then, in one drained section,
 *
 *   the filter is inserted above the source | the source gets its bitmap, or
 * the filter sees writes
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "copy/mirror-top.h"
#include "core/activity.h"
#include "core/blocker.h"
#include "core/chain.h"
#include "core/graph-priv.h"
#include "core/graph.h"
#include "job/mirror.h"
#include "job/target.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

#define BUFFER_DEFAULT (16 * MiB)
#define CHUNK_MAX      (1 * MiB)
#define WORKERS_MAX    16

#define GRANULARITY_MIN     (4 * KiB)
#define GRANULARITY_DEFAULT (64 * KiB)

/* Targets that are images have whole sectors. */
#define SECTOR 512

/* --- Checks --- */

static int check_granularity(uint64_t granularity, struct error **errp)
{
    if (granularity != 0 && (granularity < 512 || granularity > 64 * MiB)) {
        return error_set(errp, EINVAL,
                         "Parameter 'granularity' expects a value in range "
                         "[512B, 64MB]");
    }
    return granularity != 0 && !is_pow2(granularity)
               ? error_set(errp, EINVAL,
                           "Parameter 'granularity' expects a power of 2")
               : 0;
}

static bool has_parents(const struct node *n)
{
    list_for_each (at, &n->parents) {
        const struct edge *e = list_entry(at, struct edge, on_child);
        if (e->parent && !e->parent->drv->passive) {
            return true;
        }
    }
    return false;
}

/* A job is a parent in QEMU, so what it says of jobs is the same. */
static int check_source(const struct mirror_options *o, struct error **errp)
{
    return has_parents(o->source) || node_check_jobs(o->source, NULL) < 0
               ? error_set(errp, EINVAL, "Need a root block node")
               : node_check_filter(o->source, "backing", o->filter_node_name,
                                   errp);
}

static int check_target(const struct mirror_options *o, struct error **errp)
{
    struct node *source = o->source;
    struct node *target = o->target;

    if (node_skip_filters(source) == node_skip_filters(target)) {
        return error_set(errp, EINVAL, "Can't mirror node into itself");
    }
    if (chain_contains(source, node_skip_filters(target))) {
        return error_set(errp, EINVAL,
                         "Cannot mirror to a node in the source's backing "
                         "chain");
    }
    if (node_writes_to(target, source)) {
        return error_set(errp, EINVAL,
                         "Node '%s' is part of the chain of the target '%s'",
                         node_name(source), node_name(target));
    }
    if (!node_active(target)) {
        return error_set(errp, EPERM,
                         "Permission 'write' unavailable on inactive node");
    }
    return node_check_jobs(target, errp);
}

static int check_replaces(const struct mirror_options *o, struct error **errp)
{
    struct node *n = o->replaces
                         ? graph_find_locked(o->source->graph, o->replaces)
                         : o->source;

    if (!n) {
        return error_set(errp, ENOENT,
                         "Failed to find node with node-name='%s'",
                         o->replaces);
    }
    if (!mirror_can_replace(o->source, n)) {
        return error_set(errp, EINVAL,
                         "Cannot replace '%s' by a node mirrored from '%s', "
                         "because it cannot be guaranteed that doing so would "
                         "not lead to an abrupt change of visible data",
                         node_name(n), node_name(o->source));
    }
    if (node_size(n) != node_size(o->source)) {
        return error_set(errp, EINVAL,
                         "cannot replace image with a mirror image of "
                         "different size");
    }
    return node_check_jobs(n, errp);
}

/* As in QEMU, the nodes come first, and the job's id last. */
static int check_options(struct jobs *j, const char *id,
                         const struct mirror_options *o, struct error **errp)
    REQUIRES(j->lock)
{
    graph_lock(jobs_graph(j));
    int r = check_source(o, errp);
    if (r == 0) {
        r = check_granularity(o->granularity, errp);
    }
    if (r == 0 && o->target) {
        r = check_target(o, errp);
    }
    if (r == 0) {
        r = check_replaces(o, errp);
    }
    graph_unlock(jobs_graph(j));
    return r < 0 ? r : job_check_id(j, id, errp);
}

/* --- The copy --- */

/* Does the image read the rest of a cluster, which is written in part, from a
 * backing file that is not open? */
static bool needs_whole_clusters(const struct node *target)
{
    const struct node *image = node_skip_filters(target);

    return image->image_backing && !image->child[CHILD_BACKING];
}

static uint64_t pick_cluster(const struct mirror_options *o,
                             const struct node *target)
{
    uint64_t cluster = node_skip_filters(target)->cluster_size;
    uint64_t unit = o->granularity;

    if (unit == 0) {
        unit = cluster == 0 ? GRANULARITY_DEFAULT
                            : min_u64(max_u64(cluster, GRANULARITY_MIN),
                                      GRANULARITY_DEFAULT);
    }
    return needs_whole_clusters(target) ? max_u64(unit, cluster) : unit;
}

/* Where nobody has asked for space, and zeroes are the target's own. */
static bool may_be_blank(const struct mirror_options *o,
                         const struct node *target)
{
    return o->sync == SYNC_FULL && !o->keep_space &&
           !node_may_have_backing(node_skip_filters(target));
}

static bool sizes_agree(const struct node *source, const struct node *target)
{
    uint64_t size = node_size(source);

    return node_size(target) == size ||
           node_size(target) == align_up(size, SECTOR);
}

static int make_copy(struct mirror *m, const struct mirror_options *o,
                     bool zero, struct error **errp)
{
    uint64_t cluster = pick_cluster(o, m->target);
    uint64_t buffer = o->buffer_bytes ? o->buffer_bytes : BUFFER_DEFAULT;
    uint64_t chunk = max_u64(min_u64(CHUNK_MAX, buffer), cluster);

    m->sizes_differ = !sizes_agree(m->source, m->target);
    const struct copy_options c = {
        .size = node_size(m->source),
        .cluster = cluster,
        .past = m->sizes_differ ? 0
                                : node_size(m->target) - node_size(m->source),
        .layers = m->top,
        .target_zero = zero,
        .max_workers = (unsigned)max_u64(min_u64(buffer / chunk, WORKERS_MAX),
                                         1),
        .max_chunk = chunk,
        .changing = true,
        .keep_space = o->keep_space,
        .whole = needs_whole_clusters(m->target),
        .uncached = true,
    };

    m->copy = copy_new(&c);
    if (!m->copy) {
        return error_nomem(errp);
    }
    if (o->sync != SYNC_NONE) {
        copy_add(m->copy, 0, c.size);
    }
    m->maybe_blank = may_be_blank(o, m->target);
    m->opens_backing = o->existing && c.whole;
    m->follow.copy = m->copy;
    m->follow.source = m->source;
    m->follow.granularity = cluster;
    return 0;
}

/* --- Arming --- */

static int arm_locked(struct mirror *m, const struct mirror_options *o,
                      struct error **errp)
{
    int r;

    graph_drain(m->graph, m->source);
    graph_drain(m->graph, m->target);
    m->follow.dirty = bitmap_new_anonymous(m->source, m->follow.granularity);
    if (!m->follow.dirty) {
        return error_nomem(errp);
    }
    r = mirror_top_insert(m->source, m->target, m->copy, o->filter_node_name,
                          &m->filter, errp);
    m->failures = node_flush_failures(m->target);
    return r == 0 && o->write_blocking ? mirror_block_writes(m, errp) : r;
}

/* Get the target, and check it. */
static int get_target(struct mirror *m, const struct mirror_options *o,
                      bool *zero, struct error **errp)
{
    const struct target_options t = {
        .source = o->source,
        .sync = o->sync,
        .file = o->target_file,
        .format = o->format,
        .existing = o->existing,
        .alone = true,
        .node_name = o->node_name,
    };

    *zero = false;
    if (!o->target) {
        return job_target_open(m->graph, &t, &m->target, zero, errp);
    }
    graph_lock(m->graph);
    node_ref(o->target);
    graph_unlock(m->graph);
    m->target = o->target;
    return 0;
}

static int arm(struct mirror *m, const struct mirror_options *o,
               struct error **errp)
{
    bool zero;

    graph_lock(m->graph);
    node_ref(o->source);
    m->source = o->source;
    graph_unlock(m->graph);
    int r = get_target(m, o, &zero, errp);
    if (r < 0) {
        return r;
    }
    graph_lock(m->graph);
    r = make_copy(m, o, zero, errp);
    if (r == 0 && o->bitmaps) {
        r = mirror_bitmaps_begin(m, errp);
    }
    if (r == 0) {
        r = arm_locked(m, o, errp);
    }
    graph_unlock(m->graph);
    return r;
}

static struct mirror *mirror_new(struct jobs *j, const struct mirror_options *o)
{
    struct mirror *m = calloc(1, sizeof(*m));

    if (!m) {
        return NULL;
    }
    m->graph = jobs_graph(j);
    m->replaces = o->replaces ? strdup(o->replaces) : NULL;
    m->follow.on_error[COPY_READ] = o->on_source_error;
    m->follow.on_error[COPY_WRITE] = o->on_target_error;
    mirror_follow(m);
    if (o->replaces && !m->replaces) {
        mirror_driver.free(&m->job);
        return NULL;
    }
    return m;
}

static int begin(struct jobs *j, struct mirror *m, struct error **errp)
    REQUIRES(j->lock)
{
    struct job_txn *txn = job_txn_new();

    if (!txn) {
        return error_nomem(errp);
    }
    int r = job_enlist(j, &m->job, txn, errp);
    if (r == 0) {
        job_go(j, &m->job);
    }
    job_txn_unref(txn);
    return r;
}

/* What the source's layer has is all, where there is no layer below. */
static bool copies_top(const struct mirror_options *o)
{
    return o->sync == SYNC_TOP && node_backing(o->source);
}

static int start(struct jobs *j, const struct mirror_options *o,
                 struct error **errp) REQUIRES(j->lock)
{
    struct job_options job = {
        .id = o->job_id ? o->job_id : o->device,
        .manual_finalize = o->manual_finalize,
        .manual_dismiss = o->manual_dismiss,
        .speed = o->speed,
    };
    int r = check_options(j, job.id, o, errp);

    if (r < 0) {
        return r;
    }
    struct mirror *m = mirror_new(j, o);
    if (!m) {
        return error_nomem(errp);
    }
    r = job_create(j, &m->job, &mirror_driver, &job, errp);
    if (r < 0) {
        mirror_driver.free(&m->job);
        return r;
    }
    m->top = o->sync == SYNC_TOP;
    r = arm(m, o, errp);
    if (r == 0) {
        r = begin(j, m, errp);
    }
    if (r < 0) {
        mirror_disarm(m);
        job_unref(j, &m->job);
    }
    return r;
}

int job_mirror(struct jobs *j, const struct mirror_options *o,
               struct error **errp)
{
    struct graph *g = jobs_graph(j);
    struct mirror_options exact = *o;

    graph_lock(g);
    exact.source = node_skip_job_filters(o->source);
    exact.target = o->target ? node_skip_job_filters(o->target) : NULL;
    if (o->sync == SYNC_TOP && !copies_top(&exact)) {
        exact.sync = SYNC_FULL;
    }
    graph_unlock(g);
    return start(j, &exact, errp);
}
