/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_DAEMON_H
#define NBDELTA_SERVER_DAEMON_H

/* What `nbdelta serve` consists of. */
#include <stdatomic.h>
#include <stdbool.h>

#include "nbdelta/thread.h"

struct graph;
struct jobs;
struct devices;
struct io_tasks;
struct exports;
struct monitors;
struct objects;
struct pulls;
struct qmp_service;
struct servers;

/* Set before the first client can connect, and not changed before the last
 * one is gone. */
struct daemon {
    struct graph *graph;
    struct jobs *jobs;                 /* has the monitor lock */
    struct exports *exports;           /* nbd/export.h */
    struct monitors *monitors;         /* qmp/monitor.h */
    struct objects *objects;           /* objects/object.h */
    struct pulls *pulls;               /* backup/session.h */
    const struct qmp_service *service; /* qmp/dispatch.h */
    struct servers *servers;           /* nbd/server.h */
    struct devices *devices;           /* vm/device.h */
    struct io_tasks *io_tasks;         /* vm/qemu-io.h */
    bool vm_compat;          /* as an emulator, not as a storage daemon */
    bool exit_on_disconnect; /* when the last NBD client has gone */
    unsigned poll_max;       /* microseconds that NBD clients are polled for */
    int quit_fd;             /* eventfd: readable once it shall stop */
    _Atomic(const char *) quit_why; /* NULL: nobody has asked */

    /* Guarded by turn_lock: the command that has the monitor lock ("": none),
     * for texts to commands that wait for it. */
    mutex_t turn_lock;
    char turn[64];

    /* Monitor lock. */
    cond_t ended;
    bool has_ended; /* no exports and jobs are left */
};

/* Ask the main thread to stop everything in order.  Does not wait, so threads
 * that the main thread joins may call it, too.  Any locks may be held.  @why
 * is for the log, and stays (NULL: nothing is told); the first one counts. */
void daemon_ask_quit(struct daemon *d, const char *why);

/* The same for QMP's quit, and wait until exports and jobs have ended: so their
 * last events come before the reply to "quit".  Hold the monitor lock, which is
 * given up meanwhile. */
void daemon_quit(struct daemon *d);

/* Tell daemon_quit() that exports and jobs have ended.  Takes the monitor
 * lock. */
void daemon_ended(struct daemon *d);

#endif /* NBDELTA_SERVER_DAEMON_H */
