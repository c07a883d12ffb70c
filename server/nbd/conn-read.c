/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reads that are too long, or too slow, for the batch.
 *
 * Structured replies go out piece by piece, so that sending and reading
 * overlap.  A range that is known to be a hole is not read: the reply says that
 * it is one.  Storage that is far away is not asked for holes, and is asked for
 * more at once (FAR_SIZE).  A reply in one piece (simple, or DF) cannot take
 * back its header when a later part fails: all of it is read first.
 */
#include <errno.h>

#include "nbd/conn.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"

/* A hole of fewer bytes is sent as data. */
#define HOLE_MIN 4096

/* What one request to storage that is far away reads. */
#define FAR_SIZE (UINT32_C(1) << 20)

size_t read_head_size(const struct conn *c)
{
    return c->structured ? chunk_size(c) + 8 : NBD_SIMPLE_REPLY_SIZE;
}

void put_read_head(const struct conn *c, char *p, const struct request *rq,
                   uint32_t length, bool last)
{
    if (!c->structured) {
        put_simple(p, 0, rq->cookie);
        return;
    }
    p = put_chunk(c, p, rq, last ? NBD_REPLY_FLAG_DONE : 0,
                  NBD_REPLY_TYPE_OFFSET_DATA, 8 + length);
    store_be64(p, rq->offset);
}

/* A segment with @bytes read from @offset. */
static int read_piece(struct conn *c, uint64_t offset, uint32_t bytes,
                      bool nowait, struct segment **sp)
{
    struct segment *s = segment_new(c, bytes <= INLINE_MAX ? SEGMENT_MEDIUM
                                                           : SEGMENT_LARGE);
    if (!s) {
        return -ENOMEM;
    }
    s->head = SEGMENT_PAYLOAD;
    s->tail = SEGMENT_PAYLOAD + bytes;
    int r = blk_pread(c->export->blk, segment_at(s, s->head), bytes, offset,
                      nowait ? REQ_NOWAIT : 0);
    if (r < 0) {
        segment_free(c, s);
        return r;
    }
    *sp = s;
    return 0;
}

/* Segments with @bytes, at most FAR_SIZE, read by one request; in the list
 * after a failure, too. */
static int read_far(struct conn *c, uint64_t offset, uint32_t bytes,
                    struct list *pieces)
{
    struct iovec iov[FAR_SIZE / PIECE_SIZE];
    int n = 0;

    for (uint32_t left = bytes; left > 0; n++) {
        uint32_t part = (uint32_t)min_u64(left, PIECE_SIZE);
        struct segment *s = segment_new(c, SEGMENT_LARGE);

        if (!s) {
            return -ENOMEM;
        }
        s->head = SEGMENT_PAYLOAD;
        s->tail = SEGMENT_PAYLOAD + part;
        iov[n] = (struct iovec){segment_at(s, s->head), part};
        list_append(pieces, &s->link);
        left -= part;
    }
    return blk_preadv(c->export->blk, iov, n, offset, 0);
}

/* Nobody asks in the connection's thread, which does not wait. */
static bool is_far(const struct conn *c, const struct request *rq, bool nowait)
{
    struct blk_limits lim = {0};

    if (!nowait && rq->length > INLINE_MAX) {
        blk_get_limits(c->export->blk, &lim);
    }
    return lim.far;
}

/* --- In one piece. --- */

static int read_pieces(struct conn *c, const struct request *rq, bool nowait,
                       struct list *pieces)
{
    bool far = is_far(c, rq, nowait);
    uint32_t part;

    for (uint64_t done = 0; done < rq->length; done += part) {
        struct segment *s = NULL;

        part = (uint32_t)min_u64(rq->length - done,
                                 far ? FAR_SIZE : PIECE_SIZE);
        int r = far ? read_far(c, rq->offset + done, part, pieces)
                    : read_piece(c, rq->offset + done, part, nowait, &s);
        if (r < 0) {
            return r;
        }
        if (s) {
            list_append(pieces, &s->link);
        }
    }
    return 0;
}

static int read_whole(struct conn *c, const struct request *rq, bool nowait)
{
    struct list pieces;

    list_init(&pieces);
    int r = read_pieces(c, rq, nowait, &pieces);
    if (r < 0) {
        segments_free(c, &pieces);
        return r;
    }
    struct segment *first = list_entry(pieces.next, struct segment, link);
    first->head = SEGMENT_PAYLOAD - (uint32_t)read_head_size(c);
    put_read_head(c, segment_at(first, first->head), rq, (uint32_t)rq->length,
                  true);
    conn_queue_list(c, &pieces);
    conn_push(c);
    return 0;
}

/* --- Piece by piece. --- */

struct run {
    uint64_t end;
    bool any;
    bool zero;
};

static int extend_run(const struct extent *ext, void *opaque)
{
    struct run *run = opaque;
    bool zero = (ext->flags & EXTENT_ZERO) && ext->length >= HOLE_MIN;

    if (run->any && zero != run->zero) {
        return 1;
    }
    run->any = true;
    run->zero = zero;
    run->end = ext->offset + ext->length;
    return 0;
}

/* Where does the data or the hole that begins at rq->offset end?  When that
 * cannot be known, all is taken for data, and reading it tells what is wrong.
 */
static int next_run(struct conn *c, const struct request *rq, bool nowait,
                    struct run *run)
{
    *run = (struct run){.any = false};
    /* The holes of a dirty view have bytes, so they are read. */
    if (rq->length > INLINE_MAX && !c->export->of_bitmap) {
        int r = blk_extents(c->export->blk, rq->offset, rq->length,
                            nowait ? REQ_NOWAIT : 0, extend_run, run);
        if (r == -EAGAIN && nowait) {
            return r;
        }
    }
    if (!run->any) {
        run->end = rq->offset + rq->length;
    }
    return 0;
}

static int send_hole(struct conn *c, const struct request *rq, uint32_t bytes)
{
    struct segment *s = segment_new(c, SEGMENT_SMALL);

    if (!s) {
        return -ENOMEM;
    }
    char *p = put_chunk(c, segment_at(s, s->head), rq,
                        bytes == rq->length ? NBD_REPLY_FLAG_DONE : 0,
                        NBD_REPLY_TYPE_OFFSET_HOLE, 12);
    store_be64(p, rq->offset);
    store_be32(p + 8, bytes);
    s->tail += (uint32_t)chunk_size(c) + 12;
    conn_queue(c, s);
    return 0;
}

static int send_data(struct conn *c, const struct request *rq, uint32_t bytes,
                     bool nowait)
{
    struct segment *s = NULL;
    int r = read_piece(c, rq->offset, bytes, nowait, &s);

    if (r < 0) {
        return r;
    }
    s->head -= (uint32_t)read_head_size(c);
    put_read_head(c, segment_at(s, s->head), rq, bytes, bytes == rq->length);
    conn_queue(c, s);
    conn_push(c);
    return 0;
}

static int send_far(struct conn *c, const struct request *rq, uint32_t bytes)
{
    struct list pieces;

    list_init(&pieces);
    int r = read_far(c, rq->offset, bytes, &pieces);
    if (r < 0) {
        segments_free(c, &pieces);
        return r;
    }
    struct segment *first = list_entry(pieces.next, struct segment, link);
    first->head -= (uint32_t)read_head_size(c);
    put_read_head(c, segment_at(first, first->head), rq, bytes,
                  bytes == rq->length);
    conn_queue_list(c, &pieces);
    conn_push(c);
    return 0;
}

/* Take what has been sent off *rq. */
static int read_from_afar(struct conn *c, struct request *rq)
{
    int r = 0;

    while (r == 0 && rq->length > 0) {
        uint32_t bytes = (uint32_t)min_u64(rq->length, FAR_SIZE);

        r = send_far(c, rq, bytes);
        if (r == 0) {
            rq->offset += bytes;
            rq->length -= bytes;
        }
    }
    return r;
}

/* Take what has been sent off *rq. */
static int read_runs(struct conn *c, struct request *rq, bool nowait)
{
    struct run run = {.end = rq->offset};

    while (rq->length > 0) {
        int r = 0;

        if (run.end <= rq->offset) {
            r = next_run(c, rq, nowait, &run);
        }
        if (r == 0) {
            uint32_t bytes = (uint32_t)min_u64(
                run.end - rq->offset, run.zero ? rq->length : PIECE_SIZE);
            r = run.zero ? send_hole(c, rq, bytes)
                         : send_data(c, rq, bytes, nowait);
            if (r == 0) {
                rq->offset += bytes;
                rq->length -= bytes;
            }
        }
        if (r < 0) {
            return r;
        }
        if (nowait) {
            conn_throttle(c, 0);
        }
    }
    conn_push(c);
    return 0;
}

static bool is_divided(const struct conn *c, const struct request *rq)
{
    return c->structured && !(rq->flags & NBD_CMD_FLAG_DF);
}

size_t conn_read_room(const struct conn *c, const struct request *rq)
{
    return is_divided(c, rq) ? min_u64(rq->length, OUT_HIGH) : rq->length;
}

int conn_read(struct conn *c, struct request *rq, bool nowait)
{
    int r = !is_divided(c, rq)      ? read_whole(c, rq, nowait)
            : is_far(c, rq, nowait) ? read_from_afar(c, rq)
                                    : read_runs(c, rq, nowait);

    if (r == -EAGAIN && nowait) {
        return r;
    }
    if (r < 0) {
        conn_reply_result(c, rq, r, nowait);
    }
    return 0;
}
