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
 * A request is written piece by piece (piece.c).  Whole clusters may come from
 * another file, which shares its bytes (node_clone), instead of from memory.
 * What can be done without waiting is in write-nowait.c.
 */
#include <errno.h>

#include "qcow2/alloc.h"
#include "qcow2/encrypt.h"
#include "qcow2/piece.h"
#include "qcow2/write.h"
#include "util/iov.h"

/* What a request writes: from memory or, with @from, what that file has
 * @at. */
struct input {
    const struct iovec *iov;
    int cnt;
    unsigned flags; /* REQ_UNCACHED, or 0 */
    struct node *from;
    uint64_t at;
    bool copied_up; /* the guest sees these bytes there already */
};

static int fill_piece(struct qcow2 *s, struct qcow2_piece *p,
                      const struct input *in, uint64_t done)
{
    struct iovec part[IOV_MAX_INNER];

    if (in->from) {
        qcow2_piece_overwrite(s, p);
        return node_clone(s->data, p->host, p->bytes, in->from, in->at + done);
    }
    int r = qcow2_piece_gather(s, p, 0);
    if (r < 0) {
        return r;
    }
    int parts = iov_slice(part, in->iov, in->cnt, done, p->bytes);
    return qcow2_piece_write(s, p, part, parts, in->flags);
}

/* Read the L2 table without the meta lock, for which others wait: the plan
 * finds it in memory.  What cannot be read is the plan's to tell. */
static struct qcow2_table *load_table(struct qcow2 *s, uint64_t offset)
    EXCLUDES(s->meta)
{
    struct qcow2_table *t;

    return qcow2_l2_get(s, offset, false, &t) == 0 ? t : NULL;
}

static int plan_piece(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                      struct qcow2_piece *p)
{
    struct qcow2_table *t = load_table(s, offset);

    mutex_lock(&s->meta);
    int r = qcow2_piece_plan(s, offset, bytes, false, p);
    mutex_unlock(&s->meta);
    if (t) {
        qcow2_cache_put(s->l2, t);
    }
    return r;
}

static int try_piece(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                     const struct input *in, uint64_t done, uint64_t *written)
{
    struct qcow2_piece p;
    int r = plan_piece(s, offset, bytes, &p);

    if (r < 0) {
        return r;
    }
    p.copied_up = in->copied_up;
    r = fill_piece(s, &p, in, done);
    mutex_lock(&s->meta);
    r = qcow2_piece_end(s, &p, r);
    mutex_unlock(&s->meta);
    qcow2_piece_free(s, &p);
    *written = p.bytes;
    return r;
}

int qcow2_check_data(const struct qcow2 *s)
{
    return !s->data || qcow2_is_locked(s) ? -ENOMEDIUM
           : atomic_load(&s->corrupt)     ? -EIO
                                          : 0;
}

/* With the clusters locked. */
static int write_locked(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                        const struct input *in)
{
    uint64_t written = 0;
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0; done += written) {
        uint64_t seen = atomic_load(&s->released);

        do {
            r = try_piece(s, offset + done, bytes - done, in, done, &written);
        } while (qcow2_try_again(s, &r, &seen));
        if (r == 0 && done + written < bytes && !in->copied_up) {
            node_request_changed();
        }
    }
    return r;
}

static int write_input(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct input *in)
{
    struct qcow2 *s = n->state;
    uint64_t start = align_down(offset, s->cluster_size);
    struct range_req req;
    int r = qcow2_check_data(s);

    if (r < 0) {
        return r;
    }
    range_lock(&s->range, &req, start,
               align_up(offset + bytes, s->cluster_size) - start, true);
    r = write_locked(s, offset, bytes, in);
    range_unlock(&s->range, &req);
    return r < 0 ? r : qcow2_relieve(s);
}

int qcow2_write_copied_up(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                          const void *buf, unsigned flags)
{
    const struct iovec v = {(void *)(uintptr_t)buf, bytes};
    const struct input in = {
        .iov = &v, .cnt = 1, .flags = flags, .copied_up = true};

    return write_locked(s, offset, bytes, &in);
}

int qcow2_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                  const struct iovec *iov, int cnt, unsigned flags)
{
    const struct input in = {
        .iov = iov, .cnt = cnt, .flags = flags & REQ_UNCACHED};

    return flags & REQ_NOWAIT ? qcow2_write_nowait(n, offset, bytes, iov, cnt)
                              : write_input(n, offset, bytes, &in);
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
static int link_reserved(struct qcow2 *s, const struct qcow2_piece *p)
    REQUIRES(s->meta)
{
    return qcow2_piece_link(s, p,
                            s->extended && !s->raw
                                ? QCOW2_KIND_UNALLOCATED_ALLOC
                            : s->luks ? QCOW2_KIND_ZERO_ALLOC
                                      : QCOW2_KIND_NORMAL);
}

/* Allocate for the first piece without writing data; *done: its bytes. */
static int reserve_piece(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                         uint64_t *done)
{
    struct qcow2_piece p;

    mutex_lock(&s->meta);
    int r = qcow2_piece_plan(s, offset, bytes, false, &p);
    if (r == 0) {
        if (!p.placed) {
            r = link_reserved(s, &p);
        }
        qcow2_piece_free(s, &p);
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
