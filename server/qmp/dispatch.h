/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_DISPATCH_H
#define NBDELTA_SERVER_QMP_DISPATCH_H

/*
 * From a request to a reply: the command table
 * ============================================
 *
 * A command is a row: its name, the arguments that it takes, and its handler.
 * The handler sees arguments only after they have been checked against the row.
 */
#include <jansson.h>

#include "args.h"
#include "nbdelta/types.h"

struct action;
struct daemon;
struct fd_names;
struct job_txn;
struct qmp_role;

enum qmp_class {
    QMP_GENERIC_ERROR,
    QMP_COMMAND_NOT_FOUND,
    QMP_DEVICE_NOT_ACTIVE,
    QMP_DEVICE_NOT_FOUND,
};

/* What dispatch knows of a client.  Only the session's own thread uses it. */
struct qmp_state {
    const struct qmp_role *role; /* NULL: all commands are there for it */
    bool negotiated;
    bool oob;
    struct fd_names *names; /* of descriptors that it has passed; or NULL */
    int received;           /* one that has come with the input, or -1 */
};

struct qmp_call {
    struct daemon *daemon;
    struct qmp_state *state;
    json_t *args;         /* an object, checked; never NULL */
    json_t *ret;          /* the handler's result, {} if left NULL */
    enum qmp_class class; /* of the error, GENERIC if left alone */
};

/* A handler runs under the monitor lock, unless its row says lockless. */
typedef int qmp_fn(struct qmp_call *call, struct error **errp);

/* Make the action that the call asks for (nbdelta/action.h).  Its jobs belong
 * to @txn; NULL: each to itself.  The monitor lock is held. */
typedef int qmp_action_fn(struct qmp_call *call, struct job_txn *txn,
                          struct action **ap, struct error **errp);

/* How far a command goes for clients with a role (qmp/role.h).  check may
 * change the arguments; its error is the reply.  cut changes what the handler
 * has returned.  NULL: there is nothing to do. */
struct qmp_narrow {
    int (*check)(struct qmp_call *call, struct error **errp);
    void (*cut)(struct qmp_call *call);
};

struct qmp_command {
    const char *name;
    qmp_fn *fn;                 /* NULL: run the action, alone */
    const struct qmp_arg *args; /* NULL: none */

    const struct qmp_arg *ret;   /* of the result; NULL: an empty object */
    const char *const *features; /* args.h; NULL: none */

    /* Commands that may be part of a transaction. */
    qmp_action_fn *action;
    bool is_job; /* it starts a job, which may be grouped with others */

    const struct qmp_narrow *backup; /* role=backup has it, so far; NULL: not */

    /* What a command waits for (qmp/turn.h).  Actions drain the nodes that
     * they name. */
    bool lockless; /* it uses nothing that the monitor lock guards */
    enum {
        QMP_DRAINS_NONE,
        QMP_DRAINS_NAMED,
        QMP_DRAINS_NODES, /* that are named; where none is, all there are */
        QMP_DRAINS_ALL,   /* that are named, and of exports */
    } drains;
};

/* Rows of the table: a command, or a command that is an action, too. */
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

/* What monitors need of the rooms above: a daemon has one (daemon.service). */
struct qmp_service {
    const struct qmp_command *(*find_command)(const char *name);

    /* Find the nodes that @names (keys of an object; NULL: all) mention and,
     * with @exports, the nodes of all that clients can open.  Their names
     * become keys of @nodes.  Hold the monitor lock. */
    void (*find_nodes)(struct daemon *d, const json_t *names, bool exports,
                       json_t *nodes);
};

/*
 * Check a request without running it.  0: run *cmd with @call->args, which are
 * borrowed from @request.  Otherwise the error is in @errp and @call->class.
 */
int qmp_check_request(json_t *request, struct qmp_call *call,
                      const struct qmp_command **cmd, struct error **errp);

/* May a client run the command?  Its arguments may still be wrong. */
bool qmp_may_run(const struct qmp_state *state, const struct qmp_command *cmd);

/*
 * Run @request (any JSON value) and return the reply; NULL: no memory.  Hold
 * the monitor lock, unless the request is lockless (qmp/turn.h).
 */
json_t *qmp_dispatch(struct daemon *d, struct qmp_state *state,
                     json_t *request);

/* A reply with an error; @id is that of the request, or NULL. */
json_t *qmp_error_reply(const json_t *id, enum qmp_class class,
                        const char *desc);

/* A reply or event as it goes on the wire, with its line end; malloc()ed.
 * NULL: no memory. */
char *qmp_to_text(const json_t *message, size_t *len);

/* Arguments of a checked call; @fallback, or NULL, when they are absent. */
const char *qmp_str(const struct qmp_call *c, const char *name);
bool qmp_bool(const struct qmp_call *c, const char *name, bool fallback);
int64_t qmp_int(const struct qmp_call *c, const char *name, int64_t fallback);
bool qmp_has(const struct qmp_call *c, const char *name);

#endif /* NBDELTA_SERVER_QMP_DISPATCH_H */
