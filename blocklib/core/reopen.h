/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_REOPEN_H
#define NBDELTA_CORE_REOPEN_H

/*
 * Changing the flags of open nodes: read-only, cache modes, discard
 * ================================================================
 *
 * A set of nodes changes together or not at all.  File children that their
 * parents have opened follow them.  All of it happens in a control section that
 * has drained the trees of the nodes.
 */
#include "core/node.h"

struct reopen {
    struct list steps;
};

void reopen_init(struct reopen *set);

/* Let @n have the flags @to.  Steps that are added first are done first: add a
 * node that becomes writable after its file child, any other node before it.
 * -ENOMEM. */
int reopen_add_one(struct reopen *set, struct node *n,
                   const struct node_flags *to, struct error **errp);

/*
 * Do it, so that it can be taken back.  -EACCES, -EBUSY: a user writes to a
 * node that shall become read-only, or objects to a new writer.  -EAGAIN:
 * another process has locked the image.  Drivers give other errors.  On failure
 * everything is as it was.  reopen_finish has to follow either way.
 */
int reopen_apply(struct reopen *set, struct error **errp);

/* Make it stay, or take it back; and empty the set. */
void reopen_finish(struct reopen *set, bool stay);

/* Reopen one node, whose tree is drained, with another read-only flag. */
int node_set_read_only(struct node *n, bool read_only, struct error **errp);

/* For blockdev-reopen: have "driver" and other members of @list, and of
 * children in it, the right types?  -EINVAL. */
int reopen_check_types(const struct driver_table *t, const json_t *list,
                       struct error **errp);

#endif /* NBDELTA_CORE_REOPEN_H */
