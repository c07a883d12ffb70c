/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writing where map() gives no place to overwrite: clusters that are not
 * allocated, shared, compressed or zero.
 *
 *   range lock on the guest clusters: one writer per cluster at a time
 *   +- meta:   look at the entries, allocate a run of host clusters
 *   |  no lock: head and tail of old data, one write of it all
 *   +- meta:   put the new entries in, free what they replaced
 *
 *      cluster         cluster         cluster
 *   |...head|######## the request ########|tail...|
 *
 * What a reader sees changes with the L2 entries, after the data is there.
 * Whole clusters may come from another file, which shares its bytes
 * (node_clone), instead of from memory.
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
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "qcow2/alloc.h"
#include "qcow2/copied.h"
#include "qcow2/encrypt.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"
#include "util/iov.h"

/* What a request writes: from memory or, with @from, what that file has
 * @at. */
struct input {
    const struct iovec *iov;
    int cnt;
    unsigned flags; /* REQ_UNCACHED, or 0 */
    struct node *from;
    uint64_t at;
};

/* A piece of a request: clusters in one L2 table that are treated alike. */
struct piece {
    uint64_t offset; /* guest bytes of the request */
    uint64_t bytes;
    uint64_t host;  /* of the first byte of the request */
    uint64_t head;  /* bytes before it that are written, too, */
    uint64_t tail;  /* and behind it */
    bool with_head; /* these have been written */
    bool with_tail;
    uint64_t losses;        /* when it was planned: copied.h */
    uint64_t clusters;      /* that were allocated for it */
    struct qcow2_table *l2; /* pinned, if entries are to be put in */
    bool placed;            /* there is a place already, and it is ours alone */
    bool in_place;          /* and there is data: nothing changes */
    bool fresh;             /* reads as zeroes where it is not written */
};

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
                       struct piece *p) REQUIRES(s->meta)
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

static int plan_new(struct qcow2 *s, uint64_t end, struct piece *p)
    REQUIRES(s->meta)
{
    uint64_t start = align_down(p->offset, s->cluster_size);
    uint64_t sub = align_down(p->offset, qcow2_sub_size(s));
    uint64_t run = run_without_place(s, p->l2, sub, end - sub);

    p->clusters = div_up(sub + run - start, s->cluster_size);
    p->host = start; /* in a data file */
    int r = s->external ? 0
                        : qcow2_alloc(s, p->clusters, &p->host, &p->clusters,
                                      &p->fresh);
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

/* Find or allocate the host clusters of the first piece of a request. */
static int plan_piece(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                      struct piece *p) REQUIRES(s->meta)
{
    uint64_t start = align_down(offset, qcow2_sub_size(s));
    uint64_t end = min_u64(align_up(offset + bytes, qcow2_sub_size(s)),
                           start + qcow2_l2_rest(s, start));
    struct qcow2_at at;

    *p = (struct piece){.offset = offset,
                        .bytes = min_u64(bytes, end - offset),
                        .losses = qcow2_copied_losses(s)};
    int r = qcow2_l2_get_writable(s, offset, &p->l2);
    if (r < 0) {
        return r;
    }
    qcow2_l2_look(s, p->l2, start, end - start, &at);
    if (is_placed(&at) || at.contradicts) {
        r = qcow2_l2_check(s, &at);
        r = r < 0 ? r : plan_placed(s, &at, end, p);
    } else {
        r = plan_new(s, end, p);
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

/* The old content of [@offset, @offset + @bytes), as the guest sees it;
 * zeroes behind the end of the disk.  *zero: there is nothing but zeroes. */
static int read_old(struct qcow2 *s, uint64_t offset, uint64_t bytes, char *buf,
                    bool *zero)
{
    uint64_t size = s->node->size;
    uint64_t inside = offset < size ? min_u64(bytes, size - offset) : 0;
    struct mapping m;

    *zero = true;
    memset(buf + inside, 0, bytes - inside);
    if (inside == 0) {
        return 0;
    }
    int r = qcow2_map(s->node, offset, inside, 0, &m);
    if (r < 0) {
        return r;
    }
    *zero = m.length == inside &&
            (m.kind == MAP_ZERO || (m.kind == MAP_UNALLOCATED &&
                                    !node_child(s->node, CHILD_BACKING)));
    qcow2_map_put(s->node, &m);
    if (*zero) {
        memset(buf, 0, inside);
        return 0;
    }
    node_event(s->file, EVENT_COW_READ);
    return node_pread(s->node, buf, inside, offset, 0);
}

/* Do head and tail of the piece read as zeroes as they are?  Encrypted zeroes
 * are none. */
static bool reads_as_zeroes(const struct qcow2 *s, const struct piece *p)
{
    return !s->luks &&
           (p->fresh ||
            (s->external && qcow2_is_hole(s->data, p->host - p->head,
                                          p->head + p->bytes + p->tail)));
}

/* One write of head, data and tail to the piece's place. */
static int write_piece(struct qcow2 *s, struct piece *p,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    uint64_t head = p->head;
    uint64_t tail = p->tail;
    struct iovec v[IOV_MAX_INNER];
    bool head_zero = true;
    bool tail_zero = true;
    int n = 0;
    int r = 0;

    if (head == 0 && tail == 0) {
        node_event(s->file, EVENT_WRITE_AIO);
        return qcow2_write_data(s, p->host, p->bytes, iov, cnt, flags);
    }
    bool fresh = reads_as_zeroes(s, p);
    CLEANUP_FREE char *buf = buf_alloc(head + tail);
    if (!buf) {
        return -ENOMEM;
    }
    if (head > 0) {
        r = read_old(s, p->offset - head, head, buf, &head_zero);
    }
    if (r == 0 && tail > 0) {
        r = read_old(s, p->offset + p->bytes, tail, buf + head, &tail_zero);
    }
    if (r < 0) {
        return r;
    }
    /* A fresh cluster need not be filled with zeroes. */
    p->with_head = head > 0 && !(fresh && head_zero);
    p->with_tail = tail > 0 && !(fresh && tail_zero);
    uint64_t from = p->host - (p->with_head ? head : 0);
    uint64_t len = p->bytes;
    if (p->with_head) {
        v[n++] = (struct iovec){buf, head};
        len += head;
    }
    memcpy(v + n, iov, (size_t)cnt * sizeof(*iov));
    n += cnt;
    if (p->with_tail) {
        v[n++] = (struct iovec){buf + head, tail};
        len += tail;
    }
    node_event(s->file, EVENT_WRITE_AIO);
    if (p->with_head || p->with_tail) {
        node_event(s->file, EVENT_COW_WRITE);
    }
    return qcow2_write_data(s, from, len, v, n, flags);
}

static int fill_piece(struct qcow2 *s, struct piece *p, const struct input *in,
                      uint64_t done)
{
    struct iovec part[IOV_MAX_INNER];

    if (p->placed) {
        qcow2_copied_overwrite(s, p->host - p->head,
                               p->head + p->bytes + p->tail);
    }
    if (in->from) {
        return node_clone(s->data, p->host, p->bytes, in->from, in->at + done);
    }
    int parts = iov_slice(part, in->iov, in->cnt, done, p->bytes);
    return write_piece(s, p, part, parts, in->flags);
}

/* The data is there: let the L2 entries say so. */
static int link_piece(struct qcow2 *s, const struct piece *p,
                      enum qcow2_kind kind) REQUIRES(s->meta)
{
    uint64_t in_sub = p->offset & (qcow2_sub_size(s) - 1);

    return qcow2_l2_put(s, p->l2, p->offset - in_sub, in_sub + p->bytes, kind,
                        p->host - in_sub);
}

/* The old data beside the request are where no entry leads yet. */
static int note_copies(struct qcow2 *s, const struct piece *p) REQUIRES(s->meta)
{
    if (!p->with_head && !p->with_tail) {
        return 0;
    }
    int r = qcow2_copied_reserve(s);
    if (r < 0) {
        return r;
    }
    qcow2_copied_note(s, p->l2, p->offset - p->head, p->with_head ? p->head : 0,
                      p->host - p->head, p->losses);
    qcow2_copied_note(s, p->l2, p->offset + p->bytes,
                      p->with_tail ? p->tail : 0, p->host + p->bytes,
                      p->losses);
    return 0;
}

/* @r: of writing the data. */
static int end_piece(struct qcow2 *s, const struct piece *p, int r)
    REQUIRES(s->meta)
{
    if (r == 0 && p->in_place) {
        return 0;
    }
    r = r < 0 ? r : note_copies(s, p);
    if (r == 0) {
        return link_piece(s, p, QCOW2_KIND_NORMAL);
    }
    if (!p->placed && !s->external) {
        qcow2_alloc_undo(s, align_down(p->host, s->cluster_size), p->clusters);
    }
    return r;
}

static int try_piece(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                     const struct input *in, uint64_t done, uint64_t *written)
{
    struct piece p;

    mutex_lock(&s->meta);
    int r = plan_piece(s, offset, bytes, &p);
    mutex_unlock(&s->meta);
    if (r < 0) {
        return r;
    }
    r = fill_piece(s, &p, in, done);
    mutex_lock(&s->meta);
    r = end_piece(s, &p, r);
    mutex_unlock(&s->meta);
    qcow2_cache_put(s->l2, p.l2);
    *written = p.bytes;
    return r;
}

static int write_input(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct input *in)
{
    struct qcow2 *s = n->state;
    uint64_t start = align_down(offset, s->cluster_size);
    struct range_req req;
    uint64_t written = 0;
    int r = 0;

    if (!s->data || qcow2_is_locked(s)) {
        return -ENOMEDIUM;
    }
    if (atomic_load(&s->corrupt)) {
        return -EIO;
    }
    range_lock(&s->range, &req, start,
               align_up(offset + bytes, s->cluster_size) - start, true);
    for (uint64_t done = 0; done < bytes && r == 0; done += written) {
        uint64_t seen = atomic_load(&s->released);

        do {
            r = try_piece(s, offset + done, bytes - done, in, done, &written);
        } while (qcow2_try_again(s, &r, &seen));
        if (r == 0 && done + written < bytes) {
            node_request_changed();
        }
    }
    range_unlock(&s->range, &req);
    return r < 0 ? r : qcow2_relieve(s);
}

int qcow2_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                  const struct iovec *iov, int cnt, unsigned flags)
{
    const struct input in = {
        .iov = iov, .cnt = cnt, .flags = flags & REQ_UNCACHED};

    return flags & REQ_NOWAIT ? -EAGAIN : write_input(n, offset, bytes, &in);
}

int qcow2_clone(struct node *n, uint64_t offset, uint64_t bytes,
                struct node *from, uint64_t at)
{
    const struct qcow2 *s = n->state;
    const struct input in = {.from = from, .at = at};

    if (s->luks) {
        return -ENOTSUP; /* the bytes have to be encrypted */
    }
    return is_aligned(offset | bytes, s->cluster_size)
               ? write_input(n, offset, bytes, &in)
               : -EINVAL;
}

/* A place for the piece, with nothing in it yet; but a raw data file has all.
 * Encrypted, that does not read as zeroes. */
static int link_reserved(struct qcow2 *s, const struct piece *p)
    REQUIRES(s->meta)
{
    return link_piece(s, p,
                      s->extended && !s->raw ? QCOW2_KIND_UNALLOCATED_ALLOC
                      : s->luks              ? QCOW2_KIND_ZERO_ALLOC
                                             : QCOW2_KIND_NORMAL);
}

/* Allocate for the first piece without writing data; *done: its bytes. */
static int reserve_piece(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                         uint64_t *done)
{
    struct piece p;

    mutex_lock(&s->meta);
    int r = plan_piece(s, offset, bytes, &p);
    if (r == 0) {
        if (!p.placed) {
            r = link_reserved(s, &p);
        }
        qcow2_cache_put(s->l2, p.l2);
        *done = p.bytes;
    }
    mutex_unlock(&s->meta);
    return r;
}

int qcow2_preallocate(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct qcow2 *s = n->state;
    uint64_t end = offset + bytes;
    int r = s->luks && s->version < 3 ? -ENOTSUP : 0;

    while (offset < end && r == 0) {
        uint64_t seen = atomic_load(&s->released);
        uint64_t done = 0;

        do {
            r = reserve_piece(s, offset, end - offset, &done);
        } while (qcow2_try_again(s, &r, &seen));
        offset += done;
        if (r == 0) {
            r = qcow2_relieve(s);
        }
    }
    return r;
}
