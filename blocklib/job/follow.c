/* SPDX-License-Identifier: BSD-3-Clause */
/* Following a disk that goes on changing: see follow.h. */
#include "job/follow.h"

#include <errno.h>

#include "core/graph.h"
#include "nbdelta/bytes.h"

/* A pass that finds little makes the job ready, or is its last one.  Little is
 * what is copied in so much time, by the last large pass, within limits. */
#define LITTLE_MIN (4 * MiB)
#define LITTLE_MAX (64 * MiB)
#define LITTLE_NS  UINT64_C(20000000)

/* How often a job that is ready looks for new writes.  Guests are held up while
 * it looks, so it waits longer after a look that took long. */
#define LOOK_MS    100
#define LOOK_SHARE 20 /* at most so little of the time: 1/20 */

void follow_init(struct follow *f)
{
    mutex_init(&f->lock, LOCK_FOLLOW, NULL);
    cond_init(&f->wake);
    f->little = LITTLE_MIN;
}

void follow_destroy(struct follow *f)
{
    cond_destroy(&f->wake);
    mutex_destroy(&f->lock);
}

int follow_failed(struct follow *f, enum copy_side side, int r)
{
    struct jobs *j = f->job->jobs;

    mutex_lock(&j->lock);
    bool again = job_retries(j, f->job, f->on_error[side], side == COPY_READ,
                             r);
    mutex_unlock(&j->lock);
    return again ? JOB_STOPPED : r;
}

int follow_copy_set(struct follow *f)
{
    enum copy_side side = COPY_READ;
    int r = copy_run(f->copy, &side);

    if (r == COPY_STOPPED) {
        return JOB_STOPPED;
    }
    return r < 0 ? follow_failed(f, side, r) : 0;
}

/* The same, and find out how fast that is. */
static int copy_timed(struct follow *f)
{
    uint64_t before;
    uint64_t after;
    uint64_t total;
    uint64_t begin = now_ns();

    copy_progress(f->copy, &before, &total);
    int r = follow_copy_set(f);
    copy_progress(f->copy, &after, &total);
    double part = (double)LITTLE_NS / (double)(now_ns() - begin + 1);
    if (r == 0 && after - before > LITTLE_MIN) {
        double bytes = (double)(after - before) * part;
        f->little = bytes > (double)LITTLE_MAX
                        ? LITTLE_MAX
                        : max_u64((uint64_t)bytes, LITTLE_MIN);
    }
    return r;
}

/* Make the set what was written since the last call: *found bytes.  In a
 * drained section. */
static int take_bits(struct follow *f, uint64_t *found)
{
    struct hbitmap *bits = hbitmap_new(node_size(f->source), f->granularity);
    if (!bits) {
        return -ENOMEM;
    }
    bits = f->dirty ? bitmap_swap_bits(f->dirty, bits)
                    : copy_swap_late(f->copy, bits);
    *found = hbitmap_count(bits);
    copy_refill(f->copy, bits);
    return f->sized ? f->sized(f) : 0;
}

/* Is there something to take?  Without a drain the answer may be late. */
static bool has_bits(const struct follow *f)
{
    graph_lock(f->graph);
    bool has = f->dirty ? bitmap_count(f->dirty) > 0 : !copy_is_synced(f->copy);
    graph_unlock(f->graph);
    return has;
}

/* Begin a drained section.  The target may hang, and the source's tree with it:
 * only this thread waits then, and not when the job is given up. */
static int lock_source(struct follow *f)
{
    node_unwanted = copy_given_up(f->copy);
    int r = graph_lock_drained(f->graph, f->source);
    node_unwanted = NULL;
    return r == -ECANCELED ? JOB_STOPPED : r;
}

/* Copy what is to do.  If there is nothing, take bits first: *found bytes. */
static int next_pass(struct follow *f, uint64_t *found)
{
    *found = UINT64_MAX;
    if (copy_is_done(f->copy)) {
        if (f->ready && !has_bits(f)) {
            *found = 0;
            return 0;
        }
        uint64_t begin = now_ns();
        int r = lock_source(f);
        if (r != 0) {
            return r;
        }
        r = take_bits(f, found);
        f->drained_ns = now_ns() - begin;
        graph_unlock(f->graph);
        if (r < 0) {
            return r;
        }
    }
    return copy_timed(f);
}

/* Wait a little for a verb.  True: the job shall end. */
static bool wait_for_verb(struct follow *f, bool *stop)
{
    uint64_t ms = max_u64(LOOK_MS, f->drained_ns / 1000000 * LOOK_SHARE);
    uint64_t until = now_ns() + ms * 1000000;

    mutex_lock(&f->lock);
    for (uint64_t now = now_ns();
         !f->complete && !f->end && !f->stop && now < until; now = now_ns()) {
        (void)cond_wait_ms(&f->wake, &f->lock, (until - now) / 1000000 + 1);
    }
    bool end = f->complete || f->end;
    *stop = f->stop;
    mutex_unlock(&f->lock);
    return end;
}

static int flush_target(struct follow *f)
{
    int r = f->flush(f);

    if (r < 0) { /* what was copied may be lost: a second try cannot tell */
        struct jobs *j = f->job->jobs;

        mutex_lock(&j->lock);
        (void)job_retries(j, f->job, ON_ERROR_REPORT, false, r);
        mutex_unlock(&j->lock);
    }
    return r;
}

static int become_ready(struct follow *f)
{
    int r = flush_target(f);
    struct jobs *j = f->job->jobs;

    if (r < 0) {
        return r;
    }
    mutex_lock(&j->lock);
    if (!f->job->cancelled) {
        job_ready(j, f->job);
        f->ready = true;
    }
    mutex_unlock(&j->lock);
    return f->ready ? 0 : JOB_STOPPED;
}

/*
 * Once a verb asks for the end, the target is flushed while guests go on, and
 * what was written since is copied.  So there is little left to copy and to
 * flush in the drained section.
 */
int follow_run(struct follow *f)
{
    bool flushed = false;
    bool stop = false;
    bool end = false;

    while (!stop) {
        uint64_t found;
        int r = next_pass(f, &found);
        if (r != 0) {
            return r;
        }
        if (found > f->little) {
            continue;
        }
        if (!f->ready) {
            r = become_ready(f);
            if (r != 0) {
                return r;
            }
        } else if (end && flushed) {
            return 0;
        } else if (end) {
            r = flush_target(f);
            if (r < 0) {
                return r;
            }
            flushed = true;
            continue;
        }
        end = wait_for_verb(f, &stop);
    }
    return JOB_STOPPED;
}

int follow_last(struct follow *f)
{
    enum copy_side side;
    uint64_t found;
    graph_drain(f->graph, f->source);
    int r = take_bits(f, &found);

    return r < 0 ? r : copy_run_drained(f->copy, &side);
}

struct hbitmap *follow_share_bits(struct follow *f)
{
    return f->dirty ? bitmap_share_bits(f->dirty) : copy_share_late(f->copy);
}

bool follow_completes(struct follow *f)
{
    mutex_lock(&f->lock);
    bool completes = f->complete;
    mutex_unlock(&f->lock);
    return completes;
}

bool follow_is_stopped(struct follow *f)
{
    mutex_lock(&f->lock);
    bool stop = f->stop;
    mutex_unlock(&f->lock);
    return stop;
}

void follow_kick(struct follow *f, bool stop)
{
    copy_stop(f->copy, stop);
    mutex_lock(&f->lock);
    f->stop = stop;
    cond_broadcast(&f->wake);
    mutex_unlock(&f->lock);
}

void follow_ask_for_end(struct follow *f, bool complete)
{
    mutex_lock(&f->lock);
    if (complete) {
        f->complete = true;
    } else {
        f->end = true;
    }
    cond_broadcast(&f->wake);
    mutex_unlock(&f->lock);
}
