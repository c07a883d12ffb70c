/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_FETCH_H
#define NBDELTA_FETCH_H

/* Bitmaps that move to another host with their disk: this host fetches them. */
#include "nbdelta/job.h"
#include "nbdelta/types.h"

/* What block-dirty-bitmap-fetch takes. */
struct fetch_options {
    const char *job_id;
    struct node *node;        /* the disk here, which keeps bitmaps */
    struct node *source;      /* an export of the disk there, or above one */
    const char *const *names; /* of bitmaps there */
    size_t count;             /* of names */
    uint64_t granularity;     /* 0: as of a new bitmap */
};

/*
 * Start a job of type "fetch", which reads bitmaps from another NBD server, and
 * adds to the disk here persistent ones of these names, which record.
 *
 *     what is written here while the job runs  -+
 *     what the bitmap there has dirty           +-> the new bitmap
 *     what is written here later               -+
 *
 * So the bitmap is right where the disk here follows the one there: where a
 * mirror there, which is ready, has this disk as its target.  What changed
 * there before the job began is told by the bitmap there; what changes later
 * comes here as a write.
 *
 * All bitmaps are there, durable, or none: until then a crash leaves nothing of
 * them.  Errors of the job: those of far_bits_add (job/far-bits.h) and of
 * adding bitmaps.  The job stays, concluded, until it is dismissed.
 *
 * Returns when the job runs.  -EINVAL: @source is no NBD export, or there are
 * no names; -EEXIST, -ENOTSUP and others as of a new bitmap; -EBUSY: another
 * job works on @node.
 */
int job_fetch_bitmaps(struct jobs *j, const struct fetch_options *o,
                      struct error **errp) REQUIRES(j->lock);

#endif /* NBDELTA_FETCH_H */
