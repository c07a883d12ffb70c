/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * One thread accepts, one thread serves each session:
 *
 *      socket --> input --> parser --> dispatch (under the monitor lock)
 *                                          | reply
 *      socket <-- sending <-- out <--------+------- monitors_emit
 *                                                   (any thread)
 *
 * Events and replies meet in `out`, which only the monitor lock's holder
 * fills, so that all sessions see them in the same order.  Nobody waits for
 * a client: a session whose own replies pile up is not read from, and one
 * that lets events pile up is dropped.
 */
#include "monitor.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "daemon.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/job.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "qmp-core.h"
#include "qmp-dispatch.h"
#include "qmp-parse.h"
#include "unix-socket.h"

#define LISTENERS_MAX 16
#define SESSIONS_MAX  64
#define INPUT_SIZE    65536
/* Requests wait while more than this is to be sent; the session is dropped
 * when events make it this. */
#define OUT_PAUSE ((size_t)256 << 10)
#define OUT_MAX   ((size_t)16 << 20)
#define STOP_NS   UINT64_C(2000000000)

struct monitors {
    /* Set at creation. */
    struct daemon *daemon;
    int wake; /* eventfd for the accepting thread */

    /* Guarded by lock. */
    mutex_t lock;
    struct list sessions;
    unsigned session_count;
    struct unix_socket listeners[LISTENERS_MAX];
    unsigned listener_count;
    bool accepting; /* the thread runs */
    pthread_t thread;

    _Atomic bool stopping;
    _Atomic uint64_t deadline;
};

struct buffer {
    char *data;
    size_t len;
    size_t alloc;
};

struct session {
    /* Set at creation. */
    struct monitors *m;
    int fd;
    int wake; /* eventfd: there is something in out, or stop */
    pthread_t thread;
    struct list in_monitors; /* lock of the set */

    /* Monitor lock. */
    struct qmp_state state;

    /* Guarded by lock. */
    mutex_t lock;
    struct buffer out;
    bool overrun;

    /* Its own thread's. */
    struct qmp_parser *parser;
    struct buffer sending;
    size_t sent;
    char *input;
    size_t input_len;
    size_t input_used;
    bool eof;

    _Atomic bool finished;
};

static void kick(int fd)
{
    uint64_t one = 1;

    while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

static void unkick(int fd)
{
    uint64_t n;

    while (read(fd, &n, sizeof(n)) < 0 && errno == EINTR) {
    }
}

/* --- Output. --- */

static bool buffer_append(struct buffer *b, const char *data, size_t len)
{
    if (b->alloc - b->len < len) {
        size_t alloc = b->alloc ? b->alloc : 4096;
        char *grown;

        while (alloc - b->len < len) {
            alloc *= 2;
        }
        grown = realloc(b->data, alloc);
        if (!grown) {
            return false;
        }
        b->data = grown;
        b->alloc = alloc;
    }
    memcpy(b->data + b->len, data, len);
    b->len += len;
    return true;
}

static void queue_text(struct session *s, const char *text, size_t len)
{
    mutex_lock(&s->lock);
    if (s->out.len > OUT_MAX || !buffer_append(&s->out, text, len)) {
        s->overrun = true;
    }
    mutex_unlock(&s->lock);
    kick(s->wake);
}

/* Queue @message (taken); a session that cannot get its reply ends. */
static void queue_message(struct session *s, json_t *message)
{
    size_t len = 0;
    char *text = message ? qmp_to_text(message, &len) : NULL;

    json_decref(message);
    if (text) {
        queue_text(s, text, len);
        free(text);
    } else {
        mutex_lock(&s->lock);
        s->overrun = true;
        mutex_unlock(&s->lock);
    }
}

void monitors_emit(const char *name, json_t *data, void *opaque)
{
    struct monitors *m = opaque;
    struct timespec now = {0, 0};
    CLEANUP_JSON json_t *event = NULL;
    CLEANUP_FREE char *text = NULL;
    size_t len = 0;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    event = json_pack("{s:{s:I, s:I}, s:s, s:O}", "timestamp", "seconds",
                      (json_int_t)now.tv_sec, "microseconds",
                      (json_int_t)(now.tv_nsec / 1000), "event", name, "data",
                      data);
    text = event ? qmp_to_text(event, &len) : NULL;

    mutex_lock(&m->lock);
    list_for_each (e, &m->sessions) {
        struct session *s = list_entry(e, struct session, in_monitors);

        if (!s->state.negotiated) {
            continue;
        }
        if (text) {
            queue_text(s, text, len);
        } else {
            mutex_lock(&s->lock);
            s->overrun = true;
            mutex_unlock(&s->lock);
        }
    }
    mutex_unlock(&m->lock);
}

/* --- A session. --- */

static void on_value(json_t *value, const char *why, void *opaque)
{
    struct session *s = opaque;
    struct jobs *jobs = s->m->daemon->jobs;

    mutex_lock(&jobs->lock);
    queue_message(s, value ? qmp_dispatch(s->m->daemon, &s->state, value)
                           : qmp_error_reply(NULL, QMP_GENERIC_ERROR, why));
    mutex_unlock(&jobs->lock);
}

/* Refill `sending`; returns how much is to be sent, or -1 after an overrun. */
static ssize_t take_output(struct session *s)
{
    size_t todo = s->sending.len - s->sent;
    bool overrun;

    mutex_lock(&s->lock);
    if (todo == 0) {
        struct buffer spent = s->sending;

        if (spent.alloc > OUT_PAUSE) {
            free(spent.data);
            spent = (struct buffer){NULL, 0, 0};
        }
        s->sending = s->out;
        s->out = spent;
        s->out.len = 0;
        s->sent = 0;
        todo = s->sending.len;
    }
    todo += s->out.len;
    overrun = s->overrun;
    mutex_unlock(&s->lock);
    return overrun ? -1 : (ssize_t)todo;
}

/* False when the session is over. */
static bool send_some(struct session *s)
{
    ssize_t n;

    if (s->sent == s->sending.len) {
        return true;
    }
    n = send(s->fd, s->sending.data + s->sent, s->sending.len - s->sent,
             MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    }
    s->sent += (size_t)n;
    return true;
}

static bool receive_some(struct session *s)
{
    ssize_t n = recv(s->fd, s->input, INPUT_SIZE, MSG_DONTWAIT);

    if (n < 0) {
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    }
    s->input_used = 0;
    s->input_len = (size_t)n;
    s->eof = n == 0;
    return true;
}

/*
 * One turn: send what is there, run at most one request, read more, wait.
 * False when the session is over.
 */
static bool session_turn(struct session *s)
{
    bool stopping = atomic_load(&s->m->stopping);
    bool input = s->input_used < s->input_len;
    ssize_t todo = take_output(s);
    bool room = todo >= 0 && (size_t)todo < OUT_PAUSE;
    struct pollfd fds[2];
    uint64_t deadline = atomic_load(&s->m->deadline);
    int timeout = -1;

    if (todo < 0 || !send_some(s)) {
        return false;
    }
    if (todo == 0 && (stopping || (s->eof && !input))) {
        return false;
    }
    if (stopping) {
        if (now_ns() >= deadline) {
            return false;
        }
        timeout = 50;
    } else if (input && room) {
        s->input_used += qmp_parser_feed_one(
            s->parser, s->input + s->input_used, s->input_len - s->input_used);
        return true;
    }
    fds[0] = (struct pollfd){.fd = s->fd};
    fds[1] = (struct pollfd){.fd = s->wake, .events = POLLIN};
    if (!input && room && !stopping && !s->eof) {
        fds[0].events |= POLLIN;
    }
    if (todo > 0) {
        fds[0].events |= POLLOUT;
    }
    if (poll(fds, 2, timeout) < 0 && errno != EINTR) {
        return false;
    }
    if (fds[1].revents) {
        unkick(s->wake);
    }
    if ((fds[0].events & POLLIN) &&
        (fds[0].revents & (POLLIN | POLLHUP | POLLERR))) {
        return receive_some(s);
    }
    return true;
}

static void *session_thread(void *arg)
{
    struct session *s = arg;

    while (session_turn(s)) {
    }
    (void)shutdown(s->fd, SHUT_RDWR);
    atomic_store(&s->finished, true);
    kick(s->m->wake);
    return NULL;
}

static void session_free(struct session *s)
{
    qmp_parser_free(s->parser);
    mutex_destroy(&s->lock);
    free(s->input);
    free(s->out.data);
    free(s->sending.data);
    if (s->wake >= 0) {
        (void)close(s->wake);
    }
    (void)close(s->fd);
    free(s);
}

static json_t *greeting(void)
{
    return json_pack("{s:{s:o, s:[s]}}", "QMP", "version", qmp_version(),
                     "capabilities", "oob");
}

/* @fd is taken. */
static void session_start(struct monitors *m, int fd)
{
    struct session *s = calloc(1, sizeof(*s));

    if (!s) {
        (void)close(fd);
        return;
    }
    s->m = m;
    s->fd = fd;
    list_init(&s->in_monitors);
    mutex_init(&s->lock);
    s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->parser = qmp_parser_new(on_value, s);
    s->input = malloc(INPUT_SIZE);
    if (s->wake < 0 || !s->parser || !s->input) {
        session_free(s);
        return;
    }
    queue_message(s, greeting());

    mutex_lock(&m->lock);
    if (thread_start(&s->thread, "qmp", session_thread, s) < 0) {
        mutex_unlock(&m->lock);
        session_free(s);
        return;
    }
    list_append(&m->sessions, &s->in_monitors);
    m->session_count++;
    mutex_unlock(&m->lock);
}

/* Free the sessions that have ended, or, with @all, wait for each. */
static void reap(struct monitors *m, bool all)
{
    struct list gone;

    list_init(&gone);
    mutex_lock(&m->lock);
    list_for_each_safe (e, &m->sessions) {
        struct session *s = list_entry(e, struct session, in_monitors);

        if (all || atomic_load(&s->finished)) {
            list_remove(e);
            list_append(&gone, e);
            m->session_count--;
        }
    }
    mutex_unlock(&m->lock);
    list_for_each_safe (e, &gone) {
        struct session *s = list_entry(e, struct session, in_monitors);

        kick(s->wake);
        thread_join(s->thread);
        session_free(s);
    }
}

/* --- Listening. --- */

static void *accept_thread(void *arg)
{
    struct monitors *m = arg;

    while (!atomic_load(&m->stopping)) {
        struct pollfd fds[LISTENERS_MAX + 1] = {
            {.fd = m->wake, .events = POLLIN}};
        nfds_t n = 1;

        reap(m, false);
        mutex_lock(&m->lock);
        for (unsigned i = 0;
             i < m->listener_count && m->session_count < SESSIONS_MAX; i++) {
            fds[n++] = (struct pollfd){.fd = m->listeners[i].fd,
                                       .events = POLLIN};
        }
        mutex_unlock(&m->lock);

        if (poll(fds, n, -1) < 0) {
            continue;
        }
        if (fds[0].revents) {
            unkick(m->wake);
        }
        for (nfds_t i = 1; i < n; i++) {
            int fd;

            if (!fds[i].revents) {
                continue;
            }
            fd = accept4(fds[i].fd, NULL, NULL, SOCK_CLOEXEC);
            if (fd >= 0) {
                session_start(m, fd);
            } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
                /* The client stays in the queue: do not spin. */
                (void)poll(fds, 1, 100);
            }
        }
    }
    return NULL;
}

struct monitors *monitors_new(struct daemon *d)
{
    struct monitors *m = calloc(1, sizeof(*m));

    if (!m) {
        return NULL;
    }
    m->daemon = d;
    list_init(&m->sessions);
    m->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (m->wake < 0) {
        free(m);
        return NULL;
    }
    mutex_init(&m->lock);
    return m;
}

static int add_listener(struct monitors *m, const struct unix_socket *l,
                        struct error **errp) REQUIRES(m->lock)
{
    if (m->listener_count == LISTENERS_MAX) {
        return error_set(errp, EMFILE, "too many monitor sockets");
    }
    if (!m->accepting) {
        int r = thread_start(&m->thread, "qmp-accept", accept_thread, m);

        if (r < 0) {
            return error_set(errp, -r, "cannot start a thread: %s",
                             strerror(-r));
        }
        m->accepting = true;
    }
    m->listeners[m->listener_count++] = *l;
    return 0;
}

int monitors_listen(struct monitors *m, const char *path, struct error **errp)
{
    struct unix_socket l;
    int r = unix_socket_listen(&l, path, errp);

    if (r < 0) {
        return r;
    }
    mutex_lock(&m->lock);
    r = add_listener(m, &l, errp);
    mutex_unlock(&m->lock);
    if (r < 0) {
        unix_socket_close(&l);
    }
    kick(m->wake);
    return r;
}

void monitors_stop(struct monitors *m)
{
    bool accepting;

    atomic_store(&m->deadline, now_ns() + STOP_NS);
    atomic_store(&m->stopping, true);
    kick(m->wake);
    mutex_lock(&m->lock);
    accepting = m->accepting;
    m->accepting = false;
    mutex_unlock(&m->lock);
    if (accepting) {
        thread_join(m->thread);
    }
    for (unsigned i = 0; i < m->listener_count; i++) {
        unix_socket_close(&m->listeners[i]);
    }
    m->listener_count = 0;
    reap(m, true);
}

void monitors_free(struct monitors *m)
{
    if (m) {
        mutex_destroy(&m->lock);
        (void)close(m->wake);
        free(m);
    }
}
