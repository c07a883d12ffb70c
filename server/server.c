/* SPDX-License-Identifier: BSD-3-Clause */
#include "server.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"
#include "listen.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define LISTENERS_MAX   16
#define CONNECTIONS_MAX 1024
#define POOL_THREADS    16
/* How long clients have at the end to take their last replies. */
#define STOP_MS 3000

struct server {
    struct exports *exports;
    struct pool *pool;

    /* Set before server_start. */
    int fds[LISTENERS_MAX];
    char *paths[LISTENERS_MAX]; /* of Unix sockets, else NULL */
    unsigned count;
    int stop_fd;
    pthread_t acceptor;
    bool started;

    mutex_t lock;
    cond_t gone; /* a connection has ended */

    /* Guarded by lock. */
    struct list conns;
    unsigned conn_count;
    bool stopping;
};

struct server *server_new(struct exports *exports)
{
    struct server *s = calloc(1, sizeof(*s));

    if (!s) {
        return NULL;
    }
    s->exports = exports;
    s->pool = pool_new(POOL_THREADS);
    s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    mutex_init(&s->lock);
    cond_init(&s->gone);
    list_init(&s->conns);
    if (!s->pool || s->stop_fd < 0) {
        server_free(s);
        return NULL;
    }
    return s;
}

/* --- Listening --- */

static int add_listener(struct server *s, int fd, char *path,
                        struct error **errp)
{
    if (s->count == LISTENERS_MAX) {
        (void)close(fd);
        free(path);
        return error_set(errp, E2BIG, "more than %d listening sockets",
                         LISTENERS_MAX);
    }
    s->paths[s->count] = path;
    s->fds[s->count++] = fd;
    return 0;
}

int server_listen_unix(struct server *s, const char *path,
                       struct error **errp)
{
    int fd = listen_unix(path, errp);
    if (fd < 0) {
        return fd;
    }
    char *copy = strdup(path);
    if (!copy) {
        (void)close(fd);
        return error_set(errp, ENOMEM, "no memory for the socket '%s'", path);
    }
    return add_listener(s, fd, copy, errp);
}

/* One address; 0 with *fd == -1 when this machine lacks its family. */
static int listen_address(const struct addrinfo *a, int *fd)
{
    int on = 1;

    *fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                 a->ai_protocol);
    if (*fd < 0) {
        return errno == EAFNOSUPPORT ? 0 : -errno;
    }
    (void)setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (a->ai_family == AF_INET6) {
        (void)setsockopt(*fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    }
    if (bind(*fd, a->ai_addr, a->ai_addrlen) < 0 ||
        listen(*fd, SOMAXCONN) < 0) {
        int r = errno == EADDRNOTAVAIL && a->ai_family == AF_INET6 ? 0
                                                                   : -errno;
        (void)close(*fd);
        *fd = -1;
        return r;
    }
    return 0;
}

int server_listen_tcp(struct server *s, const char *address, const char *port,
                      struct error **errp)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
                              .ai_flags = AI_PASSIVE };
    struct addrinfo *all;
    unsigned before = s->count;
    const char *host = address ? address : "localhost";
    int r = getaddrinfo(host, port, &hints, &all);

    if (r != 0) {
        return error_set(errp, EINVAL, "cannot find the address '%s:%s': %s",
                         host, port, gai_strerror(r));
    }
    for (struct addrinfo *a = all; a && r == 0; a = a->ai_next) {
        int fd;
        r = listen_address(a, &fd);
        if (r < 0) {
            r = error_set(errp, -r, "cannot listen on '%s:%s': %s", host,
                          port, strerror(-r));
        } else if (fd >= 0) {
            r = add_listener(s, fd, NULL, errp);
        }
    }
    freeaddrinfo(all);
    if (r == 0 && s->count == before) {
        r = error_set(errp, EADDRNOTAVAIL,
                      "this machine has no address for '%s:%s'", host, port);
    }
    return r;
}

/* --- Connections --- */

static void *serve_connection(void *arg)
{
    struct conn *c = arg;
    struct server *s = c->server;

    conn_run(c);
    mutex_lock(&s->lock);
    list_remove(&c->in_server);
    mutex_unlock(&s->lock);
    conn_free(c);
    mutex_lock(&s->lock);
    s->conn_count--;
    cond_broadcast(&s->gone);
    mutex_unlock(&s->lock);
    return NULL;
}

static bool enlist(struct server *s, struct conn *c)
{
    mutex_lock(&s->lock);
    bool room = s->conn_count < CONNECTIONS_MAX && !s->stopping;
    if (room) {
        s->conn_count++;
        list_append(&s->conns, &c->in_server);
    }
    mutex_unlock(&s->lock);
    return room;
}

static void start_connection(struct server *s, int fd)
{
    struct conn *c = conn_new(s, s->exports, s->pool, fd);
    pthread_t t;

    if (!c) {
        (void)close(fd);
        return;
    }
    if (!enlist(s, c)) {
        conn_free(c);
        return;
    }
    if (thread_start(&t, "nbd-client", serve_connection, c) == 0) {
        (void)pthread_detach(t);
        return;
    }
    mutex_lock(&s->lock);
    list_remove(&c->in_server);
    s->conn_count--;
    mutex_unlock(&s->lock);
    conn_free(c);
}

/* Accept until the stop event.  Out of descriptors: wait a little, or this
 * would spin on the client that stays in the queue. */
static void *accept_loop(void *arg)
{
    struct server *s = arg;
    struct pollfd p[LISTENERS_MAX + 1];

    for (unsigned i = 0; i < s->count; i++) {
        p[i] = (struct pollfd){ .fd = s->fds[i], .events = POLLIN };
    }
    p[s->count] = (struct pollfd){ .fd = s->stop_fd, .events = POLLIN };
    for (;;) {
        if (poll(p, s->count + 1, -1) < 0 && errno != EINTR) {
            return NULL;
        }
        if (p[s->count].revents) {
            return NULL;
        }
        for (unsigned i = 0; i < s->count; i++) {
            if (!p[i].revents) {
                continue;
            }
            int fd = accept4(s->fds[i], NULL, NULL, SOCK_CLOEXEC);
            if (fd >= 0) {
                start_connection(s, fd);
            } else if (errno == EMFILE || errno == ENFILE ||
                       errno == ENOBUFS || errno == ENOMEM) {
                (void)poll(&p[s->count], 1, 100);
            }
        }
    }
}

int server_start(struct server *s, struct error **errp)
{
    int r = thread_start(&s->acceptor, "nbd-accept", accept_loop, s);

    if (r < 0) {
        return error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
    }
    s->started = true;
    return 0;
}

/* --- The end --- */

static void end_reading_locked(struct server *s, int how) REQUIRES(s->lock)
{
    list_for_each (at, &s->conns) {
        (void)shutdown(list_entry(at, struct conn, in_server)->fd, how);
    }
}

static void stop_connections(struct server *s)
{
    mutex_lock(&s->lock);
    s->stopping = true;
    end_reading_locked(s, SHUT_RD);
    uint64_t end = now_ns() + STOP_MS * UINT64_C(1000000);
    bool cut = false;
    while (s->conn_count > 0) {
        uint64_t now = now_ns();
        if (!cut && now >= end) {
            end_reading_locked(s, SHUT_RDWR);
            cut = true;
        }
        if (cut) {
            cond_wait(&s->gone, &s->lock);
        } else {
            (void)cond_wait_ms(&s->gone, &s->lock,
                               (end - now) / 1000000 + 1);
        }
    }
    mutex_unlock(&s->lock);
}

void server_stop(struct server *s)
{
    uint64_t one = 1;

    if (s->started) {
        (void)!write(s->stop_fd, &one, sizeof(one));
        thread_join(s->acceptor);
        s->started = false;
    }
    for (unsigned i = 0; i < s->count; i++) {
        if (s->paths[i]) {
            (void)unlink(s->paths[i]);
            free(s->paths[i]);
        }
        (void)close(s->fds[i]);
    }
    s->count = 0;
    stop_connections(s);
}

void server_free(struct server *s)
{
    if (!s) {
        return;
    }
    pool_free(s->pool);
    if (s->stop_fd >= 0) {
        (void)close(s->stop_fd);
    }
    cond_destroy(&s->gone);
    mutex_destroy(&s->lock);
    free(s);
}
