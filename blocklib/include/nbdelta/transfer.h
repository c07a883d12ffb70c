/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TRANSFER_H
#define NBDELTA_TRANSFER_H

/*
 * Transfers: what a set has, from one disk to another
 * ===================================================
 *
 *      set:  transfer_add, transfer_add_dirty
 *                     |
 *      source --read--+--write--> target        workers, many at once
 *                     |
 *                    tap: what was moved, for hashing
 *
 * The copy engine does it (the one that jobs have), in units: the target's
 * clusters, and 64 KiB at least.  What the set has is all that is written, and
 * all of it is written, rounded out to units.  A unit that reads as zeroes in
 * the source becomes zeroes in the target without data, also where the target
 * has a backing file with something else.
 *
 * The life of a transfer: transfer_new, transfer_add..., transfer_run,
 * transfer_free.  Both nodes stay open until transfer_free.  The source must
 * not change meanwhile.
 *
 * Memory: a bit for each unit of the disk, and up to 2 MiB (or one cluster)
 * for each worker.
 */
#include "nbdelta/types.h"

struct transfer;

/*
 * Called by workers, many at once, in any order, after they have written
 * [@offset, @offset + @bytes): @buf is what is there now, NULL: zeroes.  All
 * that the set has is told once, cut at the end of the source; nothing else
 * is.  Parts of NULL may be large (1 GiB), others are not (2 MiB, or a
 * cluster).  Non-zero (-errno) ends the transfer.  It may take locks, and must
 * not call blocklib.
 */
typedef int transfer_tap(void *opaque, uint64_t offset, uint64_t bytes,
                         const void *buf);

struct transfer_options {
    unsigned workers;   /* requests in flight; 0: 16; at most 64 */
    uint64_t speed;     /* bytes a second, zeroes count, too; 0: no limit */
    uint64_t max_chunk; /* bytes that a worker moves at once; 0: 1 MiB */
    bool target_zero;   /* the target reads as zeroes as it is: zeroes are not
                           written.  Never where it has a backing file */
    bool compress;      /* in the target; by the workers, side by side */
    bool share;         /* where the file system can, have the target's file
                           share whole clusters of data with the source's
                           (reflinks).  These are not looked at for zeroes.  Has
                           no effect with `tap` or `compress` */
    transfer_tap *tap;  /* or NULL */
    void *opaque;
};

/*
 * Between @source and @target, nodes of @g.  The target has the size of the
 * source, or that up to the next multiple of 512 (the rest becomes zeroes).
 * The set is empty.  Blocks for a moment.
 *
 * -EINVAL: the sizes differ, or target_zero with a backing file; -ENOTSUP: the
 * target cannot compress; -EACCES: it is read-only; -EBUSY: somebody does not
 * allow it.
 */
int transfer_new(struct graph *g, struct node *source, struct node *target,
                 const struct transfer_options *o, struct transfer **tp,
                 struct error **errp);
void transfer_free(struct transfer *t); /* NULL is fine */

uint64_t transfer_unit(const struct transfer *t);

/* Put a range, which is inside of the source, into the set. */
void transfer_add(struct transfer *t, uint64_t offset, uint64_t bytes);

/*
 * The same for all that is dirty by @view, a node of driver nbd that was opened
 * with x-dirty-bitmap and has the size of the source.  Asks the server, so it
 * blocks; what it remembers meanwhile is one answer.  -EINVAL: it is no such
 * node, or has another size; -ECANCELED: transfer_stop; others from the server.
 */
int transfer_add_dirty(struct transfer *t, struct node *view,
                       struct error **errp);

/*
 * The set, before transfer_run: the next part of it in [@offset, the disk's
 * end), as long as it is without a gap, cut at the disk's end.  False: there
 * is none.
 */
bool transfer_next(const struct transfer *t, uint64_t offset, uint64_t *start,
                   uint64_t *bytes);

/* Which end has failed. */
enum transfer_end {
    TRANSFER_SOURCE,
    TRANSFER_TARGET,
    TRANSFER_TAP,
};

/*
 * Move all that the set has, and flush the target.  Blocks.  0: all of it is
 * in the target, durable.  -ECANCELED after transfer_stop.  Other errors say in
 * @errp which end failed, and *end (or NULL) does; then it may be called again
 * and does what is left.
 */
int transfer_run(struct transfer *t, enum transfer_end *end,
                 struct error **errp);

/*
 * Have transfer_run and transfer_add_dirty return soon, now and from now on:
 * after what is in hand, or, where a server does not answer, with its
 * connection cut off.  Any thread, any number of times, until transfer_free;
 * not in a signal handler.
 */
void transfer_stop(struct transfer *t);

/* Any thread, at any time; 0: no limit. */
void transfer_set_speed(struct transfer *t, uint64_t speed);

/* All in bytes.  Any thread, at any time. */
struct transfer_progress {
    uint64_t total;   /* in the set when it was filled */
    uint64_t done;    /* of these: written + zero */
    uint64_t read;    /* from the source */
    uint64_t written; /* as data (before compression) */
    uint64_t shared;  /* of these, what files share: not read either */
    uint64_t zero;    /* became zeroes */
};
void transfer_progress(const struct transfer *t, struct transfer_progress *p);

#endif /* NBDELTA_TRANSFER_H */
