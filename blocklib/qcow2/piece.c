/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pieces of a write: planning one, filling it, and putting in its entries.
 *
 *      cluster         cluster         cluster
 *   |...head|######## the request ########|tail...|
 *
 * What a reader sees changes with the L2 entries, after the data is there.
 * In an external data file a cluster has its place already; all the rest is
 * the same.
 *
 * Subclusters.  Head and tail are old data that would be lost otherwise:
 *
 *   the old cluster                      head begins, and tail ends
 *   none                                 with the subcluster
 *   our own, subcluster has no data      with the subcluster
 *   our own, subcluster has data         with the request: there is none
 *   shared                               with its first, and last, data
 *   compressed                           with the cluster
 *
 * Without subclusters a cluster is one.
 */
#include "qcow2/piece.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/alloc.h"
#include "qcow2/copied.h"
#include "qcow2/encrypt.h"
#include "util/iov.h"

/* A write that must not wait copies so much old data at the most. */
#define COPY_NOWAIT_MAX (64 * KiB)

/* --- Planning --- */

static bool is_in_place(const struct qcow2_at *at)
{
    return at->copied && at->kind == QCOW2_KIND_NORMAL;
}

/* Has it a place that nobody else refers to? */
static bool is_placed(const struct qcow2_at *at)
{
    return at->copied && (at->kind == QCOW2_KIND_NORMAL ||
                          at->kind == QCOW2_KIND_ZERO_ALLOC ||
                          at->kind == QCOW2_KIND_UNALLOCATED_ALLOC);
}

/* The number of bytes from @offset on, at most @max, that have no place, or lie
 * where they must not be changed. */
static uint64_t run_without_place(const struct qcow2 *s,
                                  const struct qcow2_table *t, uint64_t offset,
                                  uint64_t max)
{
    struct qcow2_at at;

    for (uint64_t done = 0; done < max; done += at.bytes) {
        qcow2_l2_look(s, t, offset + done, max - done, &at);
        if (is_placed(&at) || at.contradicts) {
            return done;
        }
    }
    return max;
}

/* Begin with the first subcluster of the request, which @at describes, and has
 * a place: as much as lies in a row there. */
static int plan_placed(struct qcow2 *s, struct qcow2_at *at, uint64_t end,
                       struct qcow2_piece *p) REQUIRES(s->meta)
{
    uint64_t start = align_down(p->offset, qcow2_sub_size(s));
    struct qcow2_at first = *at;
    uint64_t length = at->bytes;
    struct qcow2_at next;

    p->placed = p->in_place = true;
    p->host = first.host + (p->offset - start);
    for (;;) {
        p->in_place &= is_in_place(at);
        if (start + length >= end) {
            break;
        }
        qcow2_l2_look(s, p->l2, start + length, end - start - length, &next);
        if (!is_placed(&next) || next.wrong || next.contradicts ||
            next.host != first.host + length) {
            break;
        }
        length += next.bytes;
        *at = next;
    }
    p->bytes = min_u64(p->bytes, start + length - p->offset);
    p->head = is_in_place(&first) ? 0 : p->offset - start;
    p->tail = is_in_place(at) ? 0 : start + length - (p->offset + p->bytes);
    return s->external ? 0 : qcow2_overlap_check(s, 0, first.host, length);
}

/* Where do the bytes begin, or end (@up), that are written to a new cluster for
 * a request that begins, or ends, at @at? */
static uint64_t edge_of(const struct qcow2 *s, const struct qcow2_table *t,
                        uint64_t at, bool up)
{
    uint64_t cluster = align_down(at - up, s->cluster_size);
    uint64_t edge = up ? align_up(at, qcow2_sub_size(s))
                       : align_down(at, qcow2_sub_size(s));
    struct qcow2_at e;

    for (uint64_t done = 0; done < s->cluster_size; done += e.bytes) {
        uint64_t from = cluster + done;

        qcow2_l2_look(s, t, from, s->cluster_size - done, &e);
        if (e.kind == QCOW2_KIND_COMPRESSED || e.kind == QCOW2_KIND_NORMAL) {
            edge = up ? max_u64(edge, from + e.bytes) : min_u64(edge, from);
        }
    }
    return edge;
}

static int allocate(struct qcow2 *s, bool nowait, struct qcow2_piece *p)
    REQUIRES(s->meta)
{
    return s->external ? 0
           : nowait
               ? qcow2_alloc_nowait(s, p->clusters, &p->host, &p->clusters,
                                    &p->fresh)
               : qcow2_alloc(s, p->clusters, &p->host, &p->clusters, &p->fresh);
}

static int plan_new(struct qcow2 *s, uint64_t end, bool nowait,
                    struct qcow2_piece *p) REQUIRES(s->meta)
{
    uint64_t start = align_down(p->offset, s->cluster_size);
    uint64_t sub = align_down(p->offset, qcow2_sub_size(s));
    uint64_t run = run_without_place(s, p->l2, sub, end - sub);

    p->clusters = div_up(sub + run - start, s->cluster_size);
    p->host = start; /* in a data file */
    int r = allocate(s, nowait, p);
    if (r < 0) {
        return r;
    }
    uint64_t room = start + (p->clusters << s->cluster_bits);
    p->bytes = min_u64(p->bytes, room - p->offset);
    p->host += qcow2_in_cluster(s, p->offset);
    p->head = p->offset - edge_of(s, p->l2, p->offset, false);
    p->tail = edge_of(s, p->l2, p->offset + p->bytes, true) -
              (p->offset + p->bytes);
    return 0;
}

static int get_table(struct qcow2 *s, uint64_t offset, bool nowait,
                     struct qcow2_table **tp) REQUIRES(s->meta)
{
    return nowait ? qcow2_l2_get_ready(s, offset, tp)
                  : qcow2_l2_get_writable(s, offset, tp);
}

int qcow2_piece_plan(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                     bool nowait, struct qcow2_piece *p)
{
    uint64_t start = align_down(offset, qcow2_sub_size(s));
    uint64_t end = min_u64(align_up(offset + bytes, qcow2_sub_size(s)),
                           start + qcow2_l2_rest(s, start));
    struct qcow2_at at;

    *p = (struct qcow2_piece){.offset = offset,
                              .bytes = min_u64(bytes, end - offset),
                              .losses = qcow2_copied_losses(s)};
    int r = get_table(s, offset, nowait, &p->l2);
    if (r < 0) {
        return r;
    }
    qcow2_l2_look(s, p->l2, start, end - start, &at);
    if (is_placed(&at) || at.contradicts) {
        r = qcow2_l2_check(s, &at);
        r = r < 0 ? r : plan_placed(s, &at, end, p);
    } else {
        r = plan_new(s, end, nowait, p);
    }
    if (r < 0) {
        qcow2_cache_put(s->l2, p->l2);
    } else if (s->external) { /* the data file ends with the disk */
        uint64_t after = p->offset + p->bytes;
        uint64_t last = align_up(s->node->size, s->node->limits.align);

        p->tail = min_u64(p->tail, max_u64(last, after) - after);
    }
    return r;
}

/* --- Old data --- */

/* The part of a range that the disk has; behind that there are zeroes. */
static uint64_t bytes_on_disk(const struct qcow2 *s, uint64_t offset,
                              uint64_t bytes)
{
    uint64_t size = s->node->size;

    return offset < size ? min_u64(bytes, size - offset) : 0;
}

/* Does the guest see nothing but zeroes there, in a cluster of table @t? */
static bool shows_zeroes(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t offset, uint64_t bytes)
{
    uint64_t inside = bytes_on_disk(s, offset, bytes);
    struct qcow2_at at;

    if (inside == 0) {
        return true;
    }
    qcow2_l2_look(s, t, offset, inside, &at);
    if (at.bytes < inside || at.wrong || at.contradicts) {
        return false;
    }
    switch (at.kind) {
    case QCOW2_KIND_ZERO_PLAIN:
    case QCOW2_KIND_ZERO_ALLOC:
        return true;
    case QCOW2_KIND_UNALLOCATED:
    case QCOW2_KIND_UNALLOCATED_ALLOC:
        return !node_child(s->node, CHILD_BACKING);
    default:
        return false;
    }
}

/* The old content of a range, as the guest sees it. */
static int read_old(struct qcow2 *s, uint64_t offset, uint64_t bytes, bool zero,
                    char *buf, unsigned flags)
{
    uint64_t inside = zero ? 0 : bytes_on_disk(s, offset, bytes);

    memset(buf + inside, 0, bytes - inside);
    if (inside == 0) {
        return 0;
    }
    node_event(s->file, EVENT_COW_READ);
    return node_pread(s->node, buf, inside, offset, flags);
}

/* Do head and tail of the piece read as zeroes as they are?  Encrypted zeroes
 * are none. */
static bool reads_as_zeroes(const struct qcow2 *s, const struct qcow2_piece *p)
{
    return !s->luks &&
           (p->fresh ||
            (s->external && qcow2_is_hole(s->data, p->host - p->head,
                                          p->head + p->bytes + p->tail)));
}

static bool takes_long(const struct qcow2 *s, const struct qcow2_piece *p)
{
    return s->luks || p->head + p->tail > COPY_NOWAIT_MAX;
}

int qcow2_piece_gather(struct qcow2 *s, struct qcow2_piece *p, unsigned flags)
{
    uint64_t before = p->offset - p->head;
    uint64_t after = p->offset + p->bytes;
    bool nowait = flags & REQ_NOWAIT;

    if (p->head == 0 && p->tail == 0) {
        return 0;
    }
    if (nowait && s->external) { /* where are holes? */
        return -EAGAIN;
    }
    bool head_zero = shows_zeroes(s, p->l2, before, p->head);
    bool tail_zero = shows_zeroes(s, p->l2, after, p->tail);
    bool fresh = reads_as_zeroes(s, p);
    /* A fresh cluster need not be filled with zeroes. */
    p->with_head = p->head > 0 && !(fresh && head_zero);
    p->with_tail = p->tail > 0 && !(fresh && tail_zero);
    if (!p->with_head && !p->with_tail) {
        return 0;
    }
    if (nowait && takes_long(s, p)) {
        return -EAGAIN;
    }
    p->old = buf_alloc(p->head + p->tail);
    int r = p->old ? 0 : -ENOMEM;
    if (r == 0 && p->with_head) {
        r = read_old(s, before, p->head, head_zero, p->old, flags);
    }
    if (r == 0 && p->with_tail) {
        r = read_old(s, after, p->tail, tail_zero, p->old + p->head, flags);
    }
    return r;
}

/* --- Filling --- */

void qcow2_piece_overwrite(struct qcow2 *s, const struct qcow2_piece *p)
{
    if (p->placed) {
        qcow2_copied_overwrite(s, p->host - p->head,
                               p->head + p->bytes + p->tail);
    }
}

/* One write of head, data and tail. */
static int write_with_old(struct qcow2 *s, const struct qcow2_piece *p,
                          const struct iovec *iov, int cnt, unsigned flags)
{
    struct iovec v[IOV_MAX_INNER];
    uint64_t from = p->host;
    uint64_t len = p->bytes;
    int n = 0;

    if (p->with_head) {
        v[n++] = (struct iovec){p->old, p->head};
        from -= p->head;
        len += p->head;
    }
    memcpy(v + n, iov, (size_t)cnt * sizeof(*iov));
    n += cnt;
    if (p->with_tail) {
        v[n++] = (struct iovec){p->old + p->head, p->tail};
        len += p->tail;
    }
    node_event(s->file, EVENT_WRITE_AIO);
    node_event(s->file, EVENT_COW_WRITE);
    return qcow2_write_data(s, from, len, v, n, flags);
}

int qcow2_piece_write(struct qcow2 *s, struct qcow2_piece *p,
                      const struct iovec *iov, int cnt, unsigned flags)
{
    qcow2_piece_overwrite(s, p);
    if (p->with_head || p->with_tail) {
        return write_with_old(s, p, iov, cnt, flags);
    }
    node_event(s->file, EVENT_WRITE_AIO);
    return qcow2_write_data(s, p->host, p->bytes, iov, cnt, flags);
}

/* --- Ending --- */

int qcow2_piece_link(struct qcow2 *s, const struct qcow2_piece *p,
                     enum qcow2_kind kind)
{
    uint64_t in_sub = p->offset & (qcow2_sub_size(s) - 1);

    return qcow2_l2_put(s, p->l2, p->offset - in_sub, in_sub + p->bytes, kind,
                        p->host - in_sub);
}

/* Note a run of old data cluster by cluster. */
static void note_run(struct qcow2 *s, const struct qcow2_piece *p,
                     uint64_t offset, uint64_t bytes, uint64_t host)
    REQUIRES(s->meta)
{
    for (uint64_t done = 0, len; done < bytes; done += len) {
        len = min_u64(bytes - done,
                      s->cluster_size - qcow2_in_cluster(s, offset + done));
        qcow2_copied_note(s, p->l2, offset + done, len, host + done, p->losses);
    }
}

/* The old data of the piece are where no entry leads yet. */
static int note_copies(struct qcow2 *s, const struct qcow2_piece *p)
    REQUIRES(s->meta)
{
    uint64_t all = qcow2_in_cluster(s, p->offset) + p->bytes;

    if (!p->with_head && !p->with_tail && !p->copied_up) {
        return 0;
    }
    int r = qcow2_copied_reserve(
        s, p->copied_up ? div_up(all, s->cluster_size) + 1 : 2);
    if (r < 0) {
        return r;
    }
    note_run(s, p, p->offset - p->head, p->with_head ? p->head : 0,
             p->host - p->head);
    note_run(s, p, p->offset, p->copied_up ? p->bytes : 0, p->host);
    note_run(s, p, p->offset + p->bytes, p->with_tail ? p->tail : 0,
             p->host + p->bytes);
    return 0;
}

static bool is_allocated(const struct qcow2 *s, const struct qcow2_piece *p)
{
    return !p->placed && !s->external;
}

int qcow2_piece_end(struct qcow2 *s, const struct qcow2_piece *p, int r)
{
    if (r == 0 && p->in_place) {
        return 0;
    }
    r = r < 0 ? r : note_copies(s, p);
    if (r == 0) {
        return qcow2_piece_link(s, p, QCOW2_KIND_NORMAL);
    }
    if (is_allocated(s, p)) {
        qcow2_alloc_undo(s, align_down(p->host, s->cluster_size), p->clusters);
    }
    return r;
}

void qcow2_piece_drop(struct qcow2 *s, const struct qcow2_piece *p)
{
    if (is_allocated(s, p)) {
        qcow2_alloc_undo_unwritten(s, align_down(p->host, s->cluster_size),
                                   p->clusters, p->fresh);
    }
}

void qcow2_piece_free(struct qcow2 *s, struct qcow2_piece *p)
{
    qcow2_cache_put(s->l2, p->l2);
    free(p->old);
    p->old = NULL;
}
