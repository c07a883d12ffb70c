/* SPDX-License-Identifier: BSD-3-Clause */
/* A client of QMP: see qmp-client.h. */
#include "client/qmp-client.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/thread.h"
#include "net/address.h"
#include "net/tls.h"
#include "net/transport.h"
#include "qmp/dispatch.h"
#include "qmp/parse.h"

#define MS UINT64_C(1000000)

/* A server that waits for TLS answers at once. */
#define LOOK_MS 1000

/* Bytes of events that are kept for one answer. */
#define EVENTS_MAX (16 << 20)

static void keep_message(json_t *value, const char *why, void *opaque)
{
    struct qmp_client *c = opaque;

    if (c->garbage) {
        return; /* the first is told */
    }
    if (!value || json_array_append(c->inbox, value) < 0) {
        c->garbage = true;
        (void)snprintf(c->why, sizeof(c->why), "%s", why ? why : "no memory");
    }
}

static int prepare(struct qmp_client *c, struct error **errp)
{
    c->inbox = json_array();
    c->events = json_array();
    c->parser = qmp_parser_new(c->limits ? c->limits : &qmp_limits_reply,
                               keep_message, c);
    return c->inbox && c->events && c->parser ? 0 : error_nomem(errp);
}

/* @limit_ms: most that is waited for room in the listener's queue. */
static int dial_socket(struct qmp_client *c, const char *path, int limit_ms,
                       struct error **errp)
{
    const struct timeval limit = {.tv_sec = limit_ms < 0 ? 0 : limit_ms / 1000};
    const int on = 1;
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return error_set(errp, ENAMETOOLONG,
                         "the socket path '%s' is longer than %zu bytes", path,
                         sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, path, strlen(path));
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd >= 0) {
        (void)setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
        (void)setsockopt(c->fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
    }
    if (c->fd < 0 ||
        connect(c->fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
        return error_set(
            errp, errno, "cannot connect to '%s': %s%s", path, strerror(errno),
            errno == ECONNREFUSED ? " (the daemon that made it is gone)" : "");
    }
    return 0;
}

static int no_qmp(struct error **errp)
{
    return error_set(errp, EPROTO,
                     "the other side does not speak QMP (the socket for it is "
                     "that of --qmp)");
}

static int bad_json(const struct qmp_client *c, struct error **errp)
{
    return c->greeted ? error_set(errp, EPROTO,
                                  "the other side sends no messages of QMP: %s",
                                  c->why)
                      : no_qmp(errp);
}

void qmp_client_close(struct qmp_client *c)
{
    if (c->tls) {
        tls_end(c->tls, false);
        tls_free(c->tls);
    }
    if (c->fd >= 0) {
        (void)close(c->fd);
    }
    if (c->signal_fd >= 0) {
        (void)close(c->signal_fd);
    }
    qmp_parser_free(c->parser);
    json_decref(c->inbox);
    json_decref(c->events);
}

int qmp_client_mind(struct qmp_client *c, struct error **errp)
{
    static const int ending[] = {SIGINT, SIGTERM, SIGHUP};
    sigset_t before;
    sigset_t set;

    (void)pthread_sigmask(SIG_BLOCK, NULL, &before);
    (void)sigemptyset(&set);
    for (size_t i = 0; i < ARRAY_SIZE(ending); i++) {
        struct sigaction old;

        if (!sigismember(&before, ending[i]) &&
            sigaction(ending[i], NULL, &old) == 0 &&
            old.sa_handler != SIG_IGN) {
            (void)sigaddset(&set, ending[i]);
        }
    }
    c->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (c->signal_fd < 0) {
        return error_set(errp, errno, "cannot make a descriptor: %s",
                         strerror(errno));
    }
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    return 0;
}

/* --- Waiting. --- */

/* When a wait of @timeout ms, -1: for ever, is over. */
static uint64_t deadline_in(int timeout)
{
    return timeout < 0 ? UINT64_MAX : now_ns() + (uint64_t)timeout * MS;
}

static int ms_until(uint64_t deadline)
{
    uint64_t now = now_ns();

    if (deadline == UINT64_MAX) {
        return -1;
    }
    return now >= deadline ? 0
                           : (int)min_u64(div_up(deadline - now, MS), INT_MAX);
}

/* Wait until the socket is ready for @events.  1: it is; 0: @deadline is over;
 * -EINTR: a signal has come that is minded; or another error. */
static int wait_socket(struct qmp_client *c, short events, uint64_t deadline,
                       struct error **errp)
{
    struct pollfd p[3] = {{.fd = c->fd, .events = events},
                          {.fd = c->signal_fd, .events = POLLIN},
                          {.fd = c->stop_fd, .events = POLLIN}};
    struct signalfd_siginfo info;
    uint64_t stop_at = deadline_in(c->stopped ? QMP_STOP_MS : -1);
    int r;

    do {
        p[2].fd = c->stopped ? -1 : c->stop_fd;
        r = poll(p, 3, ms_until(min_u64(deadline, stop_at)));
        if (r > 0 && p[2].revents) {
            c->stopped = true;
            stop_at = deadline_in(QMP_STOP_MS);
        }
    } while ((r < 0 && errno == EINTR) ||
             (r > 0 && !p[0].revents && !p[1].revents));
    if (r < 0) {
        return error_set(errp, errno, "cannot wait: %s", strerror(errno));
    }
    if (r > 0 && p[1].revents &&
        read(c->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        c->signo = (int)info.ssi_signo;
        return -EINTR;
    }
    return r == 0 && stop_at < deadline
               ? error_set(errp, ETIMEDOUT, "no answer within %d s",
                           QMP_STOP_MS / 1000)
               : r > 0;
}

/* --- Bytes. --- */

/* Whose bytes come first?  The kernel says who has sent them: SO_PEERCRED tells
 * of the process that has called listen(), which may be systemd. */
static void learn_peer(struct qmp_client *c)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(struct ucred))];
    } control;
    char byte;
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof(control)};
    struct ucred sender;

    if (recvmsg(c->fd, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0) {
        return;
    }
    const struct cmsghdr *m = CMSG_FIRSTHDR(&msg);
    if (m && m->cmsg_level == SOL_SOCKET && m->cmsg_type == SCM_CREDENTIALS &&
        m->cmsg_len == CMSG_LEN(sizeof(sender))) {
        memcpy(&sender, CMSG_DATA(m), sizeof(sender));
        c->peer = sender.pid;
        c->peer_uid = sender.uid;
    }
}

/* Take what is there.  0, or an error. */
static int take_bytes(struct qmp_client *c, struct error **errp)
{
    char buf[65536];
    struct iovec iov = {buf, sizeof(buf)};
    struct transport t = {c->fd, c->tls};

    if (c->received == 0) {
        learn_peer(c);
    }
    ssize_t n = transport_receive(&t, &iov, 1, false);

    if (n == 0 || n == -ECONNRESET) {
        return error_set(errp, ECONNRESET,
                         "the other side closed the connection");
    }
    if (n < 0) {
        return n == -EINTR || n == -EAGAIN
                   ? (int)n
                   : error_set(errp, (int)-n, "cannot receive: %s",
                               strerror((int)-n));
    }
    c->received += (uint64_t)n;
    qmp_parser_feed(c->parser, buf, (size_t)n);
    return 0;
}

int qmp_client_receive(struct qmp_client *c, int timeout, json_t **message,
                       struct error **errp)
{
    uint64_t deadline = deadline_in(timeout);

    while (json_array_size(c->inbox) == 0) {
        int r = c->garbage ? bad_json(c, errp) : take_bytes(c, errp);

        if (r == -EAGAIN) { /* TLS may have had something already */
            r = wait_socket(c, POLLIN, deadline, errp);
            if (r == 0) {
                return 0;
            }
        } else if (r == -EINTR) {
            r = 0;
        }
        if (r < 0) {
            return r;
        }
    }
    *message = json_incref(json_array_get(c->inbox, 0));
    (void)json_array_remove(c->inbox, 0);
    return 1;
}

static int send_text(struct qmp_client *c, const char *text, size_t len,
                     struct error **errp)
{
    struct transport t = {c->fd, c->tls};
    uint64_t deadline = deadline_in(c->limit_ms);

    while (len > 0 || transport_unsent(&t)) {
        struct iovec iov = {(void *)(uintptr_t)text, len};
        ssize_t n = transport_send(&t, &iov, len > 0 ? 1 : 0);

        if (n == -EAGAIN) {
            int r = wait_socket(c, POLLOUT, deadline, errp);

            if (r <= 0) {
                return r < 0 ? r
                             : error_set(errp, ETIMEDOUT,
                                         "the other side takes no command");
            }
        } else if (n < 0 && n != -EINTR) {
            return error_set(errp, n == -EPIPE ? ECONNRESET : (int)-n,
                             "cannot send: %s", strerror((int)-n));
        }
        if (n > 0) {
            text += n;
            len -= (size_t)n;
        }
    }
    return 0;
}

int qmp_client_send(struct qmp_client *c, const char *command, json_t *args,
                    struct error **errp)
{
    CLEANUP_JSON json_t *message = json_pack("{s:s, s:O*, s:I}", "execute",
                                             command, "arguments", args, "id",
                                             c->serial + 1);
    size_t len = 0;
    CLEANUP_FREE char *text = message ? qmp_to_text(message, &len) : NULL;

    if (!text) {
        return error_set(errp, ENOMEM, "cannot encode the command");
    }
    c->serial++;
    return send_text(c, text, len, errp);
}

/* An error without an id is about input that was no command: our last one. */
static bool is_reply(const struct qmp_client *c, const json_t *m)
{
    const json_t *id = json_object_get(m, "id");

    return !id || json_integer_value(id) == c->serial;
}

int qmp_client_reply(struct qmp_client *c, json_t **reply, struct error **errp)
{
    uint64_t deadline = deadline_in(c->limit_ms);
    uint64_t start = c->received;

    for (;;) {
        json_t *m = NULL;
        int r = qmp_client_receive(c, ms_until(deadline), &m, errp);

        if (r <= 0) {
            return r < 0 ? r
                         : error_set(errp, ETIMEDOUT, "no answer within %d s",
                                     c->limit_ms / 1000);
        }
        if (json_object_get(m, "event") && c->received - start > EVENTS_MAX) {
            json_decref(m);
            return error_set(errp, EMSGSIZE,
                             "more than %d MiB of events came instead of an "
                             "answer",
                             EVENTS_MAX >> 20);
        }
        if (json_object_get(m, "event")) {
            r = json_array_append_new(c->events, m);
        } else if (is_reply(c, m)) {
            *reply = m;
            return 0;
        } else {
            json_decref(m);
        }
        if (r < 0) {
            return error_nomem(errp);
        }
    }
}

int qmp_client_request(struct qmp_client *c, const char *command, json_t *args,
                       json_t **reply, struct error **errp)
{
    int r = qmp_client_send(c, command, args, errp);

    return r < 0 ? r : qmp_client_reply(c, reply, errp);
}

/* --- The beginning. --- */

static int negotiate_qmp(struct qmp_client *c, int greet_ms, json_t **greeting,
                         struct error **errp)
{
    CLEANUP_JSON json_t *reply = NULL;
    int r = qmp_client_receive(c, greet_ms, greeting, errp);

    if (r <= 0) {
        return r < 0 ? r
                     : error_set(errp, EBUSY,
                                 "the monitor does not answer within %d s: "
                                 "another client may be connected (QEMU has "
                                 "one at a time)",
                                 greet_ms / 1000);
    }
    if (!json_object_get(*greeting, "QMP")) {
        return no_qmp(errp);
    }
    c->greeted = true;
    r = qmp_client_request(c, "qmp_capabilities", NULL, &reply, errp);
    if (r < 0) {
        return r;
    }
    return json_object_get(reply, "return")
               ? 0
               : error_set(errp, EPROTO, "qmp_capabilities was refused");
}

int qmp_client_open(struct qmp_client *c, const char *path, struct error **errp)
{
    CLEANUP_JSON json_t *greeting = NULL;
    int r = prepare(c, errp);

    r = r < 0 ? r : dial_socket(c, path, -1, errp);
    return r < 0 ? r : negotiate_qmp(c, -1, &greeting, errp);
}

static int start_tls(struct qmp_client *c, struct tls_keys *keys,
                     const char *host, uint64_t deadline, struct error **errp)
{
    int r;

    c->tls = tls_new(keys, c->fd, host);
    if (!c->tls) {
        return error_nomem(errp);
    }
    while ((r = tls_handshake(c->tls, errp)) == -EAGAIN) {
        short events = tls_unsent(c->tls) ? POLLIN | POLLOUT : POLLIN;

        r = wait_socket(c, events, deadline, errp);
        if (r <= 0) {
            return r < 0 ? r
                         : error_set(errp, ETIMEDOUT,
                                     "the other side does not answer in TLS");
        }
    }
    return r;
}

int qmp_client_connect(struct qmp_client *c, const json_t *addr,
                       struct tls_keys *keys, const char *host, int greet_ms,
                       json_t **greeting, struct error **errp)
{
    const char *path = json_string_value(json_object_get(addr, "path"));
    json_t *kept = NULL;
    int r = prepare(c, errp);

    r = r < 0  ? r
        : path ? dial_socket(c, path, greet_ms, errp)
               : address_connect(addr, &c->fd, errp);
    if (r == -ETIMEDOUT || r == -EAGAIN) {
        return error_set(errp, EBUSY,
                         "the monitor takes no connection: it has other "
                         "clients, or hangs");
    }
    r = r < 0 || !keys ? r
                       : start_tls(c, keys, host, deadline_in(greet_ms), errp);
    r = r < 0 ? r : negotiate_qmp(c, greet_ms, &kept, errp);
    if (r == -EBUSY && !keys && !path && tls_is_wanted(c->fd, LOOK_MS)) {
        r = error_set(errp, EPROTO,
                      "the monitor wants TLS, and no keys are given for it "
                      "(--tls-certificates or --tls-psk)");
    }
    if (r < 0 || !greeting) {
        json_decref(kept);
        kept = NULL;
    }
    if (greeting) {
        *greeting = kept;
    }
    return r;
}
