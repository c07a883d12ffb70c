/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_DISPATCH_H
#define NBDELTA_SERVER_QMP_DISPATCH_H

/*
 * From a request to a reply: the command table
 * ============================================
 *
 * A command is a row: its name, what arguments it takes, its handler.  The
 * handler sees arguments only after they have been checked against the row.
 */
#include <jansson.h>

#include "args.h"
#include "nbdelta/types.h"

struct action;
struct daemon;
struct job_txn;

enum qmp_class {
    QMP_GENERIC_ERROR,
    QMP_COMMAND_NOT_FOUND,
    QMP_DEVICE_NOT_ACTIVE,
    QMP_DEVICE_NOT_FOUND,
};

/* What dispatch knows of a client: its own thread's. */
struct qmp_state {
    bool negotiated;
    bool oob;
};

struct qmp_call {
    struct daemon *daemon;
    struct qmp_state *state;
    json_t *args;         /* an object, checked; never NULL */
    json_t *ret;          /* the handler's result, {} if left NULL */
    enum qmp_class class; /* of the error, GENERIC if left alone */
};

/* Runs under the monitor lock, unless its row says lockless. */
typedef int qmp_fn(struct qmp_call *call, struct error **errp);

/* What the call asks for, as an action (nbdelta/action.h); under the monitor
 * lock.  Jobs of it belong to @txn; NULL: each to itself. */
typedef int qmp_action_fn(struct qmp_call *call, struct job_txn *txn,
                          struct action **ap, struct error **errp);

struct qmp_command {
    const char *name;
    qmp_fn *fn;                 /* NULL: run the action, alone */
    const struct qmp_arg *args; /* NULL: none */

    const struct qmp_arg *ret; /* what it returns; NULL: an empty object */

    /* Commands that may be part of a transaction. */
    qmp_action_fn *action;
    bool is_job; /* it may be grouped with others */

    /* What it needs of others (qmp/turn.h).  Actions drain what they name. */
    bool lockless; /* not the monitor lock, nor what that guards */
    enum { QMP_DRAINS_NONE, QMP_DRAINS_NAMED, QMP_DRAINS_ALL } drains;
};

/* Rows of the table: a command; one that is an action, too. */
#define QMP_COMMAND(n, f, a, ...)                          \
    {                                                      \
        .name = (n), .fn = (f), .args = (a), ##__VA_ARGS__ \
    }
#define QMP_ACTION(n, f, a, ...)                               \
    {                                                          \
        .name = (n), .args = (a), .action = (f), ##__VA_ARGS__ \
    }
#define QMP_COMMANDS_END \
    {                    \
        .name = NULL,    \
    }

/* What monitors serve; a daemon has one (daemon.service), from above. */
struct qmp_service {
    const struct qmp_command *(*find_command)(const char *name);

    /* Nodes of what @names (the keys of an object) mention, with @exports also
     * of everything that clients can open: their names become keys of @nodes.
     * Hold the monitor lock. */
    void (*find_nodes)(struct daemon *d, const json_t *names, bool exports,
                       json_t *nodes);
};

/*
 * Judge a request without running it.  0: *cmd shall run with @call->args
 * (borrowed from @request).  Otherwise the error is in @errp and
 * @call->class.
 */
int qmp_check_request(json_t *request, struct qmp_call *call,
                      const struct qmp_command **cmd, struct error **errp);

/*
 * Run @request (any JSON value) and return the reply, NULL when there is no
 * memory for one.  With the monitor lock, unless it is lockless (qmp/turn.h).
 */
json_t *qmp_dispatch(struct daemon *d, struct qmp_state *state,
                     json_t *request);

/* The reply for input that is not JSON. */
json_t *qmp_error_reply(const json_t *id, enum qmp_class class,
                        const char *desc);

/* A reply or event as it goes on the wire, with its line end; malloc()ed.
 * NULL: no memory. */
char *qmp_to_text(const json_t *message, size_t *len);

/* Arguments of a checked call; @fallback when absent. */
const char *qmp_str(const struct qmp_call *c, const char *name);
bool qmp_bool(const struct qmp_call *c, const char *name, bool fallback);
int64_t qmp_int(const struct qmp_call *c, const char *name, int64_t fallback);
bool qmp_has(const struct qmp_call *c, const char *name);

#endif /* NBDELTA_SERVER_QMP_DISPATCH_H */
