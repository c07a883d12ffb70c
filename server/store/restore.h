/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_RESTORE_H
#define NBDELTA_SERVER_STORE_RESTORE_H

/*
 * A disk of a point, written to a target
 * ======================================
 *
 * Unit by unit (sums.h): each file that decides a part of the unit is read and
 * held against its hash, the newest first, until all of the unit is known.
 * Only what is needed is read.  Then what differs from the target is written.
 *
 * Memory: 3 MiB for each thread, the sums of all files of the disk (sums.h),
 * and what blocklib has for so many images.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "store/verify.h"

struct blk;
struct error;
struct graph;
struct store;

struct restore_options {
    bool partial;       /* what is damaged becomes zeroes, and the rest is
                           restored; else damage ends it */
    bool target_zero;   /* the target reads as zeroes: it is not read */
    unsigned threads;   /* 0: as many as there are processors, at most 16 */
    _Atomic bool *stop; /* set by another thread, to end it; or NULL */
    /* Called for each range that is damaged, in the order of offsets, when the
     * disk is done or given up.  Or NULL. */
    void (*on_damage)(const struct damage *d, void *opaque);
    void *opaque;
};

/* All in bytes; any thread may look while it runs. */
struct restore_result {
    _Atomic uint64_t done;    /* of the disk */
    _Atomic uint64_t written; /* differed from the target */
    _Atomic uint64_t damaged; /* became zeroes, or would have to */
};

/*
 * Restore @disk as it was at @point to @target, which may be longer (what is
 * behind stays).  Opens images in @g.  The points that are read are held
 * (store_hold) meanwhile.  Blocks.
 *
 * 0: the target has the disk, durable.  -EUCLEAN: damage was told; with
 * `partial` all the rest is in the target, durable.  -ENOENT: the point has no
 * such disk.  -EBUSY: a prune works on a point that is needed.  -EINVAL: the
 * target is too small.  -ECANCELED.  Other errors: of the target.  After all of
 * them but 0 the target may have any mixture.
 */
int restore_disk(struct store *s, struct graph *g, const char *point,
                 const char *disk, struct blk *target,
                 const struct restore_options *o, struct restore_result *result,
                 struct error **errp);

#endif /* NBDELTA_SERVER_STORE_RESTORE_H */
