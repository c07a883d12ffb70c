/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_OPEN_H
#define NBDELTA_CORE_OPEN_H

#include "nbdelta/types.h"

struct node;
struct node_flags;
struct opts;

/* The driver for the format that the bytes of @file, in a request, have.
 * -ENOTSUP: there is none. */
int node_probe(struct node *file, const char **driver, struct error **errp);

/* Take the flags among the keys that every node takes; *f has the inherited
 * ones. */
int node_take_flags(struct opts *o, struct node_flags *f, struct error **errp);

#endif /* NBDELTA_CORE_OPEN_H */
