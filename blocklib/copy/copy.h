/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_COPY_H
#define NBDELTA_COPY_COPY_H

/*
 * The copy engine: what a set of clusters has, moved from one node to another
 * ===========================================================================
 *
 * A copy has two ends, the source and the target, and the set of clusters that
 * are still to do.  Whoever comes first moves a cluster: a worker in the
 * background, or a guest's write that is about to change it.
 *
 *      guest's write -> copy_before_write     copy_run, workers
 *                \                             /
 *                 todo:  source ------> target
 *                            \             /
 *               copy_view_*: what is in todo is still in the source, the rest
 *               in the target; so a reader of the point in time need not copy
 *
 * The set is all that tells the kinds of copies apart:
 *
 *   a point in time (backup, copy-before-write): filled once, before the ends
 *     are there; guests' writes copy what it still has
 *   images that are merged (commit): all that the layers above the target
 *     decide (`layers`, `merge`); no guest's write copies anything
 *   a disk that goes on changing (commit of the active layer): the same, and
 *     whenever it is empty it is filled with what a dirty bitmap has by then
 *     (copy_refill)
 *
 * The life of a copy: copy_new, copy_add..., copy_show (for a view),
 * copy_set_ends (copy/copy-before-write.h does it for its filter), copy_run as
 * often as it takes, copy_free.
 */
#include "core/hbitmap.h"
#include "core/node.h"

struct copy;

enum copy_side {
    COPY_READ,
    COPY_WRITE,
    COPY_TELL, /* whoever is told what was moved; of workers alone */
};

/* What a copy before a guest's write may cost the guest. */
struct copy_policy {
    bool break_write; /* when it fails, fail the write; else the point in time
                         is given up and the write goes on */
    bool wait_room;   /* a full target is waited for, as long as max_wait_ms:
                         who reads may discard */
    uint64_t max_wait_ms; /* then it has failed: -ETIMEDOUT; 0: no limit */
    bool once;            /* what a view has read is discarded */
    int lost_errno;       /* what a view reads of a point in time that is lost;
                             0: -EACCES */
    /* The point in time was given up for @why (-errno).  Called once, inside
     * a request: it waits for nothing.  NULL: nobody cares. */
    void (*lost)(void *opaque, int why, enum copy_side side);
    void *opaque;
};

struct copy_options {
    uint64_t size;        /* of the point in time */
    uint64_t cluster;     /* unit of copying, a power of two */
    uint64_t past;        /* bytes that the target has behind that, less than
                             `cluster`; they become zeroes */
    bool compress;        /* the target's driver can */
    bool target_zero;     /* the target reads as zeroes where it is untouched */
    unsigned max_workers; /* 0: default */
    uint64_t max_chunk;   /* most that a worker moves at once, 0: default */
    uint64_t burst;       /* bytes that go before the speed counts */

    /* For copies of the upper images of a chain: so many of them, from the
     * source on, have what is wanted (copy_skip_below).  From @zero_from on the
     * target has zeroes where these images, and any below, have nothing. */
    unsigned layers;
    uint64_t zero_from;
    bool merge; /* the target is the image below them: all that is written to
                   it is what they have, to the byte */
    struct copy_policy policy;

    bool find_zeroes; /* clusters of zeroes that were read as data are not
                         written as such; not with `merge` */
    /* Called by workers after they have moved this; once for all that leaves
     * the set, cut at the end of the source.  @buf NULL: zeroes.  A failure is
     * one of the copy.  Not with `merge`.  NULL: nobody cares. */
    int (*moved)(void *opaque, uint64_t offset, uint64_t bytes,
                 const void *buf);
    void *moved_opaque;
};

/* Guests' writes that had to wait for a copy, by how long: the last bucket has
 * those from 2^23 us (8 s) on, bucket i those below 2^i us. */
#define COPY_BUCKETS 25

struct copy_counters {
    _Atomic uint64_t waits[COPY_BUCKETS];
    _Atomic uint64_t wait_ns; /* sum */
    _Atomic uint64_t wait_max_ns;
    _Atomic uint64_t saved;     /* bytes that guests' writes had copied */
    _Atomic uint64_t pulled;    /* bytes read through a view */
    _Atomic uint64_t discarded; /* bytes that a view said it needs no more */
    _Atomic uint64_t read;      /* bytes of the source, to be moved */
    _Atomic uint64_t written;   /* bytes of the set, as data */
    _Atomic uint64_t zeroed;    /* the same, as zeroes */
};

/* copy_run was told to stop; there may be more to do. */
#define COPY_STOPPED 1

/* --- copy.c --- */

/* The unit of copying for a target: its cluster, 64 KiB at least, as QEMU. */
uint64_t copy_cluster_for(const struct node *target);

struct copy *copy_new(const struct copy_options *o); /* NULL: no memory */
void copy_free(struct copy *c);                      /* NULL is fine */

uint64_t copy_size(const struct copy *c);
uint64_t copy_cluster(const struct copy *c);

/* Put a range, or what @bits has dirty, into the set.  Before anything is
 * copied; rounded out to clusters.  The size of @bits is that of the copy. */
void copy_add(struct copy *c, uint64_t offset, uint64_t bytes);
void copy_add_bits(struct copy *c, const struct hbitmap *bits);

/* For a target that leaves to the source what was not copied yet. */
const struct read_guard *copy_guard(const struct copy *c);

/*
 * The two ends, which are in one tree, and @inside, a node of that tree by
 * which workers enter it: it stays until the ends are others.  NULL, all: the
 * copy has none any more, and nobody copies.  Drained.
 */
void copy_set_ends(struct copy *c, struct node *inside, struct node *source,
                   struct node *target);

/*
 * Copy until the set is empty (0), something fails (-errno, *side says at
 * which end) or copy_stop (COPY_STOPPED).  When it returns no worker is at
 * work.  After a failure of a worker it may be called again and tries what
 * is left; after one of a guest's write it fails at once, always.
 */
int copy_run(struct copy *c, enum copy_side *side);

/* The same in a control section that has drained the ends: in this thread,
 * at once, whatever the speed. */
int copy_run_drained(struct copy *c, enum copy_side *side);

/*
 * Take out of the set what the source's first `layers` images leave to those
 * below.  0, -errno (reading the map), or COPY_STOPPED: to be called again.
 */
int copy_skip_below(struct copy *c);

/* Is nothing left to do? */
bool copy_is_done(const struct copy *c);

/* The first part of the set in [@offset, its end) that has no gap, cut at the
 * disk's end; false: there is none. */
bool copy_next(const struct copy *c, uint64_t offset, uint64_t *start,
               uint64_t *bytes);

/*
 * The set is empty: fill it again.  It takes @bits, which have the copy's
 * cluster as their granularity and may have another size.  For copies without
 * guests' writes and views; drained, nothing is being copied.
 */
void copy_refill(struct copy *c, struct hbitmap *bits);

/* Copy nothing but what guests are about to write, until copy_stop
 * (COPY_STOPPED) or until that fails (as in copy_run). */
int copy_wait(struct copy *c, enum copy_side *side);

/* Did a copy before a guest's write fail?  Then nothing can succeed. */
bool copy_is_broken(const struct copy *c);

/* Set the bits of what is still in the set; bits that the image of @bm has, or
 * may have.  Drained, nothing is being copied. */
void copy_merge_left(const struct copy *c, struct bitmap *bm);

/* Workers are not wanted any more, whatever they wait for: call
 * graph_wake_waiting afterwards.  copy_given_up is the node_unwanted of other
 * threads that work for this copy. */
void copy_give_up(struct copy *c);
const _Atomic bool *copy_given_up(const struct copy *c);

/* Make copy_run return after the chunks that are in hand, until it is called
 * with false.  Any thread, does not wait. */
void copy_stop(struct copy *c, bool stop);

/* For what workers copy, in bytes a second; 0: as fast as it goes. */
void copy_set_speed(struct copy *c, uint64_t speed);

/* Bytes that are done, by whomever, and bytes that were put into the set less
 * what was skipped. */
void copy_progress(const struct copy *c, uint64_t *done, uint64_t *total);

/* Give up: from now on guests' writes do not wait for it any more. */
void copy_break(struct copy *c);

/* --- guest.c --- */

/*
 * Called inside a request, before it changes the range: copies what is left
 * of it to do.  -EAGAIN, only with REQ_NOWAIT: it would have to wait.
 * -ERESTART: as in driver.h.  Other errors only where the policy says so: the
 * write must not go on.
 */
int copy_before_write(struct copy *c, uint64_t offset, uint64_t bytes,
                      unsigned flags);

/* The tree is about to be drained: a guest's write that waits for room in the
 * target comes back. */
void copy_hurry(struct copy *c);

/* It is drained: wait for copies that guests have not waited for. */
void copy_settle(struct copy *c);

/*
 * --- view.c ---
 *
 * Reading the point in time, inside a request of the ends' tree.  Guests wait
 * for no reader: what was read of the source counts only if it is still to do
 * afterwards.
 */

/* What is in the set now is what views may read.  -ENOMEM. */
int copy_show(struct copy *c);

/* And may read what @bits has dirty, too, which is put into the set; before
 * anything is copied. */
void copy_show_more(struct copy *c, const struct hbitmap *bits);

/* The policy's lost_errno; -EACCES: not in the set, or discarded. */
int copy_view_preadv(struct copy *c, uint64_t offset, uint64_t bytes,
                     const struct iovec *iov, int cnt, unsigned flags);

/* As the map of a driver, for MAP_STATUS: MAP_ZERO or MAP_OPAQUE. */
int copy_view_map(struct copy *c, uint64_t offset, uint64_t bytes,
                  unsigned flags, struct mapping *m);

/* The clusters inside of the range are not needed any more: nobody copies
 * them, and the target's space is free. */
int copy_view_discard(struct copy *c, uint64_t offset, uint64_t bytes);

/*
 * What QEMU shows of a copy among bitmaps: what is to do; what views may
 * read, and where guests have written since.
 */
void copy_tell_todo(const struct copy *c, bitmap_fn *tell, void *opaque);
void copy_tell_view(const struct copy *c, bitmap_fn *tell, void *opaque);

const struct copy_counters *copy_counters(const struct copy *c);

/* Bytes that views may still read. */
uint64_t copy_visible(const struct copy *c);

#endif /* NBDELTA_COPY_COPY_H */
