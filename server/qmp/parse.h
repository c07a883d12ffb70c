/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_PARSE_H
#define NBDELTA_SERVER_QMP_PARSE_H

/*
 * JSON values out of a byte stream
 * ================================
 *
 * QMP has no framing: a value ends where its brackets are closed.  The bytes
 * come in any portions, from a client that we need not trust.
 */
#include <jansson.h>

#include "nbdelta/types.h"

/* Bytes that all parsers that share the budget may take together. */
struct qmp_budget {
    _Atomic size_t used;
    size_t max;
};

/* Bounds of one value: a message that exceeds one of them is dropped. */
struct qmp_limits {
    size_t size; /* bytes, as strict JSON (parse.c) */
    size_t tokens;
    long nesting;
    struct qmp_budget *budget; /* or NULL */
};
#define QMP_NESTING_MAX 1024
extern const struct qmp_limits qmp_limits_known;    /* QEMU's */
extern const struct qmp_limits qmp_limits_stranger; /* with a budget */
extern const struct qmp_limits qmp_limits_reply;    /* of our own daemon */

struct qmp_parser;

/*
 * Called for every complete value; @value is borrowed.  When the input is
 * wrong, @value is NULL, and @why a sentence that tells what is wrong.  Parsing
 * goes on behind the wrong value, or at the next byte with which a value may
 * begin.
 */
typedef void qmp_value_fn(json_t *value, const char *why, void *opaque);

/* @limits outlive the parser.  NULL: no memory. */
struct qmp_parser *qmp_parser_new(const struct qmp_limits *limits,
                                  qmp_value_fn *fn, void *opaque);
void qmp_parser_free(struct qmp_parser *p); /* NULL is fine */

/* Call it between two values. */
void qmp_parser_set_limits(struct qmp_parser *p,
                           const struct qmp_limits *limits);

void qmp_parser_feed(struct qmp_parser *p, const void *data, size_t len);

/* Parse from @data until one value or error has been delivered; returns the
 * bytes consumed, so that the caller can stop between two values. */
size_t qmp_parser_feed_one(struct qmp_parser *p, const void *data, size_t len);

#endif /* NBDELTA_SERVER_QMP_PARSE_H */
