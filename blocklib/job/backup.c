/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The backup job: what its thread does, and how it ends.
 *
 *   command's thread, under the monitor lock: an action (backup-start.c)
 *     prepare: create and open the target
 *     act: in one drained section, the point in time:
 *       freeze the bitmap | insert the filter, its set filled
 *   job's thread
 *     sync=top: take out of the set what the source's layer does not have
 *     copy until the set is empty; sync=none: only guests' writes copy
 *     flush the source and the target
 *   under the monitor lock, with all others of the transaction
 *     success: the frozen bitmap gives way to its successor
 *     failure: the two become one again
 *     (bitmap-mode always: it gives way, but what was not copied stays dirty,
 *     all of it if the target cannot be flushed; never: the two become one
 *     again)
 *     remove the filter, close the target
 *
 *  1. Bits of a bitmap are given up only after what they stand for is durable
 *     in the target, and the point in time in the source: no power cut leaves
 *     a disk that is older than its backup, of which bits would know nothing.
 *  2. The target is closed, its image lock released, before anybody can see
 *     the job's end.
 *  3. A guest's write never fails because of a backup (copy-before-write.c).
 *
 * Nodes are closed under the monitor lock, because commands hold pointers to
 * them under it.  The target is flushed without it, and, as it is a tree of
 * its own by then, without holding up the source.
 */
#include "job/backup.h"

#include <errno.h>
#include <stdlib.h>

#include "copy/copy-before-write.h"
#include "core/graph.h"

static struct backup *backup_of(struct job *job)
{
    return list_entry(job, struct backup, job);
}

/* Decide by what the user wants on such an error; false: fail. */
static bool backup_retries(struct backup *b, enum copy_side side, int r)
{
    struct jobs *j = b->job.jobs;
    bool is_read = side == COPY_READ;

    /* A point in time that is lost does not come back, so report it. */
    enum job_on_error on_error = copy_is_broken(b->copy) ? ON_ERROR_REPORT
                                                         : b->on_error[side];

    mutex_lock(&j->lock);
    bool again = job_retries(j, &b->job, on_error, is_read, r);
    mutex_unlock(&j->lock);
    return again;
}

/* Copy what is left to do, by the kind of sync. */
static int copy_by_sync(struct backup *b, enum copy_side *side)
{
    if (b->sync == SYNC_NONE) {
        return copy_wait(b->copy, side);
    }
    if (b->sync == SYNC_TOP && !b->skipped) {
        *side = COPY_READ;
        int r = copy_skip_below(b->copy);
        if (r != 0) {
            return r;
        }
        b->skipped = true;
    }
    return copy_run(b->copy, side);
}

static int backup_run(struct job *job)
{
    struct backup *b = backup_of(job);
    enum copy_side side = COPY_READ;
    int r = copy_by_sync(b, &side);

    if (r == COPY_STOPPED || (r < 0 && backup_retries(b, side, r))) {
        return JOB_STOPPED;
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

void backup_close_target(struct backup *b)
{
    if (b->target) {
        graph_lock(b->graph);
        node_unref(b->target);
        b->target = NULL;
        graph_unlock(b->graph);
    }
}

/* Ends at once when the job is given up. */
static int flush_child(struct backup *b, unsigned child)
{
    int r;

    node_unwanted = copy_given_up(b->copy);
    do {
        struct tree *t = node_enter(b->filter, false);
        r = edge_flush(b->filter->child[child]);
        node_leave(t);
    } while (r == -ERESTART);
    node_unwanted = NULL;
    return r;
}

static int flush_target(struct backup *b)
{
    int r = flush_child(b, CHILD_TARGET);

    b->durable = r == 0;
    return r;
}

/* If the bitmap shall keep only what was not copied, what a failed job has
 * copied counts, too, and has to be durable. */
static int backup_exit(struct job *job, int r)
{
    struct backup *b = backup_of(job);
    struct jobs *j = job->jobs;

    if (r < 0) {
        copy_break(b->copy);
        if (b->bitmap && b->bitmap_mode == BITMAP_ALWAYS) {
            (void)flush_target(b);
        }
        return r;
    }
    enum copy_side side = COPY_READ;
    r = flush_child(b, CHILD_FILE);
    if (r == 0) {
        side = COPY_WRITE;
        r = flush_target(b);
    }
    if (r < 0) {
        mutex_lock(&j->lock);
        (void)job_retries(j, &b->job, ON_ERROR_REPORT, side == COPY_READ, r);
        mutex_unlock(&j->lock);
    }
    return r;
}

/* Give up or keep the bits of the frozen bitmap, by invariant 1. */
static void settle_frozen_bitmap(struct backup *b, bool success)
{
    struct bitmap *bm = b->bitmap;

    if (!b->durable || b->bitmap_mode == BITMAP_NEVER ||
        (!success && b->bitmap_mode == BITMAP_ON_SUCCESS)) {
        bitmap_reclaim(bm);
        return;
    }
    bitmap_abdicate(bm);
    if (!success) {
        copy_merge_left(b->copy, bm);
    }
}

static void release_bitmap(struct backup *b, bool success)
{
    if (b->bitmap) {
        graph_lock(b->graph);
        graph_drain(b->graph, b->source);
        settle_frozen_bitmap(b, success);
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

    remove_filter(b);
    backup_close_target(b);
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

static void backup_give_up(struct job *job)
{
    struct backup *b = backup_of(job);

    copy_give_up(b->copy);
    graph_wake_waiting(b->graph, b->source);
    graph_wake_waiting(b->graph, b->target);
}

static void backup_set_speed(struct job *job, uint64_t speed)
{
    copy_set_speed(backup_of(job)->copy, speed);
}

static bool backup_uses(struct job *job, const struct node *n)
{
    const struct backup *b = backup_of(job);

    return n == b->source || n == b->filter || n == b->target;
}

static void backup_progress(struct job *job, uint64_t *done, uint64_t *total)
{
    copy_progress(backup_of(job)->copy, done, total);
}

static void backup_free(struct job *job)
{
    free(backup_of(job));
}

const struct job_driver backup_driver = {
    .type = "backup",
    .run = backup_run,
    .exit = backup_exit,
    .commit = backup_commit,
    .abort = backup_abort,
    .clean = backup_clean,
    .kick = backup_kick,
    .give_up = backup_give_up,
    .set_speed = backup_set_speed,
    .uses = backup_uses,
    .progress = backup_progress,
    .free = backup_free,
};
