/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_ARGS_H
#define NBDELTA_SERVER_ARGS_H

/*
 * Rows that describe arguments
 * ============================
 *
 * One description serves the monitor (dispatch.h), options of the command line
 * (keyval.h), files that have JSON in them, and query-qmp-schema: whatever is
 * not described is refused, in QEMU's words.
 */
#include <jansson.h>
#include <stdbool.h>

struct error;

enum qmp_type {
    /* These end a list of arguments. */
    QMP_END,
    QMP_REST,   /* there may be others, which the handler checks */
    QMP_NODE,   /* the others are options of a node (args-node.h) */
    QMP_ACTION, /* part of a transaction: the handler knows the data of a type
                 */
    QMP_UNION,  /* one of variants, as the member of this name says */
    /* These are arguments. */
    QMP_STR,
    QMP_INT, /* int64 */
    QMP_UINT32,
    QMP_SIZE, /* uint64.  As in QEMU, an int64 stands for one of the same bits:
                 past INT64_MAX that is what the handler sees. */
    QMP_BOOL,
    QMP_ENUM,                /* one of words */
    QMP_OBJECT,              /* members; any object if there are none */
    QMP_OBJECTS,             /* array of such */
    QMP_ENUMS,               /* array of words */
    QMP_STR_OR_OBJECT_ARRAY, /* each a string, or an object of members */
    QMP_STRS,                /* array of strings */
    QMP_STR_OR_NULL,
    QMP_NEW_NODE, /* the name that a node is given */
    QMP_NODE_REF, /* a node's name, or the options of a new one */
    QMP_NUMBER,   /* these are in replies only */
    QMP_INTS,
    QMP_ANY,
};

/* What QEMU's schema has as "features", for .features of rows. */
extern const char *const qmp_deprecated[];
extern const char *const qmp_unstable[];

/* Bytes of the name of a node that a command makes: QEMU's limit.  The graph
 * takes longer ones, for disks of the command line. */
#define QMP_NODE_NAME_MAX 31

struct qmp_arg {
    const char *name;
    enum qmp_type type;
    bool optional;
    const char *const *words;             /* NULL-terminated */
    const char *const *(*words_of)(void); /* or what returns them */
    const struct qmp_arg *members;        /* a list */
    const struct qmp_arg *shown;          /* shown by the schema only */
    const char *type_name;                /* in texts, where QEMU has one */
    const char *const *features;          /* as words */
    const struct qmp_variant *variants;   /* ends with a NULL name */
};

struct qmp_variant {
    const char *name;
    const struct qmp_arg *members; /* NULL: it adds none */
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

/* The string that the member @key of @object is; NULL: it is none. */
static inline const char *member_str(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static inline bool qmp_is_last(const struct qmp_arg *a)
{
    return a->type <= QMP_UNION;
}

/* The row for the member @key of @object in @spec (NULL: nothing is known),
 * variants included, or NULL. */
const struct qmp_arg *qmp_find_arg(const struct qmp_arg *spec,
                                   const json_t *object, const char *key);

/* Check @args (NULL: none given) against @spec.  @where, "" at the top, comes
 * before names in texts.  Wide integers (wide.h) become what a handler sees. */
int qmp_check_args(json_t *args, const struct qmp_arg *spec, const char *where,
                   struct error **errp);

#endif /* NBDELTA_SERVER_ARGS_H */
