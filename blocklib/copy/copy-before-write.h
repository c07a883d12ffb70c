/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_COPY_BEFORE_WRITE_H
#define NBDELTA_COPY_COPY_BEFORE_WRITE_H

/* Putting the filter of copy-before-write.c in place. */
#include "copy/copy.h"
#include "core/graph.h"

/*
 * Insert a filter above @source: all who use @source use the filter then,
 * and nobody else may write to @source.  @copy copies to @target from this
 * moment on.  In a control section; @source and @target are drained by it
 * and become one tree.  @name NULL: a generated node name.  On success the
 * caller owns *filterp until cbw_remove().
 */
int cbw_insert(struct graph *g, struct node *source, struct node *target,
               struct copy *copy, const char *name, struct node **filterp,
               struct error **errp);

/* Undo it, in a control section.  The two ends are separate trees again. */
void cbw_remove(struct node *filter);

#endif /* NBDELTA_COPY_COPY_BEFORE_WRITE_H */
