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

/* Bounds of one value.  A message that exceeds one of them is dropped. */
#define QMP_MAX_SIZE    ((size_t)16 << 20)
#define QMP_MAX_TOKENS  ((size_t)1 << 18)
#define QMP_MAX_NESTING 1024

struct qmp_parser;

/*
 * Called for every complete value, @value being borrowed, or, with @value
 * NULL, with a sentence on what is wrong with the input.  After a wrong one
 * parsing goes on behind it, or at the next byte that promises a beginning.
 */
typedef void qmp_value_fn(json_t *value, const char *why, void *opaque);

/* NULL: no memory. */
struct qmp_parser *qmp_parser_new(qmp_value_fn *fn, void *opaque);
void qmp_parser_free(struct qmp_parser *p); /* NULL is fine */

void qmp_parser_feed(struct qmp_parser *p, const void *data, size_t len);

/* Parse from @data until one value or error has been delivered; returns the
 * bytes consumed, so that the caller can stop between two values. */
size_t qmp_parser_feed_one(struct qmp_parser *p, const void *data, size_t len);

#endif /* NBDELTA_SERVER_QMP_PARSE_H */
