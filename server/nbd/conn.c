/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of a connection: begin, receive, wait, end.  See conn.h. */
#include "nbd/conn.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "log/log.h"
#include "nbd/server.h"
#include "nbdelta/bytes.h"
#include "nbdelta/kick.h"
#include "net/tls.h"

/* A connection without requests keeps its buffers for so long. */
#define IDLE_MS 1000

struct conn *conn_new(struct server *s, struct exports *exports,
                      struct pool *pool, struct tls_policy *p, int fd)
{
    struct conn *c = calloc(1, sizeof(*c));

    if (!c) {
        (void)close(fd);
        return NULL;
    }
    c->server = s;
    c->exports = exports;
    c->pool = pool;
    c->policy = tls_policy_ref(p);
    c->io.fd = fd;
    c->alone = true;
    list_init(&c->in_server);
    list_init(&c->out);
    list_init(&c->pending);
    list_init(&c->free_requests);
    for (unsigned i = 0; i < SEGMENT_CLASSES; i++) {
        list_init(&c->free_segments[i]);
    }
    mutex_init(&c->lock, LOCK_CONN, NULL);
    c->wake = kick_new();
    if (c->wake < 0) {
        conn_free(c);
        return NULL;
    }
    return c;
}

void conn_free(struct conn *c)
{
    conn_break(c);
    conn_trim(c);
    conn_forget_contexts(c);
    export_unref(c->exports, c->export);
    free(c->view.name);
    pages_free(c->input, INPUT_SIZE);
    tls_free(c->io.tls);
    tls_policy_unref(c->policy);
    mutex_destroy(&c->lock);
    if (c->wake >= 0) {
        (void)close(c->wake);
    }
    (void)close(c->io.fd);
    free(c);
}

void conn_kick(struct conn *c)
{
    kick_raise(c->wake);
}

void conn_stop(struct conn *c)
{
    atomic_store(&c->stopping, true);
    (void)shutdown(c->io.fd, SHUT_RD);
    conn_kick(c);
}

enum presence conn_presence(const struct conn *c)
{
    struct pollfd p = {.fd = c->io.fd, .events = POLLRDHUP};
    int unread = 0;

    if (atomic_load(&c->leaving) || atomic_load(&c->stopping) ||
        poll(&p, 1, 0) > 0) {
        return CLIENT_LEAVING;
    }
    return atomic_load(&c->resting) &&
                   ioctl(c->io.fd, FIONREAD, &unread) == 0 && unread == 0
               ? CLIENT_HERE
               : CLIENT_UNSURE;
}

/* --- Waiting. --- */

bool conn_is_ending(struct conn *c)
{
    return c->hung_up ||
           atomic_load_explicit(&c->stopping, memory_order_relaxed);
}

void conn_renew_deadline(struct conn *c)
{
    unsigned seconds = server_handshake_s(c->server);

    c->deadline = seconds == HANDSHAKE_FOREVER
                      ? 0
                      : now_ns() + seconds * UINT64_C(1000000000);
}

int conn_time_left(const struct conn *c)
{
    uint64_t now = now_ns();

    return c->deadline == 0 ? -1
           : now < c->deadline
               ? (int)min_u64((c->deadline - now) / 1000000 + 1, INT32_MAX)
               : 0;
}

bool conn_wait(struct conn *c, bool input, int ms)
{
    int until = conn_take_off(c, ms);
    struct pollfd fds[4] = {{.fd = c->io.fd},
                            {.fd = c->wake, .events = POLLIN},
                            {.fd = conn_flights_fd(c), .events = POLLIN},
                            {.fd = conn_flights_kick_fd(c), .events = POLLIN}};

    mutex_lock(&c->lock);
    bool stalled = c->stalled && !c->broken;
    mutex_unlock(&c->lock);

    fds[0].events = (short)((input ? POLLIN : 0) | (stalled ? POLLOUT : 0));
    if (c->hung_up && !input) {
        fds[0].fd = -1; /* the end would be reported over and over */
    }
    int r = poll(fds, 4, until);
    c->readable = r > 0 && (fds[0].revents & POLLIN);
    if (r <= 0) {
        return r < 0 || until != ms;
    }
    if (fds[1].revents) {
        kick_clear(c->wake);
    }
    if (fds[2].revents || fds[3].revents) {
        conn_land(c);
        conn_queue_batch(c);
        conn_push(c);
    }
    if (fds[0].revents & (POLLHUP | POLLERR | POLLNVAL)) {
        c->hung_up = true;
        conn_break(c);
    } else if (fds[0].revents & POLLOUT) {
        mutex_lock(&c->lock);
        c->stalled = false;
        mutex_unlock(&c->lock);
        conn_push(c);
    }
    return true;
}

static bool is_alone(struct conn *c)
{
    mutex_lock(&c->lock);
    bool alone = c->executing == 0 &&
                 ((list_empty(&c->out) && !c->stalled) || c->broken);
    mutex_unlock(&c->lock);
    return alone;
}

/* Also for what is in flight: a client that never pauses must not keep it from
 * beginning, or from ending. */
void conn_flush(struct conn *c)
{
    (void)conn_take_off(c, -1);
    conn_land(c);
    conn_queue_batch(c);
    conn_push(c);
    c->alone = is_alone(c);
}

static bool is_full_locked(struct conn *c, size_t need) REQUIRES(c->lock)
{
    size_t held = c->held + c->out_bytes;

    if (c->broken) {
        return c->executing >= REQUESTS_MAX;
    }
    return c->out_bytes > OUT_HIGH || c->executing >= REQUESTS_MAX ||
           (held > 0 && held + need > HELD_MAX);
}

void conn_throttle(struct conn *c, size_t need)
{
    bool flushed = false;

    for (;;) {
        mutex_lock(&c->lock);
        bool full = is_full_locked(c, need);
        c->throttled = full;
        c->hung_up |= c->broken;
        mutex_unlock(&c->lock);
        if (!full || conn_is_ending(c)) {
            return;
        }
        if (flushed) {
            if (!conn_wait(c, false, conn_time_left(c))) {
                conn_break(c); /* it is still in the handshake */
            }
        } else {
            conn_queue_batch(c);
            conn_push(c);
            flushed = true;
        }
    }
}

/* --- Room. --- */

/* The connection's thread asks for room again after so many milliseconds. */
#define ROOM_MS 50

static void cut_off(struct room_user *u)
{
    static struct log_limit limit;

    log_seldom(&limit, TELL_WARNING,
               "a client is cut off: it has done nothing for %d s about %zu "
               "MiB that others need",
               ROOM_STALL_S, u->bytes >> 20);
    conn_stop(list_entry(u, struct conn, room));
}

void conn_account_locked(struct conn *c, bool moved)
{
    size_t bytes = c->held + c->out_bytes + c->intake + c->granted;

    if (bytes > ROOM_FREE || c->room.listed) {
        c->room.cut = cut_off;
        room_hold(server_room(c->server), &c->room, bytes,
                  (c->intake > 0 && !c->wants_room) || c->stalled, moved,
                  now_ns());
    }
}

bool conn_take_room(struct conn *c, size_t bytes)
{
    for (;;) {
        mutex_lock(&c->lock);
        c->granted = 0;
        bool may = room_ask(server_room(c->server), &c->room,
                            c->held + c->out_bytes + c->intake, bytes,
                            now_ns());
        c->wants_room = !may;
        c->granted = may ? bytes : 0;
        conn_account_locked(c, false);
        mutex_unlock(&c->lock);
        if (may || conn_is_ending(c)) {
            return may;
        }
        conn_flush(c);
        (void)conn_wait(c, false, ROOM_MS);
    }
}

void conn_give_back_room(struct conn *c)
{
    mutex_lock(&c->lock);
    c->granted = 0;
    conn_account_locked(c, false);
    mutex_unlock(&c->lock);
}

/* --- Receiving. --- */

/*
 * When the connection is alone no other thread has anything to send.  Then a
 * plain blocking receive is enough (the socket has a time limit).  Otherwise
 * this thread has to send, too, what others have left.
 */
ssize_t conn_receive(struct conn *c, struct iovec *iov, int cnt)
{
    c->readable = true; /* nobody knows */
    while (!conn_is_ending(c)) {
        ssize_t n = c->alone      ? conn_receive_alone(c, iov, cnt)
                    : c->readable ? transport_receive(&c->io, iov, cnt, false)
                                  : -EAGAIN;
        if (n == -EINTR) {
            continue;
        }
        if (n != -EAGAIN || c->alone) {
            return n;
        }
        (void)conn_wait(c, true, IDLE_MS);
        c->alone = is_alone(c);
    }
    return 0;
}

/* Receive more behind the input that is there.  False: the connection ends. */
static bool receive_more(struct conn *c)
{
    for (;;) {
        if (!c->input && !(c->input = pages_new(INPUT_SIZE))) {
            return false;
        }
        if (c->input_at > 0) {
            c->input_end -= c->input_at;
            memmove(c->input, c->input + c->input_at, c->input_end);
            c->input_at = 0;
        }
        struct iovec iov = {c->input + c->input_end, INPUT_SIZE - c->input_end};
        atomic_store(&c->resting, true);
        ssize_t n = conn_receive(c, &iov, 1);
        atomic_store(&c->resting, false);
        if (n > 0) {
            c->input_end += (size_t)n;
            return true;
        }
        if (n != -EAGAIN) {
            return false;
        }
        if (c->input_end == 0) {
            pages_free(c->input, INPUT_SIZE);
            c->input = NULL;
            conn_trim(c);
        }
        atomic_store(&c->resting, true);
        (void)conn_wait(c, true, -1);
        atomic_store(&c->resting, false);
        if (conn_is_ending(c)) {
            return false;
        }
    }
}

/* --- Begin and end. --- */

/* Wait for the requests in the pool. */
static void finish_requests(struct conn *c)
{
    for (;;) {
        mutex_lock(&c->lock);
        unsigned left = c->executing;
        c->throttled = left > 0; /* request_done() kicks then */
        mutex_unlock(&c->lock);
        if (left == 0) {
            return;
        }
        (void)conn_wait(c, false, -1);
    }
}

static void finish_replies(struct conn *c)
{
    uint64_t now = now_ns();
    uint64_t end = now + (conn_is_ending(c) ? STOP_MS : LINGER_MS) *
                             UINT64_C(1000000);

    while (!is_alone(c) && (now = now_ns()) < end) {
        if (conn_is_ending(c)) { /* it was told meanwhile */
            end = min_u64(end, now + STOP_MS * UINT64_C(1000000));
        }
        (void)conn_wait(c, false, (int)((end - now) / 1000000) + 1);
    }
    conn_break(c);
}

static const char *export_shown(const struct conn *c)
{
    return c->view.of ? c->view.name : c->export->name;
}

/* The client, as the log names it. */
static void tell_client(const struct conn *c, enum tell_level level,
                        const char *what)
{
    const char *who = c->io.tls ? tls_identity(c->io.tls) : NULL;
    char peer[PEER_TEXT];

    log_line(level, "client %s%s%.200s%s %s",
             peer_text(&c->peer, peer, PEER_TEXT), who ? " (" : "",
             who ? who : "", who ? ")" : "", what);
}

static void tell_spins(const struct conn *c)
{
    char what[128];

    if (c->spin.spins > 0) {
        (void)snprintf(what, sizeof(what),
                       "was polled for %" PRIu64 " times, %" PRIu64
                       " of them in vain",
                       c->spin.spins, c->spin.misses);
        tell_client(c, TELL_DEBUG, what);
    }
}

static void transmission(struct conn *c)
{
    static const struct timeval idle = {.tv_sec = IDLE_MS / 1000};

    char what[512];
    uint64_t begin = now_ns();

    (void)setsockopt(c->io.fd, SOL_SOCKET, SO_RCVTIMEO, &idle, sizeof(idle));
    (void)snprintf(what, sizeof(what), "has come to export '%.400s'%s",
                   export_shown(c), c->writable ? "" : ", read-only");
    tell_client(c, TELL_INFO, what);
    server_enter(c->server, c);
    while (!conn_is_ending(c) && conn_requests(c)) {
        conn_throttle(c, 0);
        conn_flush(c);
        if (!receive_more(c)) {
            break;
        }
    }
    atomic_store(&c->leaving, true);
    conn_queue_batch(c);
    conn_push(c);
    finish_requests(c);
    server_quiet(c->server, c);
    finish_replies(c);
    mutex_lock(&c->lock);
    c->intake = c->granted = 0;
    conn_account_locked(c, false);
    mutex_unlock(&c->lock);
    /* Do it before the client sees the end: a client that has seen the end
     * finds the export unused. */
    (void)snprintf(what, sizeof(what),
                   "has left export '%.400s' after %" PRIu64 " s",
                   export_shown(c), (now_ns() - begin) / 1000000000);
    server_leave(c->server, c);
    tell_client(c, TELL_INFO, what);
    tell_spins(c);
}

void *conn_thread(void *arg)
{
    struct conn *c = arg;

    c->self = pthread_self();
    conn_renew_deadline(c);
    int r = conn_handshake(c);
    if (r == 0) {
        c->deadline = 0;
        transmission(c);
    } else {
        conn_flush(c); /* as far as the client takes it at once */
        tell_client(c, TELL_DEBUG, "has gone without an export");
    }
    transport_end(&c->io);
    atomic_store(&c->finished, true);
    server_reap_soon(c->server);
    return NULL;
}
