/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_POINT_H
#define NBDELTA_POINT_H

/*
 * A point in time of a node in use, to be read while the node changes
 * ==================================================================
 *
 *      guests                         point_node(), to be exported
 *        |                                 |
 *      copy-before-write <-------- snapshot-access
 *        |           |
 *      node       scratch: memory, then an unlinked sparse file
 *
 * Before a guest's write changes a block for the first time, the block is
 * copied to the scratch.  Blocks that nobody may read (outside of `since`,
 * discarded, read once) are not copied, and blocks of zeroes take no room.
 *
 * The cost for the guest is bounded.  The scratch grows from memory into a
 * file.  When it is full or slow, a guest's write waits, at most max_delay_ms;
 * then the point is lost, and the write goes on.  All reads of a lost point
 * fail with -EIO, for ever; the caller still ends it.
 */
#include <jansson.h>

#include "nbdelta/storage-snapshot.h"
#include "nbdelta/types.h"

struct action;
struct point;

struct point_options {
    struct node *node;
    const char *since;   /* a bitmap of the node: only blocks that it has dirty
                            at that moment are kept and can be read.  NULL:
                            all blocks */
    bool whole;          /* all blocks, also with `since` */
    const char *context; /* a disabled bitmap of this name on point_node()
                            has what `since` had.  NULL: none */
    const char *scratch; /* directory for the file; NULL: $TMPDIR or /var/tmp */
    uint64_t quota;      /* most bytes of scratch, memory included; 0: no
                            limit */
    bool keep_free;      /* scratch leaves a tenth of its file system free, or
                            half of what is free at the begin if that is less */
    unsigned max_delay_ms;  /* 0: POINT_DELAY_MS */
    bool break_guest_write; /* rather than losing the point, fail the write */
    bool once;              /* clusters that one request has read wholly are
                               given up: not kept and not readable any more */
    /* The point is lost.  Called once, inside a request: it takes no lock
     * and waits for nothing.  NULL: nobody cares. */
    void (*lost)(void *opaque);
    void *opaque;
};

#define POINT_DELAY_MS 2000

/* The node whose point in time a point of @n keeps: @n, or the node below @n if
 * that is a filter of a job or of another point, which will go away.  Takes the
 * control lock. */
struct node *point_source(struct graph *g, struct node *n);

/*
 * The begin as an action (action.h): its act is the instant.  The caller keeps
 * the strings until the action has run.  *pp lives until point_end(), or is
 * freed with the action when that fails.  A node may have any number of points.
 * -ENOENT: no bitmap `since`, or no such directory; -EINVAL: the bitmap is
 * inconsistent; -EBUSY: a job works on the node, or it is being resized;
 * -EACCES and others: the file cannot be made.
 */
int point_action(struct graph *g, const struct point_options *o,
                 struct point **pp, struct action **ap, struct error **errp);

/*
 * A point that is a snapshot of the storage (storage-snapshot.h) instead: it
 * costs guests nothing, and needs no scratch.  Three steps:
 *
 *   point_stored_action   with the others: takes the bits of `bitmap`
 *   storage_take_action   the same: makes the snapshot
 *   point_stored_open     afterwards: opens it, and finds out what differs
 *
 * The snapshot is the caller's to name and to remove, after point_end().
 */
struct point_stored_options {
    struct node *node;
    const char *snapshot; /* its name */
    const char *since;    /* a snapshot: `context` has what differs from it */
    const char *bitmap;   /* or a bitmap: `context` has what it has; or NULL */
    const char *context;  /* as in point_options */
};

/* As point_action().  The strings are copied. */
int point_stored_action(struct graph *g, const struct point_stored_options *o,
                        struct point **pp, struct action **ap,
                        struct error **errp);

/* Blocks for as long as a diff takes; call it with no lock, neither the
 * monitor lock.  After an error there is nothing but point_end().  *how: see
 * storage_diff(), of `since`. */
int point_stored_open(struct point *p, enum storage_diff_how *how,
                      struct error **errp);

/* The name that the snapshot of @p has in @list, which was asked of its
 * storage; NULL: it is not there. */
const char *point_snapshot(const struct point *p,
                           const struct storage_snapshots *list);

/* If it is not there, the point is lost ("snapshot-removed"), and what was read
 * may be wrong. */
void point_check(struct point *p, const struct storage_snapshots *list);

/* The node by which the point is read; it has the size that the source had.
 * Discards give up blocks; all writes fail.  It lives until point_end(). */
struct node *point_node(const struct point *p);

/* NULL: it is whole; else why it was lost: "quota" (or keep_free), "no-space",
 * "timeout", "read-error" (of the node), "scratch-error", "snapshot-removed"
 * (see point_check()). */
const char *point_lost_why(const struct point *p);

/*
 * A new reference to {"scratch": {"bytes", "quota"?, "keep-free"?, "where":
 * "memory"|"file"|"storage"}, "copied", "pulled", "discarded", "left": bytes,
 * "lost": why?, "delay": {"boundaries", "bins", "max-ns", "total-ns"}}.
 * "delay" is a histogram of guests' writes that had to wait for a copy, in the
 * form of query-blockstats, in nanoseconds.
 */
json_t *point_query(const struct point *p);

/* Users of point_node() get -EIO from now on; point_end() follows.  Drains.
 * NULL is fine. */
void point_stop(struct point *p);

/* End @p and free it.  A job or an export that still uses point_node() gets
 * -EIO.  Drains, so it blocks.  Hold the monitor lock, if there is one.  NULL
 * is fine. */
void point_end(struct point *p);

/* Remove scratch files that a crash has left in @dir; NULL: the default
 * directory.  Failures are not reported. */
void point_clean(const char *dir);

#endif /* NBDELTA_POINT_H */
