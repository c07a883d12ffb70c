/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_DISPATCH_H
#define NBDELTA_SERVER_QMP_DISPATCH_H

/*
 * From a request to a reply: the command table
 * ===================================== *
 * A command is a row: its name, what arguments it takes, its handler.  The
 * handler sees arguments only after they have been checked against the row.
 */
#include <jansson.h>

#include "nbdelta/types.h"

struct action;
struct daemon;
struct job_txn;

enum qmp_type {
    /* These end a list of arguments. */
    QMP_END,
    QMP_REST,   /* there may be others, which the handler checks */
    QMP_NODE,   /* the same, and they are options of a node (option.h) */
    QMP_ACTION, /* part of a transaction: the handler knows the data of a type
                 */
    QMP_UNION,  /* one of variants, as the member of this name says */
    /* These are arguments. */
    QMP_STR,
    QMP_INT, /* int64 */
    QMP_UINT32,
    QMP_SIZE, /* uint64, which JSON carries up to INT64_MAX here */
    QMP_BOOL,
    QMP_ENUM,                /* one of words */
    QMP_OBJECT,              /* members; any object if there are none */
    QMP_OBJECTS,             /* array of such */
    QMP_ENUMS,               /* array of words */
    QMP_STR_OR_OBJECT_ARRAY, /* each a string, or an object of members */
    QMP_STRS,                /* array of strings */
    QMP_ANY,
};

struct qmp_arg {
    const char *name;
    enum qmp_type type;
    bool optional;
    const char *const *words;             /* NULL-terminated */
    const char *const *(*words_of)(void); /* or what returns them */
    const struct qmp_arg *members;        /* a list */
    const struct qmp_arg *shown;          /* told instead: the handler checks */
    const char *type_name;                /* in texts, where QEMU has one */
    const struct qmp_variant *variants;   /* ends with a NULL name */
};

struct qmp_variant {
    const char *name;
    const struct qmp_arg *members; /* NULL: none but those of all */
};

/* Rows of an argument list: QMP_OPT("sync", ENUM, .words = sync_words). */
#define QMP_ARG(n, t, ...)                          \
    {                                               \
        .name = (n), .type = QMP_##t, ##__VA_ARGS__ \
    }
#define QMP_OPT(n, t, ...) QMP_ARG(n, t, .optional = true, ##__VA_ARGS__)
#define QMP_LAST        \
    {                   \
        .type = QMP_END \
    }
#define QMP_OTHERS       \
    {                    \
        .type = QMP_REST \
    }
#define QMP_NODE_OPTIONS \
    {                    \
        .type = QMP_NODE \
    }
#define QMP_VARIANTS(tag, v)                               \
    {                                                      \
        .name = (tag), .type = QMP_UNION, .variants = (v), \
    }

static inline bool qmp_is_last(const struct qmp_arg *a)
{
    return a->type <= QMP_UNION;
}

enum qmp_class {
    QMP_GENERIC_ERROR,
    QMP_COMMAND_NOT_FOUND,
    QMP_DEVICE_NOT_ACTIVE,
    QMP_DEVICE_NOT_FOUND,
};

/* BlockdevOptions: "driver", and what that takes. */
extern const struct qmp_arg qmp_node_args[];

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

struct qmp_event {
    const char *name;
    const struct qmp_arg *data;
};
extern const struct qmp_event qmp_events[]; /* a NULL name ends it */

/* The parts of the table; a NULL name ends each. */
extern const struct qmp_command qmp_backup_commands[];
extern const struct qmp_command qmp_bitmap_commands[];
extern const struct qmp_command qmp_block_commands[];
extern const struct qmp_command qmp_chain_commands[];
extern const struct qmp_command qmp_create_commands[];
extern const struct qmp_command qmp_device_commands[];
extern const struct qmp_command qmp_export_commands[];
extern const struct qmp_command qmp_hmp_commands[];
extern const struct qmp_command qmp_node_commands[];
extern const struct qmp_command qmp_object_commands[];
extern const struct qmp_command qmp_pull_commands[];
extern const struct qmp_command qmp_job_commands[];
extern const struct qmp_command qmp_core_commands[];
extern const struct qmp_command qmp_schema_commands[];
extern const struct qmp_command qmp_abort_action; /* no command */
extern const struct qmp_command qmp_transaction_commands[];
extern const struct qmp_command qmp_yank_commands[];

/* --nbd-server: as nbd-server-start, but for its addr. */
extern const struct qmp_command qmp_nbd_server_option;

/* Visit all commands until @fn returns non-zero, and return that. */
int qmp_each_command(int (*fn)(const struct qmp_command *c, void *opaque),
                     void *opaque);
const struct qmp_command *qmp_find_command(const char *name);

/*
 * Judge a request without running it.  0: *cmd shall run with @call->args
 * (borrowed from @request).  Otherwise the error is in @errp and
 * @call->class.
 */
int qmp_check_request(json_t *request, struct qmp_call *call,
                      const struct qmp_command **cmd, struct error **errp);

/* The row for the member @key of @object in @spec (NULL: nothing is known),
 * variants included, or NULL. */
const struct qmp_arg *qmp_find_arg(const struct qmp_arg *spec,
                                   const json_t *object, const char *key);

/* Check @args (NULL: none given) against @spec.  @where, "" at the top, comes
 * before names in texts. */
int qmp_check_args(json_t *args, const struct qmp_arg *spec, const char *where,
                   struct error **errp);

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

/* The node that a user calls @name: an image of the command line, a node's
 * name, or an export's.  The first is wherever its clients are now: a backup of
 * it has what they write.  NULL and QEMU's text when there is none. */
struct node *qmp_find_node(struct daemon *d, const char *name,
                           struct error **errp);

/* The same where the user means a device: the node that any export is
 * attached to now comes before a node of that name. */
struct node *qmp_find_device(struct daemon *d, const char *name,
                             struct error **errp);

#endif /* NBDELTA_SERVER_QMP_DISPATCH_H */
