/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CHAIN_H
#define NBDELTA_CHAIN_H

/* Backing chains of open nodes. */
#include "nbdelta/types.h"

/*
 * Have the image of @image, a node in the chain of @top, name another
 * backing file; durable when it returns 0.  What is open stays as it is: the
 * caller knows that the new name leads to the same content.  @device is the
 * user's word for @top.  -EINVAL: it is not in that chain, or has no backing
 * node; -EBUSY: a job works on @top.
 */
int chain_change_backing(struct graph *g, struct node *top,
                         const char *device, struct node *image,
                         const char *name, struct error **errp);

#endif /* NBDELTA_CHAIN_H */
