/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_NOTIFY_H
#define NBDELTA_SERVER_SERVE_NOTIFY_H

/*
 * The service manager is told how the daemon is
 * =============================================
 *
 *     start         run                        end
 *       |            |                          |
 *     READY=1 ----> WATCHDOG=1, STATUS=  ----> STOPPING=1,
 *                   now and then               EXTEND_TIMEOUT_USEC= now and
 * then
 *
 * WATCHDOG=1 says that the monitor lock could be had, so that commands can be
 * carried out.  Where it cannot be had for longer than WatchdogSec=, the
 * service manager ends the daemon, if its unit says so.  The messages are those
 * of sd_notify(3).  Nothing here waits for the service manager.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

struct daemon;

struct notify {
    struct sockaddr_un addr;
    socklen_t len;        /* 0: nobody wants to know */
    unsigned interval_ms; /* between two WATCHDOG=1; 0: none are wanted */

    struct daemon *daemon;
    int wake; /* a kick: the thread shall end */
    atomic_bool leaving;
    bool started;
    pthread_t thread;
};

/* Look whom to tell (NOTIFY_SOCKET, WATCHDOG_USEC).  The variables leave the
 * environment: to be called before there are threads. */
void notify_init(struct notify *n);

/* Clients can connect to @d, and find all exports. */
void notify_ready(struct notify *n, struct daemon *d);

/* The end begins.  From now on nothing here looks at the daemon.  Nothing
 * happens without notify_ready(). */
void notify_stopping(struct notify *n);

/* The process is about to end. */
void notify_end(struct notify *n);

#endif /* NBDELTA_SERVER_SERVE_NOTIFY_H */
