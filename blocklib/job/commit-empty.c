/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A commit that empties the active layer, and leaves its users where they are.
 *
 *    base has all of top but a little (follow.h)
 *    drained: that is copied, and the dirty bitmap begins anew
 *       from here on base has the disk as it was at this instant
 *    base is flushed
 *    for each piece of top, drained: what guests have not written since is left
 *       to base; then that is made durable, while guests go on
 *
 * At each moment, and whatever of it survives a crash, top reads as before:
 * a cluster is left to base only once base has it durably, and only while no
 * bit says that a guest has changed it, or is about to.
 */
#include <errno.h>

#include "core/graph.h"
#include "job/commit.h"
#include "nbdelta/error.h"

/* Clusters of a piece: as many as an L2 table of a common image has. */
#define PIECE_CLUSTERS 8192

static int reach_instant(struct commit *c)
{
    int r = graph_lock_drained(c->graph, c->top);

    if (r < 0) {
        return r;
    }
    r = follow_last(&c->follow);
    graph_unlock(c->graph);
    return r < 0 ? r : blk_flush(c->to);
}

/* The unit in which the image keeps its data, and the bits count. */
static uint64_t unit_of(const struct commit *c)
{
    return max_u64(c->top->limits.pref, COMMIT_GRANULARITY);
}

/* Leave to base what is clean in the piece.  Drained.  1: there was
 * something. */
static int leave_clean(struct commit *c, const struct hbitmap *bits,
                       uint64_t from, uint64_t end)
{
    const struct driver_image *image = c->top->drv->image;
    uint64_t unit = unit_of(c);
    bool some = false;
    int r = 0;

    while (from < end && r >= 0) {
        uint64_t start = end;
        uint64_t bytes = 0;

        (void)hbitmap_next_dirty(bits, from, end, &start, &bytes);
        uint64_t to = bytes > 0 ? align_down(start, unit) : end;
        if (from < to) {
            r = image->leave_range(c->top, from, to - from);
            some |= r > 0;
        }
        from = align_up(start + bytes, unit);
    }
    return r < 0 ? r : some;
}

/* Guests may have made the disk smaller since. */
static int leave_piece(struct commit *c, uint64_t offset, uint64_t piece)
{
    int r = graph_lock_drained(c->graph, c->top);

    if (r < 0) {
        return r;
    }
    uint64_t end = min_u64(offset + piece, node_size(c->top));
    struct hbitmap *bits = bitmap_share_bits(c->follow.dirty);

    r = bits ? 0 : -ENOMEM;
    if (r == 0 && offset < end) {
        r = leave_clean(c, bits, offset, end);
    }
    hbitmap_free(bits);
    graph_unlock(c->graph);
    return r;
}

/* Make durable what was left to base. */
static int end_piece(struct commit *c)
{
    struct tree *t = node_enter(c->top, false);
    int r = c->top->drv->image->leave_end(c->top);

    node_leave(t);
    return r;
}

int commit_empty(struct commit *c)
{
    uint64_t size = node_size(c->top);
    uint64_t piece = unit_of(c) * PIECE_CLUSTERS;
    int r = reach_instant(c);

    if (r < 0) {
        return r;
    }
    if (!c->top->drv->image->leave_range) {
        return 0;
    }
    for (uint64_t at = 0; at < size && r == 0; at += piece) {
        if (follow_is_stopped(&c->follow)) {
            return JOB_STOPPED;
        }
        r = leave_piece(c, at, piece);
        if (r > 0) {
            r = end_piece(c);
        }
    }
    if (r == 0) { /* an earlier commit may have failed to */
        r = end_piece(c);
    }
    return r == -ENOTSUP ? 0 : r;
}
