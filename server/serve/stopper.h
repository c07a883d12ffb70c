/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_STOPPER_H
#define NBDELTA_SERVER_SERVE_STOPPER_H

/*
 * The end has a limit
 * ===================
 *
 *   signal, quit --> the main thread stops everything in order
 *                      |                    |
 *                      | done               | `limit` seconds later
 *                      v                    v
 *                    exit     NBD servers that do not answer are cut off
 *                               |                    |
 *                               | done               | still not
 *                               v                    v
 *                             exit 1     what answers is flushed and closed,
 *                                        the rest is named; exit 1
 *
 * A thread of its own looks at the signals from the start.  So a daemon whose
 * storage hangs while it is being opened can be ended, too.  More signals
 * change nothing.
 */
#include <stdbool.h>

struct daemon;
struct error;
struct stopper;

#define STOP_SECONDS     60
#define STOP_SECONDS_MAX 86400

struct stopper_options {
    struct daemon *daemon; /* its graph and quit_fd are there */
    int signals;           /* signalfd */
    unsigned limit_s;      /* 0: none */
    /* Before the process ends from here: remove what others look at. */
    void (*last)(void *opaque);
    void *opaque;
};

/* NULL: no memory, or no thread. */
struct stopper *stopper_new(const struct stopper_options *o,
                            struct error **errp);

/* Tell the stopper that all is closed, and free it.  This does not return when
 * the thread is ending the process already.  False: the end was late, and
 * something was cut off.  NULL is fine. */
bool stopper_free(struct stopper *s);

#endif /* NBDELTA_SERVER_SERVE_STOPPER_H */
