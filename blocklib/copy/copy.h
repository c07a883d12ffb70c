/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_COPY_H
#define NBDELTA_COPY_COPY_H

/*
 * The copy engine: it moves a set of clusters from one node to another
 * ====================================================================
 *
 * A copy has two ends, the source and the target, and a set of clusters that
 * are still to do.  A worker in the background moves a cluster, or a guest's
 * write that is about to change the cluster, if the write comes first.
 *
 *      guest's write -> copy_before_write     copy_run, workers
 *                \                             /
 *                 todo:  source ------> target
 *                            \             /
 *               copy_view_*: a cluster in todo is still in the source, any
 *               other in the target; so a reader of the point in time need not
 *               copy
 *
 * The kinds of copies differ only in the set:
 *
 *   a point in time (backup, copy-before-write): the set is filled once, before
 *     the ends are there; guests' writes copy what the set still has
 *   images that are merged (commit): the set has all that the layers above the
 *     target decide (`layers`, `merge`); no guest's write copies anything
 *   images that are copied up (stream): the set is the whole disk, and a part
 * is done where the top image has it, or is given it (`up`); what a guest
 *     writes meanwhile stays (core/copy-up.h)
 *   a disk that goes on changing (commit of the active layer): the same, and
 *     whenever the set is empty it is filled with what a dirty bitmap has by
 *     then (copy_refill)
 *
 * The life of a copy: copy_new, copy_add..., copy_show (for a view),
 * copy_set_ends (copy/copy-before-write.h does it for its filter), copy_run as
 * often as it takes, copy_free.
 */
#include "core/copy-up.h"
#include "core/hbitmap.h"
#include "core/node.h"

struct copy;

enum copy_side {
    COPY_READ,
    COPY_WRITE,
    COPY_TELL, /* the callback `moved`; of workers alone */
};

/* What a copy before a guest's write may cost the guest. */
struct copy_policy {
    bool break_write; /* when the copy fails, fail the write; else the point in
                         time is given up and the write goes on */
    bool wait_room;   /* wait for room in a full target, at most max_wait_ms: a
                         reader may discard */
    uint64_t max_wait_ms; /* then the copy has failed: -ETIMEDOUT; 0: no
                             limit */
    bool once;            /* what a view has read is discarded */
    int lost_errno;       /* the error of a view whose point in time is lost;
                             0: -EACCES */
    /* Called once, when the point in time was given up for @why (-errno).
     * Inside a request, so it must not wait.  May be NULL. */
    void (*lost)(void *opaque, int why, enum copy_side side);
    void *opaque;
};

struct copy_options {
    uint64_t size;        /* of the point in time */
    uint64_t cluster;     /* unit of copying, a power of two */
    uint64_t past;        /* bytes that the target has behind `size`, less than
                             `cluster`; they become zeroes */
    bool compress;        /* the target's driver can do it */
    bool target_zero;     /* the target reads as zeroes where it is untouched */
    unsigned max_workers; /* 0: default */
    uint64_t max_chunk;   /* most that a worker moves at once, 0: default */
    uint64_t burst;       /* bytes that are moved before the speed counts */
    uint64_t step;        /* least that is moved at once with a speed; 0: what
                             a tenth of a second allows */

    /* For copies of the upper images of a chain: only so many images, from the
     * source on, have what is wanted (copy_skip_below).  From @zero_from on the
     * target has zeroes where these images, and all images below them, have
     * nothing. */
    unsigned layers;
    uint64_t zero_from;
    bool merge; /* the target is the image below them: nothing is written to it
                   except what they have, to the byte */
    /* With `merge`, for a target that is the source: what the images below it
     * have is copied up (core/copy-up.h), as far down as this says.  NULL: the
     * target is another node.  `layers` and `zero_from` do not count. */
    const struct copy_up_scope *up;
    struct copy_policy policy;

    bool quick; /* guests' threads copy what needs no waiting: data go from the
                   source to the target as they are, whole clusters at a time.
                   Not with `compress`, `layers`, `merge`, `moved` and
                   `discard_source` */
    bool share; /* have files share whole clusters of data where the file system
                   can, and read nothing.  Not with `moved` and `compress` */
    bool uncached; /* the target is not read soon: what is written need not stay
                      in the page cache */
    bool changing; /* the source goes on changing without copy_before_write:
                      the caller notes what changes, and fills the set with
                      that (copy_refill) */
    bool keep_space; /* zeroes need not free space in the target */
    bool whole;      /* parts of clusters cannot be written to the target: it
                        has the rest of them only when they were copied */
    bool discard_source; /* what was copied is not needed in the source any
                            more; where its node takes discards */
    bool find_zeroes; /* clusters of zeroes that were read as data are written
                         as zeroes; with `merge` only if `up` */
    /* Workers call it after they have moved a range: once for each range that
     * leaves the set, cut at the end of the source.  @buf NULL: zeroes.  When
     * it fails, the copy fails (COPY_TELL).  Not with `merge`.  May be NULL. */
    int (*moved)(void *opaque, uint64_t offset, uint64_t bytes,
                 const void *buf);
    void *moved_opaque;
};

/* Guests' writes that had to wait for a copy, counted by the time they waited:
 * bucket i has waits below 2^i us, the last bucket has waits from 2^23 us (8 s)
 * on. */
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
    _Atomic uint64_t shared;    /* of these, what was neither read nor
                                   written */
    _Atomic uint64_t zeroed;    /* bytes of the set, as zeroes */
};

/* copy_stop has ended copy_run; there may be more to do. */
#define COPY_STOPPED 1

/* --- copy.c, fill.c --- */

/* The unit of copying for a target: its cluster size, at least 64 KiB, as in
 * QEMU. */
uint64_t copy_cluster_for(const struct node *target);
/* The same, and at least @least (0: no matter); -EINVAL: that is no power of
 * two. */
int copy_choose_cluster(const struct node *target, uint64_t least,
                        uint64_t *cluster, struct error **errp);

struct copy *copy_new(const struct copy_options *o); /* NULL: no memory */
void copy_free(struct copy *c);                      /* NULL is fine */

uint64_t copy_size(const struct copy *c);
uint64_t copy_cluster(const struct copy *c);
bool copy_discards_source(const struct copy *c);

/* Put a range, or what @bits has dirty, into the set, rounded out to clusters.
 * Before anything is copied.  @bits has the size of the copy. */
void copy_add(struct copy *c, uint64_t offset, uint64_t bytes);
void copy_add_bits(struct copy *c, const struct hbitmap *bits);

/* The same for a set that is empty: it takes over @bits.  Costs nothing where
 * their granules are not smaller than clusters.  There may be views already. */
void copy_take_bits(struct copy *c, struct hbitmap *bits);

/* The guard for a target that leaves to the source what was not copied yet. */
const struct read_guard *copy_guard(const struct copy *c);

/*
 * Set the two ends, which are in one tree, and @inside, a node of that tree by
 * which workers enter it.  @inside stays until the ends are set again.  All
 * NULL: the copy has no ends any more, and nobody copies.  Drain the tree
 * first.
 */
void copy_set_ends(struct copy *c, struct node *inside, struct node *source,
                   struct node *target);

/*
 * Copy until the set is empty (0), something fails (-errno, *side says at which
 * end) or copy_stop (COPY_STOPPED).  When it returns, no worker is at work.
 * After a failure of a worker it may be called again, and tries what is left.
 * After a failed copy before a guest's write, each call fails at once.
 */
int copy_run(struct copy *c, enum copy_side *side);

/* The same in a control section that has drained the ends.  This thread copies
 * alone, and no speed limit counts. */
int copy_run_drained(struct copy *c, enum copy_side *side);

/* After a failure of copy_run: take the part on which it has failed out of the
 * set, as if it were done.  False: no part is to blame. */
bool copy_skip_failed(struct copy *c);

/*
 * Take out of the set what the source's first `layers` images leave to the
 * images below.  0; -errno of reading the map; COPY_STOPPED: call it again.
 */
int copy_skip_below(struct copy *c);

/*
 * Look whether the target reads as zeroes: then `target_zero` holds.  The set
 * is one of all that the source has, nothing of it is in the target yet, and
 * nobody else writes there.  What cannot be read has something.  0;
 * COPY_STOPPED: call it again.
 */
int copy_look_at_target(struct copy *c);

/* Is nothing left to do? */
bool copy_is_done(const struct copy *c);

/* Find the first part of the set from @offset on that has no gap, cut at the
 * disk's end.  False: there is none. */
bool copy_next(const struct copy *c, uint64_t offset, uint64_t *start,
               uint64_t *bytes);

/*
 * Fill the set, which is empty, again: it takes over @bits.  Their granularity
 * is the copy's cluster; their size may be another one.  For copies without
 * guests' writes and views.  Drained, and nothing is being copied.
 */
void copy_refill(struct copy *c, struct hbitmap *bits);

/* Let only guests' writes copy, until copy_stop (COPY_STOPPED) or until such a
 * copy fails (as in copy_run). */
int copy_wait(struct copy *c, enum copy_side *side);

/* Did a copy before a guest's write fail?  Then nothing can succeed. */
bool copy_is_broken(const struct copy *c);

/* Set the bits of @bm for what is still in the set.  The image of @bm has these
 * bits, or may have them.  Drained, and nothing is being copied. */
void copy_merge_left(const struct copy *c, struct bitmap *bm);

/* End the work of the workers, whatever they wait for.  Call graph_wake_waiting
 * afterwards.  Other threads that work for this copy have copy_given_up as
 * their node_unwanted. */
void copy_give_up(struct copy *c);
const _Atomic bool *copy_given_up(const struct copy *c);

/* Make copy_run return after the chunks that are in hand, until copy_stop is
 * called with false.  Any thread may call it; it does not wait. */
void copy_stop(struct copy *c, bool stop);

/* Limit what workers copy, in bytes a second; 0: no limit. */
void copy_set_speed(struct copy *c, uint64_t speed);

/* *done: bytes that workers and guests' writes have done.  *total: bytes that
 * were put into the set, less what was skipped. */
void copy_progress(const struct copy *c, uint64_t *done, uint64_t *total);

/* Give the copy up: from now on guests' writes do not wait for it any more. */
void copy_break(struct copy *c);

/* --- guest.c --- */

/*
 * Copy what is left to do of the range.  Call it inside a request, before the
 * request changes the range.  -EAGAIN, only with REQ_NOWAIT: it would have to
 * wait.  -ERESTART: as in driver.h.  Other errors come only with `break_write`:
 * the write must not go on.
 */
int copy_before_write(struct copy *c, uint64_t offset, uint64_t bytes,
                      unsigned flags);

/* The tree is about to be drained: make guests' writes that wait for room in
 * the target come back. */
void copy_hurry(struct copy *c);

/* The tree is drained: wait for copies that guests have not waited for. */
void copy_settle(struct copy *c);

/*
 * --- both.c ---
 *
 * Guests' writes that go to both ends, for copies that are `changing`.  Bits
 * are *late* where the source has changed and the target has not followed: its
 * write failed, or the cluster was to be copied anyway.
 */

/* Begin it: what is late now.  It takes over @late, whose granularity is the
 * copy's cluster.  Drained. */
void copy_begin_both(struct copy *c, struct hbitmap *late);

/* Exchange the late bits; returns the old ones.  Drained, and with the set
 * empty.  If there was nothing late, the ends are synced from now on. */
struct hbitmap *copy_swap_late(struct copy *c, struct hbitmap *late);

/* A copy of the late bits; NULL: no memory.  Drained. */
struct hbitmap *copy_share_late(struct copy *c);

/* Have all requests until now gone to both ends, with nothing left to copy? */
bool copy_is_synced(const struct copy *c);

/* A write to the target has failed since the last call: -errno, or 0.  Until it
 * is called, writes go to the source alone. */
int copy_both_failed(struct copy *c);

/* Change the source, and then the target.  In a request; flags as of the
 * driver's methods.  Fails only if the source does.  @iov NULL: zeroes. */
int copy_write_both(struct copy *c, uint64_t offset, uint64_t bytes,
                    const struct iovec *iov, int iovcnt, unsigned flags);
/* The range of the source is discarded, and late. */
int copy_discard_both(struct copy *c, uint64_t offset, uint64_t bytes);

/*
 * --- view.c ---
 *
 * Reading the point in time, inside a request of the ends' tree.  Guests wait
 * for no reader: bytes that were read from the source count only if their
 * cluster is still to do afterwards.
 */

/* Let views read what is in the set now.  -ENOMEM. */
int copy_show(struct copy *c);

/* The policy's lost_errno: the point in time is lost.  -EACCES: a part of the
 * range was not in the set, or is discarded. */
int copy_view_preadv(struct copy *c, uint64_t offset, uint64_t bytes,
                     const struct iovec *iov, int cnt, unsigned flags);

/* As a driver's map for MAP_STATUS; the answer is MAP_ZERO or MAP_OPAQUE. */
int copy_view_map(struct copy *c, uint64_t offset, uint64_t bytes,
                  unsigned flags, struct mapping *m);

/* Drop the clusters that are wholly in the range: nobody copies them any more,
 * and their space in the target is free. */
int copy_view_discard(struct copy *c, uint64_t offset, uint64_t bytes);

/* Tell what QEMU shows of a copy among bitmaps: what views may read, where
 * guests have written since, and what is to do. */
void copy_tell_bits(const struct copy *c, bitmap_fn *tell, void *opaque);

const struct copy_counters *copy_counters(const struct copy *c);

/* A new reference to the histogram of guests' writes that had to wait, in the
 * form of query-blockstats: {"boundaries", "bins", "max-ns", "total-ns"}, in
 * nanoseconds. */
json_t *copy_query_delay(const struct copy *c);

/* Bytes that views may still read. */
uint64_t copy_visible(const struct copy *c);

#endif /* NBDELTA_COPY_COPY_H */
