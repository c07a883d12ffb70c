/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_OPTS_H
#define NBDELTA_CORE_OPTS_H

/*
 * Options while they are consumed.  Every getter takes its key away, so the
 * keys that are left at the end are unknown, and are refused by name.  Keys may
 * have dots: "cache.direct" looks into {"cache": {...}}; a "cache" that has
 * nothing in it any more is gone as well.
 *
 * Getters leave *val alone and return 0 when the key is absent; -EINVAL with
 * the key's name when the value has the wrong form.  Strings such as "on",
 * "64k" are taken for booleans and sizes, because dotted options have no
 * other values.
 */
#include <jansson.h>

#include "nbdelta/option.h"
#include "nbdelta/types.h"

struct opts;

/* Takes a deep copy of @object, a JSON object.  NULL: no memory. */
struct opts *opts_new(const json_t *object);
void opts_free(struct opts *o); /* NULL is fine */

/* From now on, keys that are taken have to be in @common or @own (or NULL),
 * with the getter's type.  A getter that asks for another one is at fault, and
 * gets -EINVAL. */
void opts_describe(struct opts *o, const struct option *common,
                   const struct option *own);

int opts_str(struct opts *o, const char *key, const char **val,
             struct error **errp); /* *val lives as long as @o */
int opts_bool(struct opts *o, const char *key, bool *val, struct error **errp);

/* With size suffixes.  An int64 stands for the uint64 of the same bits. */
int opts_uint(struct opts *o, const char *key, uint64_t max, uint64_t *val,
              struct error **errp);

/* One of @words (NULL-terminated); *val becomes its index. */
int opts_enum(struct opts *o, const char *key, const char *const *words,
              unsigned *val, struct error **errp);

/* Any value; a new reference, NULL when absent. */
json_t *opts_take(struct opts *o, const char *key);

bool opts_has(const struct opts *o, const char *key);

/* @what is the subject of the text, such as "driver 'qcow2'".
 * -EINVAL, "@what does not take the option 'x'", when anything is left. */
int opts_end(struct opts *o, const char *what, struct error **errp);

/*
 * A node's options with a file name that stands for more spelled out:
 * "blkdebug:RULES:FILE" (RULES may be empty) without a driver, or for driver
 * blkdebug; the name of a remote export (core/remote-name.h), or for driver
 * nbd, which takes it as "uri", too.  Else @options themselves.  A new
 * reference.  Names from images come with another driver, so they are not
 * looked into.  So is "rbd:POOL/IMAGE..." (core/rbd-name.h), or the name for
 * driver rbd.
 */
int options_expand(const json_t *options, json_t **full, struct error **errp);

/* The options of a node for the file @path.  NULL: no memory, or not UTF-8. */
json_t *options_of_file(const char *path);

#endif /* NBDELTA_CORE_OPTS_H */
