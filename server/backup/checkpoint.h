/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_BACKUP_CHECKPOINT_H
#define NBDELTA_SERVER_BACKUP_CHECKPOINT_H

/*
 * Checkpoints
 * ===========
 *
 * A checkpoint is a persistent, enabled bitmap that collects from its instant
 * on, on each disk that was part of it, and nothing else is stored: there is
 * no register of them that could disagree with the images.  All here under the
 * monitor lock.
 */
#include <jansson.h>
#include <stdbool.h>

struct daemon;
struct error;
struct node;

/* CheckpointInfo of all, the oldest first as far as their bits tell; a new
 * reference, NULL: no memory. */
json_t *checkpoints_query(struct daemon *d);

/* Remove the checkpoint @name from the nodes of @nodes (an array of names;
 * NULL: from all that have it), from all of them or, failing, from none.
 * -ENOENT; -EBUSY; -EPERM: an image is read-only. */
int checkpoint_delete(struct daemon *d, const char *name, const json_t *nodes,
                      struct error **errp);

/* Those of @n in words, a few of them if there are many: "'mon', 'tue'",
 * "none". To be freed; NULL: no memory. */
char *checkpoint_names(struct node *n);

/* Has @n the checkpoint @name, be it one that can be used or not? */
bool checkpoint_exists(struct node *n, const char *name);

/* Why what has changed on @n since the checkpoint @name cannot be told, as a
 * code ("no-checkpoint"); NULL: it can. */
const char *checkpoint_missing(struct daemon *d, struct node *n,
                               const char *name);

#endif /* NBDELTA_SERVER_BACKUP_CHECKPOINT_H */
