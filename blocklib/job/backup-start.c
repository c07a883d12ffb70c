/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The start of a backup, as an action (action.h): checks what must be refused,
 * makes or opens the target unless it is given, makes the copy; then, in the
 * drained section, makes the point in time.
 */
#include "job/backup.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "copy/copy-before-write.h"
#include "core/activity.h"
#include "core/blocker.h"
#include "core/graph.h"
#include "job/target.h"
#include "nbdelta/action.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

/* --- Checks that change nothing --- */

/* Look the bitmap up; *bmp is good in this control section only. */
static int check_bitmap_locked(const struct backup_options *o,
                               struct bitmap **bmp, struct error **errp)
{
    if (!o->bitmap) {
        *bmp = NULL;
        return 0;
    }
    int r = bitmap_lookup(o->source, o->bitmap,
                          o->bitmap_mode == BITMAP_NEVER ? BITMAP_USE_READ
                                                         : BITMAP_USE_CHANGE,
                          bmp, errp);
    if (r == -ENOENT) {
        return error_set(errp, ENOENT, "Bitmap '%s' could not be found",
                         o->bitmap);
    }
    return r;
}

static int check_bitmap_early(struct graph *g, const struct backup_options *o,
                              struct error **errp)
{
    struct bitmap *bm;

    graph_lock(g);
    graph_drain(g, o->source);
    int r = check_bitmap_locked(o, &bm, errp);
    graph_unlock(g);
    return r;
}

static int check_backup_options(struct jobs *j, const char *id,
                                const struct backup_options *o,
                                struct error **errp) REQUIRES(j->lock)
{
    int r = job_check_id(j, id, errp);

    if (r == 0 && o->sync == SYNC_BITMAP && !o->bitmap) {
        r = error_set(errp, EINVAL,
                      "must provide a valid bitmap name for 'bitmap' sync "
                      "mode");
    }
    if (r == 0 && o->target == o->source) {
        r = error_set(errp, EINVAL, "Source and target cannot be the same");
    }
    return r;
}

static int check_activity(const struct backup_options *o, struct error **errp)
{
    int r = node_check_filter(o->source, "file", o->filter_node_name, errp);

    if (r == 0 && o->target) {
        r = node_check_filter(o->target, "target", o->filter_node_name, errp);
    }
    if (r < 0) {
        error_prefix(errp, "Could not create node: ");
    }
    return r;
}

/* A job that exchanges nodes (a commit) would lead guests past the filter. */
static int check_no_other_job(struct graph *g, const struct backup_options *o,
                              struct error **errp)
{
    graph_lock(g);
    int r = node_check_jobs(o->source, errp);
    if (r == 0 && o->target) {
        r = node_check_jobs(o->target, errp);
    }
    if (r == 0) {
        r = check_activity(o, errp);
    }
    graph_unlock(g);
    return r;
}

/* --- The target --- */

/* Images have whole sectors, disks in files may have any size. */
#define SECTOR 512

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
    const struct target_options t = {
        .source = o->source,
        .sync = o->sync,
        .file = o->target_file,
        .format = o->format,
        .existing = o->existing,
    };

    return job_target_open(b->graph, &t, &b->target, &b->target_zero, errp);
}

/* --- The start: an action --- */

struct backup_start {
    struct action action;
    struct jobs *jobs;
    struct backup_options o;
    struct job_txn *txn;
    struct backup *b; /* ours until it has begun */
    bool enlisted;
};

/* Callers of the callbacks hold the monitor lock. */
static struct backup_start *backup_start_of(struct action *a)
{
    return list_entry(a, struct backup_start, action);
}

static bool sizes_agree(const struct node *source, const struct node *target)
{
    uint64_t size = node_size(source);

    return node_size(target) == size ||
           node_size(target) == align_up(size, SECTOR);
}

static int make_backup_copy(struct backup *b, const struct backup_options *o,
                            struct error **errp)
{
    struct copy_options c = {
        .size = node_size(o->source),
        .past = node_size(b->target) - node_size(o->source),
        .compress = o->compress,
        .target_zero = b->target_zero,
        .layers = o->sync == SYNC_TOP,
        .uncached = o->sync != SYNC_NONE,
        .max_workers = o->max_workers,
        .max_chunk = o->max_chunk,
        .discard_source = o->discard_source,
        .policy = {.max_wait_ms = o->max_wait_ms},
    };

    if (o->compress && !b->target->drv->write_compressed) {
        return error_set(errp, ENOTSUP,
                         "Compression is not supported for this drive %s",
                         node_name(b->target));
    }
    if (!sizes_agree(o->source, b->target)) {
        return error_set(errp, EINVAL,
                         "Source and target image have different sizes");
    }
    int r = copy_choose_cluster(b->target, o->min_cluster, &c.cluster, errp);
    if (r < 0) {
        return r;
    }
    if (o->max_chunk && o->max_chunk < c.cluster) {
        return error_set(errp, EINVAL,
                         "Required max-chunk (%" PRIu64 ") is less than "
                         "backup cluster size (%" PRIu64 ")",
                         o->max_chunk, c.cluster);
    }
    b->copy = copy_new(&c);
    if (!b->copy) {
        return error_nomem(errp);
    }
    if (o->sync != SYNC_BITMAP) {
        copy_add(b->copy, 0, c.size);
    }
    return 0;
}

static int backup_start_prepare(struct action *a, struct error **errp)
{
    struct backup_start *s = backup_start_of(a);
    const struct backup_options *o = &s->o;
    struct job_options job = {
        .id = o->job_id ? o->job_id : o->device,
        .manual_finalize = o->manual_finalize,
        .manual_dismiss = o->manual_dismiss,
        .speed = o->speed,
    };

    mutex_is_held(&s->jobs->lock);
    int r = check_backup_options(s->jobs, job.id, o, errp);

    /* Refuse it here, before the target is touched. */
    if (r == 0 && action_is_alone(a)) {
        r = check_bitmap_early(jobs_graph(s->jobs), o, errp);
    }
    if (r == 0) {
        r = check_no_other_job(jobs_graph(s->jobs), o, errp);
    }
    if (r < 0) {
        return r;
    }
    struct backup *b = calloc(1, sizeof(*b));
    if (!b) {
        return error_nomem(errp);
    }
    b->graph = jobs_graph(s->jobs);
    b->sync = o->sync;
    b->bitmap_mode = o->bitmap_mode;
    b->on_error[COPY_READ] = o->on_source_error;
    b->on_error[COPY_WRITE] = o->on_target_error;
    r = job_create(s->jobs, &b->job, &backup_driver, &job, errp);
    if (r < 0) {
        free(b);
        return r;
    }
    s->b = b;
    r = get_target(b, o, errp);
    return r < 0 ? r : make_backup_copy(b, o, errp);
}

static void backup_start_drain(struct action *a)
{
    const struct backup_start *s = backup_start_of(a);

    graph_drain(s->b->graph, s->o.source);
}

static int take_bits(struct backup *b, struct bitmap *bm, struct error **errp)
{
    struct hbitmap *bits = bitmap_share_bits(bm);

    if (!bits) {
        return error_nomem(errp);
    }
    copy_take_bits(b->copy, bits);
    return 0;
}

/* Make the point in time. */
static int arm_backup(struct backup *b, const struct backup_options *o,
                      struct error **errp)
{
    struct bitmap *bm;
    int r = check_bitmap_locked(o, &bm, errp);

    if (r < 0) {
        return r;
    }
    if (copy_size(b->copy) != node_size(o->source) ||
        !sizes_agree(o->source, b->target)) {
        return error_set(errp, EBUSY, "Node '%s' is being resized",
                         node_name(o->source));
    }
    if (bm) {
        r = bitmap_freeze(bm, errp);
        if (r < 0) {
            return r;
        }
    }
    if (bm && o->sync == SYNC_BITMAP) {
        r = take_bits(b, bm, errp);
    }
    if (r == 0) {
        r = cbw_insert(b->graph, o->source, b->target, b->copy,
                       o->filter_node_name, &b->filter, errp);
    }
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

static void disarm_backup(struct backup *b)
{
    cbw_remove(b->filter);
    b->filter = NULL;
    if (b->bitmap) {
        bitmap_reclaim(b->bitmap);
        b->bitmap = NULL;
    }
    node_unref(b->source);
    b->source = NULL;
}

static int backup_start_act(struct action *a, struct error **errp)
{
    struct backup_start *s = backup_start_of(a);

    mutex_is_held(&s->jobs->lock);
    int r = arm_backup(s->b, &s->o, errp);

    if (r < 0) {
        return r;
    }
    r = job_enlist(s->jobs, &s->b->job, s->txn, errp);
    if (r < 0) {
        disarm_backup(s->b);
    } else {
        s->enlisted = true;
    }
    return r;
}

static void backup_start_undo(struct action *a)
{
    disarm_backup(backup_start_of(a)->b);
}

static void backup_start_commit(struct action *a)
{
    struct backup_start *s = backup_start_of(a);

    mutex_is_held(&s->jobs->lock);
    job_begin(s->jobs, &s->b->job);
}

static void backup_start_finish(struct action *a)
{
    struct backup_start *s = backup_start_of(a);

    mutex_is_held(&s->jobs->lock);
    job_go(s->jobs, &s->b->job);
}

static void backup_start_abort(struct action *a)
{
    struct backup_start *s = backup_start_of(a);
    struct backup *b = s->b;

    mutex_is_held(&s->jobs->lock);
    if (!b) {
        return;
    }
    backup_close_target(b);
    copy_free(b->copy);
    b->copy = NULL;
    if (s->enlisted) {
        job_drop(s->jobs, &b->job);
    } else {
        job_unref(s->jobs, &b->job);
    }
}

static void backup_start_free(struct action *a)
{
    struct backup_start *s = backup_start_of(a);

    job_txn_unref(s->txn);
    free(s);
}

static const struct action_ops backup_start_ops = {
    .prepare = backup_start_prepare,
    .drain = backup_start_drain,
    .act = backup_start_act,
    .undo = backup_start_undo,
    .commit = backup_start_commit,
    .finish = backup_start_finish,
    .abort = backup_start_abort,
    .free = backup_start_free,
};

int backup_action(struct jobs *j, const struct backup_options *o,
                  struct job_txn *txn, struct action **ap, struct error **errp)
{
    struct backup_start *s = calloc(1, sizeof(*s));

    if (txn) {
        job_txn_ref(txn);
    } else {
        txn = job_txn_new();
    }
    if (!s || !txn) {
        free(s);
        job_txn_unref(txn);
        return error_nomem(errp);
    }
    s->action.ops = &backup_start_ops;
    s->jobs = j;
    s->o = *o;
    graph_lock(jobs_graph(j));
    s->o.source = node_skip_job_filters(o->source);
    s->o.target = node_skip_job_filters(o->target);
    graph_unlock(jobs_graph(j));
    s->txn = txn;
    *ap = &s->action;
    return 0;
}
