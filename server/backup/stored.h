/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_BACKUP_STORED_H
#define NBDELTA_SERVER_BACKUP_STORED_H

/*
 * Checkpoints and points in time that the storage keeps
 * =====================================================
 *
 * Names of snapshots (nbdelta/storage-snapshot.h) that backup-begin makes:
 *
 *   nbdelta.backup.OWNER.INSTANT    a backup goes on: OWNER is the daemon (see
 *                                   storage_owner()), INSTANT the session's
 *   nbdelta.checkpoint.NAME         it ended with success: the checkpoint NAME
 *                                   (see storage_checkpoint_name())
 *
 * A rename turns the first into the second.  The first kind is of no use when
 * its daemon has ended, and the next backup of the disk removes it.  Hold the
 * monitor lock for all of these functions, except for stored_open().
 */
#include <stdbool.h>

#include "nbdelta/types.h"

struct action;
struct list;
struct pull;
struct pull_disk;
struct pulls;
struct storage_snapshots;

/* --- Checkpoints of a node --- */

/* The snapshots of @n.  None, and 0, if its storage makes none. */
int stored_list(struct node *n, struct storage_snapshots *list,
                struct error **errp);

/* 1: @n has the checkpoint as a snapshot; 0, or -errno. */
int stored_has(struct node *n, const char *checkpoint, struct error **errp);

/* -ENOENT; -EBUSY: somebody has protected it. */
int stored_remove(struct node *n, const char *checkpoint, struct error **errp);

/* --- A session's disks for which `stored` is set --- */

/* Before the instant: remove what dead daemons have left, choose the name, and
 * see that the new checkpoint is not there yet.  -EEXIST. */
int stored_prepare(struct pulls *p, struct pull *s, struct error **errp);

/* Add what takes part in the instant to @actions. */
int stored_add(struct pulls *p, struct pull *s, struct list *actions,
               struct error **errp);

/* After it: open the points.  Without the monitor lock. */
int stored_open(struct pull *s, struct error **errp);

/* The end.  check, before a success: ask whether the snapshots are there;
 * point_lost_why() tells.  keep: they become checkpoints, all or none.  back:
 * the reverse.  drop: they go, unless they were kept; when nobody reads
 * them. */
int stored_check(struct pull *s, struct error **errp);
int stored_keep(struct pull *s, struct error **errp);
void stored_back(struct pull *s);
void stored_drop(struct pull *s);

#endif /* NBDELTA_SERVER_BACKUP_STORED_H */
