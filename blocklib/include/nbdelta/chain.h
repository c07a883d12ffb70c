/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CHAIN_H
#define NBDELTA_CHAIN_H

/* Backing chains of open nodes. */
#include "nbdelta/job.h"
#include "nbdelta/types.h"

/*
 * Have the image of @image, a node in the chain of @top, name another
 * backing file; durable when it returns 0.  What is open stays as it is: the
 * caller knows that the new name leads to the same content.  @device is the
 * user's word for @top.  -EINVAL: it is not in that chain, or has no backing
 * node; -EBUSY: a job works on @top.
 */
int chain_change_backing(struct graph *g, struct node *top,
                         const char *device, struct node *image,
                         const char *name, struct error **errp);

/* What block-commit takes.  Strings may be NULL. */
struct commit_options {
    const char *job_id;       /* NULL: @device */
    struct node *root;        /* the active layer */
    const char *device;       /* the name that the user wrote for it */
    struct node *top_node;    /* or NULL */
    const char *top;          /* by file name; both NULL: @root */
    struct node *base_node;   /* or NULL */
    const char *base;         /* by file name; both NULL: the last backing */
    const char *backing_file; /* what the image above top shall name; NULL:
                                 the file of base */
    const char *filter_node_name; /* NULL: generated */
    enum job_on_error on_error;
    uint64_t speed;           /* bytes a second, 0: unlimited */
    bool manual_finalize;
    bool manual_dismiss;
};

/*
 * Start a job of type "commit": what the images from top down to above base
 * hold is written into base, which is writable for that time.
 *
 * Below the active layer: when all of it is in base, and durable, the image
 * above top gets base as its backing file, and those between are dropped.
 * The active layer: the job becomes ready once base has it all, and keeps up
 * with what is written; job_complete then makes base the active layer,
 * job_cancel without force leaves everything as it is, but base up to date.
 *
 * All texts are QEMU's.  -EINVAL: not a chain; -EBUSY: another job works on
 * one of the nodes, or somebody else writes to base.
 */
int job_commit(struct jobs *j, const struct commit_options *o,
               struct error **errp) REQUIRES(j->lock);

#endif /* NBDELTA_CHAIN_H */
