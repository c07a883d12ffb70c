/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The disks of a run are copied, a few at once.
 *
 *   main thread                         copiers, up to AT_ONCE
 *     poll: signals, the last copier      the next disk that nobody has:
 *     renews what was begun                 copy_carry_out
 *     tells progress                      the rate is shared anew
 *     a signal: copy_job_stop for all         a failure: copy_job_stop for all
 *
 * A disk that fails stops the others.  What each of them says is told, except
 * that it was stopped.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/backup-priv.h"
#include "cli/progress.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"

#define AT_ONCE 4

struct copier {
    struct run *run;
    int done; /* a kick: the last thread has ended */

    mutex_t lock;
    unsigned next GUARDED_BY(lock);    /* a disk that nobody has taken */
    unsigned threads GUARDED_BY(lock); /* that have not ended */
    bool *busy GUARDED_BY(lock);       /* for each disk: it is copied now */
    bool stop GUARDED_BY(lock);
    int result GUARDED_BY(lock); /* of the first that has failed */
    struct error *err GUARDED_BY(lock);
};

/* --- Copiers --- */

/* All that are at work have the same part of the rate. */
static void share_rate(struct copier *k) REQUIRES(k->lock)
{
    const struct run *r = k->run;
    unsigned busy = 0;

    for (unsigned i = 0; i < r->count; i++) {
        busy += k->busy[i];
    }
    for (unsigned i = 0; r->o->rate > 0 && i < r->count; i++) {
        if (k->busy[i]) {
            uint64_t part = r->o->rate / busy;
            copy_job_set_rate(&r->copies[i], part > 0 ? part : 1);
        }
    }
}

/* The next disk, or NULL. */
static struct copy_job *take_disk(struct copier *k)
{
    struct copy_job *c = NULL;

    mutex_lock(&k->lock);
    if (!k->stop && k->next < k->run->count) {
        c = &k->run->copies[k->next];
        k->busy[k->next++] = true;
        share_rate(k);
    }
    mutex_unlock(&k->lock);
    return c;
}

/* Not with the lock: it waits for locks of disks. */
static void stop_all(struct copier *k)
{
    mutex_lock(&k->lock);
    bool first = !k->stop;
    k->stop = true;
    mutex_unlock(&k->lock);
    for (unsigned i = 0; first && i < k->run->count; i++) {
        copy_job_stop(&k->run->copies[i]);
    }
}

/* Takes @why. */
static void note_failure(struct copier *k, const struct copy_job *c, int r,
                         struct error *why) REQUIRES(k->lock)
{
    if (r == -ECANCELED) {
        k->result = k->result < 0 ? k->result : r;
        error_free(why);
        return;
    }
    error_prefix(&why, "disk '%s': ", c->disk->name);
    if (k->err) {
        error_prefix(&why, "%s; ", error_message(k->err));
        error_free(k->err);
    } else {
        k->result = r;
    }
    k->err = why;
}

static void put_disk(struct copier *k, const struct copy_job *c, int r,
                     struct error *why)
{
    mutex_lock(&k->lock);
    k->busy[c - k->run->copies] = false;
    share_rate(k);
    if (r < 0) {
        note_failure(k, c, r, why);
    }
    mutex_unlock(&k->lock);
    if (r < 0) {
        stop_all(k);
    }
}

static void *copier(void *opaque)
{
    struct copier *k = opaque;
    struct copy_job *c;

    while ((c = take_disk(k)) != NULL) {
        struct error *why = NULL;
        int r = copy_carry_out(c, &why);

        put_disk(k, c, r, why);
    }
    mutex_lock(&k->lock);
    bool last = --k->threads == 0;
    mutex_unlock(&k->lock);
    if (last) {
        kick_raise(k->done);
    }
    return NULL;
}

/* --- Watching them --- */

/* Bytes that are done, and that are to be done, of all disks. */
static uint64_t bytes_done(const struct run *r, uint64_t *total)
{
    uint64_t done = 0;

    *total = 0;
    for (unsigned i = 0; i < r->count; i++) {
        struct transfer_progress p;

        copy_job_progress(&r->copies[i], &p);
        done += p.done;
        *total += p.total;
    }
    return done;
}

static double share_done(void *opaque)
{
    uint64_t total;
    uint64_t done = bytes_done(opaque, &total);

    return total ? (double)done / (double)total : 1;
}

static void tell_progress(const struct run *r)
{
    uint64_t total;

    if (r->o->progress_json) {
        uint64_t done = bytes_done(r, &total);
        (void)fprintf(stderr, "{\"done\": %ju, \"total\": %ju}\n",
                      (uintmax_t)done, (uintmax_t)total);
    }
}

/* Until all copiers have ended.  -errno: the source does not hold the disks any
 * more. */
static int watch(struct copier *k, struct error **errp)
{
    uint64_t renewed = now_ns();
    bool stopped = false;
    int result = 0;
    struct pollfd fds[2] = {{.fd = k->done, .events = POLLIN},
                            {.fd = k->run->o->how.stop_fd, .events = POLLIN}};

    while (!(fds[0].revents & POLLIN)) {
        (void)poll(fds, stopped ? 1 : 2, 1000);
        if (!stopped && fds[1].revents & POLLIN) {
            stopped = true;
            stop_all(k);
        }
        tell_progress(k->run);
        if (now_ns() - renewed > SOURCE_RENEW_S * UINT64_C(1000000000)) {
            renewed = now_ns();
            if (result == 0 && !stopped &&
                (result = source_renew(k->run->source, errp)) < 0) {
                stop_all(k);
            }
        }
    }
    return result;
}

/* --- All of it --- */

/* As many as can be started, or none: -errno. */
static int start_copiers(struct copier *k, pthread_t *threads, unsigned *count)
{
    unsigned wanted = k->run->count < AT_ONCE ? k->run->count : AT_ONCE;
    int r = 0;

    mutex_lock(&k->lock);
    for (*count = 0; r == 0 && *count < wanted; *count += r == 0) {
        r = thread_start(&threads[*count], "backup", copier, k);
    }
    k->threads = *count;
    mutex_unlock(&k->lock);
    return *count > 0 ? 0 : r;
}

static int copy_watched(struct copier *k, struct error **errp)
{
    pthread_t threads[AT_ONCE];
    unsigned count;
    int result = start_copiers(k, threads, &count);

    if (result < 0) {
        return error_set(errp, -result, "cannot start a thread: %s",
                         strerror(-result));
    }
    struct progress *bar = k->run->o->show_progress
                               ? progress_start("backup", share_done, k->run)
                               : NULL;
    result = watch(k, errp);
    for (unsigned i = 0; i < count; i++) {
        thread_join(threads[i]);
    }
    progress_stop(bar);
    return result;
}

/* The threads have ended. */
static int tell_result(struct copier *k, struct error **errp)
{
    mutex_lock(&k->lock);
    int result = k->result < 0                        ? k->result
                 : k->stop && k->next < k->run->count ? -ECANCELED
                                                      : 0;
    if (k->err && errp) {
        *errp = k->err;
        k->err = NULL;
    }
    error_free(k->err);
    k->err = NULL;
    mutex_unlock(&k->lock);
    return result == -ECANCELED
               ? error_set(errp, ECANCELED, "interrupted: no point was made")
               : result;
}

int run_copy_all(struct run *r, struct error **errp)
{
    CLEANUP_FREE bool *busy = calloc(r->count, sizeof(*busy));
    struct copier k = {.run = r, .done = kick_new(), .busy = busy};

    if (!busy || k.done < 0) {
        return error_nomem(errp);
    }
    mutex_init(&k.lock, LOCK_COPIER, NULL);
    int result = copy_watched(&k, errp);
    result = result < 0 ? result : tell_result(&k, errp);
    error_free(k.err);
    mutex_destroy(&k.lock);
    (void)close(k.done);
    return result;
}
