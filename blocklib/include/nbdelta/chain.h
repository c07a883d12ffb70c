/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CHAIN_H
#define NBDELTA_CHAIN_H

/* Backing chains of open nodes. */
#include "nbdelta/job.h"
#include "nbdelta/types.h"

/*
 * Have the image of @image, a node in the chain of @top, name another
 * backing file; that is durable when this returns 0.  Open nodes stay as they
 * are: the caller knows that the new name leads to the same content.  @device
 * is the user's name for @top.  Drains, so it blocks.  -EINVAL: @image is not
 * in that chain, or has no backing node; -EBUSY: a job works on @top.
 */
int chain_change_backing(struct graph *g, struct node *top, const char *device,
                         struct node *image, const char *name,
                         struct error **errp);

/*
 * The same for an image without regard to what it is opened with: the caller
 * knows what is read through the new name.  @name is written as it is; NULL:
 * the image has no backing file any more.  @fmt is its format.  Drains, so it
 * blocks; durable when this returns 0, and one or the other after a crash.
 * -ENOTSUP: the image's format has no backing files; -ENOSPC: its header has no
 * room for the name; -EINVAL: the image cannot have one; -EBUSY: a job works on
 * it.
 */
int image_set_backing(struct graph *g, struct node *image, const char *name,
                      const char *fmt, struct error **errp);

/* The path of the file that @image would mean by @name, malloc()ed, or NULL.
 * URIs and spelled-out options are no such names. */
char *image_backing_path(const struct node *image, const char *name);

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
    uint64_t speed; /* bytes a second, 0: unlimited */
    bool manual_finalize;
    bool manual_dismiss;
};

/*
 * Start a job of type "commit": it writes the content of the images from top
 * down to the one above base into base.  Base is writable for that time.
 *
 * When top is below the active layer: once base has all of it, durably, the
 * image above top gets base as its backing file, and the nodes between are
 * dropped.  When top is the active layer: the job becomes ready once base has
 * all of it, and then keeps up with new writes.  job_complete makes base the
 * active layer; job_cancel without force leaves everything as it is, with a
 * base that is up to date.
 *
 * Returns when the job runs; drains.  Error texts are QEMU's.  -EINVAL: top and
 * base are not in one chain; -EBUSY: another job works on one of the nodes, or
 * another user writes to base.
 */
int job_commit(struct jobs *j, const struct commit_options *o,
               struct error **errp) REQUIRES(j->lock);

/*
 * Write the content of @image into its backing node, and empty @image: what was
 * in it is read from below then.  The backing node has the disk as it was at
 * one instant during the call; what guests write after that stays in @image,
 * and their requests go on.  @device is a name for the log.  No client sees a
 * job.
 *
 * Returns when all of it is durable; gives up the monitor lock meanwhile. After
 * an error, or a crash, @image reads as before, and has been emptied in part or
 * not at all.  The clusters of an external data file keep their room.
 * -ENOTSUP: there is no backing node; -EPERM: @image is read-only; -EBUSY: a
 * job works on one of the two, or somebody else writes to the backing node;
 * -ECANCELED: the process ends; others come from the storage.
 */
int job_commit_and_empty(struct jobs *j, struct node *image, const char *device,
                         struct error **errp) REQUIRES(j->lock);

/* What block-stream takes.  Strings may be NULL.  At most one of base,
 * base_node and bottom is given. */
struct stream_options {
    const char *job_id;         /* NULL: @device */
    struct node *node;          /* the image that gets the data */
    const char *device;         /* the name that the user wrote for it */
    struct node *base_node;     /* becomes its backing node; or NULL */
    const char *base_node_name; /* as the user wrote it */
    const char *base;           /* the same by file name */
    struct node *bottom;        /* the lowest image to copy from; or NULL */
    const char *bottom_name;    /* as the user wrote it */
    const char *backing_file;   /* what the image shall name; NULL: the file of
                                   the base */
    const char *filter_node_name; /* NULL: generated */
    enum job_on_error on_error;
    uint64_t speed; /* bytes a second, 0: unlimited */
    bool manual_finalize;
    bool manual_dismiss;
};

/*
 * Start a job of type "stream": it copies up into @node what the images below
 * have, down to the one above the base, or to the last one.  Then, once all of
 * it is durable, the image names the base as its backing file, and the nodes
 * between are dropped.  Nobody who reads sees a change at any time.  A job that
 * ends in another way leaves the chain as it was.  With ON_ERROR_IGNORE the job
 * goes on behind what cannot be copied, and fails at the end.
 *
 * Returns when the job runs; drains.  Error texts are QEMU's.  -EINVAL: the
 * nodes are not in one chain; -EBUSY: another job works on one of the nodes, or
 * a user writes to one of the images that are copied from.
 */
int job_stream(struct jobs *j, const struct stream_options *o,
               struct error **errp) REQUIRES(j->lock);

#endif /* NBDELTA_CHAIN_H */
