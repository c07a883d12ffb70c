/* SPDX-License-Identifier: BSD-3-Clause */
/* Block status: for each context a chunk of runs of equal flags. */
#include <errno.h>
#include <string.h>

#include "nbd/conn.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"

/* The most bytes in a reply. */
#define REPLY_BYTES (1 * MiB)

/* A bitmap is asked for so many runs at once. */
#define RUNS_AT_ONCE 512

struct runs {
    enum context_kind kind;
    bool extended;   /* descriptors have 64-bit fields */
    uint32_t stride; /* size of a descriptor */
    char *at;        /* the last descriptor */
    unsigned count;
    unsigned max;
    uint64_t length; /* of the last run */
    uint32_t flags;
};

static inline void put_run(char *at, bool extended, uint64_t length,
                           uint32_t flags)
{
    if (extended) {
        store_be64(at, length);
        store_be64(at + 8, flags);
    } else { /* both fields at once: a run is no longer than the request */
        store_be64(at, length << 32 | flags);
    }
}

/* Append a run, or make the last one longer.  False: there is no room. */
static bool append_run(struct runs *rs, uint64_t length, uint32_t flags)
{
    if (rs->count > 0 && rs->flags == flags) {
        length = rs->length += length;
    } else if (rs->count == rs->max) {
        return false;
    } else {
        rs->at += rs->count > 0 ? rs->stride : 0;
        rs->count++;
        rs->length = length;
        rs->flags = flags;
    }
    put_run(rs->at, rs->extended, length, flags);
    return true;
}

/* Append @count runs of a bitmap, for which there is room, and whose states
 * take turns.  Returns how many bytes they are. */
static uint64_t append_turns(struct runs *rs, const uint64_t *lengths,
                             size_t count, bool dirty)
{
    uint64_t sum = lengths[0];
    char *at;

    (void)append_run(rs, lengths[0], dirty ? NBD_STATE_DIRTY : 0);
    at = rs->at;
    for (size_t i = 1; i < count; i++) {
        dirty = !dirty;
        at += rs->stride;
        sum += lengths[i];
        put_run(at, rs->extended, lengths[i], dirty ? NBD_STATE_DIRTY : 0);
    }
    rs->at = at;
    rs->length = lengths[count - 1];
    rs->flags = dirty ? NBD_STATE_DIRTY : 0;
    rs->count += (unsigned)(count - 1);
    return sum;
}

static int append_extent(const struct extent *ext, void *opaque)
{
    struct runs *rs = opaque;
    uint32_t flags;

    if (rs->kind == CONTEXT_DEPTH) {
        flags = ext->flags & EXTENT_ALLOCATED ? ext->depth + 1 : 0;
    } else {
        flags = (ext->flags & EXTENT_DATA ? 0 : NBD_STATE_HOLE) |
                (ext->flags & EXTENT_ZERO ? NBD_STATE_ZERO : 0);
    }
    return append_run(rs, ext->length, flags) ? 0 : 1;
}

static int append_bitmap(struct conn *c, const struct context *ctx,
                         const struct request *rq, bool nowait, struct runs *rs)
{
    const uint64_t end = rq->offset + rq->length;
    struct bitmap *bm = ctx->bitmap;
    uint64_t lengths[RUNS_AT_ONCE];
    bool dirty;

    for (uint64_t at = rq->offset; at < end && rs->count < rs->max;) {
        size_t n = bitmap_runs(bm, at, end, nowait, &dirty, lengths,
                               min_u64(RUNS_AT_ONCE, rs->max - rs->count));

        if (n == 0) {
            return -EAGAIN;
        }
        at += append_turns(rs, lengths, n, dirty);
    }
    /* In this order: a bitmap that is off its node collects nothing; nor does
     * one on which an image has been put. */
    if (bitmap_removed(bm) || !bitmap_readable(bm)) {
        return -EINVAL;
    }
    int own = ctx->own ? blk_bitmap_is_own(c->export->blk, bm, nowait) : 1;
    return own > 0 ? 0 : own < 0 ? own : -EINVAL;
}

/* Make the chunk of one of @count contexts in the segment *sp. */
static int context_chunk(struct conn *c, const struct context *ctx,
                         const struct request *rq, unsigned count, bool last,
                         bool nowait, struct segment **sp)
{
    const uint32_t before = c->extended ? 8 : 4; /* the descriptors */
    struct segment *s = segment_new(c, SEGMENT_LARGE);
    int r;

    if (!s) {
        return -ENOMEM;
    }
    *sp = s;
    char *head = segment_at(s, s->head);
    size_t room = min_u64(s->size - s->head, REPLY_BYTES / count);
    struct runs rs = {
        .kind = ctx->kind,
        .extended = c->extended,
        .stride = c->extended ? 16 : 8,
        .at = head + chunk_size(c) + before,
    };
    rs.max = rq->flags & NBD_CMD_FLAG_REQ_ONE
                 ? 1
                 : (unsigned)((room - chunk_size(c) - before) / rs.stride);
    if (ctx->kind == CONTEXT_BITMAP) {
        r = append_bitmap(c, ctx, rq, nowait, &rs);
    } else {
        r = blk_extents(c->export->blk, rq->offset, rq->length,
                        nowait ? REQ_NOWAIT : 0, append_extent, &rs);
    }
    if (r < 0) {
        return r;
    }
    uint32_t length = before + rs.count * rs.stride;
    char *p = put_chunk(c, head, rq, last ? NBD_REPLY_FLAG_DONE : 0,
                        c->extended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT
                                    : NBD_REPLY_TYPE_BLOCK_STATUS,
                        length);
    store_be32(p, ctx->id);
    if (c->extended) {
        store_be32(p + 4, rs.count);
    }
    s->tail += (uint32_t)chunk_size(c) + length;
    return 0;
}

/* A chunk for each of the contexts, the last one marked as such. */
static int all_chunks(struct conn *c, const struct request *rq, bool nowait,
                      struct list *chunks)
{
    unsigned count = (unsigned)__builtin_popcountll(rq->contexts);
    int r = 0;

    for (uint64_t left = rq->contexts; r == 0 && left != 0; left &= left - 1) {
        struct context *ctx = &c->contexts[__builtin_ctzll(left)];
        struct segment *s = NULL;

        r = context_chunk(c, ctx, rq, count, (left & (left - 1)) == 0, nowait,
                          &s);
        if (s) {
            list_append(chunks, &s->link);
        }
    }
    return r;
}

/* Copy a short reply into the batch, so that it does not hold its segments. */
static bool batch_chunks(struct conn *c, struct list *chunks)
{
    size_t bytes = 0;

    list_for_each (at, chunks) {
        const struct segment *s = list_entry(at, struct segment, link);
        bytes += s->tail - s->head;
    }
    char *p = bytes <= INLINE_MAX ? batch_room(c, bytes) : NULL;
    if (!p) {
        return false;
    }
    list_for_each (at, chunks) {
        struct segment *s = list_entry(at, struct segment, link);
        memcpy(p, segment_at(s, s->head), s->tail - s->head);
        p += s->tail - s->head;
    }
    batch_use(c, bytes);
    segments_free(c, chunks);
    return true;
}

int conn_status(struct conn *c, const struct request *rq, bool nowait)
{
    struct list chunks;

    list_init(&chunks);
    int r = all_chunks(c, rq, nowait, &chunks);
    if (r < 0) {
        segments_free(c, &chunks);
        if (r == -EAGAIN && nowait) {
            return r;
        }
        conn_reply_result(c, rq, r, nowait);
    } else if (!nowait || !batch_chunks(c, &chunks)) {
        conn_queue_list(c, &chunks);
        conn_push(c);
    }
    return 0;
}
