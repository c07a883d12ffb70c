/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_FILTER_H
#define NBDELTA_JOB_FILTER_H

/*
 * Filters that stand for a job in the graph
 * =========================================
 *
 * They pass everything but a resize.  A job that works on a node puts one
 * above it, so that it has a name of its own and that, in the end, all who
 * use the node are found in one place.
 */
#include "core/graph.h"

extern const struct driver driver_commit_top; /* into a backing node */
extern const struct driver driver_mirror_top; /* the same while it is written */

/*
 * Insert a filter of @drv above @n, whose users then use the filter.  The
 * caller has a reference.  @name NULL: generated.  In a control section that
 * has drained the tree.
 */
int jobfilter_insert(const struct driver *drv, struct node *n, const char *name,
                     struct node **filterp, struct error **errp);

/* Take it out again and drop the caller's reference. */
void jobfilter_remove(struct node *filter);

#endif /* NBDELTA_JOB_FILTER_H */
