/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_MIRROR_H
#define NBDELTA_MIRROR_H

/* Mirrors: jobs that make a second disk of the same content, and keep it so. */
#include "nbdelta/job.h"
#include "nbdelta/types.h"

/* What blockdev-mirror and drive-mirror take.  Strings may be NULL where "or"
 * says so. */
struct mirror_options {
    const char *job_id; /* or NULL: the name of @device */
    struct node *source;
    const char *device;    /* the name that the user wrote for the source */
    struct node *target;   /* an open node, or NULL to open target_file */
    const char *replaces;  /* the node whose users get the target, the source or
                              below filters at its top; or NULL: the source */
    enum backup_sync sync; /* not SYNC_BITMAP; SYNC_NONE: what guests write
                              from now on */
    const char *target_file; /* as in backup_options */
    const char *format;      /* of target_file, or NULL */
    const char *node_name;   /* of the node of target_file, or NULL */
    bool existing;
    bool keep_space;       /* zeroes need not free space in the target */
    bool write_blocking;   /* guests' writes go to both */
    bool bitmaps;          /* the disk's bitmaps come along: see below */
    uint64_t granularity;  /* of what is copied again: a power of two from 512
                              to 64 MiB; 0: the target's cluster size, at least
                              4 KiB and at most 64 KiB, or 64 KiB */
    uint64_t buffer_bytes; /* what may be in flight; 0: 16 MiB */
    enum job_on_error on_source_error;
    enum job_on_error on_target_error;
    const char *filter_node_name; /* or NULL: generated */
    uint64_t speed;               /* bytes a second, 0: unlimited */
    bool manual_finalize;
    bool manual_dismiss;
};

/*
 * With `bitmaps`, users are led to a target that has the bitmaps of the disk,
 * each with all bits that it has here, durably; or the job does not end so.
 * The bitmaps here stay as they are, and so do those that nobody can trust.
 *
 * A target that is an image gets them from the job at that instant, after the
 * data are durable.  A target that is an NBD export has to have the persistent
 * ones before job_complete (nbdelta/fetch.h): the job asks its server.  If they
 * are not there, or lack changes, on_target_error says whether the job fails,
 * or waits to be resumed, and then asks again.
 */

/*
 * Start a job of type "mirror".  It copies the source to the target, while
 * writes to the source go on, and becomes ready when the two are equal but for
 * what was written just now.  Then it keeps up with new writes.  job_complete
 * leads all users of the source to the target, at an instant at which the two
 * are equal and the target is durable; job_cancel without force ends the job at
 * such an instant, and leaves users where they are.  Until then the target's
 * content is undefined.
 *
 * In the background mode no write of the source's users waits for the target.
 * Write-blocking, each ends when it is in both; where the target fails, the
 * write has its success, and the job does what on_target_error says.
 *
 * Returns when the job runs; drains, and makes or opens the target.  Error
 * texts are QEMU's.  Errors of sizes are the job's.  -EBUSY: another job works
 * on one of the nodes, or the target has other users; -EINVAL: the two are not
 * two disks; with `bitmaps`, -EEXIST: the target has one of that name; -ENOTSUP
 * and others: it cannot store them.
 */
int job_mirror(struct jobs *j, const struct mirror_options *o,
               struct error **errp) REQUIRES(j->lock);

/* block-job-change: have a mirror become write-blocking (@write_blocking), or
 * stay what it is.  Drains.  -ENOENT: there is no such job; -EPERM: not in this
 * state; -ENOTSUP: it is no mirror, or it would go back; -EBUSY: somebody
 * writes to the source past the job. */
int job_change_mirror(struct jobs *j, const char *id, bool write_blocking,
                      struct error **errp) REQUIRES(j->lock);

#endif /* NBDELTA_MIRROR_H */
