/* SPDX-License-Identifier: BSD-3-Clause */
/* The thread that limits the time of the end: see stopper.h. */
#include "serve/stopper.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "daemon.h"
#include "log/log.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"
#include "nbdelta/yank.h"

/* How long to wait after servers were cut off, and for closing images. */
#define CUT_MS     5000
#define SALVAGE_NS UINT64_C(10000000000)

struct stopper {
    struct stopper_options o;
    int done_fd; /* a kick: all is closed */
    pthread_t thread;
    bool late; /* the thread's, until it is joined */

    mutex_t lock;
    /* Guarded by lock. */
    bool done;
    bool ending; /* the process ends from here */
};

static void tell_given_up(const char *node, void *opaque)
{
    struct stopper *s = opaque;

    s->late = true;
    log_line(TELL_ERROR,
             "gave up '%s': its storage does not answer, what it had not "
             "flushed may be lost",
             node);
}

/* Is all closed, within @ms (-1: for ever)? */
static bool wait_until_closed(const struct stopper *s, int ms)
{
    struct pollfd fd = {.fd = s->done_fd, .events = POLLIN};
    int r;

    while ((r = poll(&fd, 1, ms)) < 0 && errno == EINTR) {
    }
    return r > 0;
}

static void tell_signal(const struct stopper *s)
{
    struct signalfd_siginfo info;
    const char *name = NULL;

    if (read(s->o.signals, &info, sizeof(info)) == sizeof(info)) {
        name = sigabbrev_np((int)info.ssi_signo);
        log_line(TELL_INFO,
                 "the end begins: signal SIG%s of process %u, user %u",
                 name ? name : "?", info.ssi_pid, info.ssi_uid);
    }
}

/* Wait until a signal or daemon_ask_quit() asks for the end.  False: all is
 * closed already. */
static bool wait_for_request(const struct stopper *s)
{
    struct daemon *d = s->o.daemon;
    struct pollfd fds[3] = {
        {.fd = s->o.signals, .events = POLLIN},
        {.fd = d->quit_fd, .events = POLLIN},
        {.fd = s->done_fd, .events = POLLIN},
    };

    while (poll(fds, 3, -1) < 0 && errno == EINTR) {
    }
    if (fds[0].revents) {
        daemon_ask_quit(d, "a signal");
        tell_signal(s);
    } else if (atomic_load(&d->quit_why)) {
        log_line(TELL_INFO, "the end begins: %s", atomic_load(&d->quit_why));
    }
    return !fds[2].revents;
}

/* Other threads are stuck in storage that does not answer.  So nothing is
 * stopped in order, and no memory is freed. */
_Noreturn static void end_here(struct stopper *s)
{
    graph_salvage(s->o.daemon->graph, SALVAGE_NS, tell_given_up, s);
    s->o.last(s->o.opaque);
    _exit(EXIT_FAILURE);
}

static void *stopper_thread(void *opaque)
{
    struct stopper *s = opaque;
    struct graph *g = s->o.daemon->graph;

    if (!wait_for_request(s)) {
        return NULL;
    }
    graph_stop_waiting(g);
    if (wait_until_closed(s, s->o.limit_s ? (int)(s->o.limit_s * 1000) : -1)) {
        return NULL;
    }
    s->late = true;
    graph_yank_stuck(g, tell_given_up, s);
    if (wait_until_closed(s, CUT_MS)) {
        return NULL;
    }
    mutex_lock(&s->lock);
    bool done = s->done;
    s->ending = !done;
    mutex_unlock(&s->lock);
    if (!done) {
        end_here(s);
    }
    return NULL;
}

struct stopper *stopper_new(const struct stopper_options *o,
                            struct error **errp)
{
    struct stopper *s = calloc(1, sizeof(*s));
    int fd = s ? kick_new() : -1;

    if (fd < 0) {
        free(s);
        (void)error_set(errp, ENOMEM, "no memory, or no descriptor");
        return NULL;
    }
    s->o = *o;
    s->done_fd = fd;
    mutex_init(&s->lock, LOCK_STOPPER, NULL);
    int r = thread_start(&s->thread, "stopper", stopper_thread, s);
    if (r < 0) {
        (void)error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
        mutex_destroy(&s->lock);
        (void)close(fd);
        free(s);
        return NULL;
    }
    return s;
}

bool stopper_free(struct stopper *s)
{
    if (!s) {
        return true;
    }
    mutex_lock(&s->lock);
    s->done = true;
    bool ending = s->ending;
    mutex_unlock(&s->lock);
    if (ending) {
        for (;;) {
            (void)pause(); /* the thread ends the process */
        }
    }
    kick_raise(s->done_fd);
    thread_join(s->thread);
    bool in_time = !s->late;
    mutex_destroy(&s->lock);
    (void)close(s->done_fd);
    free(s);
    return in_time;
}
