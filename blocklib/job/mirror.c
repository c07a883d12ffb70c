/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The mirror job: what its thread does, and how it ends.
 *
 *     guests                              guests
 *       |                                   |
 *     filter ---.                           |
 *       |        |            pivot         |
 *     source    target       ------->     target      source
 *
 * The job follows the source (follow.h).  What guests change is noted by a
 * dirty bitmap of the source; write-blocking, the filter writes it to both
 * ends, and notes what did not get to the target (copy/both.c).
 *
 * The end is one drained section, in this order: the last bits are copied, the
 * target is flushed, and, unless the job is only to end, users of the source
 * are led to the target.  So the two are equal at that instant, and a failure
 * before it leaves users with the source.  Bitmaps that come along are the
 * target's before users are (mirror-bitmaps.c).
 */
#include "job/mirror.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "copy/mirror-top.h"
#include "core/blocker.h"
#include "core/chain.h"
#include "core/graph-priv.h"
#include "core/graph.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/tell.h"

static struct mirror *mirror_of(struct job *job)
{
    return list_entry(job, struct mirror, job);
}

/* --- The work --- */

/* Leave out what the images below the source's own layer have, and zeroes of a
 * target that is blank. */
static int look_around(struct mirror *m)
{
    int r = m->top           ? copy_skip_below(m->copy)
            : m->maybe_blank ? copy_look_at_target(m->copy)
                             : 0;

    if (r == COPY_STOPPED) {
        return JOB_STOPPED;
    }
    if (r < 0) {
        return follow_failed(&m->follow, COPY_READ, r);
    }
    atomic_store(&m->looked, true);
    return 0;
}

static int mirror_run(struct job *job)
{
    struct mirror *m = mirror_of(job);

    if (m->sizes_differ) {
        return error_set(&job->error, EINVAL,
                         "Source and target image have different sizes");
    }
    /* What has failed before the job was stopped is late, and tried again. */
    (void)copy_both_failed(m->copy);
    int r = atomic_load(&m->looked) ? 0 : look_around(m);
    if (r == 0) {
        r = follow_run(&m->follow);
    }
    return r == 0 && m->bitmaps.on && follow_completes(&m->follow)
               ? mirror_bitmaps_ready(m)
               : r;
}

/* Ends at once when the job is given up. */
static int flush_target(struct follow *f)
{
    struct mirror *m = list_entry(f, struct mirror, follow);
    int r;

    node_unwanted = copy_given_up(m->copy);
    do {
        struct tree *t = node_enter(m->filter, false);
        r = edge_flush(m->filter->child[CHILD_TARGET]);
        node_leave(t);
    } while (r == -ERESTART);
    node_unwanted = NULL;
    return r;
}

void mirror_follow(struct mirror *m)
{
    m->follow.job = &m->job;
    m->follow.graph = m->graph;
    m->follow.flush = flush_target;
    follow_init(&m->follow);
}

/* --- The end --- */

bool mirror_can_replace(struct node *source, const struct node *n)
{
    while (source && source != n) {
        source = source->drv->is_filter ? node_child(source, CHILD_FILE) : NULL;
    }
    return source != NULL;
}

/* From here down to mirror_prepare: in a drained section. */

/* The target is as writable as what it replaces. */
static void match_read_only(const struct node *replaced, struct node *target)
{
    bool read_only = replaced->flags.read_only;

    if (target->flags.read_only != read_only) {
        (void)chain_set_read_only(target, read_only, NULL);
    }
}

static int pivot(struct mirror *m)
{
    struct node *replaced = m->to_replace ? m->to_replace : m->source;
    struct error *err = NULL;

    mirror_top_retire(m->filter);
    match_read_only(replaced, m->target);
    int r =
        mirror_can_replace(m->source, replaced)
            ? node_check_replace(replaced, m->target, &err)
            : error_set(&err, EPERM,
                        "Can no longer replace '%s' by '%s', because it can "
                        "no longer be guaranteed that doing so would not "
                        "lead to an abrupt change of visible data",
                        node_name(replaced), node_name(m->target));
    if (r < 0) { /* QEMU's job tells no more than that, either */
        tell_event(TELL_ERROR, "job '%.200s' (mirror) cannot change over: %s",
                   m->job.id, error_message(err));
        error_free(err);
        return -EPERM;
    }
    node_replace(replaced, m->target);
    mirror_top_remove(m->filter);
    m->filter = NULL;
    node_refresh_above(m->target);
    return 0;
}

/* A verb that has come too late to have the far end's bitmaps looked at, after
 * one that leaves users where they are, changes nothing. */
static bool shall_pivot(const struct mirror *m)
{
    return m->follow.complete && (!m->bitmaps.far || m->bitmaps.known);
}

/* The ends are equal. */
static int change_over(struct mirror *m)
{
    int r = m->bitmaps.on ? mirror_bitmaps_add(m, &m->job.error) : 0;

    if (r == 0) {
        r = pivot(m);
        if (r < 0 && m->bitmaps.on) {
            mirror_bitmaps_undo(m);
        }
    }
    return r;
}

static int mirror_prepare(struct job *job)
{
    struct mirror *m = mirror_of(job);

    graph_lock(m->graph);
    graph_drain(m->graph, m->source);
    node_unwanted = copy_given_up(m->copy);
    int r = follow_last(&m->follow);
    if (r == 0) {
        r = node_flush_since(m->target, m->failures);
    }
    node_unwanted = NULL;
    if (r == 0 && m->opens_backing) {
        r = node_open_backing(node_skip_filters(m->target), &job->error);
    }
    if (r == 0 && shall_pivot(m)) {
        r = change_over(m);
    }
    graph_unlock(m->graph);
    return r;
}

static void drop_node(struct node **np)
{
    if (*np) {
        node_unref(*np);
        *np = NULL;
    }
}

void mirror_disarm(struct mirror *m)
{
    graph_lock(m->graph);
    if (m->follow.dirty) {
        graph_drain(m->graph, m->source);
        bitmap_drop(m->follow.dirty);
        m->follow.dirty = NULL;
    }
    if (m->filter) {
        mirror_top_remove(m->filter);
        m->filter = NULL;
    }
    if (m->to_replace) {
        node_unblock(m->to_replace);
    }
    drop_node(&m->to_replace);
    drop_node(&m->bitmaps.far);
    drop_node(&m->target);
    drop_node(&m->source);
    graph_unlock(m->graph);
}

static void mirror_clean(struct job *job)
{
    struct mirror *m = mirror_of(job);

    mirror_bitmaps_end(m);
    mirror_disarm(m);
}

/* --- Verbs --- */

static void mirror_kick(struct job *job, bool stop)
{
    follow_kick(&mirror_of(job)->follow, stop);
}

static void mirror_give_up(struct job *job)
{
    struct mirror *m = mirror_of(job);

    copy_give_up(m->copy);
    graph_wake_waiting(m->graph, m->source);
    graph_wake_waiting(m->graph, m->target);
}

static void mirror_set_speed(struct job *job, uint64_t speed)
{
    copy_set_speed(mirror_of(job)->copy, speed);
}

/* What is to be replaced stays what it is until the end. */
static int hold_replaced(struct mirror *m, struct error **errp)
{
    graph_lock(m->graph);
    struct node *n = graph_find_locked(m->graph, m->replaces);
    if (n && !m->to_replace) {
        node_ref(n);
        node_block(n, "mirror");
        m->to_replace = n;
    }
    graph_unlock(m->graph);
    return n ? 0
             : error_set(errp, ENOENT, "Node name '%s' not found", m->replaces);
}

static int mirror_complete(struct job *job, struct error **errp)
{
    struct mirror *m = mirror_of(job);

    if (!m->follow.ready) {
        return error_set(errp, EPERM,
                         "The active block job '%s' cannot be completed",
                         job->id);
    }
    int r = m->replaces ? hold_replaced(m, errp) : 0;
    if (r == 0) {
        follow_ask_for_end(&m->follow, true);
    }
    return r;
}

/* When the target has all data, to stop is no failure. */
static bool mirror_cancel(struct job *job)
{
    struct mirror *m = mirror_of(job);

    if (m->follow.ready) {
        follow_ask_for_end(&m->follow, false);
    }
    return !m->follow.ready;
}

int mirror_block_writes(struct mirror *m, struct error **errp)
{
    graph_drain(m->graph, m->source);
    struct hbitmap *late = bitmap_share_bits(m->follow.dirty);
    int r = late ? mirror_top_block_writes(m->filter, late, errp)
                 : error_nomem(errp);
    if (r < 0) {
        hbitmap_free(late);
        return r;
    }
    bitmap_drop(m->follow.dirty);
    m->follow.dirty = NULL;
    m->write_blocking = true;
    return 0;
}

static int mirror_change(struct job *job, bool write_blocking,
                         struct error **errp)
{
    struct mirror *m = mirror_of(job);

    if (write_blocking == m->write_blocking) {
        return 0;
    }
    if (!write_blocking) {
        return error_set(errp, ENOTSUP,
                         "Change to copy mode 'background' is not "
                         "implemented");
    }
    graph_lock(m->graph);
    int r = m->filter ? mirror_block_writes(m, errp) : 0;
    graph_unlock(m->graph);
    return r;
}

static void mirror_progress(struct job *job, uint64_t *done, uint64_t *total)
{
    copy_progress(mirror_of(job)->copy, done, total);
}

static void mirror_describe(struct job *job, json_t *info)
{
    struct mirror *m = mirror_of(job);
    bool synced = m->write_blocking && m->follow.ready &&
                  copy_is_synced(m->copy);

    (void)json_object_set_new(info, "actively-synced", json_boolean(synced));
}

static bool mirror_uses(struct job *job, const struct node *n)
{
    const struct mirror *m = mirror_of(job);

    return n == m->source || n == m->filter || n == m->target;
}

static void mirror_free(struct job *job)
{
    struct mirror *m = mirror_of(job);

    copy_free(m->copy);
    follow_destroy(&m->follow);
    free(m->replaces);
    free(m);
}

const struct job_driver mirror_driver = {
    .type = "mirror",
    .run = mirror_run,
    .prepare = mirror_prepare,
    .clean = mirror_clean,
    .kick = mirror_kick,
    .give_up = mirror_give_up,
    .set_speed = mirror_set_speed,
    .complete = mirror_complete,
    .cancel = mirror_cancel,
    .change = mirror_change,
    .describe = mirror_describe,
    .uses = mirror_uses,
    .progress = mirror_progress,
    .free = mirror_free,
};
