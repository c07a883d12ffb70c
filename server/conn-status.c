/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * BLOCK_STATUS: one chunk for each selected context, extents of equal state
 * merged, at most EXTENTS_MAX of them, never more than was asked for.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "conn.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "proto.h"

#define EXTENTS_MAX 65536 /* 512 KiB of a reply */

struct states {
    enum context_kind kind;
    unsigned max;
    unsigned count;
    unsigned room;
    struct state {
        uint32_t length;
        uint32_t flags;
    } *list;
};

/* 0, 1 when it is full, or -ENOMEM. */
static int add_state(struct states *s, uint64_t length, uint32_t flags)
{
    if (s->count > 0 && s->list[s->count - 1].flags == flags) {
        s->list[s->count - 1].length += (uint32_t)length;
        return 0;
    }
    if (s->count == s->max) {
        return 1;
    }
    if (s->count == s->room) {
        unsigned room = s->room ? s->room * 2 : 64;
        struct state *more = realloc(s->list, room * sizeof(*more));
        if (!more) {
            return -ENOMEM;
        }
        s->list = more;
        s->room = room;
    }
    s->list[s->count++] = (struct state){ (uint32_t)length, flags };
    return 0;
}

static int add_extent(const struct extent *e, void *opaque)
{
    struct states *s = opaque;
    uint32_t flags = 0;

    if (s->kind == CONTEXT_DEPTH) {
        flags = e->flags & EXTENT_ALLOCATED ? e->depth + 1 : 0;
    } else {
        flags |= e->flags & EXTENT_DATA ? 0 : NBD_STATE_HOLE;
        flags |= e->flags & EXTENT_ZERO ? NBD_STATE_ZERO : 0;
    }
    return add_state(s, e->length, flags);
}

static int add_bitmap(struct states *s, const struct request *rq,
                      const struct bitmap *bm)
{
    uint64_t end = rq->offset + rq->length;
    int r = 0;

    for (uint64_t at = rq->offset; at < end && r == 0;) {
        bool dirty;
        uint64_t length = bitmap_run(bm, at, end, &dirty);
        r = add_state(s, length, dirty ? NBD_STATE_DIRTY : 0);
        at += length;
    }
    return bitmap_removed(bm) || !bitmap_readable(bm) ? -EINVAL : r;
}

static int find_states(struct states *s, const struct request *rq,
                       const struct context *x)
{
    s->kind = x->kind;
    s->count = 0;
    int r = x->kind == CONTEXT_BITMAP
                ? add_bitmap(s, rq, x->bitmap)
                : blk_extents(rq->conn->export->blk, rq->offset, rq->length,
                              0, add_extent, s);
    return r < 0 ? r : 0;
}

static int send_states(const struct states *s, const struct request *rq,
                       uint32_t id, bool last)
{
    unsigned char head[NBD_CHUNK_LEN + 4];
    uint32_t bytes = s->count * 8;
    unsigned char *data = malloc(bytes);
    struct iovec v[2] = { { head, sizeof(head) }, { data, bytes } };

    if (!data) {
        return -ENOMEM;
    }
    size_t at = reply_put_chunk(head, rq, last ? NBD_REPLY_FLAG_DONE : 0,
                                NBD_REPLY_BLOCK_STATUS, 4 + bytes);
    store_be32(head + at, id);
    for (unsigned i = 0; i < s->count; i++) {
        store_be32(data + i * 8UL, s->list[i].length);
        store_be32(data + i * 8UL + 4, s->list[i].flags);
    }
    int r = conn_send(rq->conn, v, 2, true);
    free(data);
    return r;
}

void conn_block_status(struct request *rq)
{
    const struct conn *c = rq->conn;
    struct states s = {
        .max = rq->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : EXTENTS_MAX,
    };
    int r = 0;

    for (unsigned i = 0; i < c->context_count && r == 0; i++) {
        r = find_states(&s, rq, &c->contexts[i]);
        if (r == 0) {
            r = send_states(&s, rq, c->contexts[i].id,
                            i + 1 == c->context_count);
        }
    }
    free(s.list);
    if (r < 0 && r != -EPIPE) {
        reply_simple(rq, r, true);
    }
}
