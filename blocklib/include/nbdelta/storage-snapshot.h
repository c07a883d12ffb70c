/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_STORAGE_SNAPSHOT_H
#define NBDELTA_STORAGE_SNAPSHOT_H

/*
 * Storage snapshots: ones that the storage below a node makes and keeps
 * =====================================================================
 *
 *      take, at one instant        diff from one to the other
 *         |                           |
 *         v                           v
 *      Ceph's image @ NAME  <------  a view: a node that reads it
 *
 * They cost guests nothing, and they stay when the process ends, however it
 * does.  So their names have to say whose they are; a name is UTF-8, and has no
 * '@' and no '/'.  Sizes and offsets are bytes.
 *
 * The functions under "Making and removing", "Looking" and "Reading" ask the
 * storage, and so does storage_owner_lives().  They block for 10 s at the most
 * (a diff: 60 s without progress), and fail then with -ETIMEDOUT: nothing is
 * known about a change.  Call them in no request and in no control section.
 * They may be called by any thread while the node is there.  -ENOTSUP: the
 * storage makes no snapshots.  -EIO: the storage has shut us out.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbdelta/types.h"

struct action;

/* Can snapshots be made of the storage of @n, which has the bytes of the node
 * and no others?  True for an rbd node that can be written to and is not
 * encrypted by librbd, and for a raw node that shows all of one. */
bool storage_has_snapshots(const struct node *n);

/* The node that makes them, @n or the one below; NULL: there is none.  What is
 * below can change, except in a control section, or with the monitor lock; ask
 * this one at other times. */
struct node *storage_below(const struct node *n);

/* Is there a node above that shows all of @n, as raw does?  Takes the control
 * lock. */
bool storage_is_shown(struct graph *g, const struct node *n);

/* --- Names of checkpoints --- */

/*
 * A snapshot that is the checkpoint NAME is called nbdelta.checkpoint.NAME,
 * whoever has made it, so that all find it.  In NAME, bytes that mean something
 * to Ceph's tools are %XX.
 */

/* The snapshot's name for the checkpoint; free it.  NULL: no memory. */
char *storage_checkpoint_name(const char *checkpoint);

/* The checkpoint that the snapshot of this name is; free it.  NULL: none, or no
 * memory. */
char *storage_checkpoint_of(const char *snapshot);

/* --- Making and removing --- */

struct storage_ref {
    struct node *node;
    const char *name;
};

/* Would a snapshot be made now, or would guests wait until the storage answers?
 * 0, or -errno.  The action below asks that, too; who has locks asks before. */
int storage_ready(struct node *n, struct error **errp);

/*
 * An action (action.h) whose act makes a snapshot of each node, at one instant:
 * no request of this process's users is under way.  Other clients may write
 * between two of the snapshots.  Undone, they are removed.  One that the
 * storage makes after the limit is removed then.  A copy of the names is taken.
 * -EEXIST.
 */
int storage_take_action(struct graph *g, const struct storage_ref *refs,
                        unsigned count, struct action **ap,
                        struct error **errp);

/* That action alone. */
int storage_take(struct graph *g, const struct storage_ref *refs,
                 unsigned count, struct error **errp);

/* -ENOENT; -EBUSY: it is protected, or has clones.  A view of it gets errors
 * afterwards. */
int storage_remove(struct node *n, const char *name, struct error **errp);

/* Views go on.  0 also if it is done already.  -ENOENT; -EEXIST. */
int storage_rename(struct node *n, const char *from, const char *to,
                   struct error **errp);

/* Has all ended, and been undone where it came too late, that has returned
 * -ETIMEDOUT for @n?  Before that the same names are not to be used again.
 * Does not wait. */
bool storage_settled(const struct node *n);

/* --- Looking --- */

struct storage_snapshot {
    uint64_t id;   /* ever larger */
    uint64_t size; /* of the disk then */
    char *name;
};

struct storage_snapshots {
    struct storage_snapshot *at;
    size_t count;
};

/* All snapshots of the image, also of other tools; the oldest first.  Call
 * storage_snapshots_free() after a failure, too. */
int storage_snapshots_get(struct node *n, struct storage_snapshots *list,
                          struct error **errp);
void storage_snapshots_free(struct storage_snapshots *list);
#define CLEANUP_STORAGE __attribute__((cleanup(storage_snapshots_free)))

/* The one of that name, or NULL. */
const struct storage_snapshot *storage_snapshot_find(
    const struct storage_snapshots *list, const char *name);

/* --- Whose they are --- */

#define STORAGE_OWNER_MAX 80

/* Letters, digits and '-' that say which process this is, and by which
 * connection it uses the storage.  For names of what shall not outlive it. */
void storage_owner(const struct node *n, char text[STORAGE_OWNER_MAX]);

/* Is the process there that @text is of?  1, 0 or -errno.  One of another
 * machine counts as there for half a minute after its death. */
int storage_owner_lives(struct node *n, const char *text, struct error **errp);

/* --- Reading --- */

/* Open a node that reads the snapshot.  When somebody removes that, reads may
 * give zeroes for a moment before they fail: what was read is true if the
 * snapshot's id is in the list still.  It belongs to the graph, as one of
 * graph_open() does, and has a generated name.  Not under the control lock.
 * Errors are those of graph_open(). */
int storage_view(struct graph *g, struct node *n, const char *name,
                 struct node **viewp, struct error **errp);

/* How a diff was made. */
enum storage_diff_how {
    STORAGE_DIFF_FAST,    /* object maps said which objects to look at */
    STORAGE_DIFF_ASKED,   /* each object was asked: there are no maps of use */
    STORAGE_DIFF_INVALID, /* the same, because a map is marked as invalid */
};

/* A range that differs.  They come in order, do not overlap, and lie inside the
 * node.  Not 0: the diff ends and returns that. */
typedef int storage_diff_fn(uint64_t offset, uint64_t bytes, void *opaque);

/*
 * Tell in which ranges @n, a view or a node that is in use, differs from what
 * the image was at the snapshot @from.  NULL: all ranges with data.  Bytes that
 * are past the end of the image at that time differ.  Ranges of data that are
 * the same again may be told, too.  *how may be NULL.  -ENOENT: no snapshot
 * @from.
 */
int storage_diff(struct node *n, const char *from, storage_diff_fn *fn,
                 void *opaque, enum storage_diff_how *how, struct error **errp);

#endif /* NBDELTA_STORAGE_SNAPSHOT_H */
