/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages to the service manager: see notify.h. */
#include "serve/notify.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon.h"
#include "nbd/export.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/job.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"

/* Without a watchdog: between two looks. */
#define LOOK_MS 30000
/* A try for the monitor lock: so long may the end have to wait for a look. */
#define TRY_MS 100

/* During the end: the service manager shall wait so much longer, again and
 * again.  --stop-timeout limits it. */
#define EXTEND_MS 5000
#define EXTEND    "EXTEND_TIMEOUT_USEC=20000000"

static void take_socket(struct notify *n)
{
    const char *path = getenv("NOTIFY_SOCKET");
    size_t len = path ? strlen(path) : 0;

    if (len > 1 && len < sizeof(n->addr.sun_path) &&
        (path[0] == '/' || path[0] == '@')) {
        memcpy(n->addr.sun_path, path, len);
        if (path[0] == '@') {
            n->addr.sun_path[0] = '\0'; /* an abstract one */
        }
        n->len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    }
}

/* Twice in the time after which the service manager would act. */
static void take_watchdog(struct notify *n)
{
    const char *usec = getenv("WATCHDOG_USEC");
    const char *pid = getenv("WATCHDOG_PID");
    unsigned long long us = usec ? strtoull(usec, NULL, 10) : 0;

    if (us >= 2000 && us / 2000 <= INT32_MAX &&
        (!pid || strtol(pid, NULL, 10) == (long)getpid())) {
        n->interval_ms = (unsigned)(us / 2000);
    }
}

void notify_init(struct notify *n)
{
    *n = (struct notify){.addr.sun_family = AF_UNIX, .wake = -1};
    take_socket(n);
    take_watchdog(n);
    (void)unsetenv("NOTIFY_SOCKET");
    (void)unsetenv("WATCHDOG_USEC");
    (void)unsetenv("WATCHDOG_PID");
}

static void tell(const struct notify *n, const char *state)
{
    CLEANUP_CLOSE int fd = n->len > 0
                               ? socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)
                               : -1;

    if (fd >= 0) {
        (void)sendto(fd, state, strlen(state), MSG_NOSIGNAL | MSG_DONTWAIT,
                     (const struct sockaddr *)&n->addr, n->len);
    }
}

/* --- While it runs. --- */

struct counts {
    struct exports *set;
    unsigned exports;
    unsigned clients;
};

static int count_export(struct export *e, void *opaque)
{
    struct counts *c = opaque;

    c->exports++;
    c->clients += exports_clients(c->set, e->id);
    return 0;
}

/* Tell what is served; @alive: commands can be carried out. */
static void tell_status(const struct notify *n, const char *first, bool alive)
{
    struct counts c = {.set = n->daemon->exports};
    char text[160];

    (void)exports_each(c.set, count_export, &c);
    (void)snprintf(text, sizeof(text), "%sSTATUS=%u exports, %u connections%s",
                   first, c.exports, c.clients,
                   alive ? "" : "; the monitor is busy");
    tell(n, text);
}

/* Can the monitor lock be had, within an interval?  The end does not wait for
 * the answer. */
static bool is_alive(struct notify *n, unsigned interval_ms)
{
    mutex_t *lock = &n->daemon->jobs->lock;

    for (unsigned ms = 0; ms < interval_ms && !atomic_load(&n->leaving);
         ms += TRY_MS) {
        if (mutex_lock_ms(lock, TRY_MS)) {
            mutex_unlock(lock);
            return true;
        }
    }
    return false;
}

/* True: the thread shall end. */
static bool wait_or_leave(struct notify *n, unsigned ms)
{
    struct pollfd fd = {.fd = n->wake, .events = POLLIN};

    (void)poll(&fd, 1, (int)ms);
    return atomic_load(&n->leaving);
}

static void *watch_thread(void *opaque)
{
    struct notify *n = opaque;
    unsigned ms = n->interval_ms ? n->interval_ms : LOOK_MS;

    while (!wait_or_leave(n, ms)) {
        bool alive = is_alive(n, ms);

        if (!atomic_load(&n->leaving)) {
            tell_status(n, alive && n->interval_ms ? "WATCHDOG=1\n" : "",
                        alive);
        }
    }
    return NULL;
}

/* --- While it ends. --- */

static void *extend_thread(void *opaque)
{
    struct notify *n = opaque;

    do {
        tell(n, EXTEND);
    } while (!wait_or_leave(n, EXTEND_MS));
    return NULL;
}

/* --- One thread at a time. --- */

static void start(struct notify *n, void *(*fn)(void *))
{
    atomic_store(&n->leaving, false);
    n->wake = kick_new();
    n->started = n->wake >= 0 && thread_start(&n->thread, "notify", fn, n) == 0;
}

static void stop(struct notify *n)
{
    if (n->started) {
        atomic_store(&n->leaving, true);
        kick_raise(n->wake);
        thread_join(n->thread);
        n->started = false;
    }
    if (n->wake >= 0) {
        (void)close(n->wake);
        n->wake = -1;
    }
}

void notify_ready(struct notify *n, struct daemon *d)
{
    n->daemon = d;
    if (n->len > 0) {
        tell_status(n, "READY=1\n", true);
        start(n, watch_thread);
    }
}

void notify_stopping(struct notify *n)
{
    if (n->daemon && n->len > 0) {
        stop(n);
        tell(n, "STOPPING=1\nSTATUS=Bitmaps are stored and disks closed");
        start(n, extend_thread);
    }
}

void notify_end(struct notify *n)
{
    stop(n);
}
