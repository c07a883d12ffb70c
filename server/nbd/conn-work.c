/* SPDX-License-Identifier: BSD-3-Clause */
/* Requests in the hands of the worker pool: all that may block. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "log/log.h"
#include "nbd/conn.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"

static void request_work(struct work *w);

/* --- Request objects. --- */

struct request *request_new(struct conn *c, const struct request *like)
{
    struct request *r = NULL;

    mutex_lock(&c->lock);
    if (!list_empty(&c->free_requests)) {
        r = list_entry(c->free_requests.next, struct request, link);
        list_remove(&r->link);
    }
    mutex_unlock(&c->lock);
    if (!r && !(r = malloc(sizeof(*r)))) {
        return NULL;
    }
    *r = *like;
    r->conn = c;
    r->work.fn = request_work;
    list_init(&r->work.link);
    list_init(&r->link);
    list_init(&r->payload);
    return r;
}

void request_free(struct request *r)
{
    struct conn *c = r->conn;

    segments_free(c, &r->payload);
    mutex_lock(&c->lock);
    list_append(&c->free_requests, &r->link);
    mutex_unlock(&c->lock);
}

size_t request_bytes(const struct request *rq)
{
    switch (rq->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return (size_t)rq->length; /* at most NBD_PAYLOAD_MAX */
    case NBD_CMD_BLOCK_STATUS:
        return MiB;
    default:
        return 0;
    }
}

static void count_locked(struct conn *c, const struct request *r)
    REQUIRES(c->lock)
{
    c->executing++;
    c->held += request_bytes(r);
    c->intake = c->granted = 0; /* they were for this request */
    conn_account_locked(c, false);
}

static void uncount_locked(struct conn *c, struct request *r) REQUIRES(c->lock)
{
    c->held -= request_bytes(r);
    conn_account_locked(c, false);
    c->executing--;
    list_append(&c->free_requests, &r->link);
}

void request_count(struct request *r)
{
    struct conn *c = r->conn;

    mutex_lock(&c->lock);
    count_locked(c, r);
    mutex_unlock(&c->lock);
}

void request_uncount(struct request *r)
{
    struct conn *c = r->conn;

    segments_free(c, &r->payload);
    mutex_lock(&c->lock);
    uncount_locked(c, r);
    mutex_unlock(&c->lock);
}

void request_submit(struct request *r)
{
    struct conn *c = r->conn;

    mutex_lock(&c->lock);
    count_locked(c, r);
    bool now = c->working < WORKERS_MAX;
    if (now) {
        c->working++;
    } else {
        list_append(&c->pending, &r->link);
    }
    mutex_unlock(&c->lock);
    if (now) {
        pool_submit(c->pool, c->export->share, &r->work);
    }
}

/* @r has been replied to.  After the last request the connection may be freed
 * as soon as the lock is released. */
static void request_done(struct request *r)
{
    struct conn *c = r->conn;
    struct pool *pool = c->pool;
    struct share *share = c->export->share;
    struct request *next = NULL;

    segments_free(c, &r->payload);
    mutex_lock(&c->lock);
    uncount_locked(c, r);
    if (!list_empty(&c->pending)) {
        next = list_entry(c->pending.next, struct request, link);
        list_remove(&next->link);
    } else {
        c->working--;
    }
    if (c->throttled) {
        conn_kick(c);
    }
    mutex_unlock(&c->lock);
    if (next) { /* it goes behind the work of other connections */
        pool_submit(pool, share, &next->work);
    }
}

/* --- What requests do. --- */

/* Longer ranges to trim, zero or cache are done piece by piece.  So a drain of
 * the tree, or the end of the connection, waits for a piece, not for all. */
#define RANGE_PIECE (1 * GiB)

static uint32_t wire_error(int r)
{
    switch (-r) {
    case 0:
        return 0;
    case EPERM:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
    case EACCES: /* not a part of the point in time: QEMU says EINVAL, too */
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

/* Did the storage fail?  False: the client has asked for the impossible. */
static bool is_io_error(int r)
{
    switch (-r) {
    case 0:
    case EACCES: /* the log has it already: a point in time was lost */
    case EAGAIN:
    case EINVAL:
    case ENOTSUP:
    case EPERM:
    case EROFS:
    case ESHUTDOWN:
        return false;
    default:
        return true;
    }
}

const char *request_name(const struct request *rq)
{
    switch (rq->type) {
    case NBD_CMD_READ:
        return "read";
    case NBD_CMD_WRITE:
        return "write";
    case NBD_CMD_FLUSH:
        return "flush";
    case NBD_CMD_TRIM:
        return "discard";
    case NBD_CMD_WRITE_ZEROES:
        return "write of zeroes";
    case NBD_CMD_CACHE:
        return "prefetch";
    default:
        return "block status";
    }
}

static struct export *logged_export(const struct conn *c)
{
    return c->export->of ? c->export->of : c->export;
}

/* The limit is the disk's: it does not matter which client has asked. */
static void log_io_error(struct conn *c, const struct request *rq, int r)
{
    struct export *e = logged_export(c);

    log_seldom(&e->io_errors, TELL_ERROR,
               "export '%.200s': a client's %s at %" PRIu64 " (%" PRIu64
               " bytes) failed: %s",
               e->name, request_name(rq), rq->offset, rq->length, strerror(-r));
}

/* QEMU tells of the reads and writes of a guest; all that changes the disk or
 * makes changes durable counts as a write. */
static void tell_io_error(const struct conn *c, const struct request *rq, int r)
{
    switch (rq->type) {
    case NBD_CMD_READ:
        export_tell_error(c->exports, logged_export(c), true, -r);
        return;
    case NBD_CMD_WRITE:
    case NBD_CMD_WRITE_ZEROES:
    case NBD_CMD_TRIM:
    case NBD_CMD_FLUSH:
        export_tell_error(c->exports, logged_export(c), false, -r);
        return;
    default:
        return;
    }
}

void conn_reply_result(struct conn *c, const struct request *rq, int r,
                       bool batch)
{
    uint32_t error = wire_error(r);
    const char *text = r < 0 ? strerrordesc_np(-r) : NULL;

    if (is_io_error(r)) {
        log_io_error(c, rq, r);
        tell_io_error(c, rq, r);
    }
    if (r == -ENOTSUP && (rq->flags & NBD_CMD_FLAG_FAST_ZERO) &&
        rq->type == NBD_CMD_WRITE_ZEROES) {
        error = NBD_ENOTSUP;
    }
    conn_reply(c, rq, error, text ? text : "unknown error", batch);
}

_Static_assert((uint64_t)BLK_IOV_MAX *PIECE_SIZE >= NBD_PAYLOAD_MAX,
               "a write is one request");

/* One request for all of the payload: a point in time has all of a write, or
 * nothing of it. */
static int write_payload(struct conn *c, const struct request *r)
{
    struct iovec iov[BLK_IOV_MAX];
    int n = 0;

    list_for_each (at, &r->payload) {
        struct segment *s = list_entry(at, struct segment, link);
        iov[n++] = (struct iovec){segment_at(s, s->head), s->tail - s->head};
    }
    return blk_pwritev(c->export->blk, iov, n, r->offset,
                       r->flags & NBD_CMD_FLAG_FUA ? REQ_FUA : 0);
}

/* The reply to a trim that frees nothing is success: only the log tells. */
static void log_ignored_trim(const struct conn *c)
{
    struct export *e = logged_export(c);

    if (!blk_discards(e->blk)) {
        log_seldom(&e->ignored, TELL_INFO,
                   "export '%.200s': clients trim, and nothing is freed: its "
                   "node was opened without discard=unmap",
                   e->name);
    }
}

static int run_piece(struct conn *c, const struct request *r, uint64_t offset,
                     uint64_t bytes)
{
    struct blk *blk = c->export->blk;

    switch (r->type) {
    case NBD_CMD_TRIM:
        return blk_discard(blk, offset, bytes);
    case NBD_CMD_CACHE:
        return blk_prefetch(blk, offset, bytes);
    default:
        return blk_zero(
            blk, offset, bytes,
            (r->flags & NBD_CMD_FLAG_NO_HOLE ? 0 : REQ_MAY_UNMAP) |
                (r->flags & NBD_CMD_FLAG_FAST_ZERO ? REQ_NO_FALLBACK : 0));
    }
}

/* Nobody waits for replies any more, or the connection has to end soon. */
static bool is_given_up(struct conn *c)
{
    mutex_lock(&c->lock);
    bool broken = c->broken;
    mutex_unlock(&c->lock);
    return broken || atomic_load(&c->stopping);
}

/* Trim, zero or cache up to 2^64 bytes.  A fast zero is not divided, because if
 * it fails it must have changed nothing. */
static int range_by_pieces(struct conn *c, const struct request *r)
{
    bool whole = r->flags & NBD_CMD_FLAG_FAST_ZERO;
    uint64_t end = r->offset + r->length;

    for (uint64_t at = r->offset, next; at < end; at = next) {
        if (at > r->offset && is_given_up(c)) {
            return -ESHUTDOWN;
        }
        next = whole ? end
                     : min_u64(end, align_down(at + RANGE_PIECE, RANGE_PIECE));
        int ret = run_piece(c, r, at, next - at);
        if (ret < 0) {
            return ret;
        }
    }
    return r->flags & NBD_CMD_FLAG_FUA && r->type != NBD_CMD_CACHE
               ? blk_flush(c->export->blk)
               : 0;
}

static void request_work(struct work *w)
{
    struct request *r = list_entry(w, struct request, work);
    struct conn *c = r->conn;
    struct request rest = *r;
    int ret;

    if (pthread_equal(pthread_self(), c->self)) { /* the pool has no thread */
        conn_land_all(c);
    }
    switch (r->type) {
    case NBD_CMD_READ:
        (void)conn_read(c, &rest, false);
        break;
    case NBD_CMD_BLOCK_STATUS:
        (void)conn_status(c, r, false);
        break;
    default:
        if (r->type == NBD_CMD_TRIM) {
            log_ignored_trim(c);
        }
        ret = r->type == NBD_CMD_WRITE   ? write_payload(c, r)
              : r->type == NBD_CMD_FLUSH ? blk_flush(c->export->blk)
                                         : range_by_pieces(c, r);
        conn_reply_result(c, r, ret, false);
        break;
    }
    request_done(r);
}
