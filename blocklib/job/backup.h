/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_BACKUP_H
#define NBDELTA_JOB_BACKUP_H

/* What backup.c (the work) and backup-start.c (the start) share. */
#include "copy/copy.h"
#include "core/dirty.h"
#include "job/job.h"

struct backup {
    struct job job;
    struct graph *graph;
    struct copy *copy;
    enum backup_sync sync;
    enum bitmap_mode bitmap_mode;
    enum job_on_error on_error[2]; /* by enum copy_side */
    bool skipped; /* sync=top: the set has been looked through */
    bool durable; /* what was copied is durable in the target */

    /* References; control lock. */
    struct node *source;
    struct node *target;   /* NULL once it is closed */
    struct node *filter;   /* NULL before and after it is in place */
    struct bitmap *bitmap; /* frozen by us, or NULL */
    bool target_zero;      /* untouched parts of the target are zeroes */
};

extern const struct job_driver backup_driver;

void backup_close_target(struct backup *b);

#endif /* NBDELTA_JOB_BACKUP_H */
