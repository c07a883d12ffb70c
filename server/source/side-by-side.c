/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Many things at once: see side-by-side.h.
 *
 *     caller: poll -- stop_fd: stop(), no further calls
 *               |
 *               +---- done: the last thread has ended
 *     threads: the next number that nobody has: fn()
 */
#include "source/side-by-side.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/error.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"

#define THREADS_MAX 16

struct crew {
    const struct side_by_side *s;
    int done; /* a kick */
    _Atomic unsigned next;
    _Atomic unsigned at_work; /* threads */
    _Atomic bool ending;      /* a call has failed, or the user wants it */
};

struct worker {
    struct crew *crew;
    pthread_t thread;
    int result;
    struct error *error;
};

static void *work(void *opaque)
{
    struct worker *w = opaque;
    struct crew *c = w->crew;
    unsigned i;

    while (!atomic_load(&c->ending) &&
           (i = atomic_fetch_add(&c->next, 1)) < c->s->count) {
        w->result = c->s->fn(c->s->opaque, i, &w->error);
        if (w->result < 0) {
            atomic_store(&c->ending, true);
        }
    }
    if (atomic_fetch_sub(&c->at_work, 1) == 1) {
        kick_raise(c->done);
    }
    return NULL;
}

/* As many threads as can be had.  0: none. */
static unsigned start(struct crew *c, struct worker *workers, int *r)
{
    unsigned wanted = c->s->count < THREADS_MAX ? c->s->count : THREADS_MAX;
    unsigned started = 0;

    /* Threads that end before others begin are not the last. */
    atomic_store(&c->at_work, 1);
    for (*r = 0; *r == 0 && started < wanted; started += *r == 0) {
        workers[started].crew = c;
        atomic_fetch_add(&c->at_work, 1);
        *r = thread_start(&workers[started].thread, "source", work,
                          &workers[started]);
        if (*r < 0) {
            atomic_fetch_sub(&c->at_work, 1);
        }
    }
    if (atomic_fetch_sub(&c->at_work, 1) == 1) {
        kick_raise(c->done);
    }
    return started;
}

/* Until the threads have ended.  True: the user has ended it. */
static bool watch(struct crew *c)
{
    struct pollfd fds[2] = {
        {.fd = c->done, .events = POLLIN},
        {.fd = c->s->stop ? c->s->stop_fd : -1, .events = POLLIN}};
    bool stopped = false;

    while (!(fds[0].revents & POLLIN)) {
        fds[0].revents = fds[1].revents = 0;
        (void)poll(fds, 2, -1);
        if (fds[1].revents & POLLIN) {
            stopped = true;
            atomic_store(&c->ending, true);
            c->s->stop(c->s->opaque);
            fds[1].fd = -1;
        }
    }
    return stopped;
}

/* The first error. */
static int gather(struct worker *workers, unsigned count, struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; i < count; i++) {
        struct worker *w = &workers[i];

        thread_join(w->thread);
        if (w->result < 0 && r == 0) {
            r = error_set(errp, -w->result, "%s", error_message(w->error));
        }
        error_free(w->error);
    }
    return r;
}

int side_by_side_run(const struct side_by_side *s, struct error **errp)
{
    struct crew c = {.s = s, .done = kick_new()};
    struct worker workers[THREADS_MAX] = {{0}};
    int r;

    if (s->count == 0 || c.done < 0) {
        return s->count == 0 ? 0 : error_nomem(errp);
    }
    unsigned started = start(&c, workers, &r);
    bool stopped = watch(&c);
    int first = gather(workers, started, stopped ? NULL : errp);
    (void)close(c.done);
    return stopped ? error_set(errp, ECANCELED, "interrupted")
           : started > 0
               ? first
               : error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
}
