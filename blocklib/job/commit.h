/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_COMMIT_H
#define NBDELTA_JOB_COMMIT_H

/* Between commit.c, which does the work, and job/commit-start.c. */
#include "core/dirty.h"
#include "core/node.h"
#include "job/job.h"
#include "nbdelta/bytes.h"
#include "nbdelta/chain.h"
#include "nbdelta/thread.h"

#define COMMIT_CHUNK       (512 * KiB) /* that is copied at once, at most */
#define COMMIT_GRANULARITY (64 * KiB)  /* of the dirty bitmap */

struct commit {
    struct job job;

    /* Set before the start. */
    struct graph *graph;
    bool active;
    enum job_on_error on_error;
    char *backing_file;  /* for the image above top, or NULL */
    struct node **nodes; /* that are blocked and referenced */
    size_t node_count;
    struct node *filter; /* above top; NULL once it is removed */
    struct node *top;
    struct node *base;
    bool base_read_only;  /* it was */
    unsigned depth;       /* layers from top to base */
    uint64_t base_size;   /* at the start */
    struct blk *from;     /* filter; NULL once it is released */
    struct blk *to;       /* base */
    struct bitmap *dirty; /* of top, when active */

    /* The job's thread, and prepare after it. */
    unsigned char *buf;
    uint64_t at;          /* how far the first look at all is */
    bool looked;          /* active: todo was filled by it */
    struct hbitmap *todo; /* active: still to be copied; NULL: nothing */
    bool ready;
    uint64_t next_ns; /* when the speed allows the next chunk */

    mutex_t lock;
    cond_t wake;
    bool stop;     /* GUARDED_BY(lock) */
    bool complete; /* switch over to base */
    bool end;      /* end as it is */
    uint64_t speed;

    /* Atomic. */
    _Atomic uint64_t done;
    _Atomic uint64_t total;
};

extern const struct job_driver commit_driver;

/* What arming did, in a control section or not: undo all of it.  The monitor
 * lock is held. */
void commit_disarm(struct commit *c);

#endif /* NBDELTA_JOB_COMMIT_H */
