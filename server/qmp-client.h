/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_CLIENT_H
#define NBDELTA_SERVER_QMP_CLIENT_H

/* The other end of QMP, for commands that talk to a daemon. */
#include <jansson.h>
#include <stdbool.h>

struct error;
struct qmp_parser;

struct qmp_client {
    int fd; /* -1 before qmp_client_open */
    struct qmp_parser *parser;
    json_t *inbox;  /* array: parsed and not looked at yet */
    json_t *events; /* array: came before the reply that was waited for */
    bool garbage;
};

/* Connect to the Unix socket at @path and negotiate.  Blocks.  Whatever it
 * returns, qmp_client_close() is the end. */
int qmp_client_open(struct qmp_client *c, const char *path,
                    struct error **errp);
void qmp_client_close(struct qmp_client *c);

/* The next message, a new reference.  1, 0 after @timeout ms (-1: none), or
 * an error. */
int qmp_client_receive(struct qmp_client *c, int timeout, json_t **message,
                       struct error **errp);

/* Send a command (@args may be NULL) and wait for the reply, a new reference;
 * events that come before it are kept in c->events. */
int qmp_client_request(struct qmp_client *c, const char *command, json_t *args,
                       json_t **reply, struct error **errp);

/* 0 when @reply has "return"; otherwise EXIT_FAILURE, with the error printed as
 * one of @what. */
int qmp_client_failed(const char *what, const json_t *reply);

#endif /* NBDELTA_SERVER_QMP_CLIENT_H */
