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
struct throttle_group *throttle_group_ref(struct throttle_group *t);
void throttle_group_put(struct throttle_group *t);

/* The same as the first, but a group that is not there is made, without limits,
 * and goes with its last reference.  NULL: no memory. */
struct throttle_group *throttle_group_get_new(struct graph *g,
                                              const char *name);

const char *throttle_group_name(const struct throttle_group *t);

/* Read limits that are an object, without a group: the ones that are not there
 * are none.  -EINVAL: they are wrong. */
int throttle_read(const json_t *limits, struct throttle_config *c,
                  struct error **errp);

/* Control section: have these limits, which are valid, from now on; and tell
 * them, with the name as "group". */
void throttle_group_set(struct throttle_group *t,
                        const struct throttle_config *c);
json_t *throttle_group_info(const struct throttle_group *t);

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
