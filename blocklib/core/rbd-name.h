/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_RBD_NAME_H
#define NBDELTA_CORE_RBD_NAME_H

/*
 * Names of images of Ceph, and the options of driver rbd that they stand for:
 *
 *   rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][:NAME=VALUE...]
 *
 * NAME is "id" (the user), "conf", or a value of Ceph's configuration.  A
 * backslash takes the meaning from the character behind it.
 */
#include <jansson.h>
#include <stdbool.h>

/* The option that has other values of the configuration: the text of a JSON
 * array of names and values.  It can be had by a name only. */
#define RBD_PAIRS "=keyvalue-pairs"

struct error;

/* Does @text begin like such a name? */
bool rbd_is_name(const char *text);

/* A new object of options.  -EINVAL. */
int rbd_name_parse(const char *text, json_t **options, struct error **errp);

/* The name for options of a node, or, where a name cannot say all of them,
 * "json:{...}".  It has no secret.  NULL: no memory. */
char *rbd_name_of(const json_t *options);

#endif /* NBDELTA_CORE_RBD_NAME_H */
