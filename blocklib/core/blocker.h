/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_BLOCKER_H
#define NBDELTA_CORE_BLOCKER_H

/*
 * Nodes that must not be rearranged, because a job works on them, or because
 * they are the backing node of another one.  Control lock.
 */
#include "core/node.h"

/* A job of @type (such as "commit"; the text is never freed) begins, or ends,
 * to work on @n. */
void node_block(struct node *n, const char *type);
void node_unblock(struct node *n);

/* -EBUSY with QEMU's text: a job works on @n. */
int node_check_jobs(const struct node *n, struct error **errp);

/* The same for all nodes from @from down to the one above @below (NULL: to the
 * last one). */
int chain_check_jobs(const struct node *from, const struct node *below,
                     struct error **errp);

/* As node_check_jobs(), and -EBUSY if @n is a backing node. */
int node_check_unblocked(const struct node *n, struct error **errp);

#endif /* NBDELTA_CORE_BLOCKER_H */
