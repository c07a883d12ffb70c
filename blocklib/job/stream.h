/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_STREAM_H
#define NBDELTA_JOB_STREAM_H

/* What stream.c (the work) and stream-start.c (the start) share. */
#include "copy/copy.h"
#include "core/node.h"
#include "job/job.h"
#include "nbdelta/chain.h"

/* A node of the chain that the job works on. */
struct stream_node {
    struct node *n;   /* blocked and referenced */
    struct blk *keep; /* nobody writes to it meanwhile; or NULL */
};

struct stream {
    struct job job;

    /* Set before the start. */
    struct graph *graph;
    enum job_on_error on_error;
    char *backing_file; /* for the image, or NULL */
    struct stream_node *nodes;
    size_t node_count;
    struct node *filter;     /* above top; NULL once it is removed */
    struct node *top;        /* the image that gets the data, or a filter */
    struct node *above_base; /* the lowest node that goes away, or top */
    bool top_read_only;      /* top was read-only before */
    struct copy *copy;
    struct blk *user;  /* of filter; NULL: released */
    uint64_t failures; /* flushes of top that failed, at the start */

    int ignored; /* of the job's thread: the first error that was ignored */
};

extern const struct job_driver stream_driver;

/* Undo all that arming did, in a control section or not.  Hold the monitor
 * lock. */
void stream_disarm(struct stream *s);

#endif /* NBDELTA_JOB_STREAM_H */
