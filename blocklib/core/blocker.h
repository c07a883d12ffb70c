/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_BLOCKER_H
#define NBDELTA_CORE_BLOCKER_H

/*
 * Nodes that are not to be rearranged: a job works on them, or they are the
 * backing node of another one.  Control lock.
 */
#include "core/node.h"

/* A job of @type ("commit", lives forever) works on @n, and does no more. */
void node_block(struct node *n, const char *type);
void node_unblock(struct node *n);

/* -EBUSY with QEMU's text: a job works on @n. */
int node_check_jobs(const struct node *n, struct error **errp);

/* The same, or it is a backing node. */
int node_check_unblocked(const struct node *n, struct error **errp);

#endif /* NBDELTA_CORE_BLOCKER_H */
