/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests: checked, then served at once or handed to the pool.
 *
 * Whatever is wrong with a request, the stream stays in step: the payload of
 * a write is read before its error is answered.  Only a wrong magic number,
 * and a payload beyond what we announced, end the connection.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "conn.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "proto.h"

/* A read by the pool is sent in pieces of this size. */
#define PIECE (256U << 10)

/* --- Checking --- */

static const uint16_t allowed_flags[NBD_CMD_COUNT] = {
    [NBD_CMD_READ] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF,
    [NBD_CMD_WRITE] = NBD_CMD_FLAG_FUA,
    [NBD_CMD_FLUSH] = NBD_CMD_FLAG_FUA,
    [NBD_CMD_TRIM] = NBD_CMD_FLAG_FUA,
    [NBD_CMD_CACHE] = NBD_CMD_FLAG_FUA,
    [NBD_CMD_WRITE_ZEROES] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE |
                             NBD_CMD_FLAG_FAST_ZERO,
    [NBD_CMD_BLOCK_STATUS] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE,
};

static bool changes_data(uint16_t type)
{
    return type == NBD_CMD_WRITE || type == NBD_CMD_TRIM ||
           type == NBD_CMD_WRITE_ZEROES;
}

static int check_range(const struct request *rq)
{
    bool grows = rq->type == NBD_CMD_WRITE || rq->type == NBD_CMD_WRITE_ZEROES;

    if (rq->type == NBD_CMD_FLUSH) {
        return rq->offset || rq->length ? -EINVAL : 0;
    }
    if (!range_inside(rq->offset, rq->length,
                      blk_size(rq->conn->export->blk))) {
        return grows ? -ENOSPC : -EINVAL;
    }
    return 0;
}

static int check_request(const struct request *rq)
{
    const struct conn *c = rq->conn;

    if (rq->type >= NBD_CMD_COUNT) {
        return -EINVAL;
    }
    if (rq->flags & ~allowed_flags[rq->type] ||
        ((rq->flags & NBD_CMD_FLAG_DF) && !c->structured)) {
        return -EINVAL;
    }
    if (changes_data(rq->type) && !c->export->writable) {
        return -EPERM;
    }
    if (rq->type == NBD_CMD_READ && rq->length > NBD_MAX_PAYLOAD) {
        return -EOVERFLOW;
    }
    if (rq->type == NBD_CMD_BLOCK_STATUS &&
        (c->context_count == 0 || rq->length == 0)) {
        return -EINVAL;
    }
    return check_range(rq);
}

/* --- Reading --- */

static size_t read_head(const struct conn *c)
{
    return c->structured ? NBD_CHUNK_LEN + 8 : NBD_SIMPLE_REPLY_LEN;
}

static void put_data_head(unsigned char *to, const struct request *rq,
                          uint16_t flags, uint64_t offset, uint32_t length)
{
    size_t at = reply_put_chunk(to, rq, flags, NBD_REPLY_OFFSET_DATA,
                                8 + length);
    store_be64(to + at, offset);
}

/* From memory, straight into the batch. */
static int read_inline(struct request *rq)
{
    struct conn *c = rq->conn;
    size_t head = read_head(c);
    unsigned char *to = conn_batch_room(c, head + rq->length);

    if (!to) {
        return -EAGAIN;
    }
    int r = blk_pread(c->export->blk, to + head, rq->length, rq->offset,
                      REQ_NOWAIT);
    if (r < 0) {
        return r;
    }
    if (c->structured) {
        put_data_head(to, rq, NBD_REPLY_FLAG_DONE, rq->offset, rq->length);
    } else {
        (void)reply_put_simple(to, rq, 0);
    }
    conn_batch_commit(c, head + rq->length);
    return 0;
}

static int send_data(struct request *rq, uint16_t flags, uint64_t offset,
                     void *data, uint32_t length)
{
    unsigned char head[NBD_CHUNK_LEN + 8];
    struct iovec v[2] = { { head, sizeof(head) }, { data, length } };

    put_data_head(head, rq, flags, offset, length);
    return conn_send(rq->conn, v, 2, true);
}

static int send_hole(struct request *rq, uint16_t flags, uint64_t offset,
                     uint32_t length)
{
    unsigned char chunk[NBD_CHUNK_LEN + 12];
    struct iovec v = { chunk, sizeof(chunk) };
    size_t at = reply_put_chunk(chunk, rq, flags, NBD_REPLY_OFFSET_HOLE, 12);

    store_be64(chunk + at, offset);
    store_be32(chunk + at + 8, length);
    return conn_send(rq->conn, &v, 1, true);
}

struct pieces {
    struct request *rq;
    unsigned char *buf; /* PIECE bytes */
};

/* One extent of the range: a hole chunk, or data in pieces. */
static int send_extent(const struct extent *e, void *opaque)
{
    const struct pieces *p = opaque;
    uint64_t end = p->rq->offset + p->rq->length;

    if (e->flags & EXTENT_ZERO) {
        bool last = e->offset + e->length == end;
        return send_hole(p->rq, last ? NBD_REPLY_FLAG_DONE : 0, e->offset,
                         (uint32_t)e->length);
    }
    for (uint64_t done = 0; done < e->length;) {
        uint64_t at = e->offset + done;
        uint64_t len = min_u64(e->length - done, PIECE);
        int r = blk_pread(p->rq->conn->export->blk, p->buf, len, at, 0);
        if (r == 0) {
            r = send_data(p->rq, at + len == end ? NBD_REPLY_FLAG_DONE : 0, at,
                          p->buf, (uint32_t)len);
        }
        if (r < 0) {
            return r;
        }
        done += len;
    }
    return 0;
}

/* The extents of the range, kept: I/O is not done during the walk, which is
 * inside of a request. */
#define READ_EXTENTS 64
struct extent_list {
    struct extent e[READ_EXTENTS];
    unsigned count;
};

static int keep_extent(const struct extent *e, void *opaque)
{
    struct extent_list *l = opaque;
    struct extent *last = l->count ? &l->e[l->count - 1] : NULL;

    if (last && (last->flags & EXTENT_ZERO) == (e->flags & EXTENT_ZERO)) {
        last->length += e->length;
    } else if (l->count < READ_EXTENTS) {
        l->e[l->count++] = *e;
    } else { /* too many: the rest is sent as data */
        last->flags &= ~(unsigned)EXTENT_ZERO;
        last->length += e->length;
    }
    return 0;
}

static int read_in_chunks(struct request *rq)
{
    struct blk *blk = rq->conn->export->blk;
    struct extent_list l = { .count = 0 };
    struct pieces p = { rq, malloc(PIECE) };
    int r = p.buf ? 0 : -ENOMEM;

    if (r == 0 && blk_extents(blk, rq->offset, rq->length, 0, keep_extent,
                              &l) < 0) {
        l.count = 1;
        l.e[0] = (struct extent){ .offset = rq->offset, .length = rq->length };
    }
    for (unsigned i = 0; i < l.count && r == 0; i++) {
        r = send_extent(&l.e[i], &p);
    }
    free(p.buf);
    return r;
}

static int read_whole(struct request *rq)
{
    unsigned char head[NBD_CHUNK_LEN + 8];
    unsigned char *buf = malloc(rq->length ? rq->length : 1);
    struct iovec v[2] = { { head, read_head(rq->conn) },
                          { buf, rq->length } };
    int r = buf ? blk_pread(rq->conn->export->blk, buf, rq->length, rq->offset,
                            0)
                : -ENOMEM;
    if (r == 0) {
        if (rq->conn->structured) {
            put_data_head(head, rq, NBD_REPLY_FLAG_DONE, rq->offset,
                          rq->length);
        } else {
            (void)reply_put_simple(head, rq, 0);
        }
        r = conn_send(rq->conn, v, 2, true);
    }
    free(buf);
    return r;
}

static void pool_read(struct request *rq)
{
    bool chunks = rq->conn->structured && rq->length > CONN_INLINE_MAX &&
                  !(rq->flags & NBD_CMD_FLAG_DF);
    int r = chunks ? read_in_chunks(rq) : read_whole(rq);

    if (r < 0 && r != -EPIPE) {
        reply_simple(rq, r, true);
    }
}

/* --- The pool's side --- */

static int zero_flags(const struct request *rq, unsigned flags)
{
    if (!(rq->flags & NBD_CMD_FLAG_NO_HOLE)) {
        flags |= REQ_MAY_UNMAP;
    }
    if (rq->flags & NBD_CMD_FLAG_FAST_ZERO) {
        flags |= REQ_NO_FALLBACK;
    }
    return (int)flags;
}

static int pool_do(struct request *rq)
{
    struct blk *blk = rq->conn->export->blk;
    unsigned flags = rq->flags & NBD_CMD_FLAG_FUA ? REQ_FUA : 0;
    int r;

    switch (rq->type) {
    case NBD_CMD_WRITE:
        return blk_pwrite(blk, rq->payload, rq->length, rq->offset, flags);
    case NBD_CMD_WRITE_ZEROES:
        return blk_zero(blk, rq->offset, rq->length,
                        (unsigned)zero_flags(rq, flags));
    case NBD_CMD_TRIM:
        r = blk_discard(blk, rq->offset, rq->length);
        return r == 0 && flags ? blk_flush(blk) : r;
    case NBD_CMD_FLUSH:
        return blk_flush(blk);
    case NBD_CMD_CACHE:
        return blk_prefetch(blk, rq->offset, rq->length);
    default:
        return -EINVAL;
    }
}

/* Memory that a request takes while the pool has it. */
static uint64_t cost_of(const struct request *rq)
{
    return rq->type == NBD_CMD_WRITE || rq->type == NBD_CMD_READ ? rq->length
                                                                 : 0;
}

static void pool_run(struct work *w)
{
    struct request *rq = list_entry(w, struct request, work);
    struct conn *c = rq->conn;

    if (rq->type == NBD_CMD_READ) {
        pool_read(rq);
    } else if (rq->type == NBD_CMD_BLOCK_STATUS) {
        conn_block_status(rq);
    } else {
        reply_simple(rq, pool_do(rq), true);
    }
    free(rq->payload);
    mutex_lock(&c->lock);
    c->inflight--;
    c->inflight_bytes -= cost_of(rq);
    cond_signal(&c->finished);
    mutex_unlock(&c->lock);
    free(rq);
}

static void hand_over(const struct request *rq)
{
    struct conn *c = rq->conn;
    struct request *copy = malloc(sizeof(*copy));

    if (!copy) {
        struct request failed = *rq;
        reply_simple(&failed, -ENOMEM, false);
        free(rq->payload);
        return;
    }
    *copy = *rq;
    copy->work.run = pool_run;
    mutex_lock(&c->lock);
    bool full = c->inflight >= CONN_INFLIGHT_MAX;
    mutex_unlock(&c->lock);
    if (full) {
        conn_batch_send(c); /* before waiting */
    }
    mutex_lock(&c->lock);
    while (c->inflight >= CONN_INFLIGHT_MAX ||
           (c->inflight > 0 && c->inflight_bytes + cost_of(rq) >
                                   CONN_INFLIGHT_BYTES_MAX)) {
        cond_wait(&c->finished, &c->lock);
    }
    c->inflight++;
    c->inflight_bytes += cost_of(rq);
    mutex_unlock(&c->lock);
    pool_submit(c->pool, &copy->work);
}

/* --- Serving at once --- */

/* The payload is in the buffer as a whole: no copy if it can be written
 * without waiting. */
static int write_inline(struct request *rq)
{
    struct conn *c = rq->conn;

    if (rq->length > CONN_INLINE_MAX || (rq->flags & NBD_CMD_FLAG_FUA)) {
        return -EAGAIN;
    }
    if (!conn_fill(c, rq->length)) {
        return -EPIPE;
    }
    int r = blk_pwrite(c->export->blk, conn_unread(c), rq->length, rq->offset,
                       REQ_NOWAIT);
    if (r != -EAGAIN) {
        c->in_start += rq->length;
    }
    return r;
}

static int take_payload(struct request *rq)
{
    rq->payload = malloc(rq->length ? rq->length : 1);
    if (!rq->payload) {
        return conn_read(rq->conn, NULL, rq->length) ? -ENOMEM : -EPIPE;
    }
    if (!conn_read(rq->conn, rq->payload, rq->length)) {
        free(rq->payload);
        return -EPIPE;
    }
    return 0;
}

static int serve_write(struct request *rq)
{
    int r = write_inline(rq);

    if (r == -EAGAIN) {
        r = take_payload(rq);
        if (r == 0) {
            hand_over(rq);
            return 1;
        }
    }
    if (r == -EPIPE) {
        return 0;
    }
    reply_simple(rq, r, false);
    return 1;
}

static int refuse(struct request *rq, int r)
{
    if (rq->type == NBD_CMD_WRITE && !conn_read(rq->conn, NULL, rq->length)) {
        return 0;
    }
    reply_simple(rq, r, false);
    return 1;
}

static void parse(struct conn *c, struct request *rq)
{
    const unsigned char *b = conn_unread(c);

    *rq = (struct request){ .conn = c };
    rq->flags = load_be16(b + 4);
    rq->type = load_be16(b + 6);
    memcpy(rq->cookie, b + 8, 8);
    rq->offset = load_be64(b + 16);
    rq->length = load_be32(b + 24);
    c->in_start += NBD_REQUEST_LEN;
}

int conn_request(struct conn *c)
{
    struct request rq;

    if (!conn_fill(c, NBD_REQUEST_LEN) || atomic_load(&c->broken) ||
        load_be32(conn_unread(c)) != NBD_REQUEST_MAGIC) {
        return 0;
    }
    parse(c, &rq);
    if (rq.type == NBD_CMD_DISC ||
        (rq.type == NBD_CMD_WRITE && rq.length > NBD_MAX_PAYLOAD)) {
        return 0;
    }
    int r = check_request(&rq);
    if (r < 0) {
        return refuse(&rq, r);
    }
    if (rq.type == NBD_CMD_WRITE) {
        return serve_write(&rq);
    }
    if (rq.type == NBD_CMD_READ && rq.length <= CONN_INLINE_MAX) {
        r = rq.length ? read_inline(&rq) : 0;
        if (r != -EAGAIN) {
            if (r < 0 || rq.length == 0) {
                reply_simple(&rq, r, false);
            }
            return 1;
        }
    }
    hand_over(&rq);
    return 1;
}
