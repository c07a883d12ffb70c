/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_PARSE_H
#define NBDELTA_SERVER_QMP_PARSE_H

/*
 * JSON values out of a byte stream
 * ================================
 *
 * QMP has no framing: a value ends where its brackets do.  The bytes come in
 * any portions, from somebody we need not trust.
 */
#include <jansson.h>

#include "nbdelta/types.h"

/* What all that share it may take together, in bytes. */
struct qmp_budget {
    _Atomic size_t used;
    size_t max;
};

/* Bounds of one value: a message that exceeds one of them is dropped. */
struct qmp_limits {
    size_t size; /* bytes, as strict JSON */
    size_t tokens;
    long nesting;
    struct qmp_budget *budget; /* or NULL */
};
#define QMP_NESTING_MAX 1024
extern const struct qmp_limits qmp_limits_known;    /* QEMU's */
extern const struct qmp_limits qmp_limits_stranger; /* in sum, too */
extern const struct qmp_limits qmp_limits_reply;    /* of our own daemon */

struct qmp_parser;

/*
 * Called for every complete value, @value being borrowed, or, with @value
 * NULL, with a sentence on what is wrong with the input.  After a wrong one
 * parsing goes on behind it, or at the next byte that promises a beginning.
 */
typedef void qmp_value_fn(json_t *value, const char *why, void *opaque);

/* @limits are static.  NULL: no memory. */
struct qmp_parser *qmp_parser_new(const struct qmp_limits *limits,
                                  qmp_value_fn *fn, void *opaque);
void qmp_parser_free(struct qmp_parser *p); /* NULL is fine */

/* Between two values. */
void qmp_parser_set_limits(struct qmp_parser *p,
                           const struct qmp_limits *limits);

void qmp_parser_feed(struct qmp_parser *p, const void *data, size_t len);

/* Parse from @data until one value or error has been delivered; returns the
 * bytes consumed, so that the caller can stop between two values. */
size_t qmp_parser_feed_one(struct qmp_parser *p, const void *data, size_t len);

#endif /* NBDELTA_SERVER_QMP_PARSE_H */
