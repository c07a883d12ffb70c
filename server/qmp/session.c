/* SPDX-License-Identifier: BSD-3-Clause */
/* The thread of a QMP session, its input and its output: see session.h. */
#include "qmp/session.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon.h"
#include "log/log.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/fdname.h"
#include "nbdelta/job.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"
#include "net/tls.h"
#include "objects/object.h"
#include "qmp/dispatch.h"
#include "qmp/human.h"
#include "qmp/parse.h"
#include "qmp/pretty.h"
#include "qmp/turn.h"
#include "qmp/version.h"

#define INPUT_SIZE 65536
/* Descriptors that may come with one piece of input: one is kept, as in QEMU.
 * The kernel closes further ones. */
#define RECEIVE_FDS 16
/* Bytes.  Requests wait while more than OUT_PAUSE is to be sent.  The session
 * is dropped when events make it more than OUT_MAX. */
#define OUT_PAUSE ((size_t)256 << 10)
#define OUT_MAX   ((size_t)16 << 20)
/* A pipe or terminal that is ready takes so many bytes without waiting. */
#define WRITE_MAX 4096
#define ECHO_NS   UINT64_C(1000000000)
/* How long the handshake of TLS may take. */
#define HANDSHAKE_NS UINT64_C(10000000000)

struct buffer {
    char *data;
    size_t len;
    size_t alloc;
};

struct session {
    /* Set at creation. */
    struct daemon *daemon;
    struct channel ch;
    enum session_mode mode;
    int owner; /* a kick, raised at the end */
    int wake;  /* a kick: there is something in out, or stop */
    bool started;
    pthread_t thread;

    _Atomic bool listens; /* to events: its client has negotiated, and knows */

    /* Guarded by lock. */
    mutex_t lock;
    struct buffer out;
    bool overrun;

    /* Its own thread's; the role is set at creation. */
    struct qmp_state state;
    struct qmp_parser *parser; /* or */
    struct human *human;
    struct buffer sending;
    size_t sent;
    char *input;
    size_t input_len;
    size_t input_used;
    bool eof;

    _Atomic bool finished;
    _Atomic uint64_t deadline; /* 0: go on */
};

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

/* @text NULL: there was no memory for it.  A session that cannot get its reply
 * ends. */
static void queue_text(struct session *s, const char *text, size_t len)
{
    mutex_lock(&s->lock);
    if (!text || s->out.len > OUT_MAX || !buffer_append(&s->out, text, len)) {
        s->overrun = true;
    }
    mutex_unlock(&s->lock);
    kick_raise(s->wake);
}

static void queue_message(struct session *s, const json_t *message)
{
    size_t len = 0;
    CLEANUP_FREE char *text = !message ? NULL
                              : s->mode == SESSION_PRETTY
                                  ? qmp_to_pretty(message, &len)
                                  : qmp_to_text(message, &len);

    queue_text(s, text, len);
}

static void queue_reply(struct session *s, json_t *message)
{
    CLEANUP_FREE char *text = s->human ? human_text(message) : NULL;

    if (text) {
        queue_text(s, text, strlen(text));
    } else if (!s->human) {
        queue_message(s, message);
    }
    json_decref(message);
}

void session_event(struct session *s, const json_t *event)
{
    if (atomic_load(&s->listens) && !s->state.role) {
        queue_message(s, event);
    }
}

/* Refill `sending`; returns how many bytes are to be sent, -1 after an overrun.
 */
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

/* As send(), also to a descriptor that is no socket; without waiting. */
static ssize_t channel_send(const struct channel *ch, char *data, size_t len)
{
    struct pollfd p = {.fd = ch->out, .events = POLLOUT};

    if (ch->tls) {
        struct iovec iov = {data, len};
        return tls_send(ch->tls, &iov, len > 0);
    }
    ssize_t n = send(ch->out, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == ENOTSOCK) {
        if (poll(&p, 1, 0) <= 0) {
            return -EAGAIN;
        }
        n = write(ch->out, data, len < WRITE_MAX ? len : WRITE_MAX);
    }
    return n < 0 ? -errno : n;
}

/* As recv().  Descriptors that come along take the place of the one before. */
static ssize_t receive_with_fds(int sock, char *data, size_t len, int *received)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(RECEIVE_FDS * sizeof(int))];
    } control;
    struct iovec iov = {data, len};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    ssize_t n = recvmsg(sock, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    for (struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&m); c;
         c = CMSG_NXTHDR(&m, c)) {
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
            int other = i == 0 ? *received : fd;
            *received = i == 0 ? fd : *received;
            if (other >= 0) {
                (void)close(other);
            }
        }
    }
    return n;
}

static ssize_t channel_receive(const struct channel *ch, char *data, size_t len,
                               int *received)
{
    if (ch->tls) {
        const struct iovec iov = {data, len};
        return tls_receive(ch->tls, &iov, 1, false);
    }
    ssize_t n = receive_with_fds(ch->in, data, len, received);
    if (n < 0 && errno == ENOTSOCK) {
        n = read(ch->in, data, len); /* it can be read */
    }
    return n < 0 ? -errno : n;
}

static bool is_transient(ssize_t r)
{
    return r == -EAGAIN || r == -EINTR;
}

static bool is_unsent(const struct session *s)
{
    return s->ch.tls && tls_unsent(s->ch.tls);
}

/* False when the session is over. */
static bool send_some(struct session *s)
{
    size_t left = s->sending.len - s->sent;

    if (left == 0 && !is_unsent(s)) {
        return true;
    }
    ssize_t n = channel_send(&s->ch,
                             left > 0 ? s->sending.data + s->sent : NULL, left);
    if (n < 0) {
        return is_transient(n);
    }
    s->sent += (size_t)n;
    return true;
}

/* --- Input. --- */

static void refuse(struct session *s, const json_t *request, const char *why)
{
    queue_reply(s, qmp_error_reply(json_object_get(request, "id"),
                                   QMP_GENERIC_ERROR, why));
}

static void run_and_reply(struct session *s, json_t *request)
{
    queue_reply(s, qmp_dispatch(s->daemon, &s->state, request));
    fd_names_settle(s->state.names);
}

/* Run @request under the monitor lock.  Events that it causes come before its
 * reply. */
static void run_in_turn(struct session *s, json_t *request)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct daemon *d = s->daemon;

    if (s->state.negotiated &&
        qmp_wait_nodes(d, &s->state, request, &err) < 0) {
        refuse(s, request, error_message(err));
        return;
    }
    if (!qmp_wait_lock(d, &d->jobs->lock, request, &err)) {
        refuse(s, request, error_message(err));
        return;
    }
    run_and_reply(s, request);
    qmp_end_turn(d);
    mutex_unlock(&d->jobs->lock);
}

static void on_request(json_t *value, const char *why, void *opaque)
{
    struct session *s = opaque;

    if (!value) {
        refuse(s, NULL, why);
    } else if (qmp_is_lockless(s->daemon, value)) {
        run_and_reply(s, value);
    } else {
        run_in_turn(s, value);
    }
    atomic_store(&s->listens, s->state.negotiated && !s->human);
}

/* Send what is queued before a command of people begins: what it prints itself
 * may go to the same terminal.  Waits a second at most. */
static void send_echo(struct session *s)
{
    struct pollfd p = {.fd = s->ch.out, .events = POLLOUT};
    uint64_t end = now_ns() + ECHO_NS;

    while (take_output(s) > 0 && now_ns() < end && send_some(s)) {
        (void)poll(&p, 1, 10);
    }
}

/* A line of a person: it comes back, and what it has asked for follows. */
static void on_line(struct session *s, const char *line)
{
    json_t *request = human_request(line);
    const char *command = member_str(request, "execute");
    bool quits = command && strcmp(command, "quit") == 0;

    queue_text(s, line, strlen(line));
    queue_text(s, "\r\n", 2);
    if (request) {
        send_echo(s);
        on_request(request, NULL, s);
        json_decref(request);
    }
    if (!quits) {
        queue_text(s, HUMAN_PROMPT, strlen(HUMAN_PROMPT));
    }
}

/* Take of the input what makes one request, and run that. */
static void feed(struct session *s)
{
    const char *from = s->input + s->input_used;
    size_t len = s->input_len - s->input_used;
    bool whole = false;

    if (!s->human) {
        s->input_used += qmp_parser_feed_one(s->parser, from, len);
        return;
    }
    s->input_used += human_feed(s->human, from, len, &whole);
    if (whole) {
        on_line(s, s->human->line);
    }
}

/* Receive into the input buffer.  The channel can be read, or is TLS.  False:
 * the session is over. */
static bool receive_input(struct session *s)
{
    ssize_t n = channel_receive(&s->ch, s->input, INPUT_SIZE,
                                &s->state.received);

    if (n < 0) {
        return is_transient(n);
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
    uint64_t deadline = atomic_load(&s->deadline);
    bool input = s->input_used < s->input_len;
    ssize_t todo = take_output(s);
    bool room = todo >= 0 && (size_t)todo < OUT_PAUSE;
    bool idle;
    struct pollfd fds[3] = {{.fd = -1, .events = POLLIN},
                            {.fd = -1, .events = POLLOUT},
                            {.fd = s->wake, .events = POLLIN}};
    int timeout = -1;

    if (todo < 0 || !send_some(s)) {
        return false;
    }
    idle = todo == 0 && !is_unsent(s);
    if (idle && (deadline || (s->eof && !input))) {
        return false;
    }
    if (deadline) {
        if (now_ns() >= deadline) {
            return false;
        }
        timeout = 50;
    } else if (input && room) {
        feed(s);
        return true;
    }
    if (!input && room && !deadline && !s->eof) {
        fds[0].fd = s->ch.in;
        /* What TLS has received already does not show in poll(). */
        if (s->ch.tls && !receive_input(s)) {
            return false;
        }
        if (s->input_used < s->input_len || s->eof) {
            return true;
        }
    }
    if (!idle) {
        fds[1].fd = s->ch.out;
    }
    if (poll(fds, 3, timeout) < 0 && errno != EINTR) {
        return false;
    }
    if (fds[2].revents) {
        kick_clear(s->wake);
    }
    return fds[0].revents ? receive_input(s) : true;
}

/* --- Life. --- */

/* Wait until the handshake of TLS can go on.  False: it takes too long. */
static bool wait_for_handshake(struct session *s, uint64_t end)
{
    struct pollfd fds[2] = {{.fd = s->ch.in, .events = POLLIN},
                            {.fd = s->wake, .events = POLLIN}};
    uint64_t now = now_ns();

    if (now >= end || atomic_load(&s->deadline)) {
        return false;
    }
    if (is_unsent(s)) {
        fds[0].events |= POLLOUT;
    }
    if (poll(fds, 2, (int)((end - now) / 1000000) + 1) < 0 && errno != EINTR) {
        return false;
    }
    if (fds[1].revents) {
        kick_clear(s->wake);
    }
    return !(fds[0].revents & POLLOUT) || send_some(s);
}

/* Finish the handshake.  False: the other side may not come. */
static bool admit_tls_peer(struct session *s)
{
    static struct log_limit limit = {.every_s = 1};
    CLEANUP_ERROR struct error *err = NULL;
    uint64_t end = now_ns() + HANDSHAKE_NS;
    const char *who;
    int r;

    while ((r = tls_handshake(s->ch.tls, &err)) == -EAGAIN) {
        if (!wait_for_handshake(s, end)) {
            return false;
        }
    }
    if (r < 0) {
        log_seldom(&limit, TELL_WARNING,
                   "a monitor's other side is turned away: %s",
                   error_message(err));
        return false;
    }
    who = tls_identity(s->ch.tls);
    if (s->ch.authz && !objects_allow(s->daemon->objects, s->ch.authz, who)) {
        tls_end(s->ch.tls, true);
        log_seldom(&limit, TELL_WARNING, "a TLS client is not authorized: %s",
                   who ? who : "nobody");
        return false;
    }
    return true;
}

/* Has the file system, or TLS, let the other side in? */
static bool peer_is_vetted(const struct session *s)
{
    int domain = AF_UNIX; /* also for a descriptor that is no socket */
    socklen_t len = sizeof(domain);

    if (s->ch.tls) {
        return tls_identity(s->ch.tls) != NULL;
    }
    (void)getsockopt(s->ch.in, SOL_SOCKET, SO_DOMAIN, &domain, &len);
    return domain == AF_UNIX;
}

static void *session_thread(void *arg)
{
    struct session *s = arg;

    fd_names_use(s->state.names);
    if (!s->ch.tls || admit_tls_peer(s)) {
        if (peer_is_vetted(s)) {
            qmp_parser_set_limits(s->parser, &qmp_limits_known);
        }
        while (session_turn(s)) {
        }
    }
    atomic_store(&s->finished, true);
    kick_raise(s->owner);
    return NULL;
}

static void greet_human(struct session *s)
{
    CLEANUP_FREE char *text = NULL;
    int len = asprintf(
        &text,
        "QEMU %s monitor - type 'help' for more information\r\n" HUMAN_PROMPT,
        qmp_like_version);

    queue_text(s, len < 0 ? NULL : text, len < 0 ? 0 : (size_t)len);
}

struct session *session_new(struct daemon *d, const struct channel *ch,
                            const struct qmp_role *role, enum session_mode mode,
                            int wake)
{
    struct session *s = calloc(1, sizeof(*s));

    if (!s) {
        tls_free(ch->tls);
        if (ch->in >= 0 && ch->in != ch->out) {
            (void)close(ch->in);
        }
        (void)close(ch->out);
        return NULL;
    }
    s->daemon = d;
    s->ch = *ch;
    s->state.received = -1;
    s->state.names = fd_names_new();
    s->state.role = role;
    s->mode = mode;
    s->owner = wake;
    mutex_init(&s->lock, LOCK_SESSION, NULL);
    s->wake = kick_new();
    s->parser = qmp_parser_new(&qmp_limits_stranger, on_request, s);
    s->input = malloc(INPUT_SIZE);
    s->human = mode == SESSION_HUMAN ? calloc(1, sizeof(*s->human)) : NULL;
    if (s->wake < 0 || !s->parser || !s->input || !s->state.names ||
        (mode == SESSION_HUMAN && !s->human)) {
        session_free(s);
        return NULL;
    }
    if (s->human) {
        s->state.negotiated = true;
        greet_human(s);
        return s;
    }
    queue_reply(s, json_pack("{s:{s:o, s:[s]}}", "QMP", "version",
                             qmp_version(), "capabilities", "oob"));
    return s;
}

int session_start(struct session *s)
{
    int r = thread_start(&s->thread, "qmp", session_thread, s);

    s->started = r == 0;
    return r;
}

bool session_finished(const struct session *s)
{
    return atomic_load(&s->finished);
}

bool session_negotiated(const struct session *s)
{
    return atomic_load(&s->listens);
}

void session_stop(struct session *s, uint64_t deadline)
{
    atomic_store(&s->deadline, deadline);
    kick_raise(s->wake);
}

void session_wait(struct session *s)
{
    if (s->started) {
        thread_join(s->thread);
        s->started = false;
    }
}

void session_free(struct session *s)
{
    session_wait(s);
    if (s->ch.tls) {
        tls_end(s->ch.tls, false);
    }
    if (s->ch.in == s->ch.out) {
        (void)shutdown(s->ch.out, SHUT_RDWR);
    }
    qmp_parser_free(s->parser);
    fd_names_free(s->state.names);
    if (s->state.received >= 0) {
        (void)close(s->state.received);
    }
    mutex_destroy(&s->lock);
    free(s->human);
    free(s->input);
    free(s->out.data);
    free(s->sending.data);
    tls_free(s->ch.tls);
    if (s->wake >= 0) {
        (void)close(s->wake);
    }
    if (s->ch.in >= 0 && s->ch.in != s->ch.out) {
        (void)close(s->ch.in);
    }
    (void)close(s->ch.out);
    free(s);
}
