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
 * -EINVAL: the range is not inside the disk.  -EPERM: the disk is read-only.
 * -EAGAIN, only with REQ_NOWAIT: the call would have to wait.  -ENOSPC, -EIO
 * and others come from the storage.  After a failed write the content of its
 * range is undefined.
 *
 * Durability: requests that have completed before blk_flush() is called are
 * durable when it returns 0.  A write or zero with REQ_FUA is durable when it
 * returns 0.  After a failed flush earlier writes may be lost.
 */
#include <jansson.h>

#include "nbdelta/types.h"

/* What a user wants to do with a node, and what it lets others do meanwhile. */
enum perm {
    PERM_READ = 1 << 0,
    PERM_WRITE = 1 << 1,
    PERM_RESIZE = 1 << 2,
    PERM_ALL = (1 << 3) - 1,

    /* Among the permissions that a user needs: it does without PERM_WRITE and
     * PERM_RESIZE while the node is inactive. */
    PERM_GIVES_UP = 1 << 3,
};

/*
 * Attach to @n.  @user names the user in error texts ("export 'vda'").  The
 * user needs the permissions @perm, and lets others have @shared.  The blk
 * keeps the node alive, and moves to a filter that is inserted above it.  The
 * caller owns *blkp.  Takes the control lock.  -EBUSY: permissions of two users
 * are in conflict; -EACCES: PERM_WRITE on a read-only node.
 */
int blk_new(struct graph *g, struct node *n, unsigned perm, unsigned shared,
            const char *user, struct blk **blkp, struct error **errp);

/* Detach.  The caller knows that all calls on @b have returned.  NULL is
 * fine. */
void blk_free(struct blk *b);

/*
 * Move @count users to @to, all of them or none, between two requests of each.
 * Takes the control lock and drains; a disk that is left is flushed.  -EBUSY: a
 * job's filter would be left, or permissions are in conflict; -EACCES: a user
 * writes, and @to is read-only; other errors are the flush's.
 */
int blk_move(struct blk *const *users, unsigned count, struct node *to,
             struct error **errp);

/* As graph_settle, for the node to which @b is attached.  False: @limit_ns have
 * passed. */
bool blk_settle(struct blk *b, uint64_t limit_ns);

/* The node to which @b is attached now.  Takes no lock, and does not wait. */
struct node *blk_node(const struct blk *b);

/* The same, below filters that jobs have put in between: the disk's own node.
 * Takes the control lock. */
struct node *blk_disk(const struct blk *b);

/* The same, or the node @name, if only filters are above it: what was hung
 * above a disk has not taken its name.  Takes the control lock. */
struct node *blk_disk_named(const struct blk *b, const char *name);

/* The node that a user knows as the disk @n: below filters of mirrors and
 * commits to which nobody has given a name.  Takes the control lock. */
struct node *node_shown(struct graph *g, struct node *n);

/* Does @b show the disk of @n: are both, filters above them left out, the same
 * node?  Takes the control lock. */
bool blk_shows(const struct blk *b, const struct node *n);

/*
 * Limit the reads and writes (zeroes among them) of @b, together with all that
 * use the group @group (nbdelta/throttle.h), which is made where there is none.
 * @group NULL: the one it has, which there is.  @limits are those of a group;
 * the ones that are not named are none, and with none at all @b leaves its
 * group.  Takes the control lock and drains the disk.  -EINVAL: bad limits.
 */
int blk_set_throttle(struct blk *b, const char *group, const json_t *limits,
                     struct error **errp);

/* Put @b into the group of @of, if that has one.  Takes the control lock. */
void blk_share_throttle(struct blk *b, const struct blk *of);

/* All limits of its group, and "group"; NULL: there are none. */
json_t *blk_query_throttle(struct blk *b);
bool blk_is_throttled(struct blk *b);

/* In bytes. */
uint64_t blk_size(const struct blk *b);

struct blk_limits {        /* bytes */
    uint32_t align;        /* a power of two; smaller requests are emulated */
    uint32_t pref;         /* preferred size, e.g. the cluster size */
    uint32_t max_transfer; /* requests up to this size need no splitting */
    bool fast_zero;        /* REQ_NO_FALLBACK zeroes can succeed */
    bool unmap;            /* discards free space */
    bool far;              /* each request, for status too, is a round trip */
};
/* Are discards passed on (discard=unmap), or ignored? */
bool blk_discards(const struct blk *b);

void blk_get_limits(const struct blk *b, struct blk_limits *lim);

int blk_pread(struct blk *b, void *buf, uint64_t bytes, uint64_t offset,
              unsigned flags);
int blk_preadv(struct blk *b, const struct iovec *iov, int iovcnt,
               uint64_t offset, unsigned flags);
int blk_pwrite(struct blk *b, const void *buf, uint64_t bytes, uint64_t offset,
               unsigned flags);
int blk_pwritev(struct blk *b, const struct iovec *iov, int iovcnt,
                uint64_t offset, unsigned flags);

/* Make the range, of any length, read as zeroes.  REQ_MAY_UNMAP lets it become
 * a hole.  -ENOTSUP, only with REQ_NO_FALLBACK: zeroing would not be faster
 * than writing; nothing has changed. */
int blk_zero(struct blk *b, uint64_t offset, uint64_t bytes, unsigned flags);

/* The range is not needed any more.  This is a hint: afterwards the range has
 * its old content, or zeroes. */
int blk_discard(struct blk *b, uint64_t offset, uint64_t bytes);

int blk_flush(struct blk *b);

/* Ask for the range to be brought into memory.  Does not wait until it is. */
int blk_prefetch(struct blk *b, uint64_t offset, uint64_t bytes);

/* Describe [offset, offset + bytes) through all layers; neighbours that are
 * alike are not merged.  REQ_NOWAIT is honoured.  A non-zero result of @fn is
 * returned. */
int blk_extents(struct blk *b, uint64_t offset, uint64_t bytes, unsigned flags,
                extent_fn *fn, void *opaque);

/*
 * Once @flag is set, nobody wants the requests of this thread: what a
 * server does not answer fails soon, and its connection is lost.  NULL: they
 * are wanted.  @flag stays until then.
 */
void blk_unwanted_when(const _Atomic bool *flag);

/* Grow or shrink the disk and its bitmaps to @size bytes.  Needs PERM_RESIZE.
 * New space reads as zeroes and is dirty.  Drains. */
int blk_resize(struct blk *b, uint64_t size, struct error **errp);

/*
 * BlockStats as in query-blockstats: what was done by way of @b, and on the
 * nodes below it.  The total time of requests that were served from memory at
 * once is an estimate.  A new reference.  blk_no_stats: the same for a device
 * without a medium, all zero.
 */
json_t *blk_query_stats(struct blk *b);
json_t *blk_no_stats(void);

#endif /* NBDELTA_BLK_H */
