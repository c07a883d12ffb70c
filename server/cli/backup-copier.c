/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The disks of a run are copied.
 *
 *   main thread                          copier, one disk after another
 *     poll: signals, the copier's end      copy_carry_out
 *     renews what was begun
 *     tells progress
 *     a signal: transfer_stop
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/backup-priv.h"
#include "cli/progress.h"
#include "nbdelta/error.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"

struct copier {
    struct run *run;

    /* Guarded by lock: which disk is being copied. */
    mutex_t lock;
    struct copy_job *current;
    bool stop;

    /* The copier's, until it has ended. */
    int done; /* a kick */
    int result;
    struct error *err;
};

/* The copier may go on with @c; false: it is to end. */
static bool take_turn(struct copier *k, struct copy_job *c)
{
    mutex_lock(&k->lock);
    bool go_on = !k->stop;
    k->current = go_on ? c : NULL;
    mutex_unlock(&k->lock);
    return go_on;
}

static void *copier(void *opaque)
{
    struct copier *k = opaque;

    for (unsigned i = 0; k->result == 0 && i < k->run->count; i++) {
        struct copy_job *c = &k->run->copies[i];

        if (!take_turn(k, c)) {
            k->result = -ECANCELED;
            break;
        }
        k->result = copy_carry_out(c, &k->err);
        if (k->result < 0 && k->err) {
            error_prefix(&k->err, "disk '%s': ", c->disk->name);
        }
    }
    kick_raise(k->done);
    return NULL;
}

static void stop_copier(struct copier *k)
{
    mutex_lock(&k->lock);
    struct copy_job *c = k->stop ? NULL : k->current;
    k->stop = true;
    mutex_unlock(&k->lock);
    if (c) {
        transfer_stop(c->transfer);
    }
}

/* Bytes that are done, of all disks.  Transfers stay until the copier has
 * ended, so they can be asked at any time. */
static uint64_t bytes_done(const struct run *r)
{
    uint64_t done = 0;

    for (unsigned i = 0; i < r->count; i++) {
        struct transfer_progress p;

        transfer_progress(r->copies[i].transfer, &p);
        done += p.done;
    }
    return done;
}

static double share_done(void *opaque)
{
    const struct run *r = opaque;

    return r->set ? (double)bytes_done(r) / (double)r->set : 1;
}

static void tell_progress(const struct run *r)
{
    if (r->o->progress_json) {
        (void)fprintf(stderr, "{\"done\": %ju, \"total\": %ju}\n",
                      (uintmax_t)bytes_done(r), (uintmax_t)r->set);
    }
}

/* Until the copier has ended. */
static void watch_copier(struct copier *k, struct error **errp)
{
    uint64_t renewed = now_ns();
    struct pollfd fds[2] = {{.fd = k->done, .events = POLLIN},
                            {.fd = k->run->o->how.stop_fd, .events = POLLIN}};

    while (!(fds[0].revents & POLLIN)) {
        (void)poll(fds, k->stop ? 1 : 2, 1000);
        if (fds[1].revents & POLLIN) {
            stop_copier(k);
            fds[1].revents = 0;
        }
        tell_progress(k->run);
        if (now_ns() - renewed > SOURCE_RENEW_S * UINT64_C(1000000000)) {
            renewed = now_ns();
            if (!k->stop && source_renew(k->run->source, errp) < 0) {
                stop_copier(k);
            }
        }
    }
}

/* Takes @lost. */
static int tell_result(struct copier *k, struct error *lost,
                       struct error **errp)
{
    if (lost) {
        error_free(k->err);
        k->err = lost;
    }
    if (k->result == -ECANCELED && !k->err) {
        return error_set(errp, ECANCELED, "interrupted: no point was made");
    }
    if (k->err && errp) {
        *errp = k->err;
        k->err = NULL;
    }
    error_free(k->err);
    return k->result;
}

static int copy_watched(struct copier *k, struct error **errp)
{
    struct error *lost = NULL; /* the source does not hold it any more */
    pthread_t thread;
    int result = thread_start(&thread, "backup", copier, k);

    if (result < 0) {
        return error_set(errp, -result, "cannot start a thread: %s",
                         strerror(-result));
    }
    struct progress *bar = k->run->o->show_progress
                               ? progress_start("backup", share_done, k->run)
                               : NULL;
    watch_copier(k, &lost);
    thread_join(thread);
    progress_stop(bar);
    return tell_result(k, lost, errp);
}

int run_copy_all(struct run *r, struct error **errp)
{
    struct copier k = {.run = r, .done = kick_new()};

    if (k.done < 0) {
        return error_nomem(errp);
    }
    mutex_init(&k.lock, LOCK_PROGRESS, NULL);
    int result = copy_watched(&k, errp);
    mutex_destroy(&k.lock);
    (void)close(k.done);
    return result;
}
