/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_COPY_BEFORE_WRITE_H
#define NBDELTA_COPY_COPY_BEFORE_WRITE_H

/* How the filter of copy-before-write.c comes into place, and goes. */
#include "copy/copy.h"
#include "core/graph.h"

/*
 * Insert a filter above @source.  All users of @source use the filter then, and
 * nobody else may write to @source.  @copy copies to @target from this moment
 * on.  In a control section; it drains @source and @target, which become one
 * tree.  @name NULL: a generated node name.  On success the caller owns
 * *filterp until cbw_remove().
 */
int cbw_insert(struct graph *g, struct node *source, struct node *target,
               struct copy *copy, const char *name, struct node **filterp,
               struct error **errp);

/* Undo cbw_insert(), in a control section.  The two ends are separate trees
 * again. */
void cbw_remove(struct node *filter);

#endif /* NBDELTA_COPY_COPY_BEFORE_WRITE_H */
