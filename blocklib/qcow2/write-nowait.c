/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writes that allocate, and must not wait: what a connection's thread does
 * itself.
 *
 *   try    range lock on the guest clusters, for all of the request
 *   try    meta: plan all pieces; nothing is read, searched for or grown
 *          no lock: old data that are in memory
 *          write the pieces; the first may still answer -EAGAIN
 *   wait   meta: put the new entries in
 *
 *  1. Whatever fails before the first byte is written gives all back: clusters,
 *     where the file was never written (alloc.c), the range, the tables.  Then
 *     the worker pool does it all once more, and may wait.
 *  2. After that the request is completed.  The meta lock is waited for: what
 *     needs storage under it is rare, and all requests have to come by there.
 *  3. The pieces behind one for which there was no room are written again by
 *     way of write.c, which makes room.
 *
 * A flush to relieve the caches is not made here.  Where one is due the request
 * is left to the pool, which makes it.
 */
#include <errno.h>

#include "qcow2/alloc.h"
#include "qcow2/piece.h"
#include "qcow2/write.h"
#include "util/iov.h"

#define PIECES_MAX 8

struct pieces {
    struct qcow2_piece at[PIECES_MAX];
    unsigned count;
    unsigned written; /* the first ones, so many */
    uint64_t done;    /* bytes of these */
};

static int plan_pieces(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                       struct pieces *w) REQUIRES(s->meta)
{
    int r = s->making || s->counting || qcow2_is_pressed(s) ? -EAGAIN : 0;

    while (r == 0 && bytes > 0) {
        struct qcow2_piece *p = &w->at[w->count];

        r = w->count == PIECES_MAX
                ? -EAGAIN
                : qcow2_piece_plan(s, offset, bytes, true, p);
        if (r == 0) {
            w->count++;
            offset += p->bytes;
            bytes -= p->bytes;
        }
    }
    return r;
}

/* Of pieces that lie one behind the other in the file, the last one first. */
static void drop_pieces(struct qcow2 *s, struct pieces *w) REQUIRES(s->meta)
{
    for (unsigned i = w->count; i-- > 0;) {
        qcow2_piece_drop(s, &w->at[i]);
    }
}

static void free_pieces(struct qcow2 *s, struct pieces *w)
{
    for (unsigned i = 0; i < w->count; i++) {
        qcow2_piece_free(s, &w->at[i]);
    }
}

static int write_pieces(struct qcow2 *s, struct pieces *w,
                        const struct iovec *iov, int cnt)
{
    struct iovec part[IOV_MAX_INNER];
    unsigned flags = REQ_NOWAIT;
    int r = 0;

    for (unsigned i = 0; i < w->count && r == 0; i++) {
        r = qcow2_piece_gather(s, &w->at[i], flags);
    }
    while (r == 0 && w->written < w->count) {
        struct qcow2_piece *p = &w->at[w->written];
        int parts = iov_slice(part, iov, cnt, w->done, p->bytes);

        r = qcow2_piece_write(s, p, part, parts, flags);
        flags = 0;
        if (r == 0) {
            w->done += p->bytes;
            w->written++;
            node_request_changed();
        }
    }
    return r;
}

/* @r: of writing the piece behind those that were written. */
static int end_pieces(struct qcow2 *s, struct pieces *w, int r)
    REQUIRES(s->meta)
{
    if (r == -EAGAIN && w->written == 0) {
        drop_pieces(s, w);
        return r;
    }
    for (unsigned i = 0; i < w->count; i++) {
        int one = qcow2_piece_end(s, &w->at[i], i < w->written ? 0 : r);
        r = r < 0 ? r : one;
    }
    return r;
}

static int carry_out(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                     const struct iovec *iov, int cnt, struct pieces *w)
{
    w->count = w->written = 0;
    w->done = 0;
    if (!mutex_trylock(&s->meta)) {
        return -EAGAIN;
    }
    int r = plan_pieces(s, offset, bytes, w);
    if (r < 0) {
        drop_pieces(s, w);
    }
    mutex_unlock(&s->meta);
    if (r == 0) {
        r = write_pieces(s, w, iov, cnt);
        mutex_lock(&s->meta);
        r = end_pieces(s, w, r);
        mutex_unlock(&s->meta);
    } else { /* the pool finds out whether more than time is lacking */
        r = -EAGAIN;
    }
    free_pieces(s, w);
    return r;
}

static int write_rest(struct node *n, uint64_t offset, uint64_t bytes,
                      const struct iovec *iov, int cnt, uint64_t done)
{
    struct iovec rest[IOV_MAX_INNER];
    int parts = iov_slice(rest, iov, cnt, done, bytes - done);

    return qcow2_pwritev(n, offset + done, bytes - done, rest, parts, 0);
}

int qcow2_write_nowait(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt)
{
    struct qcow2 *s = n->state;
    uint64_t start = align_down(offset, s->cluster_size);
    uint64_t end = align_up(offset + bytes, s->cluster_size);
    struct pieces w;
    struct range_req req;
    int r = qcow2_check_data(s);

    /* A listener would be told of a request twice (event.h); storage that has
     * blocks of its own waits (file.c). */
    r = r < 0 ? r
              : node_event_in_request(s->file, EVENT_CLUSTER_ALLOC, REQ_NOWAIT);
    if (r < 0) {
        return r;
    }
    if (s->data->limits.align > 1 ||
        !range_trylock(&s->range, &req, start, end - start, true)) {
        return -EAGAIN;
    }
    r = carry_out(s, offset, bytes, iov, cnt, &w);
    range_unlock(&s->range, &req);
    if (r == -ENOSPC) {
        return w.written > 0 ? write_rest(n, offset, bytes, iov, cnt, w.done)
                             : -EAGAIN;
    }
    return r;
}
