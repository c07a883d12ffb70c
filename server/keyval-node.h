/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_KEYVAL_NODE_H
#define NBDELTA_SERVER_KEYVAL_NODE_H

/* For keyval.c: texts become other JSON, alone or in the options of a node. */
#include <jansson.h>

struct error;

/* *v is a new reference; @name is for the error. */
int keyval_to_bool(const char *text, const char *name, json_t **v,
                   struct error **errp);
int keyval_to_size(const char *text, const char *name, json_t **v,
                   struct error **errp);

/* Turn texts in @options, which describe a node, into what the tables of its
 * driver want.  What these do not have stays as it is. */
int keyval_convert_node(json_t *options, struct error **errp);

#endif /* NBDELTA_SERVER_KEYVAL_NODE_H */
