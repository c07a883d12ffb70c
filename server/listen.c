/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sockets and connections: one thread accepts, joins the threads of
 * connections that have ended, and deletes exports that nobody uses any more.
 */
#include "listen.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "address.h"
#include "conn.h"
#include "daemon.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "pool.h"

#define CONNECTIONS_MAX 1000
#define SEND_BUFFER     (2 << 20)
#define WORKERS         64

/* How long a half-open predecessor may take to finish (server_enter). */
#define SETTLE_NS UINT64_C(5000000000)

struct server {
    /* Set before server_start. */
    struct daemon *daemon;
    struct exports *exports;
    struct pool *pool;
    int wake; /* eventfd for the accepting thread */
    bool started;
    pthread_t thread;

    /* Guarded by lock. */
    mutex_t lock;
    bool running;
    unsigned max; /* connections; 0: no limit but our own */
    struct listeners listeners;
    cond_t calmed; /* a connection is quiet now */
    struct list conns;
    unsigned conn_count;
    bool used; /* an export was opened */

    _Atomic bool stopping;
};

struct server *server_new(struct daemon *d)
{
    struct server *s = calloc(1, sizeof(*s));

    if (!s) {
        return NULL;
    }
    s->daemon = d;
    s->exports = d->exports;
    s->pool = pool_new(WORKERS);
    s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    list_init(&s->conns);
    mutex_init(&s->lock);
    cond_init(&s->calmed);
    if (!s->pool || s->wake < 0) {
        server_free(s);
        return NULL;
    }
    return s;
}

void server_free(struct server *s)
{
    if (s) {
        listeners_close(&s->listeners); /* of a command that came late */
        pool_free(s->pool);
        if (s->wake >= 0) {
            (void)close(s->wake);
        }
        cond_destroy(&s->calmed);
        mutex_destroy(&s->lock);
        free(s);
    }
}

static bool is_full(const struct server *s) REQUIRES(s->lock)
{
    return s->conn_count >= CONNECTIONS_MAX ||
           (s->max > 0 && s->conn_count >= s->max);
}

void server_reap_soon(struct server *s)
{
    uint64_t one = 1;

    while (write(s->wake, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

/* --- Listening. --- */

int server_open(struct server *s, unsigned max, struct error **errp)
{
    int r = 0;

    mutex_lock(&s->lock);
    if (s->running) {
        r = error_set(errp, EEXIST, "NBD server already running");
    } else {
        s->running = true;
        s->max = max;
    }
    mutex_unlock(&s->lock);
    return r;
}

bool server_running(struct server *s)
{
    mutex_lock(&s->lock);
    bool running = s->running;
    mutex_unlock(&s->lock);
    return running;
}

unsigned server_max(struct server *s)
{
    mutex_lock(&s->lock);
    unsigned max = s->max;
    mutex_unlock(&s->lock);
    return max;
}

int server_listen(struct server *s, const json_t *addr, struct error **errp)
{
    struct listeners more = {.count = 0};
    int r = address_listen(addr, &more, errp);

    /* A name may take its time to be found: not under the lock. */
    mutex_lock(&s->lock);
    if (s->listeners.count + more.count > LISTENERS_MAX) {
        r = error_set(errp, EMFILE, "too many sockets to listen on");
    }
    for (unsigned i = 0; r == 0 && i < more.count; i++) {
        s->listeners.at[s->listeners.count++] = more.at[i];
    }
    mutex_unlock(&s->lock);
    if (r < 0) {
        listeners_close(&more);
    }
    server_reap_soon(s);
    return r;
}

/* All are told; who waits for their end reaps them. */
static void stop_connections(struct server *s) REQUIRES(s->lock)
{
    list_for_each (l, &s->conns) {
        conn_stop(list_entry(l, struct conn, in_server));
    }
    cond_broadcast(&s->calmed);
}

void server_close(struct server *s)
{
    mutex_lock(&s->lock);
    s->running = false;
    listeners_close(&s->listeners);
    stop_connections(s);
    mutex_unlock(&s->lock);
    server_reap_soon(s);
}

void server_end_export(struct server *s, const struct export *e)
{
    mutex_lock(&s->lock);
    list_for_each (l, &s->conns) {
        struct conn *c = list_entry(l, struct conn, in_server);

        if (c->serving && c->export == e) {
            conn_stop(c);
        }
    }
    cond_broadcast(&s->calmed);
    mutex_unlock(&s->lock);
}

/* --- Connections. --- */

static void set_options(int fd)
{
    static const int on = 1;
    static const int buffer = SEND_BUFFER;
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);

    if (getsockname(fd, (struct sockaddr *)&addr, &len) == 0 &&
        addr.ss_family != AF_UNIX) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
        return; /* the kernel sizes its buffers */
    }
    /* More than the system's limit, if we may. */
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof(buffer)) <
        0) {
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    }
}

static void start_conn(struct server *s, int fd) REQUIRES(s->lock)
{
    set_options(fd);
    struct conn *c = conn_new(s, s->exports, s->pool, fd);
    if (!c) {
        return;
    }
    if (thread_start(&c->thread, "nbd-conn", conn_thread, c) < 0) {
        conn_free(c);
        return;
    }
    list_append(&s->conns, &c->in_server);
    s->conn_count++;
}

/* Free the connections that have ended. */
static void reap(struct server *s)
{
    struct list gone;

    list_init(&gone);
    mutex_lock(&s->lock);
    list_for_each_safe (l, &s->conns) {
        struct conn *c = list_entry(l, struct conn, in_server);

        if (atomic_load(&c->finished)) {
            list_remove(l);
            list_append(&gone, l);
            s->conn_count--;
        }
    }
    bool last = s->used && s->conn_count == 0;
    mutex_unlock(&s->lock);
    if (last && s->daemon->exit_on_disconnect) {
        daemon_ask_quit(s->daemon);
    }
    list_for_each_safe (l, &gone) {
        struct conn *c = list_entry(l, struct conn, in_server);

        thread_join(c->thread);
        conn_free(c);
    }
}

/* All at once are told, then each is waited for.  Nobody adds any more. */
static void end_connections(struct server *s)
{
    mutex_lock(&s->lock);
    stop_connections(s);
    while (!list_empty(&s->conns)) {
        struct conn *c = list_entry(s->conns.next, struct conn, in_server);

        mutex_unlock(&s->lock);
        thread_join(c->thread);
        mutex_lock(&s->lock);
        list_remove(&c->in_server);
        s->conn_count--;
        mutex_unlock(&s->lock);
        conn_free(c);
        mutex_lock(&s->lock);
    }
    mutex_unlock(&s->lock);
}

/*
 * Is the client of @c gone, and has @c still something to do for it?  One
 * that is gone for good has what is not begun dropped; one that has closed
 * its sending half only may want its replies, for a while.
 */
static bool is_remnant(struct conn *c, bool patient)
{
    struct pollfd p = {.fd = c->io.fd, .events = POLLRDHUP};

    if (!c->serving || c->quiet || poll(&p, 1, 0) <= 0) {
        return false;
    }
    if (!patient || (p.revents & (POLLHUP | POLLERR))) {
        conn_stop(c);
    }
    return true;
}

void server_enter(struct server *s, struct conn *c)
{
    uint64_t end = now_ns() + SETTLE_NS;
    bool wait = c->export->writable;

    mutex_lock(&s->lock);
    while (wait && !atomic_load(&c->stopping)) {
        bool patient = now_ns() < end;

        wait = false;
        list_for_each (l, &s->conns) {
            struct conn *other = list_entry(l, struct conn, in_server);

            if (other != c && other->serving && other->export == c->export) {
                wait |= is_remnant(other, patient);
            }
        }
        if (wait) {
            (void)cond_wait_ms(&s->calmed, &s->lock, 100);
        }
    }
    c->serving = true;
    s->used = true;
    mutex_unlock(&s->lock);
    /* Either server_end_export finds it, or it was removed before. */
    if (export_is_removed(s->exports, c->export)) {
        conn_stop(c);
    }
}

void server_quiet(struct server *s, struct conn *c)
{
    mutex_lock(&s->lock);
    c->quiet = true;
    cond_broadcast(&s->calmed);
    mutex_unlock(&s->lock);
}

/* --- Accepting. --- */

/* True: wait a moment before the next try. */
static bool accept_one(struct server *s, int listener) REQUIRES(s->lock)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd >= 0) {
        start_conn(s, fd);
        return false;
    }
    return errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
           errno == ENOBUFS;
}

/* What can be accepted, from sockets that are open now: none of them blocks. */
static bool accept_all(struct server *s)
{
    bool rest = false;

    mutex_lock(&s->lock);
    for (unsigned i = 0; i < s->listeners.count && !is_full(s); i++) {
        rest |= accept_one(s, s->listeners.at[i].fd);
    }
    mutex_unlock(&s->lock);
    return rest;
}

static void collect(struct server *s)
{
    struct jobs *jobs = s->daemon->jobs;

    mutex_lock(&jobs->lock);
    exports_collect(s->exports, jobs);
    mutex_unlock(&jobs->lock);
}

/* Clients above the maximum stay in the queues of the sockets. */
static nfds_t poll_set(struct server *s, struct pollfd *fds)
{
    nfds_t n = 2;

    fds[0] = (struct pollfd){.fd = s->wake, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = exports_fd(s->exports), .events = POLLIN};
    mutex_lock(&s->lock);
    for (unsigned i = 0; i < s->listeners.count && !is_full(s); i++) {
        fds[n++] = (struct pollfd){.fd = s->listeners.at[i].fd,
                                   .events = POLLIN};
    }
    mutex_unlock(&s->lock);
    return n;
}

static void *accept_thread(void *arg)
{
    struct server *s = arg;
    struct pollfd fds[LISTENERS_MAX + 2];
    uint64_t count;

    while (!atomic_load(&s->stopping)) {
        reap(s);
        nfds_t n = poll_set(s, fds);
        if (poll(fds, n, -1) < 0) {
            continue;
        }
        if (fds[0].revents) {
            (void)!read(s->wake, &count, sizeof(count));
        }
        if (fds[1].revents) {
            collect(s);
        }
        if (!atomic_load(&s->stopping) && accept_all(s)) {
            (void)poll(fds, 1, 100); /* those clients wait: do not spin */
        }
    }
    return NULL;
}

int server_start(struct server *s, struct error **errp)
{
    int r = thread_start(&s->thread, "nbd-accept", accept_thread, s);

    if (r < 0) {
        return error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
    }
    s->started = true;
    return 0;
}

void server_stop(struct server *s)
{
    atomic_store(&s->stopping, true);
    server_close(s);
    if (s->started) {
        thread_join(s->thread);
        s->started = false;
    }
    end_connections(s);
}
