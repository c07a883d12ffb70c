/* SPDX-License-Identifier: BSD-3-Clause */
/* A client of QMP: see qmp-client.h. */
#include "client/qmp-client.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qmp/dispatch.h"
#include "qmp/parse.h"

static void keep_message(json_t *value, const char *why, void *opaque)
{
    struct qmp_client *c = opaque;

    (void)why;
    if (!value || json_array_append(c->inbox, value) < 0) {
        c->garbage = true;
    }
}

static int dial_socket(struct qmp_client *c, const char *path,
                       struct error **errp)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return error_set(errp, ENAMETOOLONG,
                         "the socket path '%s' is longer than %zu bytes", path,
                         sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, path, strlen(path));
    c->inbox = json_array();
    c->events = json_array();
    c->parser = qmp_parser_new(&qmp_limits_reply, keep_message, c);
    if (!c->inbox || !c->events || !c->parser) {
        return error_nomem(errp);
    }
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
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

void qmp_client_close(struct qmp_client *c)
{
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

/* Wait until the socket is ready for @events.  1: it is; 0: @timeout ms are
 * over; -EINTR: a signal has come that is minded; or another error. */
static int wait_socket(struct qmp_client *c, short events, int timeout,
                       struct error **errp)
{
    struct pollfd p[2] = {{.fd = c->fd, .events = events},
                          {.fd = c->signal_fd, .events = POLLIN}};
    struct signalfd_siginfo info;
    int r;

    while ((r = poll(p, 2, timeout)) < 0 && errno == EINTR) {
    }
    if (r < 0) {
        return error_set(errp, errno, "cannot wait: %s", strerror(errno));
    }
    if (r > 0 && p[1].revents &&
        read(c->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        c->signo = (int)info.ssi_signo;
        return -EINTR;
    }
    return r > 0;
}

int qmp_client_receive(struct qmp_client *c, int timeout, json_t **message,
                       struct error **errp)
{
    char buf[65536];
    ssize_t n;

    while (json_array_size(c->inbox) == 0) {
        int r = c->garbage ? no_qmp(errp)
                           : wait_socket(c, POLLIN, timeout, errp);

        if (r <= 0) {
            return r;
        }
        n = recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno == ECONNRESET)) {
            return error_set(errp, ECONNRESET,
                             "the other side closed the connection");
        }
        if (n < 0 && errno != EINTR && errno != EAGAIN) {
            return error_set(errp, errno, "cannot receive: %s",
                             strerror(errno));
        }
        if (n > 0) {
            qmp_parser_feed(c->parser, buf, (size_t)n);
        }
    }
    *message = json_incref(json_array_get(c->inbox, 0));
    (void)json_array_remove(c->inbox, 0);
    return 1;
}

static int send_text(struct qmp_client *c, const char *text, size_t len,
                     struct error **errp)
{
    while (len > 0) {
        ssize_t n = send(c->fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EAGAIN) {
            int r = wait_socket(c, POLLOUT, -1, errp);

            if (r < 0) {
                return r;
            }
        } else if (n < 0 && errno != EINTR) {
            return error_set(errp, errno == EPIPE ? ECONNRESET : errno,
                             "cannot send: %s", strerror(errno));
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
    for (;;) {
        json_t *m = NULL;
        int r = qmp_client_receive(c, -1, &m, errp);

        if (r < 0) {
            return r;
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

static int negotiate_qmp(struct qmp_client *c, struct error **errp)
{
    CLEANUP_JSON json_t *greeting = NULL;
    CLEANUP_JSON json_t *reply = NULL;
    int r = qmp_client_receive(c, -1, &greeting, errp);

    if (r < 0) {
        return r;
    }
    if (!json_object_get(greeting, "QMP")) {
        return no_qmp(errp);
    }
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
    int r = dial_socket(c, path, errp);

    return r < 0 ? r : negotiate_qmp(c, errp);
}
