/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_THROTTLE_GROUP_H
#define NBDELTA_CORE_THROTTLE_GROUP_H

/* Throttle groups from the inside. */
#include "core/node.h"
#include "core/throttle.h"
#include "nbdelta/throttle.h"

struct throttle_group;

/* Control section: a group with a reference for a node, or NULL. */
struct throttle_group *throttle_group_get(struct graph *g, const char *name);
void throttle_group_put(struct throttle_group *t);

/*
 * In a request of @n: wait until it may go, in the order of arrival in its
 * direction, and count it.  Does not wait while @n is draining.  -EAGAIN: with
 * REQ_NOWAIT, wherever there are limits; nothing is counted then.
 */
int throttle_group_wait(struct throttle_group *t, const struct node *n,
                        bool write, uint64_t bytes, unsigned flags);

/* Lift all limits of the group, for all its requests, for good. */
void throttle_group_release(struct throttle_group *t);

/* Let all requests that wait look again. */
void throttle_group_kick(struct throttle_group *t);

/* For tests: ask @now for the time from now on, and how many requests wait. */
void throttle_group_set_clock(struct throttle_group *t, uint64_t (*now)(void));
unsigned throttle_group_waiting(struct throttle_group *t);

/* Free all groups that are left, when the graph is freed. */
void throttle_groups_free(struct list *groups);

#endif /* NBDELTA_CORE_THROTTLE_GROUP_H */
