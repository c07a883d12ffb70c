/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_THROTTLE_H
#define NBDELTA_THROTTLE_H

/*
 * Throttle groups: limits that "throttle" nodes share
 * ===================================================
 *
 * A group is known to the nodes of its graph by its name.  Limits are an
 * object with the keys of QEMU's ThrottleLimits: "iops-total", "iops-read",
 * "iops-write", "bps-total", "bps-read", "bps-write" (per second, 0: none);
 * these with "-max" added, the rate of bursts; with "-max-length", the seconds
 * that bursts last; and "iops-size".  Waiting requests follow a change at once.
 * No function waits for I/O.
 */
#include <jansson.h>

#include "nbdelta/types.h"

/*
 * Make a group of the properties of an object "throttle-group": "id",
 * "limits", or single limits with "x-" before their keys; "qom-type" is
 * accepted.  -EEXIST: the name is taken.  -EINVAL: bad properties.
 */
int throttle_group_create(struct graph *g, const json_t *properties,
                          struct error **errp);

/* Change limits; limits that @limits does not name stay.  -ENOENT: there is no
 * such group.  -EINVAL: bad limits. */
int throttle_group_change(struct graph *g, const char *name,
                          const json_t *limits, struct error **errp);

/* -EBUSY: a node uses the group.  -ENOENT: there is no such group. */
int throttle_group_delete(struct graph *g, const char *name,
                          struct error **errp);

/* All limits of a group, a new reference; NULL: there is no such group. */
json_t *throttle_group_query(struct graph *g, const char *name);

#endif /* NBDELTA_THROTTLE_H */
