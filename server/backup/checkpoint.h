/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_BACKUP_CHECKPOINT_H
#define NBDELTA_SERVER_BACKUP_CHECKPOINT_H

/*
 * Checkpoints
 * ===========
 *
 * A checkpoint is an instant.  Each disk that was part of it has a persistent,
 * enabled bitmap of its name, which collects changes from that instant on; or,
 * where the storage makes snapshots, one of that instant (stored.h).  Nothing
 * else is stored: no register of checkpoints could disagree with the images.
 * Hold the monitor lock for all of these functions.
 */
#include <jansson.h>
#include <stdbool.h>

struct daemon;
struct error;
struct node;
struct storage_snapshots;

/* A CheckpointInfo for each checkpoint, as a new reference; NULL: no memory.
 * The oldest comes first, as far as their bits tell.  The monitor lock is given
 * up while storage is asked. */
json_t *checkpoints_query(struct daemon *d);

/* Remove the checkpoint @name from the nodes that the array @nodes names (NULL:
 * from all nodes that have it).  After an error it is removed from none of
 * them; only snapshots go one after the other, before that.  -ENOENT; -EBUSY:
 * also if somebody has protected a snapshot; -EPERM: an image is read-only.
 * The monitor lock is given up where storage makes snapshots. */
int checkpoint_delete(struct daemon *d, const char *name, const json_t *nodes,
                      struct error **errp);

/* --- @stored: the snapshots that storage has of @n (look.h), or NULL --- */

/* The names of @n's checkpoints as a text, the first few if there are many:
 * "'mon', 'tue'", "none".  Free it; NULL: no memory. */
char *checkpoint_names(struct node *n, const struct storage_snapshots *stored);

/* Has @n the checkpoint @name?  One that cannot be used counts, too. */
bool checkpoint_exists(struct node *n, const char *name,
                       const struct storage_snapshots *stored);

/* NULL if it can be told what has changed on @n since the checkpoint @name;
 * otherwise a word for the reason why not ("no-checkpoint").  *bitmap: it is a
 * bitmap, and no snapshot. */
const char *checkpoint_missing(struct daemon *d, struct node *n,
                               const char *name,
                               const struct storage_snapshots *stored,
                               bool *bitmap);

#endif /* NBDELTA_SERVER_BACKUP_CHECKPOINT_H */
