/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Guests' writes that go to both ends (a mirror that is write-blocking).
 *
 *        guest's write                              workers
 *             |
 *     `both`: its bytes, exclusive
 *     `in_hand`: its clusters, shared  <-------->  clusters, exclusive
 *             |
 *          source, then target, as far as
 *             |
 *      cluster   written as a whole   in part
 *      ------------------------------------------------
 *      clean     written              written
 *      to copy   written, clean now   left alone, late
 *      late      written, clean now   left alone
 *
 *  1. A worker does not copy a cluster while a guest writes to it, and the
 *     other way round.  So the target has what the source has, or the cluster
 *     is in the set, or late.
 *  2. Writes that overlap take turns, so both ends get them in one order.
 *     Others in the same cluster do not wait for each other: none of them makes
 *     a cluster clean.
 *  3. A write that is left alone because its cluster is in the set makes it
 *     late all the same: a worker may have asked before what is there.
 *
 * A write to the target that fails, or that a drain interrupts, is late.  The
 * guest has its success: the source has it.
 */
#include <errno.h>
#include <stdatomic.h>

#include "copy/priv.h"
#include "nbdelta/bytes.h"
#include "util/iov.h"

struct both {
    struct copy *c;
    uint64_t offset;
    uint64_t bytes;
    const struct iovec *iov; /* NULL: zeroes */
    int iovcnt;
    unsigned flags;
};

void copy_begin_both(struct copy *c, struct hbitmap *late)
{
    hbitmap_free(c->late);
    c->late = late;
    atomic_store(&c->synced, false);
}

struct hbitmap *copy_swap_late(struct copy *c, struct hbitmap *late)
{
    struct hbitmap *old = c->late;

    c->late = late;
    atomic_store(&c->synced, hbitmap_count(old) == 0);
    return old;
}

struct hbitmap *copy_share_late(struct copy *c)
{
    return hbitmap_share(c->late);
}

bool copy_is_synced(const struct copy *c)
{
    return atomic_load(&c->synced);
}

int copy_both_failed(struct copy *c)
{
    return atomic_exchange(&c->both_failed, 0);
}

/* The bits come first: a thread that sees the ends synced sees none of them. */
static void note_late(struct copy *c, uint64_t offset, uint64_t bytes)
{
    hbitmap_set(c->late, offset, bytes);
    atomic_store(&c->synced, false);
}

static void note_failure(struct copy *c, int r)
{
    int none = 0;

    if (atomic_compare_exchange_strong(&c->both_failed, &none, r)) {
        mutex_lock(&c->lock);
        cond_broadcast(&c->wake);
        mutex_unlock(&c->lock);
    }
}

/* Write [from, to) to the target.  It is no request of the guest's any more:
 * a drain may end it, and then it is late. */
static int write_target(const struct both *w, uint64_t from, uint64_t to)
{
    struct copy *c = w->c;
    enum node_progress progress = node_progress;
    const _Atomic bool *unwanted = node_unwanted;
    int r;

    node_progress = PROGRESS_NONE;
    node_unwanted = &c->given_up;
    if (w->iov) {
        struct iovec part[BLK_IOV_MAX];
        int parts = iov_slice(part, w->iov, w->iovcnt, from - w->offset,
                              to - from);
        r = node_pwritev(c->target, from, to - from, part, parts, 0);
    } else {
        r = node_zero(c->target, from, to - from, w->flags & REQ_MAY_UNMAP);
    }
    node_unwanted = unwanted;
    node_progress = progress;
    if (r < 0) {
        note_late(c, from, to - from);
    }
    if (r < 0 && r != -ERESTART) {
        note_failure(c, r);
    }
    return r;
}

/* Is a part of a cluster, at @at, left to the workers? */
static bool leaves_part(struct copy *c, uint64_t at)
{
    bool todo;

    (void)copy_set_run(&c->todo, at, at + 1, &todo);
    if (todo || c->whole) {
        note_late(c, at, 1);
    }
    return todo || c->whole || hbitmap_get(c->late, at);
}

/* The clusters of [from, to), which are whole, are in the target. */
static void note_clean(struct copy *c, uint64_t from, uint64_t to)
{
    uint64_t start;
    uint64_t bytes;

    if (hbitmap_next_dirty(c->late, from, to, &start, &bytes)) {
        hbitmap_reset(c->late, from, to - from);
    }
    for (uint64_t at = from;
         at < to && copy_set_next(&c->todo, at, to, &start, &bytes);
         at = start + bytes) {
        copy_set_take(&c->todo, start, bytes);
        atomic_fetch_add(&c->done, bytes);
    }
}

static void follow_in_target(const struct both *w)
{
    struct copy *c = w->c;
    uint64_t from = w->offset;
    uint64_t to = from + w->bytes;
    uint64_t whole = align_up(from, c->cluster);
    uint64_t end = to == c->size ? to : align_down(to, c->cluster);

    if (whole > end) { /* parts of one cluster */
        if (!leaves_part(c, from)) {
            (void)write_target(w, from, to);
        }
        return;
    }
    if (from < whole && leaves_part(c, from)) {
        from = whole;
    }
    if (end < to && leaves_part(c, end)) {
        to = end;
    }
    if (from < to && write_target(w, from, to) == 0 && whole < end) {
        note_clean(c, whole, end);
    }
}

static void lock_both(const struct both *w, struct range_req req[2])
{
    uint64_t from = align_down(w->offset, w->c->cluster);
    uint64_t to = align_up(w->offset + w->bytes, w->c->cluster);

    range_lock(&w->c->both, &req[0], w->offset, w->bytes, true);
    range_lock(&w->c->in_hand, &req[1], from, to - from, false);
}

static void unlock_both(const struct both *w, struct range_req req[2])
{
    range_unlock(&w->c->in_hand, &req[1]);
    range_unlock(&w->c->both, &req[0]);
}

int copy_write_both(struct copy *c, uint64_t offset, uint64_t bytes,
                    const struct iovec *iov, int iovcnt, unsigned flags)
{
    const struct both w = {c, offset, bytes, iov, iovcnt, flags};
    struct range_req req[2];

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    lock_both(&w, req);
    int r = iov ? node_pwritev(c->source, offset, bytes, iov, iovcnt, flags)
                : node_zero(c->source, offset, bytes, flags);
    bool follows = r == 0 && !atomic_load(&c->both_failed) &&
                   !atomic_load(&c->given_up) && !atomic_load(&c->broken);
    if (follows) {
        follow_in_target(&w);
    } else if (r != -ERESTART) { /* that has changed nothing */
        note_late(c, offset, bytes);
    }
    unlock_both(&w, req);
    return r;
}

int copy_discard_both(struct copy *c, uint64_t offset, uint64_t bytes)
{
    const struct both w = {.c = c, .offset = offset, .bytes = bytes};
    struct range_req req[2];

    lock_both(&w, req);
    int r = node_discard(c->source, offset, bytes);
    note_late(c, offset, bytes);
    unlock_both(&w, req);
    return r;
}
