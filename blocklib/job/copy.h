/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_COPY_H
#define NBDELTA_JOB_COPY_H

/*
 * The copy engine: a point in time of one node, moved to another
 * ==============================================================
 *
 * A copy has a set of clusters that are still to do.  They go from the FILE
 * child of a filter node to its TARGET child, by whoever comes first: workers
 * in the background, or a guest's write that is about to change them.
 *
 * The life of a copy: copy_new, copy_add..., then the filter is put in place
 * (drivers/cbw.h), copy_run as often as it takes, the filter is removed,
 * copy_free.
 */
#include "core/hbitmap.h"
#include "core/node.h"

struct copy;

struct copy_options {
    uint64_t size;        /* of the point in time */
    uint64_t cluster;     /* unit of copying, a power of two */
    bool compress;        /* the target's driver can */
    bool target_zero;     /* the target reads as zeroes where it is untouched */
    unsigned max_workers; /* 0: default */
    uint64_t max_chunk;   /* most that a worker moves at once, 0: default */
};

enum copy_side {
    COPY_READ,
    COPY_WRITE,
};

/* copy_run was told to stop; there may be more to do. */
#define COPY_STOPPED 1

struct copy *copy_new(const struct copy_options *o); /* NULL: no memory */
void copy_free(struct copy *c);                      /* NULL is fine */

/* Put a range, or what @bits has dirty, into the set.  Before anything is
 * copied; rounded out to clusters.  The size of @bits is that of the copy. */
void copy_add(struct copy *c, uint64_t offset, uint64_t bytes);
void copy_add_bits(struct copy *c, const struct hbitmap *bits);

/* For a target that leaves to the source what was not copied yet. */
const struct read_guard *copy_guard(const struct copy *c);

/* The filter that has both ends; NULL when it goes.  Drained. */
void copy_set_filter(struct copy *c, struct node *filter);

/*
 * Copy until the set is empty (0), something fails (-errno, *side says at
 * which end) or copy_stop (COPY_STOPPED).  When it returns no worker is at
 * work.  After a failure of a worker it may be called again and tries what
 * is left; after one of a guest's write it fails at once, always.
 */
int copy_run(struct copy *c, enum copy_side *side);

/*
 * Take out of the set what the FILE child's own layer does not have; what its
 * backing chain has stays behind.  0, -errno (reading its map), or
 * COPY_STOPPED: to be called again.
 */
int copy_skip_unallocated(struct copy *c);

/* Copy nothing but what guests are about to write, until copy_stop
 * (COPY_STOPPED) or until that fails (as in copy_run). */
int copy_wait(struct copy *c, enum copy_side *side);

/* Did a copy before a guest's write fail?  Then nothing can succeed. */
bool copy_is_broken(const struct copy *c);

/* Set the bits of what is still in the set.  Nothing is being copied. */
void copy_merge_left(const struct copy *c, struct hbitmap *bits);

/* Make copy_run return after the chunks that are in hand, until it is called
 * with false.  Any thread, does not wait. */
void copy_stop(struct copy *c, bool stop);

/* For what workers copy, in bytes a second; 0: as fast as it goes. */
void copy_set_speed(struct copy *c, uint64_t speed);

/* Give up: from now on guests' writes do not wait for it any more. */
void copy_break(struct copy *c);

/*
 * Called inside a request, before it changes the range: copies what is left
 * of it to do.  When that fails, it is the point in time that is given up,
 * never the request.  -EAGAIN, only with REQ_NOWAIT: it would have to wait.
 */
int copy_before_write(struct copy *c, uint64_t offset, uint64_t bytes,
                      unsigned flags);

/* Bytes copied, by whomever, and bytes in the set at the start. */
void copy_progress(const struct copy *c, uint64_t *done, uint64_t *total);

#endif /* NBDELTA_JOB_COPY_H */
