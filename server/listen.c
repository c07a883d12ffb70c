/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sockets and connections: one thread accepts, and joins the threads of
 * connections that have ended.
 */
#include "listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "conn.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "pool.h"
#include "unix-socket.h"

#define SOCKETS_MAX     16
#define CONNECTIONS_MAX 1000
#define BACKLOG         128
#define SEND_BUFFER     (2 << 20)
#define WORKERS         64

/* How long a half-open predecessor may take to finish (server_enter). */
#define SETTLE_NS UINT64_C(5000000000)

struct server {
    /* Set before server_start. */
    struct exports *exports;
    struct pool *pool;
    int wake; /* eventfd for the accepting thread */
    struct unix_socket listeners[SOCKETS_MAX];
    unsigned count;
    bool started;
    pthread_t thread;

    /* Guarded by lock. */
    mutex_t lock;
    cond_t calmed; /* a connection is quiet now */
    struct list conns;
    unsigned conn_count;

    _Atomic bool stopping;
};

struct server *server_new(struct exports *exports)
{
    struct server *s = calloc(1, sizeof(*s));

    if (!s) {
        return NULL;
    }
    s->exports = exports;
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
        pool_free(s->pool);
        if (s->wake >= 0) {
            (void)close(s->wake);
        }
        cond_destroy(&s->calmed);
        mutex_destroy(&s->lock);
        free(s);
    }
}

void server_reap_soon(struct server *s)
{
    uint64_t one = 1;

    while (write(s->wake, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

/* --- Listening. --- */

static int add_listener(struct server *s, const struct unix_socket *u,
                        struct error **errp)
{
    if (s->count == SOCKETS_MAX) {
        return error_set(errp, EMFILE, "too many sockets to listen on");
    }
    s->listeners[s->count++] = *u;
    return 0;
}

static void close_listeners(struct server *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        unix_socket_close(&s->listeners[i]);
    }
    s->count = 0;
}

int server_listen_unix(struct server *s, const char *path, struct error **errp)
{
    struct unix_socket u;
    int r = unix_socket_listen(&u, path, errp);

    if (r == 0) {
        r = add_listener(s, &u, errp);
        if (r < 0) {
            unix_socket_close(&u);
        }
    }
    return r;
}

/* One address; -errno without a text. */
static int listen_address(struct server *s, const struct addrinfo *ai,
                          bool only, struct error **errp)
{
    static const int on = 1;
    /* A single "::" is for IPv4 as well. */
    const int v6_only = !only;
    CLEANUP_CLOSE int fd =
        socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return -errno;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (ai->ai_family == AF_INET6) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6_only,
                         sizeof(v6_only));
    }
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        return -errno;
    }
    struct unix_socket u = {.fd = fd};
    int r = add_listener(s, &u, errp);
    if (r == 0) {
        fd = -1;
    }
    return r;
}

/* Is it that the machine does not have such addresses? */
static bool is_lacking(int r)
{
    return r == -EAFNOSUPPORT || r == -EADDRNOTAVAIL;
}

int server_listen_tcp(struct server *s, const char *host, const char *port,
                      struct error **errp)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = host ? AI_PASSIVE : 0};
    struct addrinfo *list = NULL;
    int r = getaddrinfo(host, port, &hints, &list);
    unsigned done = 0;

    if (r != 0) {
        return error_set(errp, EINVAL, "'%s' port %s: %s",
                         host ? host : "localhost", port, gai_strerror(r));
    }
    int last = -EADDRNOTAVAIL;
    for (struct addrinfo *ai = list; ai; ai = ai->ai_next) {
        r = listen_address(s, ai, !list->ai_next, errp);
        done += r == 0;
        last = r < 0 ? r : last;
        if (r < 0 && !is_lacking(r)) {
            break;
        }
    }
    freeaddrinfo(list);
    if (done > 0 && (r == 0 || is_lacking(r))) {
        return 0;
    }
    return error_set(errp, -last, "cannot listen on '%s' port %s: %s",
                     host ? host : "localhost", port, strerror(-last));
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

static void start_conn(struct server *s, int fd)
{
    mutex_lock(&s->lock);
    bool full = s->conn_count >= CONNECTIONS_MAX;
    mutex_unlock(&s->lock);
    if (full) {
        (void)close(fd);
        return;
    }
    set_options(fd);
    struct conn *c = conn_new(s, s->exports, s->pool, fd);
    if (!c) {
        return;
    }
    mutex_lock(&s->lock);
    int r = thread_start(&c->thread, "nbd-conn", conn_thread, c);
    if (r == 0) {
        list_append(&s->conns, &c->in_server);
        s->conn_count++;
    }
    mutex_unlock(&s->lock);
    if (r < 0) {
        conn_free(c);
    }
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
    mutex_unlock(&s->lock);
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
    list_for_each (l, &s->conns) {
        conn_stop(list_entry(l, struct conn, in_server));
    }
    cond_broadcast(&s->calmed);
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
    struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};

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
    mutex_unlock(&s->lock);
}

void server_quiet(struct server *s, struct conn *c)
{
    mutex_lock(&s->lock);
    c->quiet = true;
    cond_broadcast(&s->calmed);
    mutex_unlock(&s->lock);
}

/* --- Accepting. --- */

static void accept_one(struct server *s, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd >= 0) {
        start_conn(s, fd);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
               errno == ENOBUFS) {
        /* The client stays in the queue: do not spin. */
        struct pollfd p = {.fd = s->wake, .events = POLLIN};
        (void)poll(&p, 1, 100);
    }
}

static void *accept_thread(void *arg)
{
    struct server *s = arg;
    struct pollfd fds[SOCKETS_MAX + 1];
    uint64_t n;

    fds[0] = (struct pollfd){.fd = s->wake, .events = POLLIN};
    for (unsigned i = 0; i < s->count; i++) {
        fds[i + 1] = (struct pollfd){.fd = s->listeners[i].fd,
                                     .events = POLLIN};
    }
    while (!atomic_load(&s->stopping)) {
        reap(s);
        if (poll(fds, s->count + 1, -1) < 0) {
            continue;
        }
        if (fds[0].revents) {
            (void)!read(s->wake, &n, sizeof(n));
        }
        for (unsigned i = 1; i <= s->count; i++) {
            if (fds[i].revents && !atomic_load(&s->stopping)) {
                accept_one(s, fds[i].fd);
            }
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
    server_reap_soon(s);
    if (s->started) {
        thread_join(s->thread);
        s->started = false;
    }
    close_listeners(s);
    end_connections(s);
}
