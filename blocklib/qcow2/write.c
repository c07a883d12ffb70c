/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writing where map gives nothing away: clusters that are not allocated, are
 * shared, compressed or zero.
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
 * In an external data file a cluster has its place already; all the rest is
 * the same.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "qcow2/qcow2.h"
#include "util/iov.h"

void qcow2_entry_store(struct qcow2 *s, struct qcow2_table *t, uint64_t index,
                       uint64_t entry)
{
    _Atomic uint64_t *e = t->data;
    atomic_store_explicit(&e[index], htobe64(entry), memory_order_release);
    qcow2_cache_mark_dirty(s->l2, t);
}

/* All room that L2 table @index, at @host, needs, and the table. */
static int new_l2(struct qcow2 *s, uint64_t index, uint64_t host,
                  struct qcow2_table **tp) REQUIRES(s->meta)
{
    int r = qcow2_keep_entry_room(s, s->l1_offset, s->l1, s->l1_size, index);

    node_event(s->file, EVENT_L2_ALLOC_WRITE);
    if (r == 0) {
        r = qcow2_take_room(s, host, s->cluster_size);
    }
    if (r == 0) {
        r = qcow2_cache_new_table(s->l2, host, tp);
    }
    if (r == 0) {
        (*tp)->has_room = true;
    }
    return r;
}

static void l1_store(struct qcow2 *s, uint64_t index, uint64_t entry)
    REQUIRES(s->meta)
{
    atomic_store(&s->l1[index], entry);
    qcow2_span_add(&s->l1_dirty, (uint32_t)index, (uint32_t)index + 1);
}

/* Does the L1 entry lead to what is nothing but an L2 table?  One that is not
 * its own will be copied, and loses a reference. */
static bool is_only_l2(const struct qcow2 *s, uint64_t entry)
{
    unsigned shared = entry & QCOW2_COPIED ? 0 : QCOW2_META_TWICE;
    unsigned kinds = qcow2_overlap_find(s, entry & QCOW2_OFFSET_MASK,
                                        s->cluster_size);

    return (kinds & ~shared) == QCOW2_META_L2;
}

int qcow2_l2_get_writable(struct qcow2 *s, uint64_t offset,
                          struct qcow2_table **tp)
{
    uint64_t index = offset / qcow2_l2_span(s);
    uint64_t old = atomic_load(&s->l1[index]);
    struct qcow2_table *from = NULL;
    struct qcow2_table *to = NULL;
    uint64_t host;

    int r = qcow2_l2_get(s, offset, false, &from);
    if (r < 0) {
        return r;
    }
    if (from && !is_only_l2(s, old)) {
        qcow2_cache_put(s->l2, from);
        return qcow2_mark_corrupt(s);
    }
    if (from && (old & QCOW2_COPIED)) {
        r = qcow2_keep_room(s, from);
        if (r < 0) {
            qcow2_cache_put(s->l2, from);
        }
        *tp = from;
        return r;
    }
    r = qcow2_alloc_exact(s, QCOW2_META_L2, 1, &host);
    if (r == 0) {
        r = new_l2(s, index, host, &to);
        if (r < 0) {
            qcow2_alloc_undo(s, host, 1);
        }
    }
    if (from && r == 0) {
        node_event(s->file, EVENT_L2_ALLOC_COW_READ);
    }
    if (from) {
        if (r == 0) {
            memcpy(to->data, from->data, s->cluster_size);
            (void)qcow2_free_later(s, old & QCOW2_OFFSET_MASK, 1);
        }
        qcow2_cache_put(s->l2, from);
    }
    if (r < 0 || !to) {
        return r < 0 ? r : -ENOMEM;
    }
    l1_store(s, index, host | QCOW2_COPIED);
    *tp = to;
    return 0;
}

/* A piece of a request: clusters in one L2 table that are treated alike. */
struct piece {
    uint64_t offset; /* guest bytes of the request */
    uint64_t bytes;
    uint64_t host; /* of the first cluster */
    uint64_t clusters;
    struct qcow2_table *l2; /* pinned, if entries are to be put in */
    bool in_place;          /* allocated already, nothing changes */
    bool reserved;          /* zero with space: no allocation */
    bool fresh;             /* reads as zeroes where it is not written */
};

static bool is_in_place(const struct qcow2 *s, uint64_t entry)
{
    return (entry & QCOW2_COPIED) &&
           qcow2_entry_kind(s, entry) == QCOW2_KIND_NORMAL;
}
static bool is_reserved(const struct qcow2 *s, uint64_t entry)
{
    return (entry & QCOW2_COPIED) &&
           qcow2_entry_kind(s, entry) == QCOW2_KIND_ZERO_ALLOC;
}

static uint64_t entry_index(const struct qcow2 *s, uint64_t offset)
{
    return (offset & (qcow2_l2_span(s) - 1)) >> s->cluster_bits;
}

/* How many of @max clusters from @index on are of the same sort as the first,
 * and lie in a row where they lie somewhere. */
static uint64_t same_run(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t index, uint64_t max)
{
    uint64_t first = qcow2_entry_load(t, index);
    bool in_place = is_in_place(s, first);
    bool reserved = is_reserved(s, first);
    uint64_t n = 1;

    while (n < max) {
        uint64_t e = qcow2_entry_load(t, index + n);
        if (is_in_place(s, e) != in_place || is_reserved(s, e) != reserved ||
            ((in_place || reserved) && e != first + n * s->cluster_size)) {
            break;
        }
        n++;
    }
    return n;
}

/* Find or allocate the host clusters of the first piece of a request. */
static int plan(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                struct piece *p) REQUIRES(s->meta)
{
    uint64_t start = align_down(offset, s->cluster_size);
    uint64_t index = entry_index(s, offset);
    uint64_t max = min_u64(
        div_up(offset + bytes - start, s->cluster_size),
        qcow2_entries_per_l2(s) - index);

    *p = (struct piece){ .offset = offset };
    int r = qcow2_l2_get_writable(s, offset, &p->l2);
    if (r < 0) {
        return r;
    }
    uint64_t entry = qcow2_entry_load(p->l2, index);
    p->clusters = same_run(s, p->l2, index, max);
    p->in_place = is_in_place(s, entry);
    p->reserved = is_reserved(s, entry);
    if (p->in_place || p->reserved) {
        p->host = entry & QCOW2_OFFSET_MASK;
        r = qcow2_host_is_wrong(s, entry, start) ||
                    qcow2_host_is_metadata(s, p->host,
                                           p->clusters << s->cluster_bits)
                ? qcow2_mark_corrupt(s)
                : 0;
    } else if (s->external) {
        p->host = start;
    } else {
        r = qcow2_alloc(s, p->clusters, &p->host, &p->clusters, &p->fresh);
    }
    if (r < 0) {
        qcow2_cache_put(s->l2, p->l2);
        return r;
    }
    p->bytes = min_u64(bytes, start + (p->clusters << s->cluster_bits) -
                                  offset);
    return 0;
}

/* The old content of [@offset, @offset + @bytes), as the guest sees it;
 * zeroes behind the end of the disk.  *zero: there is nothing but zeroes. */
static int read_old(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                    char *buf, bool *zero)
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

/* What of the last cluster lies behind the request; a data file ends with the
 * disk. */
static uint64_t tail_of(const struct qcow2 *s, const struct piece *p)
{
    uint64_t end = align_down(p->offset, s->cluster_size) +
                   (p->clusters << s->cluster_bits);

    if (s->external) {
        end = min_u64(end, s->node->size);
    }
    return end - (p->offset + p->bytes);
}

/* One write of head, data and tail to the piece's host clusters. */
static int write_piece(struct qcow2 *s, const struct piece *p,
                       const struct iovec *iov, int cnt)
{
    uint64_t head = qcow2_in_cluster(s, p->offset);
    uint64_t tail = tail_of(s, p);
    struct iovec v[IOV_MAX_INNER];
    bool head_zero = true;
    bool tail_zero = true;
    int n = 0;
    int r = 0;

    if (p->in_place || (head == 0 && tail == 0)) {
        node_event(s->file, EVENT_WRITE_AIO);
        return node_pwritev(s->data, p->host + head, p->bytes, iov, cnt, 0);
    }
    bool fresh = p->fresh ||
                 (s->external &&
                  qcow2_is_hole(s->data, p->host, head + p->bytes + tail));
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
    /* What was never written need not be filled with zeroes. */
    bool with_head = head > 0 && !(fresh && head_zero);
    bool with_tail = tail > 0 && !(fresh && tail_zero);
    uint64_t from = p->host + (with_head ? 0 : head);
    uint64_t len = p->bytes;
    if (with_head) {
        v[n++] = (struct iovec){ buf, head };
        len += head;
    }
    memcpy(v + n, iov, (size_t)cnt * sizeof(*iov));
    n += cnt;
    if (with_tail) {
        v[n++] = (struct iovec){ buf + head, tail };
        len += tail;
    }
    node_event(s->file, EVENT_WRITE_AIO);
    if (with_head || with_tail) {
        node_event(s->file, EVENT_COW_WRITE);
    }
    return node_pwritev(s->data, from, len, v, n, 0);
}

/* The data is there: let the L2 entries say so. */
static int link_piece(struct qcow2 *s, const struct piece *p) REQUIRES(s->meta)
{
    uint64_t index = entry_index(s, p->offset);
    int r = 0;

    for (uint64_t i = 0; i < p->clusters; i++) {
        uint64_t old = qcow2_entry_load(p->l2, index + i);
        uint64_t host = p->host + (i << s->cluster_bits);
        qcow2_entry_store(s, p->l2, index + i, host | QCOW2_COPIED);
        if (!p->reserved) {
            int one = qcow2_free_entry(s, old);
            r = r < 0 ? r : one;
        }
    }
    /* A cluster that could not be put into limbo leaks; no harm done. */
    return r == -ENOMEM ? 0 : r;
}

static int try_piece(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                     const struct iovec *iov, int cnt, uint64_t done,
                     uint64_t *written)
{
    struct iovec part[IOV_MAX_INNER];
    struct piece p;

    mutex_lock(&s->meta);
    int r = plan(s, offset, bytes, &p);
    mutex_unlock(&s->meta);
    if (r < 0) {
        return r;
    }
    int parts = iov_slice(part, iov, cnt, done, p.bytes);
    r = write_piece(s, &p, part, parts);

    mutex_lock(&s->meta);
    if (r == 0 && !p.in_place) {
        r = link_piece(s, &p);
    } else if (r < 0 && !p.in_place && !p.reserved && !s->external) {
        qcow2_alloc_undo(s, p.host, p.clusters);
    }
    mutex_unlock(&s->meta);
    qcow2_cache_put(s->l2, p.l2);
    *written = p.bytes;
    return r;
}

static int do_piece(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                    const struct iovec *iov, int cnt, uint64_t done,
                    uint64_t *written)
{
    uint64_t seen = atomic_load(&s->released);
    int r;

    do {
        r = try_piece(s, offset, bytes, iov, cnt, done, written);
    } while (qcow2_try_again(s, &r, &seen));
    return r;
}

int qcow2_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                  const struct iovec *iov, int cnt, unsigned flags)
{
    struct qcow2 *s = n->state;
    uint64_t start = align_down(offset, s->cluster_size);
    struct range_req req;
    uint64_t written = 0;
    int r = 0;

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    if (!s->data) {
        return -ENOMEDIUM;
    }
    if (atomic_load(&s->corrupt)) {
        return -EIO;
    }
    range_lock(&s->range, &req, start,
               align_up(offset + bytes, s->cluster_size) - start, true);
    for (uint64_t done = 0; done < bytes && r == 0; done += written) {
        r = do_piece(s, offset + done, bytes - done, iov, cnt, done, &written);
        if (r == 0 && done + written < bytes) {
            node_request_changed();
        }
    }
    range_unlock(&s->range, &req);
    return r < 0 ? r : qcow2_relieve(s);
}

/* *done: the bytes of the first piece. */
static int reserve_piece(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                         uint64_t *done)
{
    struct piece p;

    mutex_lock(&s->meta);
    int r = plan(s, offset, bytes, &p);
    if (r == 0) {
        if (!p.in_place && !p.reserved) {
            r = link_piece(s, &p);
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
    int r = 0;

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
