/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_FILTER_H
#define NBDELTA_JOB_FILTER_H

/*
 * Filters that stand for a job in the graph
 * =========================================
 *
 * The filters pass everything except a resize.  A job that works on a node puts
 * a filter above it.  So the job has a node name of its own, and, in the end,
 * all users of the node are in one place.
 */
#include "core/graph.h"

extern const struct driver driver_commit_top; /* into a backing node */
extern const struct driver driver_mirror_top; /* out of an active layer */
extern const struct driver driver_stream_top; /* into an image, from below */

/*
 * Insert a filter of @drv above @n.  The users of @n use the filter then.  The
 * caller has a reference.  @name NULL: a generated name.  In a control section
 * that has drained the tree.
 */
int jobfilter_insert(const struct driver *drv, struct node *n, const char *name,
                     struct node **filterp, struct error **errp);

/* Take the filter out again, and drop the caller's reference. */
void jobfilter_remove(struct node *filter);

#endif /* NBDELTA_JOB_FILTER_H */
