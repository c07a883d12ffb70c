/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_ACTIVITY_H
#define NBDELTA_CORE_ACTIVITY_H

#include "core/node.h"

/* In a control section: graph_set_active() of a node.  Drains its tree. */
int node_set_active(struct node *n, bool active, struct error **errp);

/* Could @n be the child @role of a job's filter named @filter (NULL: it gets a
 * name of its own), which is active?  -EPERM. */
int node_check_filter(const struct node *n, const char *role,
                      const char *filter, struct error **errp);

#endif /* NBDELTA_CORE_ACTIVITY_H */
