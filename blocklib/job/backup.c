/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The backup job.
 *
 *   command's thread, under the monitor lock
 *     create and open the target
 *     one drained section, the point in time:
 *       freeze the bitmap | insert the filter, its set filled
 *   job's thread
 *     copy until the set is empty
 *     remove the filter
 *     flush the target, close it
 *   under the monitor lock, with all others of the transaction
 *     success: the frozen bitmap gives way to its successor
 *     failure: the two become one again
 *
 *  1. Bits of a bitmap are given up only after what they stand for is durable
 *     in the target.
 *  2. The target is closed, its image lock released, before anybody can see
 *     the job's end.
 *  3. A guest's write never fails because of a backup: see drivers/cbw.c.
 *
 * Nodes are closed under the monitor lock, because commands hold pointers to
 * them under it.  The target is flushed without it, and, as it is a tree of
 * its own by then, without holding up the source.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/dirty.h"
#include "core/graph.h"
#include "drivers/cbw.h"
#include "job/copy.h"
#include "job/job.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

#define CLUSTER_MIN (64 * KiB)

struct backup {
    struct job job;
    struct graph *graph;
    struct copy *copy;

    /* References; control lock. */
    struct node *source;
    struct node *target;   /* NULL once it is closed */
    struct node *filter;   /* NULL before and after it is in place */
    struct bitmap *bitmap; /* frozen by us, or NULL */
    bool target_zero;      /* it was created here */
};

static struct backup *backup_of(struct job *job)
{
    return list_entry(job, struct backup, job);
}

/* --- The job --- */

static void report(struct backup *b, enum copy_side side, int r)
{
    struct jobs *j = b->job.jobs;

    mutex_lock(&j->lock);
    job_io_error(j, &b->job, side == COPY_READ ? "read" : "write", "report", r);
    mutex_unlock(&j->lock);
}

static int backup_run(struct job *job)
{
    struct backup *b = backup_of(job);
    enum copy_side side = COPY_READ;
    int r = copy_run(b->copy, &side);

    if (r == COPY_STOPPED) {
        return JOB_STOPPED;
    }
    if (r < 0) {
        report(b, side, r);
    }
    return r;
}

static void remove_filter(struct backup *b)
{
    if (b->filter) {
        graph_lock(b->graph);
        cbw_remove(b->filter);
        b->filter = NULL;
        graph_unlock(b->graph);
    }
}

static void close_target(struct backup *b)
{
    if (b->target) {
        graph_lock(b->graph);
        node_unref(b->target);
        b->target = NULL;
        graph_unlock(b->graph);
    }
}

static int backup_exit(struct job *job, int r)
{
    struct backup *b = backup_of(job);
    struct jobs *j = job->jobs;

    if (r < 0) {
        copy_break(b->copy);
    }
    mutex_lock(&j->lock);
    remove_filter(b);
    mutex_unlock(&j->lock);
    if (r == 0) {
        struct tree *t = node_enter(b->target, false);
        r = node_flush(b->target);
        node_leave(t);
        if (r < 0) {
            report(b, COPY_WRITE, r);
        }
    }
    mutex_lock(&j->lock);
    close_target(b);
    mutex_unlock(&j->lock);
    return r;
}

static void release_bitmap(struct backup *b, bool success)
{
    if (b->bitmap) {
        graph_lock(b->graph);
        graph_drain(b->graph, b->source);
        if (success) {
            bitmap_abdicate(b->bitmap);
        } else {
            bitmap_reclaim(b->bitmap);
        }
        b->bitmap = NULL;
        graph_unlock(b->graph);
    }
}

static void backup_commit(struct job *job)
{
    release_bitmap(backup_of(job), true);
}

static void backup_abort(struct job *job)
{
    release_bitmap(backup_of(job), false);
}

static void backup_clean(struct job *job)
{
    struct backup *b = backup_of(job);

    graph_lock(b->graph);
    node_unref(b->source);
    b->source = NULL;
    graph_unlock(b->graph);
    copy_free(b->copy);
    b->copy = NULL;
}

static void backup_kick(struct job *job, bool stop)
{
    copy_stop(backup_of(job)->copy, stop);
}

static void backup_set_speed(struct job *job, uint64_t speed)
{
    copy_set_speed(backup_of(job)->copy, speed);
}

static void backup_progress(struct job *job, uint64_t *done, uint64_t *total)
{
    copy_progress(backup_of(job)->copy, done, total);
}

static void backup_free(struct job *job)
{
    free(backup_of(job));
}

static const struct job_driver backup_driver = {
    .type = "backup",
    .run = backup_run,
    .exit = backup_exit,
    .commit = backup_commit,
    .abort = backup_abort,
    .clean = backup_clean,
    .kick = backup_kick,
    .set_speed = backup_set_speed,
    .progress = backup_progress,
    .free = backup_free,
};

/* --- Checks that change nothing --- */

static bool has_backing(struct graph *g, struct node *n)
{
    graph_lock(g);
    bool has = node_backing(n) != NULL;
    graph_unlock(g);
    return has;
}

static int check_sync(struct graph *g, const struct backup_options *o,
                      struct error **errp)
{
    if (o->sync == SYNC_INCREMENTAL && !o->bitmap) {
        return error_set(errp, EINVAL,
                         "must provide a valid bitmap name for 'incremental' "
                         "sync mode");
    }
    if (o->sync != SYNC_INCREMENTAL && o->bitmap) {
        return error_set(errp, ENOTSUP,
                         "a bitmap is only supported with sync mode "
                         "'incremental'");
    }
    if (o->sync == SYNC_NONE) {
        return error_set(errp, ENOTSUP, "sync mode 'none' is not supported");
    }
    /* Without a backing node, top is all there is. */
    if (o->sync == SYNC_TOP && has_backing(g, o->source)) {
        return error_set(errp, ENOTSUP,
                         "sync mode 'top' is not supported for node '%s', "
                         "which has a backing file",
                         node_name(o->source));
    }
    return 0;
}

/* Of a moment; asked again in the section that freezes it. */
static int check_bitmap_locked(const struct backup_options *o,
                               struct bitmap **bmp, struct error **errp)
{
    if (!o->bitmap) {
        *bmp = NULL;
        return 0;
    }
    int r = bitmap_lookup(o->source, o->bitmap, true, bmp, errp);
    if (r == -ENOENT) {
        return error_set(errp, ENOENT, "Bitmap '%s' could not be found",
                         o->bitmap);
    }
    return r;
}

static int check_bitmap(struct graph *g, const struct backup_options *o,
                        struct error **errp)
{
    struct bitmap *bm;

    graph_lock(g);
    graph_drain(g, o->source);
    int r = check_bitmap_locked(o, &bm, errp);
    graph_unlock(g);
    return r;
}

/* NULL: an existing file is probed. */
static const char *format_of(const struct backup_options *o)
{
    const struct node *n = o->source;

    if (o->format || o->existing) {
        return o->format;
    }
    while (n->drv->is_filter) {
        n = node_child(n, CHILD_FILE);
    }
    return n->drv->is_protocol ? "raw" : node_driver(n);
}

static int check_options(struct jobs *j, const char *id,
                         const struct backup_options *o, struct error **errp)
    REQUIRES(j->lock)
{
    struct graph *g = jobs_graph(j);
    int r = job_check_id(j, id, errp);

    if (r == 0) {
        r = check_sync(g, o, errp);
    }
    if (r == 0) {
        r = check_bitmap(g, o, errp);
    }
    if (r == 0 && o->compress) {
        const char *format = o->target ? node_driver(o->target) : format_of(o);
        r = error_set(errp, ENOTSUP,
                      "compressed backups are not supported by format '%s'",
                      format ? format : "raw");
    }
    if (r == 0 && o->target == o->source) {
        r = error_set(errp, EINVAL, "Source and target cannot be the same");
    }
    return r;
}

/* --- The target --- */

static int create_target(const struct backup_options *o, struct error **errp)
{
    CLEANUP_JSON json_t *options = json_pack("{s:I}", "size",
                                             (json_int_t)node_size(o->source));

    if (!options) {
        return error_set(errp, ENOMEM, "no memory for options");
    }
    return image_create(o->target_file, format_of(o), options, errp);
}

/* Keys that the user has not spelled out follow the source. */
static int set_default(json_t *options, const char *key, json_t *value)
{
    if (json_object_get(options, key)) {
        json_decref(value);
        return 0;
    }
    return json_object_set_new(options, key, value);
}

static int open_target(struct backup *b, const struct backup_options *o,
                       struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    const struct node_flags *flags = &o->source->flags;
    int r = options_from_image(o->target_file, format_of(o), &options, errp);

    if (r < 0) {
        return r;
    }
    json_t *cache = json_pack("{s:b, s:b}", "direct", (int)flags->direct,
                              "no-flush", (int)flags->no_flush);
    if (set_default(options, "discard", json_string("unmap")) < 0 ||
        set_default(options, "cache", cache) < 0) {
        return error_set(errp, ENOMEM, "no memory for options");
    }
    graph_lock(b->graph);
    r = graph_open_locked(b->graph, options, &b->target, errp);
    graph_unlock(b->graph);
    return r;
}

static int get_target(struct backup *b, const struct backup_options *o,
                      struct error **errp)
{
    if (o->target) {
        graph_lock(b->graph);
        node_ref(o->target);
        graph_unlock(b->graph);
        b->target = o->target;
        return 0;
    }
    if (!o->existing) {
        int r = create_target(o, errp);
        if (r < 0) {
            return r;
        }
        b->target_zero = true;
    }
    return open_target(b, o, errp);
}

/* --- The start --- */

static uint64_t cluster_size(const struct node *target)
{
    uint64_t pref = target->limits.pref;
    return is_pow2(pref) ? max_u64(pref, CLUSTER_MIN) : CLUSTER_MIN;
}

static int prepare_copy(struct backup *b, const struct backup_options *o,
                        struct error **errp)
{
    struct copy_options c = {
        .size = node_size(o->source),
        .cluster = cluster_size(b->target),
        .target_zero = b->target_zero,
        .max_workers = o->max_workers,
        .max_chunk = o->max_chunk,
    };

    if (node_size(b->target) != c.size) {
        return error_set(errp, EINVAL,
                         "Source and target image have different sizes");
    }
    if (o->max_chunk && o->max_chunk < c.cluster) {
        return error_set(errp, EINVAL,
                         "Required max-chunk (%" PRIu64 ") is less than "
                         "backup cluster size (%" PRIu64 ")",
                         o->max_chunk, c.cluster);
    }
    b->copy = copy_new(&c);
    if (!b->copy) {
        return error_set(errp, ENOMEM, "no memory for a backup of '%s'",
                         node_name(o->source));
    }
    if (!o->bitmap) {
        copy_add(b->copy, 0, c.size);
    }
    return 0;
}

/* The point in time; in a control section. */
static int arm_locked(struct backup *b, const struct backup_options *o,
                      struct error **errp)
{
    struct bitmap *bm;

    graph_drain(b->graph, o->source);
    int r = check_bitmap_locked(o, &bm, errp);
    if (r < 0) {
        return r;
    }
    if (node_size(b->target) != node_size(o->source)) {
        return error_set(errp, EBUSY, "Node '%s' is being resized",
                         node_name(o->source));
    }
    if (bm) {
        r = bitmap_freeze(bm, errp);
        if (r < 0) {
            return r;
        }
        copy_add_bits(b->copy, bm->bits);
    }
    r = cbw_insert(b->graph, o->source, b->target, b->copy, o->filter_node_name,
                   &b->filter, errp);
    if (r < 0) {
        if (bm) {
            bitmap_reclaim(bm);
        }
        return r;
    }
    b->bitmap = bm;
    node_ref(o->source);
    b->source = o->source;
    return 0;
}

static int arm(struct backup *b, const struct backup_options *o,
               struct error **errp)
{
    graph_lock(b->graph);
    int r = arm_locked(b, o, errp);
    graph_unlock(b->graph);
    return r;
}

static int start(struct jobs *j, struct backup *b, struct error **errp)
    REQUIRES(j->lock)
{
    struct job_txn *txn = job_txn_new();

    if (!txn) {
        return error_set(errp, ENOMEM, "no memory for job '%s'", b->job.id);
    }
    int r = job_start(j, &b->job, txn, errp);
    job_txn_unref(txn);
    return r;
}

static void undo(struct jobs *j, struct backup *b) REQUIRES(j->lock)
{
    if (b->filter) {
        remove_filter(b);
        release_bitmap(b, false);
        graph_lock(b->graph);
        node_unref(b->source);
        graph_unlock(b->graph);
    }
    close_target(b);
    copy_free(b->copy);
    job_unref(j, &b->job);
}

int job_backup(struct jobs *j, const struct backup_options *o,
               struct error **errp)
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
    struct backup *b = calloc(1, sizeof(*b));
    if (!b) {
        return error_set(errp, ENOMEM, "no memory for job '%s'", job.id);
    }
    b->graph = jobs_graph(j);
    r = job_create(j, &b->job, &backup_driver, &job, errp);
    if (r < 0) {
        free(b);
        return r;
    }
    if ((r = get_target(b, o, errp)) < 0 ||
        (r = prepare_copy(b, o, errp)) < 0 || (r = arm(b, o, errp)) < 0 ||
        (r = start(j, b, errp)) < 0) {
        undo(j, b);
    }
    return r;
}
