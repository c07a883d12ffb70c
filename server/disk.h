/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_DISK_H
#define NBDELTA_SERVER_DISK_H

/*
 * Which node is what a user calls "vda"?
 * ======================================
 *
 * A disk is not a node: snapshots and commits take its clients from one node to
 * another, and the name goes with the clients.
 */
#include <jansson.h>
#include <stdbool.h>

#include "nbdelta/types.h"

struct daemon;

/* The node that a user calls @name: an image of the command line, a node's
 * name, or an export's.  The first is wherever its clients are now, below
 * filters that somebody has hung above it: a backup of it has what they write.
 * NULL and QEMU's text when there is none. */
struct node *disk_find_node(struct daemon *d, const char *name,
                            struct error **errp);

/* The same where the user means a device: the node that any export is
 * attached to now comes before a node of that name. */
struct node *disk_find_device(struct daemon *d, const char *name,
                              struct error **errp);

/* Let the device @name, or all exports of that name, be on @n from now on
 * (QEMU's property "drive").  -ENODEV: there is no such device; -EINVAL: @n has
 * another size than an export; otherwise as blk_move().  Hold the monitor lock.
 */
int disk_set_node(struct daemon *d, const char *name, struct node *n,
                  struct error **errp);

/* The id of a job of @device that was given @id, or none (NULL): then a disk's
 * is its name, and that of a node alone is "", which no job can have. */
const char *disk_job_id(struct daemon *d, const char *id, const char *device);

/* Nodes whose names are keys of @names (an object; NULL: all nodes), and the
 * nodes of exports, devices and jobs of such names; with @exports also of all
 * disks that clients can open.  Their names become keys of @nodes.  Hold the
 * monitor lock. */
void disk_find_nodes(struct daemon *d, const json_t *names, bool exports,
                     json_t *nodes);

/* Has the node a bitmap of this name? */
bool disk_has_bitmap(struct node *n, const char *name);

#endif /* NBDELTA_SERVER_DISK_H */
