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
 * discarded, read once), and zeroes, cost nothing.
 *
 * What that costs the guest is bounded.  The scratch grows from memory into
 * a file; when it is full or slow, a guest's write waits, at most
 * max_delay_ms; then the point is lost, and the write goes on.  A lost point
 * reads as -EIO, all of it and for ever; it still has to be ended.
 */
#include <jansson.h>

#include "nbdelta/types.h"

struct action;
struct point;

struct point_options {
    struct node *node;
    const char *since;   /* a bitmap of the node: only what it has dirty at
                            that moment is kept and can be read.  NULL: all */
    const char *context; /* a disabled bitmap of this name on point_node()
                            has what `since` had.  NULL: none */
    const char *scratch; /* directory for the file; NULL: $TMPDIR or /var/tmp */
    uint64_t quota;      /* most bytes of scratch, memory included; 0: none */
    unsigned max_delay_ms;  /* 0: POINT_DELAY_MS */
    bool break_guest_write; /* rather than losing the point, fail the write */
    bool once;              /* blocks that were read, whole clusters in one
                               request, are not kept and not readable any more */
    /* The point is lost.  Called once, inside a request: it takes no lock
     * and waits for nothing.  NULL: nobody cares. */
    void (*lost)(void *opaque);
    void *opaque;
};

#define POINT_DELAY_MS 2000

/* What a point of @n is a point of: filters that jobs and other points have put
 * there, and will take away, are left out. */
struct node *point_source(struct graph *g, struct node *n);

/*
 * The begin as an action (action.h): its act is the instant.  The strings
 * live until it has run.  *pp lives until the action fails (then it is gone
 * with it) or point_end().  Any number of points of one node may be there.
 * -ENOENT: no bitmap `since`, or no such directory; -EINVAL: the bitmap is
 * inconsistent; -EACCES...: the file cannot be made.
 */
int point_action(struct graph *g, const struct point_options *o,
                 struct point **pp, struct action **ap, struct error **errp);

/* What is to be read: of the size that the node had.  It may be written to
 * with discards, which give up blocks; all else fails. */
struct node *point_node(const struct point *p);

/* NULL: it is whole; else why it was lost: "quota", "no-space", "timeout",
 * "read-error" (of the node), "scratch-error". */
const char *point_lost_why(const struct point *p);

/*
 * A new reference to {"scratch": {"bytes", "quota"?, "where":
 * "memory"|"file"}, "copied", "pulled", "discarded", "left": bytes,
 * "lost": why?, "delay": {"boundaries", "bins", "max-ns", "total-ns"}}.
 * The last one is of guests' writes that had to wait for a copy, as a
 * histogram in the form of query-blockstats: nanoseconds.
 */
json_t *point_query(const struct point *p);

/* Give it up.  Who still uses point_node(), a job or an export, gets -EIO.
 * Control path, under the monitor lock where there is one.  NULL is fine. */
void point_end(struct point *p);

/* Remove scratch files that a crash has left in @dir; NULL: the default. */
void point_clean(const char *dir);

#endif /* NBDELTA_POINT_H */
