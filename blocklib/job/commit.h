/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_COMMIT_H
#define NBDELTA_JOB_COMMIT_H

/* What commit.c (the work) and commit-start.c (the start) share. */
#include "copy/copy.h"
#include "core/node.h"
#include "job/follow.h"
#include "job/job.h"
#include "nbdelta/bytes.h"
#include "nbdelta/chain.h"

/* The granularity of the dirty bitmap, and the copy's cluster. */
#define COMMIT_GRANULARITY (64 * KiB)

struct commit {
    struct job job;

    /* Set before the start. */
    struct graph *graph;
    bool active;
    bool empties;        /* top, which keeps its users (commit-empty.c) */
    char *backing_file;  /* for the image above top, or NULL */
    struct node **nodes; /* the nodes that are blocked and referenced */
    size_t node_count;
    struct node *filter; /* above top; NULL once it is removed */
    struct node *top;
    struct node *base;
    bool base_read_only;  /* base was read-only before */
    struct copy *copy;    /* from top to base */
    struct blk *from;     /* filter, for the permissions; NULL: released */
    struct blk *to;       /* base */
    uint64_t failures;    /* flushes of base that failed, at the start */
    struct follow follow; /* of top, when active */

    /* Atomic. */
    _Atomic bool looked; /* active: what there is to copy is known */
};

extern const struct job_driver commit_driver;

/* Fill in c->follow, except what it follows. */
void commit_follow(struct commit *c);

/* After follow_run: the end of a commit that empties top.  As run of a job. */
int commit_empty(struct commit *c);

/* Undo all that arming did, in a control section or not.  Hold the monitor
 * lock. */
void commit_disarm(struct commit *c);

#endif /* NBDELTA_JOB_COMMIT_H */
