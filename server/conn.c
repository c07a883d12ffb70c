/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of a connection: buffers, batches, the end. */
#include "conn.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "server.h"

#define HANDSHAKE_SECONDS 20
/* A client that takes nothing for so long is dropped. */
#define SEND_SECONDS 60
#define SOCKET_BUFFER (2 << 20)
/* After so long without a request, the batch's memory is given back. */
#define IDLE_SECONDS 2

struct conn *conn_new(struct server *server, struct exports *exports,
                      struct pool *pool, int fd)
{
    struct conn *c = calloc(1, sizeof(*c));
    unsigned char *in = malloc(CONN_IN_SIZE);
    struct timeval limit = { .tv_sec = SEND_SECONDS };
    struct timeval idle = { .tv_sec = IDLE_SECONDS };
    int buffer = SOCKET_BUFFER;
    int on = 1;

    if (!c || !in) {
        free(c);
        free(in);
        return NULL;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &idle, sizeof(idle));
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    c->server = server;
    c->exports = exports;
    c->pool = pool;
    c->fd = fd;
    c->in = in;
    mutex_init(&c->send_lock);
    mutex_init(&c->lock);
    cond_init(&c->finished);
    list_init(&c->in_server);
    return c;
}

void conn_free(struct conn *c)
{
    conn_drop_contexts(c);
    free(c->context_export);
    export_unref(c->exports, c->export);
    (void)close(c->fd);
    cond_destroy(&c->finished);
    mutex_destroy(&c->lock);
    mutex_destroy(&c->send_lock);
    free(c->batch);
    free(c->in);
    free(c);
}

/* --- Reading --- */

/* Wait for bytes until the handshake's deadline. */
static bool wait_readable(const struct conn *c)
{
    struct pollfd p = { .fd = c->fd, .events = POLLIN };
    int r;

    do {
        uint64_t now = now_ns();
        if (now >= c->deadline_ns) {
            return false;
        }
        r = poll(&p, 1, (int)((c->deadline_ns - now) / 1000000) + 1);
    } while (r < 0 && errno == EINTR);
    return r > 0;
}

static ssize_t receive(struct conn *c, void *to, size_t max)
{
    ssize_t n;

    if (c->deadline_ns && !wait_readable(c)) {
        return 0;
    }
    for (;;) {
        n = recv(c->fd, to, max, 0);
        if (n < 0 && errno == EAGAIN) {
            free(c->batch);
            c->batch = NULL;
        } else if (n >= 0 || errno != EINTR) {
            return n;
        }
    }
}

int conn_fill(struct conn *c, size_t bytes)
{
    if (conn_buffered(c) >= bytes) {
        return 1;
    }
    if (c->in_start + bytes > CONN_IN_SIZE || conn_buffered(c) == 0) {
        memmove(c->in, conn_unread(c), conn_buffered(c));
        c->in_end -= c->in_start;
        c->in_start = 0;
    }
    while (conn_buffered(c) < bytes) {
        conn_batch_send(c); /* before waiting */
        ssize_t n = receive(c, c->in + c->in_end, CONN_IN_SIZE - c->in_end);
        if (n <= 0) {
            return 0;
        }
        c->in_end += (size_t)n;
    }
    return 1;
}

int conn_read(struct conn *c, void *to, uint64_t bytes)
{
    unsigned char *at = to;

    while (bytes > 0) {
        uint64_t len = min_u64(bytes, conn_buffered(c));
        if (len > 0) {
            if (at) {
                memcpy(at, conn_unread(c), len);
            }
            c->in_start += len;
        } else if (at && bytes > CONN_INLINE_MAX) {
            conn_batch_send(c);
            ssize_t n = receive(c, at, bytes);
            if (n <= 0) {
                return 0;
            }
            len = (uint64_t)n;
        } else if (!conn_fill(c, 1)) {
            return 0;
        }
        at = at ? at + len : NULL;
        bytes -= len;
    }
    return 1;
}

/* --- Sending --- */

static int send_locked(struct conn *c, const struct iovec *iov, int cnt)
    REQUIRES(c->send_lock)
{
    struct iovec v[8];
    struct iovec *at = v;
    struct msghdr m = { 0 };

    memcpy(v, iov, (size_t)cnt * sizeof(*iov));
    while (cnt > 0) {
        m.msg_iov = at;
        m.msg_iovlen = (size_t)cnt;
        ssize_t n = sendmsg(c->fd, &m, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            /* Out of step now: nothing may follow. */
            atomic_store(&c->broken, true);
            (void)shutdown(c->fd, SHUT_RDWR);
            return -EPIPE;
        }
        while (cnt > 0 && (size_t)n >= at->iov_len) {
            n -= (ssize_t)at->iov_len;
            at++;
            cnt--;
        }
        if (cnt > 0) {
            at->iov_base = (char *)at->iov_base + n;
            at->iov_len -= (size_t)n;
        }
    }
    return 0;
}

int conn_send(struct conn *c, const struct iovec *iov, int cnt, bool pooled)
{
    if (pooled) {
        pool_wait_begin(c->pool);
    }
    mutex_lock(&c->send_lock);
    int r = atomic_load(&c->broken) ? -EPIPE : send_locked(c, iov, cnt);
    mutex_unlock(&c->send_lock);
    if (pooled) {
        pool_wait_end(c->pool);
    }
    return r;
}

unsigned char *conn_batch_room(struct conn *c, size_t bytes)
{
    if (c->batch_len + bytes > CONN_BATCH_SIZE) {
        conn_batch_send(c);
    }
    if (!c->batch) {
        c->batch = malloc(CONN_BATCH_SIZE);
    }
    if (!c->batch || atomic_load(&c->broken)) {
        return NULL;
    }
    return c->batch + c->batch_len;
}

void conn_batch_commit(struct conn *c, size_t bytes)
{
    c->batch_len += bytes;
}

void conn_batch_send(struct conn *c)
{
    if (c->batch_len > 0) {
        struct iovec v = { c->batch, c->batch_len };
        c->batch_len = 0;
        (void)conn_send(c, &v, 1, false);
    }
}

/* --- Running --- */

static void wait_for_requests(struct conn *c)
{
    mutex_lock(&c->lock);
    while (c->inflight > 0) {
        cond_wait(&c->finished, &c->lock);
    }
    mutex_unlock(&c->lock);
}

void conn_run(struct conn *c)
{
    c->deadline_ns = now_ns() + HANDSHAKE_SECONDS * UINT64_C(1000000000);
    if (conn_handshake(c)) {
        c->deadline_ns = 0;
        while (conn_request(c)) {
        }
    }
    conn_batch_send(c);
    /* The client may see the end only when nothing of it is under way: a
     * write must not land after one of its next connection. */
    wait_for_requests(c);
}
