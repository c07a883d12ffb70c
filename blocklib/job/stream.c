/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The stream job: what its thread does, and how it ends.
 *
 *     users                  what is copied: all that the images from below top
 *       |                    down to above base have, and top has not
 *    (filter)
 *      top      <--.
 *      ...         | copy up (core/copy-up.h)
 *      base      --'  not from here
 *
 * The copy engine copies (copy/copy.h): its set is the whole disk, once.  What
 * guests write meanwhile is in top, and stays.  The images between do not
 * change; the job has users on them that see to that.
 *
 * Nobody who reads top sees a change before the end or after it.  So a job that
 * fails has changed nothing, and what it has copied saves work the next time.
 *
 * The end, in a drained section, in this order: top is flushed, so that all
 * data are durable in it; the image names base (durable, and in a crash the old
 * name or the new one); base becomes its backing node, and the nodes between
 * are dropped.
 */
#include "job/stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/blocker.h"
#include "core/chain.h"
#include "core/graph.h"
#include "job/filter.h"
#include "nbdelta/cleanup.h"

static struct stream *stream_of(struct job *job)
{
    return list_entry(job, struct stream, job);
}

/* --- The work --- */

/* 0: go on behind what has failed.  JOB_STOPPED, or the error. */
static int stream_failed(struct stream *s, int r)
{
    struct jobs *j = s->job.jobs;

    mutex_lock(&j->lock);
    bool again = job_retries(j, &s->job, s->on_error, true, r);
    bool ignored = again && s->on_error == ON_ERROR_IGNORE;
    if (ignored) {
        s->job.retrying = false;
    }
    mutex_unlock(&j->lock);
    if (!ignored || !copy_skip_failed(s->copy)) {
        return again && !ignored ? JOB_STOPPED : r;
    }
    s->ignored = s->ignored ? s->ignored : r;
    return 0;
}

/* What was copied shall be durable before guests are held up for the end. */
static int flush_ahead(struct stream *s)
{
    struct jobs *j = s->job.jobs;
    int r = blk_flush(s->user);

    if (r < 0) { /* what was copied may be lost: a second try cannot tell */
        mutex_lock(&j->lock);
        (void)job_retries(j, &s->job, ON_ERROR_REPORT, false, r);
        mutex_unlock(&j->lock);
    }
    return r;
}

static int stream_run(struct job *job)
{
    struct stream *s = stream_of(job);
    enum copy_side side;
    int r;

    do {
        r = copy_run(s->copy, &side);
        if (r == COPY_STOPPED) {
            return JOB_STOPPED;
        }
        if (r < 0) {
            r = stream_failed(s, r);
        }
    } while (r == 0 && !copy_is_done(s->copy));
    if (r == 0 && s->ignored) {
        return s->ignored; /* the images below are still needed */
    }
    return r == 0 ? flush_ahead(s) : r;
}

/* --- The end --- */

static void release_users(struct stream *s)
{
    blk_free(s->user);
    s->user = NULL;
    for (size_t i = 0; i < s->node_count; i++) {
        blk_free(s->nodes[i].keep);
        s->nodes[i].keep = NULL;
    }
}

/* The name by which the image shall know @base from now on. */
static char *name_base(const struct stream *s, const struct node *base)
{
    return s->backing_file ? strdup(s->backing_file)
                           : chain_backing_name(node_skip_filters(base), NULL);
}

/* Drained. */
static int switch_to_base(struct stream *s)
{
    struct node *image = node_skip_filters(s->top);
    struct node *base = chain_next(s->above_base);
    CLEANUP_FREE char *name = base ? name_base(s, base) : NULL;

    if (!node_child(image, CHILD_BACKING)) {
        return 0;
    }
    if (base && !name) {
        return -ENOENT;
    }
    int r = node_flush_since(image, s->failures);
    if (r == 0) {
        r = chain_set_backing_name(
            image, name, base ? chain_backing_format(base) : NULL, NULL);
    }
    if (r < 0 || base == node_child(image, CHILD_BACKING)) {
        return r;
    }
    if (base) {
        graph_drain(s->graph, base);
    }
    return chain_set_backing(image, base, NULL);
}

static int stream_prepare(struct job *job)
{
    struct stream *s = stream_of(job);

    release_users(s);
    graph_lock(s->graph);
    graph_drain(s->graph, s->top);
    jobfilter_remove(s->filter);
    s->filter = NULL;
    int r = switch_to_base(s);
    graph_unlock(s->graph);
    return r;
}

void stream_disarm(struct stream *s)
{
    release_users(s);
    graph_lock(s->graph);
    if (s->filter) {
        jobfilter_remove(s->filter);
        s->filter = NULL;
    }
    if (s->top_read_only) {
        graph_drain(s->graph, s->top);
        (void)chain_set_read_only(s->top, true, NULL);
        s->top_read_only = false;
    }
    for (size_t i = 0; i < s->node_count; i++) {
        node_unblock(s->nodes[i].n);
        node_unref(s->nodes[i].n);
    }
    s->node_count = 0;
    graph_unlock(s->graph);
}

static void stream_clean(struct job *job)
{
    stream_disarm(stream_of(job));
}

/* --- Verbs --- */

static void stream_kick(struct job *job, bool stop)
{
    copy_stop(stream_of(job)->copy, stop);
}

static void stream_give_up(struct job *job)
{
    struct stream *s = stream_of(job);

    copy_give_up(s->copy);
    graph_wake_waiting(s->graph, s->top);
}

static void stream_set_speed(struct job *job, uint64_t speed)
{
    copy_set_speed(stream_of(job)->copy, speed);
}

static bool stream_uses(struct job *job, const struct node *n)
{
    const struct stream *s = stream_of(job);
    size_t i = 0;

    while (i < s->node_count && s->nodes[i].n != n) {
        i++;
    }
    return i < s->node_count;
}

static void stream_progress(struct job *job, uint64_t *done, uint64_t *total)
{
    copy_progress(stream_of(job)->copy, done, total);
}

static void stream_free(struct job *job)
{
    struct stream *s = stream_of(job);

    copy_free(s->copy);
    free(s->backing_file);
    free(s->nodes);
    free(s);
}

const struct job_driver stream_driver = {
    .type = "stream",
    .run = stream_run,
    .prepare = stream_prepare,
    .clean = stream_clean,
    .kick = stream_kick,
    .give_up = stream_give_up,
    .set_speed = stream_set_speed,
    .uses = stream_uses,
    .progress = stream_progress,
    .free = stream_free,
};
