/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_BLK_H
#define NBDELTA_BLK_H

/*
 * The front door: I/O on the node that a user has attached to
 * ==========================================================
 *
 * Any thread, any number at once.  Calls block until done and return 0 or
 * -errno, never a short count.  Offsets and lengths need no alignment.
 *
 * -EINVAL: the range is not inside the disk.  -EPERM: read-only.  -EAGAIN:
 * only with REQ_NOWAIT.  -ENOSPC, -EIO, ... come from the storage; what a
 * failed write leaves in its range is undefined.
 *
 * Durability: what completed before blk_flush() was called is durable when
 * it returns 0; a write or zero with REQ_FUA is durable when it returns 0.
 * A failed flush means that earlier writes may be lost.
 */
#include <jansson.h>

#include "nbdelta/types.h"

/* What a user wants to do with a node, and lets others do meanwhile. */
enum perm {
    PERM_READ = 1 << 0,
    PERM_WRITE = 1 << 1,
    PERM_RESIZE = 1 << 2,
    PERM_ALL = (1 << 3) - 1,
};

/*
 * Attach to @n.  @user says in error texts who it is ("export 'vda'").
 * Needs @perm; others may have @shared.  The blk keeps the node alive and
 * follows when a filter is inserted above it.  -EBUSY on a conflict of
 * permissions, -EACCES for PERM_WRITE on a read-only node.
 */
int blk_new(struct graph *g, struct node *n, unsigned perm, unsigned shared,
            const char *user, struct blk **blkp, struct error **errp);

/* Detach.  All calls on @b have returned.  NULL is fine. */
void blk_free(struct blk *b);

/* As graph_settle, of the node it is attached to.  False: not within the time. */
bool blk_settle(struct blk *b, uint64_t limit_ns);

/* The node it is attached to now.  Takes no lock, and does not wait. */
struct node *blk_node(const struct blk *b);

/* The same, without filters that jobs have put in between: a disk's own node.
 * Takes the control lock. */
struct node *blk_disk(const struct blk *b);

/* Does it show the disk that @n is of: the same node, without the filters that
 * are above either?  Takes the control lock. */
bool blk_shows(const struct blk *b, const struct node *n);

uint64_t blk_size(const struct blk *b);

struct blk_limits {
    uint32_t align;        /* smaller requests are emulated: power of two */
    uint32_t pref;         /* preferred size, e.g. the cluster size */
    uint32_t max_transfer; /* requests up to this size need no splitting */
    bool fast_zero;        /* REQ_NO_FALLBACK zeroes can succeed */
    bool unmap;            /* discards free space */
};
/* Are discards passed on (discard=unmap), or ignored? */
bool blk_discards(const struct blk *b);

void blk_get_limits(const struct blk *b, struct blk_limits *lim);

int blk_pread(struct blk *b, void *buf, uint64_t bytes, uint64_t offset,
              unsigned flags);
int blk_preadv(struct blk *b, const struct iovec *iov, int iovcnt,
               uint64_t offset, unsigned flags);
int blk_pwrite(struct blk *b, const void *buf, uint64_t bytes,
               uint64_t offset, unsigned flags);
int blk_pwritev(struct blk *b, const struct iovec *iov, int iovcnt,
                uint64_t offset, unsigned flags);

/* Make the range read as zeroes.  Any length.  REQ_MAY_UNMAP lets it become
 * a hole.  With REQ_NO_FALLBACK: -ENOTSUP, before anything is changed, when
 * that is not faster than writing. */
int blk_zero(struct blk *b, uint64_t offset, uint64_t bytes, unsigned flags);

/* The range is not needed any more.  A hint: its content is then either what
 * it was or zeroes. */
int blk_discard(struct blk *b, uint64_t offset, uint64_t bytes);

int blk_flush(struct blk *b);

/* Ask for the range to be brought into memory; does not wait for it. */
int blk_prefetch(struct blk *b, uint64_t offset, uint64_t bytes);

/* Describe [offset, offset + bytes) through all layers; neighbours that are
 * alike are not merged.  REQ_NOWAIT is honoured. */
int blk_extents(struct blk *b, uint64_t offset, uint64_t bytes,
                unsigned flags, extent_fn *fn, void *opaque);

/* Grow or shrink the disk (needs PERM_RESIZE), with its bitmaps.  New space
 * reads as zeroes and is dirty.  Drains. */
int blk_resize(struct blk *b, uint64_t size, struct error **errp);

/*
 * BlockStats as in query-blockstats: what was done by way of @b, and on the
 * nodes below it.  The total time of requests that were served from memory at
 * once is an estimate.  A new reference.  blk_no_stats: without a blk.
 */
json_t *blk_query_stats(struct blk *b);
json_t *blk_no_stats(void);

#endif /* NBDELTA_BLK_H */
