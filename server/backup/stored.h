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
 * its daemon has ended, and the next backup of the disk removes it.
 *
 * Storage may be slow, or hang, so it is asked without the monitor lock (see
 * look.h).
 */
#include <stdbool.h>

#include "nbdelta/types.h"

struct action;
struct list;
struct pull;
struct pulls;
struct storage_snapshots;

/* --- Checkpoints of a node.  With any locks. --- */

/* Is one of the snapshots (NULL: none) the checkpoint?  @checkpoint may be
 * NULL, for any. */
bool stored_has(const struct storage_snapshots *list, const char *checkpoint);

/* -ENOENT; -EBUSY: somebody has protected it.  Without the monitor lock. */
int stored_remove(struct node *n, const char *checkpoint, struct error **errp);

/* --- A session's disks for which `stored` is set --- */

/* Before the instant, with the monitor lock: choose the snapshots' names, and
 * see that the new checkpoint is not there yet.  -EEXIST; -EBUSY: pulls_look()
 * has not seen the disk. */
int stored_prepare(struct pull *s, struct error **errp);

/* Add what takes part in the instant to @actions. */
int stored_add(struct pulls *p, struct pull *s, struct list *actions,
               struct error **errp);

/* --- The same, while the session is away: without the monitor lock --- */

/* After the instant: open the points. */
int stored_open(struct pull *s, struct error **errp);

/* The end.  keep: the snapshots become checkpoints, all or none.  back: the
 * reverse.  drop: they go, unless they were kept; when nobody reads them. */
int stored_keep(struct pull *s, struct error **errp);
void stored_back(struct pull *s);
void stored_drop(struct pull *s);

#endif /* NBDELTA_SERVER_BACKUP_STORED_H */
