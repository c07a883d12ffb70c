/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_TARGET_H
#define NBDELTA_JOB_TARGET_H

/* The file that a job writes to, of drive-backup and drive-mirror. */
#include "core/node.h"
#include "nbdelta/job.h"

/* Strings may be NULL where "or" says so. */
struct target_options {
    struct node *source;
    enum backup_sync sync; /* decides which backing file a new image names */
    const char *file;
    const char *format;    /* or NULL: that of the source; of an existing file
                              it is probed */
    bool existing;         /* mode=existing: do not create the file */
    bool alone;            /* do not open the backing file that an existing
                              file names */
    const char *node_name; /* or NULL: generated */
};

/*
 * Make the file, unless it is there, and open it.  The caller has a reference.
 * *zero: it has zeroes of its own where nothing is written to it.  Takes the
 * control lock, and does I/O.  -EEXIST: the name of the node is taken.
 */
int job_target_open(struct graph *g, const struct target_options *o,
                    struct node **nodep, bool *zero, struct error **errp);

#endif /* NBDELTA_JOB_TARGET_H */
