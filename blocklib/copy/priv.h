/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_PRIV_H
#define NBDELTA_COPY_PRIV_H

/* What copy.c (workers), guest.c (writes) and view.c (reads) share. */
#include "copy/copy.h"
#include "copy/set.h"
#include "core/rangelock.h"

/* A part of the disk. */
struct range {
    uint64_t offset;
    uint64_t bytes;
};

enum area_kind {
    AREA_DATA,
    AREA_ZERO,
    AREA_BELOW, /* the target has it already */
    AREA_MIXED, /* a cluster that has more than one of these kinds */
    AREA_KINDS,
};

struct copy {
    /* Set by copy_new. */
    uint64_t cluster;
    uint64_t past; /* see copy_options */
    uint64_t chunk;
    size_t buffer_size;
    unsigned max_workers;
    bool target_zero;
    bool compress;
    unsigned layers; /* see copy_options */
    bool merge;
    bool keep_space; /* see copy_options */
    bool whole;      /* see copy_options */
    bool changing;   /* see copy_options */
    bool copies_up;  /* `up` of copy_options was given */
    struct copy_up_scope up;
    uint64_t burst;
    uint64_t step;
    struct copy_policy policy;
    bool uncached;       /* see copy_options */
    bool find_zeroes;    /* see copy_options */
    bool quick;          /* see copy_options */
    bool discard_source; /* see copy_options */
    int (*moved)(void *opaque, uint64_t offset, uint64_t bytes,
                 const void *buf);
    void *moved_opaque;

    /* Tree lock; the bits are atomic.  Workers look at @inside before they
     * enter the tree (copy_set_ends()). */
    struct node *_Atomic inside;
    struct node *source;
    struct node *target;
    uint64_t size;
    uint64_t zero_from;
    struct copy_set todo;
    struct copy_set visible; /* what a view may read; has the base of todo */
    bool shown;              /* there are views */
    struct hbitmap *late;    /* see copy_swap_late; NULL: guests' writes do not
                                go to both ends */
    struct hbitmap *written; /* where guests have written to a copy that is
                                not broken */

    struct range_lock in_hand;
    struct range_lock both;  /* guests' writes that go to both ends; first */
    struct read_guard guard; /* set by copy_new */

    /* After the tree lock, before `lock`.  Held while the source is asked what
     * it has, which may take its time. */
    mutex_t claim_lock;
    /* Guarded by claim_lock. */
    uint64_t cursor;
    uint64_t known_from; /* what the source has told last: one kind */
    uint64_t known_end;
    enum area_kind known_kind;

    mutex_t lock; /* after the tree lock, before the range lock */
    /* Guarded by lock. */
    cond_t wake;          /* stop or speed has changed */
    uint64_t skip_cursor; /* used by copy_skip_below alone */
    uint64_t speed;
    uint64_t next_ns; /* when the speed limit allows another chunk */
    bool stop;
    int failed; /* a worker's first failure */
    enum copy_side failed_side;
    struct range failed_at; /* what the worker had in hand */

    struct errands *errands; /* guest.c; NULL: guests' threads copy */

    mutex_t pool_lock;
    /* Guarded by pool_lock. */
    struct buffer *pool;
    unsigned pooled;

    /* Atomic. */
    _Atomic unsigned broken; /* see copy_break_with */
    _Atomic bool given_up;
    _Atomic bool synced;     /* see copy_is_synced */
    _Atomic int both_failed; /* see copy_both_failed */
    _Atomic bool share; /* see copy_options; until it turns out not to work */
    _Atomic uint64_t done;
    _Atomic uint64_t total; /* put into the set, less what was skipped */
    struct copy_counters counters;
};

/* --- area.c --- */

/* A part of the set, all of one kind. */
struct area {
    uint64_t offset;
    uint64_t bytes;
    enum area_kind kind;
};

/* Do the first `layers` images decide what is in the extent?  Zeroes that no
 * image has count as below the last image. */
bool copy_is_above(const struct copy *c, const struct extent *e);

/* How large an area of zeroes may be. */
uint64_t copy_zero_max(const struct copy *c);

/* The area that begins at @offset, a cluster's start: whole clusters, at most
 * to @end and at most so many bytes of each kind. */
int copy_classify(struct copy *c, uint64_t offset, uint64_t end,
                  const uint64_t most[AREA_KINDS], struct area *a);
/* The same for a worker. */
int copy_classify_next(struct copy *c, uint64_t offset, uint64_t end,
                       const uint64_t most[AREA_KINDS], struct area *a)
    REQUIRES(c->claim_lock);
/* The same, not cut to clusters. */
int copy_piece(struct copy *c, uint64_t offset, uint64_t end, struct area *a);

/* --- move.c --- */

/* Copy what the set has of @a.  Its range is locked. */
int copy_area(struct copy *c, const struct area *a, void *buf,
              enum copy_side *side);
/* The same of [offset, end). */
int copy_range_locked(struct copy *c, uint64_t offset, uint64_t end, void *buf,
                      enum copy_side *side);

/* The same as far as nothing has to be waited for, else -EAGAIN.  For `quick`
 * copies. */
int copy_range_now(struct copy *c, uint64_t offset, uint64_t end, void *buf);

/* --- fill.c --- */

/* Bytes in the set: the last cluster of the disk may be a partial one. */
uint64_t copy_left(const struct copy *c);

/* --- copy.c --- */

/* 0, or why the copy has failed, and on which @side. */
int copy_check(struct copy *c, enum copy_side *side);

void *copy_buffer_get(struct copy *c);           /* NULL: no memory */
void copy_buffer_put(struct copy *c, void *buf); /* NULL is fine */

/* Break the copy for the reason @r; the first reason counts.  Wakes the threads
 * that wait, and calls the policy's `lost`. */
void copy_break_with(struct copy *c, int r, enum copy_side side);

/* --- guest.c, for copy.c --- */

struct errands *copy_errands_new(struct copy *c); /* NULL: no memory */
void copy_errands_free(struct errands *e);        /* NULL is fine */
/* Room was made in the target: writes that wait for room try again. */
void copy_errands_room(struct errands *e);

#endif /* NBDELTA_COPY_PRIV_H */
