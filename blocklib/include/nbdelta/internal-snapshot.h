/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_INTERNAL_SNAPSHOT_H
#define NBDELTA_INTERNAL_SNAPSHOT_H

/*
 * Internal snapshots: an image keeps what its disk was at an instant
 * ==================================================================
 *
 * The image shares clusters between the disk and its snapshots, and copies a
 * shared cluster before it is written.
 *
 * A guest may write while a snapshot is made or removed.  It is held up for the
 * instant alone, in which a few blocks are written and flushed.
 */
#include <jansson.h>

#include "nbdelta/types.h"

struct action;
struct blk;

enum internal_verb {
    INTERNAL_MAKE,
    INTERNAL_REMOVE,
    INTERNAL_APPLY, /* the disk becomes what the snapshot is */
};

/* So many bytes a name may have. */
#define INTERNAL_NAME_MAX 255

struct internal_options {
    struct node *node;
    enum internal_verb verb;
    const char *id;   /* remove, apply: NULL: any id */
    const char *name; /* remove, apply: NULL: any name */
    bool only;        /* make: -EEXIST if the name is taken */
    json_t **info;    /* of remove: SnapshotInfo of it, a new reference; NULL:
                         it is not wanted */
};

/*
 * The change as an action (action.h).  The caller keeps the strings until the
 * action has run.  It is durable when the action has run.
 *
 * -ENOENT: there is no such snapshot.  -EOVERFLOW: a refcount would not fit;
 * nothing has changed.  -ENOTSUP: the node's format has no snapshots, or the
 * image has an external data file.  -EACCES: it is read-only.  -EBUSY: another
 * change goes on, or the snapshot is in use.  -EINVAL: the name.
 */
int snapshot_internal_action(const struct internal_options *o,
                             struct action **ap, struct error **errp);

/* --- core/snapshot-view.c --- */

/*
 * A view shows a snapshot of the disk to which @b is attached, read-only: the
 * disk itself, or what filters show of it.  @which is the snapshot's id, or
 * else its name; or "snapshot.id=ID,snapshot.name=NAME", or one of these, where
 * a comma in a value is doubled, as in QEMU.
 *
 * The snapshot cannot be removed while there is a view of it, and the disk can
 * be written to all the time.  *viewp lives on its own until blk_free().
 * Opening it reads the snapshot's L1 table, and holds back no request.  Views
 * of one snapshot share their memory.
 *
 * -ENOENT: there is no such snapshot; -EINVAL: @which; -ENOTSUP: this disk has
 * none; -EUCLEAN: it is damaged; -EDQUOT: views have too much memory.
 */
int blk_snapshot_view(struct graph *g, struct blk *b, const char *which,
                      const char *user, struct blk **viewp,
                      struct error **errp);

/* The size of the disk that the view would show, in bytes.  The same errors. */
int blk_snapshot_size(struct blk *b, const char *which, uint64_t *size,
                      struct error **errp);

#endif /* NBDELTA_INTERNAL_SNAPSHOT_H */
