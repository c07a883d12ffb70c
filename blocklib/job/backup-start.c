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
#include <sys/stat.h>

#include "copy/copy-before-write.h"
#include "core/blocker.h"
#include "core/chain.h"
#include "core/create.h"
#include "core/graph.h"
#include "core/remote-name.h"
#include "nbdelta/action.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

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

/* NULL: the format of an existing file is probed. */
static const char *target_format(const struct backup_options *o)
{
    return o->format || o->existing ? o->format
                                    : chain_backing_format(o->source);
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

/* A job that exchanges nodes (a commit) would lead guests past the filter. */
static int check_no_other_job(struct graph *g, const struct backup_options *o,
                              struct error **errp)
{
    graph_lock(g);
    int r = node_check_jobs(o->source, errp);
    if (r == 0 && o->target) {
        r = node_check_jobs(o->target, errp);
    }
    graph_unlock(g);
    return r;
}

/* --- The target --- */

/* Images have whole sectors, disks in files may have any size. */
#define SECTOR 512

/* The node that the target shall leave reads to, or NULL. */
static struct node *backing_for(struct graph *g, const struct backup_options *o)
{
    if (o->sync == SYNC_NONE) {
        return o->source;
    }
    if (o->sync != SYNC_TOP) {
        return NULL;
    }
    graph_lock(g);
    struct node *backing = node_child(node_skip_filters(o->source),
                                      CHILD_BACKING);
    graph_unlock(g);
    return backing;
}

/* An export is there already.  Make an image in it, unless it is raw. */
static int create_remote(struct graph *g, const struct backup_options *o,
                         const json_t *options, struct error **errp)
{
    CLEANUP_JSON json_t *file = json_pack("{s:s}", "filename", o->target_file);
    const char *format = target_format(o);
    struct image_nodes left;

    if (strcmp(format, "raw") == 0) {
        return 0;
    }
    int r = file ? image_format(g, format, file, options, &left, errp)
                 : error_set(errp, EINVAL, "the target's name is not UTF-8");
    if (file) {
        image_release(g, &left);
    }
    return r;
}

/* A device or an export is not a file: it may have been written before. */
static bool is_file(const char *name)
{
    struct stat st;

    return !remote_is_name(name) && stat(name, &st) == 0 && S_ISREG(st.st_mode);
}

/* *zero: the target has zeroes of its own where nothing is written to it. */
static int create_target(struct graph *g, const struct backup_options *o,
                         const struct node *backing, bool *zero,
                         struct file_make *how, struct error **errp)
{
    uint64_t size = node_size(o->source);
    bool raw = strcmp(target_format(o), "raw") == 0;
    CLEANUP_JSON json_t *options = json_pack(
        "{s:I}", "size", (json_int_t)(raw ? size : align_up(size, SECTOR)));
    int r = options ? 0 : -1;

    CLEANUP_FREE char *name = backing ? chain_backing_name(backing, errp)
                                      : NULL;

    if (backing && !name) {
        return -EINVAL;
    }
    if (r == 0 && backing) {
        r = json_object_set_new(options, "backing_file", json_string(name)) |
            json_object_set_new(options, "backing_fmt",
                                json_string(chain_backing_format(backing)));
    }
    if (r < 0) {
        return error_nomem(errp);
    }
    bool remote = remote_is_name(o->target_file);
    graph_lock(g);
    node_access(o->source, &how->access);
    graph_unlock(g);
    r = remote ? create_remote(g, o, options, errp)
               : image_create_as(graph_drivers(g), o->target_file,
                                 target_format(o), options, how, errp);

    /* A target whose unwritten parts show something else, now or after a change
     * of its backing file, has to have its zeroes stored. */
    *zero = r == 0 && o->sync == SYNC_FULL && (!raw || is_file(o->target_file));
    return r;
}

/* Set a key, as the source has it, unless the user has spelled it out. */
static int set_default_option(json_t *options, const char *key, json_t *value)
{
    if (json_object_get(options, key)) {
        json_decref(value);
        return 0;
    }
    return json_object_set_new(options, key, value);
}

/* @backing: a node that the image names, because we have made it so, or the
 * source.  @made: the file, if we have made it. */
static int open_target(struct backup *b, const struct backup_options *o,
                       const struct node *backing, const struct file_make *made,
                       struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    const struct node_flags *flags = &o->source->flags;
    int r = options_from_image(o->target_file, target_format(o), &options,
                               errp);

    if (r < 0) {
        return r;
    }
    json_t *cache = json_pack("{s:b, s:b}", "direct", (int)flags->direct,
                              "no-flush", (int)flags->no_flush);
    if (set_default_option(options, "discard", json_string("unmap")) < 0 ||
        set_default_option(options, "cache", cache) < 0) {
        return error_nomem(errp);
    }
    if (backing && json_object_set_new(options, "backing",
                                       json_string(node_name(backing))) < 0) {
        return error_nomem(errp);
    }
    graph_lock(b->graph);
    r = graph_open_locked(b->graph, options, &b->target, errp);
    if (r == 0 && made) {
        r = node_check_made(b->target, made, errp);
    }
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
    struct file_make made = {.access = FILE_ACCESS_ANY};
    struct node *backing = backing_for(b->graph, o);
    bool local = !o->existing && !remote_is_name(o->target_file);
    if (!o->existing) {
        int r = create_target(b->graph, o, backing, &b->target_zero, &made,
                              errp);
        if (r < 0) {
            return r;
        }
    } else if (o->sync != SYNC_NONE) {
        backing = NULL; /* open the backing file that the image names */
    }
    return open_target(b, o, backing, local ? &made : NULL, errp);
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
        .cluster = copy_cluster_for(b->target),
        .past = node_size(b->target) - node_size(o->source),
        .compress = o->compress,
        .target_zero = b->target_zero,
        .layers = o->sync == SYNC_TOP,
        .uncached = o->sync != SYNC_NONE,
        .max_workers = o->max_workers,
        .max_chunk = o->max_chunk,
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
