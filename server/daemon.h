/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_DAEMON_H
#define NBDELTA_SERVER_DAEMON_H

/* What `nbdelta serve` consists of. */
#include <stdbool.h>

struct graph;
struct jobs;
struct devices;
struct io_tasks;
struct exports;
struct monitors;
struct objects;
struct server;

/* Set before the first client can connect, and not changed before the last
 * one is gone. */
struct daemon {
    struct graph *graph;
    struct jobs *jobs;         /* has the monitor lock */
    struct exports *exports;   /* export.h */
    struct monitors *monitors; /* monitor.h */
    struct objects *objects;   /* object.h */
    struct server *server;     /* listen.h */
    struct devices *devices;   /* device.h */
    struct io_tasks *io_tasks; /* qemu-io.h */
    bool vm_compat;            /* as an emulator, not as a storage daemon */
    int quit_fd;               /* eventfd: readable once it shall stop */
};

/* Ask the main thread to stop everything in order.  Any thread; returns at
 * once; calling it again does nothing. */
void daemon_quit(struct daemon *d);

#endif /* NBDELTA_SERVER_DAEMON_H */
