/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLIENT_QMP_CLIENT_H
#define NBDELTA_SERVER_CLIENT_QMP_CLIENT_H

/* The other end of QMP, for commands that talk to a daemon. */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct error;
struct qmp_limits;
struct qmp_parser;
struct tls;
struct tls_keys;

struct qmp_client {
    int fd;            /* -1 before qmp_client_open */
    int signal_fd;     /* -1: signals do what they do; see qmp_client_mind */
    int signo;         /* the last that came, 0: none */
    json_int_t serial; /* of the last command that was sent */
    struct qmp_parser *parser;
    json_t *inbox;  /* array: parsed and not looked at yet */
    json_t *events; /* array: came before the reply that was waited for */
    bool greeted;
    bool garbage;
    char why[96];      /* what was wrong with that */
    uint64_t received; /* bytes */
    struct tls *tls;   /* or NULL */
    pid_t peer;        /* the process that has greeted by a Unix socket; 0: not
                          known */
    uid_t peer_uid;    /* its real user */

    /* The caller may set these before anything is sent, the first one before
     * the connection is opened. */
    const struct qmp_limits *limits; /* of a message; NULL: those of our own
                                        daemon (qmp/parse.h) */
    int limit_ms; /* most that is waited for one answer; -1: no limit */
    int stop_fd;  /* once it is readable, 5 s are the limit; -1: none */
    bool stopped; /* it is; written here */
};
#define QMP_CLIENT_INIT                                           \
    {                                                             \
        .fd = -1, .signal_fd = -1, .limit_ms = -1, .stop_fd = -1, \
    }
#define QMP_STOP_MS 5000

/* Connect to the Unix socket at @path and negotiate.  Blocks.  Whatever it
 * returns, qmp_client_close() is the end. */
int qmp_client_open(struct qmp_client *c, const char *path,
                    struct error **errp);

/*
 * The same for the checked @addr (net/address.h); with @keys over TLS, where
 * the certificate has to be for @host.  A peer that does not greet within
 * @greet_ms (-1: no limit) is -EBUSY, or -EPROTO if it waits for TLS.
 * *greeting is a new reference, or NULL.
 */
int qmp_client_connect(struct qmp_client *c, const json_t *addr,
                       struct tls_keys *keys, const char *host, int greet_ms,
                       json_t **greeting, struct error **errp);
void qmp_client_close(struct qmp_client *c);

/*
 * From now on SIGINT, SIGTERM and SIGHUP do not end the process, unless they
 * were ignored or blocked before.  Functions that wait for the other side
 * return -EINTR for each signal, without an error text, and may be called again
 * to go on.  Commands use this that begin something at the daemon and have to
 * undo it.  Call it before there are threads.
 */
int qmp_client_mind(struct qmp_client *c, struct error **errp);

/* Wait for the next message, a new reference.  1: it has come; 0: @timeout ms
 * are over (-1: no limit); -ECONNRESET: the other side has gone; -ETIMEDOUT:
 * stop_fd's limit is over; or another error. */
int qmp_client_receive(struct qmp_client *c, int timeout, json_t **message,
                       struct error **errp);

/* Send a command (@args may be NULL).  -EINTR: it has not been sent as a whole,
 * so it is not carried out, and nothing else can be sent. */
int qmp_client_send(struct qmp_client *c, const char *command, json_t *args,
                    struct error **errp);

/* Wait for the reply to the last command that was sent, a new reference; events
 * that come before it are kept in c->events, other replies are dropped.
 * -ETIMEDOUT: see limit_ms; -EMSGSIZE: the other side sends events without
 * end. */
int qmp_client_reply(struct qmp_client *c, json_t **reply, struct error **errp);

/* Send a command and wait for its reply. */
int qmp_client_request(struct qmp_client *c, const char *command, json_t *args,
                       json_t **reply, struct error **errp);

#endif /* NBDELTA_SERVER_CLIENT_QMP_CLIENT_H */
