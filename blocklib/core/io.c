/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The I/O path: map, then move.
 *
 *   blk_preadv                      blk.c: checks, enters the tree
 *     node_preadv(qcow2)            splits, pads
 *       map -> DATA(file, host)     node_preadv(file, host) -> driver
 *           -> ZERO                 fill
 *           -> UNALLOCATED          node_preadv(backing)
 *           -> OPAQUE               driver's preadv
 *
 * Writing asks map which ranges may be overwritten in place, and gives the rest
 * to the driver's pwritev.  Zero and discard are in zero.c.
 */
#include "core/io.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>

#include "core/dirty.h"
#include "core/event.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "util/iov.h"

/* Unaligned requests go through bounce buffers of at most this size. */
#define BOUNCE_MAX (1 * MiB)

/* --- Mapping --- */

int node_map(struct node *n, uint64_t offset, uint64_t bytes, unsigned flags,
             struct mapping *m)
{
    *m = (struct mapping){.kind = MAP_DATA, .length = bytes};

    if (n->drv->is_filter) {
        bool own = flags & MAP_WRITE ? n->drv->pwritev != NULL
                                     : n->drv->preadv != NULL;
        m->kind = own ? MAP_OPAQUE : MAP_DATA;
        m->file = node_child(n, CHILD_FILE);
        m->host = offset;
        return 0;
    }
    if (!n->drv->map) { /* a protocol that knows nothing of holes */
        m->file = n;
        m->host = offset;
        return 0;
    }
    int r = n->drv->map(n, offset, bytes, flags, m);
    assert(r < 0 || (m->length > 0 && m->length <= bytes));
    return r;
}

void node_map_put(struct node *n, struct mapping *m)
{
    if (n->drv->map_put && !n->drv->is_filter) {
        n->drv->map_put(n, m);
    }
}

/* --- Alignment --- */

static bool iov_is_aligned(const struct iovec *iov, int cnt, uint32_t align)
{
    uintptr_t bits = 0;
    for (int i = 0; i < cnt; i++) {
        bits |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    }
    return (bits & (align - 1)) == 0;
}

static bool needs_bounce(const struct node *n, uint64_t offset, uint64_t bytes,
                         const struct iovec *iov, int cnt)
{
    uint32_t align = n->limits.align;
    return align > 1 &&
           ((n->drv->is_protocol && !iov_is_aligned(iov, cnt, align)) ||
            !is_aligned(offset | bytes, align));
}

/* The number of bytes that go through a bounce buffer at once. */
static uint64_t bounce_chunk(const struct node *n, uint64_t bytes)
{
    return min_u64(bytes, min_u64(BOUNCE_MAX, n->limits.max_transfer));
}

static int read_bounced(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    uint64_t align = n->limits.align;
    uint64_t start = align_down(offset, align);
    uint64_t end = align_up(offset + bytes, align);
    uint64_t chunk = bounce_chunk(n, end - start);
    CLEANUP_FREE char *buf = buf_alloc(chunk);
    if (!buf) {
        return -ENOMEM;
    }
    for (uint64_t at = start; at < end; at += chunk) {
        uint64_t len = min_u64(end - at, chunk);
        int r = node_pread(n, buf, len, at, flags);
        if (r < 0) {
            return r;
        }
        uint64_t from = max_u64(at, offset);
        uint64_t to = min_u64(at + len, offset + bytes);
        iov_from_buf(iov, cnt, from - offset, buf + (from - at), to - from);
    }
    return 0;
}

/* --- Reading --- */

/* What the layers below @n show for the range: the backing node, as far as it
 * goes, then zeroes. */
static int read_backing(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    struct node *backing = node_child(n, CHILD_BACKING);
    uint64_t size = backing ? backing->size : 0;
    uint64_t inside = offset < size ? min_u64(bytes, size - offset) : 0;

    if (inside < bytes) {
        iov_fill(iov, cnt, inside, 0, bytes - inside);
    }
    if (inside == 0) {
        return 0;
    }
    int r = node_event_in_request(node_child(n, CHILD_FILE),
                                  EVENT_READ_BACKING_AIO, flags);
    if (r < 0) {
        return r;
    }
    struct iovec part[IOV_MAX_INNER];
    int parts = iov_slice(part, iov, cnt, 0, inside);
    return node_preadv(backing, offset, inside, part, parts, flags);
}

static int read_mapping(struct node *n, const struct mapping *m,
                        uint64_t offset, const struct iovec *iov, int cnt,
                        unsigned flags)
{
    int r;

    switch (m->kind) {
    case MAP_DATA:
        r = node_event_in_request(node_child(n, CHILD_FILE), EVENT_READ_AIO,
                                  flags);
        if (r == 0) {
            r = node_preadv(m->file, m->host, m->length, iov, cnt, flags);
        }
        return r == 0 && m->coded ? n->drv->decode(n, m->host, iov, cnt) : r;
    case MAP_ZERO:
        iov_fill(iov, cnt, 0, 0, m->length);
        return 0;
    case MAP_UNALLOCATED:
        return read_backing(n, offset, m->length, iov, cnt, flags);
    case MAP_OPAQUE:
        return n->drv->preadv(n, offset, m->length, iov, cnt, flags);
    }
    return -EIO;
}

static int read_mapped(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    for (uint64_t done = 0; done < bytes;) {
        struct iovec part[IOV_MAX_INNER];
        struct mapping m;
        uint64_t alike = bytes - done;
        bool held = node_guard(n, offset + done, &alike);
        int r = node_map(n, offset + done, bytes - done,
                         flags & REQ_NOWAIT ? MAP_NOWAIT : 0, &m);
        if (r < 0) {
            return r;
        }
        if (m.kind == MAP_UNALLOCATED) {
            m.length = min_u64(m.length, alike);
        } else {
            held = false;
        }
        if (m.length == 0) {
            r = -EIO;
        } else if (m.length == bytes) {
            r = read_mapping(n, &m, offset, iov, cnt, flags);
        } else {
            int parts = iov_slice(part, iov, cnt, done, m.length);
            r = read_mapping(n, &m, offset + done, part, parts, flags);
        }
        node_map_put(n, &m);
        if (r < 0) {
            return r;
        }
        if (!held || node_guard_holds(n, offset + done, m.length)) {
            done += m.length; /* else it was copied up meanwhile: again */
        }
    }
    return 0;
}

int node_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                const struct iovec *iov, int cnt, unsigned flags)
{
    while (n->drv->is_filter && !n->drv->preadv) {
        n = node_child(n, CHILD_FILE);
    }
    if (needs_bounce(n, offset, bytes, iov, cnt)) {
        return read_bounced(n, offset, bytes, iov, cnt, flags);
    }
    for (uint64_t done = 0; bytes > n->limits.max_transfer;) {
        struct iovec part[IOV_MAX_INNER];
        uint64_t len = min_u64(bytes - done, n->limits.max_transfer);
        int parts = iov_slice(part, iov, cnt, done, len);
        int r = node_preadv(n, offset + done, len, part, parts, flags);
        done += len;
        if (r < 0 || done == bytes) {
            return r;
        }
    }
    if (n->drv->is_protocol || n->drv->is_filter) {
        return n->drv->preadv(n, offset, bytes, iov, cnt, flags);
    }
    return read_mapped(n, offset, bytes, iov, cnt, flags);
}

/* --- Writing --- */

/* A write that must not wait has at most so many pieces. */
#define PIECES_MAX 8

struct pieces {
    struct mapping at[PIECES_MAX];
    unsigned count;
};

static void put_pieces(struct node *n, struct pieces *p)
{
    while (p->count > 0) {
        node_map_put(n, &p->at[--p->count]);
    }
}

/* Map the range in pieces.  -EAGAIN: there are too many.  -ENOTSUP: there is a
 * piece that only the driver's pwritev can write. */
static int map_pieces(struct node *n, uint64_t offset, uint64_t bytes,
                      struct pieces *p)
{
    p->count = 0;
    while (bytes > 0) {
        struct mapping *m = &p->at[p->count];
        int r = p->count == PIECES_MAX
                    ? -EAGAIN
                    : node_map(n, offset, bytes, MAP_WRITE | MAP_NOWAIT, m);
        if (r == 0) {
            p->count++;
            r = m->kind == MAP_DATA ? 0 : -ENOTSUP;
        }
        if (r < 0) {
            put_pieces(n, p);
            return r;
        }
        offset += m->length;
        bytes -= m->length;
    }
    return 0;
}

/* Write to where a mapping leads. */
static int write_data(struct node *n, const struct mapping *m,
                      const struct iovec *iov, int cnt, unsigned flags)
{
    int r = node_event_in_request(node_child(n, CHILD_FILE), EVENT_WRITE_AIO,
                                  flags);

    if (r < 0) {
        return r;
    }
    return m->coded
               ? n->drv->write_coded(n, m->host, m->length, iov, cnt, flags)
               : node_pwritev(m->file, m->host, m->length, iov, cnt, flags);
}

static int write_opaque(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    return n->drv->pwritev ? n->drv->pwritev(n, offset, bytes, iov, cnt, flags)
                           : -EPERM;
}

/*
 * Write without waiting.  All of the range is mapped before a byte of it moves.
 * Only for the first piece may the node below answer -EAGAIN: after that the
 * request has changed something, and has to be completed.  Where a piece is the
 * driver's, the driver gets all of the range, and does the same.
 */
static int write_mapped_nowait(struct node *n, uint64_t offset, uint64_t bytes,
                               const struct iovec *iov, int cnt, unsigned flags)
{
    struct pieces p;
    uint64_t done = 0;
    int r = map_pieces(n, offset, bytes, &p);

    if (r == -ENOTSUP) {
        return write_opaque(n, offset, bytes, iov, cnt, flags);
    }
    for (unsigned i = 0; r == 0 && i < p.count; i++) {
        const struct mapping *m = &p.at[i];
        struct iovec part[IOV_MAX_INNER];
        int parts = iov_slice(part, iov, cnt, done, m->length);

        r = write_data(n, m, part, parts, flags);
        done += m->length;
        flags &= ~(unsigned)REQ_NOWAIT;
        node_request_changed();
    }
    put_pieces(n, &p);
    return r;
}

static int write_mapped(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    if (flags & REQ_NOWAIT) {
        return write_mapped_nowait(n, offset, bytes, iov, cnt, flags);
    }
    for (uint64_t done = 0; done < bytes;) {
        struct iovec part[IOV_MAX_INNER];
        struct mapping m;
        int r = node_map(n, offset + done, bytes - done, MAP_WRITE, &m);
        if (r < 0) {
            return r;
        }
        const struct iovec *v = iov;
        int parts = cnt;
        if (m.length != bytes) {
            parts = iov_slice(part, iov, cnt, done, m.length);
            v = part;
        }
        if (m.kind == MAP_DATA) {
            r = write_data(n, &m, v, parts, flags);
            node_map_put(n, &m);
        } else {
            node_map_put(n, &m);
            r = write_opaque(n, offset + done, m.length, v, parts, flags);
        }
        if (r < 0) {
            return r;
        }
        done += m.length;
        if (done < bytes) {
            node_request_changed();
        }
    }
    return 0;
}

static int write_aligned(struct node *n, uint64_t offset, uint64_t bytes,
                         const struct iovec *iov, int cnt, unsigned flags)
{
    if (!n->drv->is_protocol && !n->drv->is_filter) {
        return write_mapped(n, offset, bytes, iov, cnt, flags);
    }
    if (!n->drv->pwritev) {
        return -EPERM;
    }
    int r = n->drv->pwritev(n, offset, bytes, iov, cnt, flags);
    if (r == 0 && n->growable) {
        node_raise_size(n, offset + bytes);
    }
    return r;
}

/*
 * Read-modify-write.  Only the first and the last block can be partial; both
 * are read before anything is written, and no other request writes to the
 * blocks meanwhile.
 */
static int write_bounced_locked(struct node *n, uint64_t offset, uint64_t bytes,
                                const struct iovec *iov, int cnt,
                                unsigned flags)
{
    uint64_t align = n->limits.align;
    uint64_t start = align_down(offset, align);
    uint64_t end = align_up(offset + bytes, align);
    uint64_t chunk = bounce_chunk(n, end - start);
    CLEANUP_FREE char *buf = buf_alloc(chunk);
    if (!buf) {
        return -ENOMEM;
    }
    for (uint64_t at = start; at < end; at += chunk) {
        uint64_t len = min_u64(end - at, chunk);
        uint64_t from = max_u64(at, offset);
        uint64_t to = min_u64(at + len, offset + bytes);
        struct iovec v = {buf, align};
        int r = 0;

        if (from > at || to - at < align) {
            node_event(n, EVENT_PWRITEV_RMW_HEAD);
            r = node_preadv(n, at, align, &v, 1, 0);
            node_event(n, EVENT_PWRITEV_RMW_AFTER_HEAD);
        }
        if (r == 0 && to < at + len && len > align) {
            node_event(n, EVENT_PWRITEV_RMW_TAIL);
            v.iov_base = buf + len - align;
            r = node_preadv(n, at + len - align, align, &v, 1, 0);
            node_event(n, EVENT_PWRITEV_RMW_AFTER_TAIL);
        }
        if (r < 0) {
            return r;
        }
        iov_to_buf(iov, cnt, from - offset, buf + (from - at), to - from);
        v = (struct iovec){buf, len};
        r = write_aligned(n, at, len, &v, 1, flags);
        if (r < 0) {
            return r;
        }
        if (at + len < end) {
            node_request_changed();
        }
    }
    return 0;
}

static int write_padded(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    uint64_t align = n->limits.align;
    uint64_t start = align_down(offset, align);
    uint64_t len = align_up(offset + bytes, align) - start;
    bool bounce = needs_bounce(n, offset, bytes, iov, cnt);
    bool partial = bounce && !is_aligned(offset | bytes, align);
    struct range_req req;
    int r;

    if (flags & REQ_NOWAIT) {
        if (bounce || !range_trylock(&n->rmw, &req, start, len, partial)) {
            return -EAGAIN;
        }
    } else {
        range_lock(&n->rmw, &req, start, len, partial);
    }
    r = bounce ? write_bounced_locked(n, offset, bytes, iov, cnt, flags)
               : write_aligned(n, offset, bytes, iov, cnt, flags);
    if (r == 0 && n->drv->is_protocol && !n->growable &&
        start + len > n->size && n->drv->resize) {
        /* The block sticks out of the file and has made it longer. */
        r = n->drv->resize(n, n->size, NULL);
    }
    range_unlock(&n->rmw, &req);
    return r;
}

int node_write_unmarked(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    for (uint64_t done = 0; bytes > n->limits.max_transfer;) {
        struct iovec part[IOV_MAX_INNER];
        uint64_t len = min_u64(bytes - done, n->limits.max_transfer);
        int parts = iov_slice(part, iov, cnt, done, len);
        int r = node_write_unmarked(n, offset + done, len, part, parts, flags);
        done += len;
        if (r < 0 || done == bytes) {
            return r;
        }
        flags &= ~(unsigned)REQ_NOWAIT;
        node_request_changed();
    }
    if (n->limits.align > 1) {
        return write_padded(n, offset, bytes, iov, cnt, flags);
    }
    return write_aligned(n, offset, bytes, iov, cnt, flags);
}

/* Shall detect-zeroes turn the write into a zero?  A write that makes a file
 * longer is written. */
static bool shall_be_zeroed(const struct node *n, uint64_t end,
                            const struct iovec *iov, int cnt)
{
    bool zero = n->flags.detect_zeroes != DETECT_OFF && end <= n->size;

    for (int i = 0; i < cnt && zero; i++) {
        zero = bytes_are_zero(iov[i].iov_base, iov[i].iov_len);
    }
    return zero;
}

int node_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                 const struct iovec *iov, int cnt, unsigned flags)
{
    if (n->flags.read_only) {
        return -EPERM;
    }
    if (shall_be_zeroed(n, offset + bytes, iov, cnt)) {
        bool unmap = n->flags.detect_zeroes == DETECT_UNMAP;
        return node_zero(n, offset, bytes, flags | (unmap ? REQ_MAY_UNMAP : 0));
    }
    int r = bitmap_mark(n, offset, bytes, flags);
    if (r < 0) {
        return r;
    }
    node_note_write(n, offset + bytes);
    if (node_passes_writes(n)) {
        return node_pwritev(node_child(n, CHILD_FILE), offset, bytes, iov, cnt,
                            flags);
    }
    bool flush = (flags & REQ_FUA) && !(n->drv->flags_write & REQ_FUA);
    if (flush && (flags & REQ_NOWAIT)) {
        return -EAGAIN;
    }
    uint64_t failures = node_flush_failures(n);
    r = node_write_unmarked(n, offset, bytes, iov, cnt,
                            flush ? flags & ~(unsigned)REQ_FUA : flags);
    return r == 0 && flush ? node_flush_since(n, failures) : r;
}

int node_write_compressed(struct node *n, const void *buf, uint64_t bytes,
                          uint64_t offset)
{
    if (n->flags.read_only) {
        return -EPERM;
    }
    int r = bitmap_mark(n, offset, bytes, 0);
    if (r < 0) {
        return r;
    }
    node_note_write(n, offset + bytes);
    return n->drv->write_compressed(n, offset, bytes, buf);
}

/* --- The rest --- */

int node_prefetch(struct node *n, uint64_t offset, uint64_t bytes)
{
    n = node_skip_filters(n);
    if (n->drv->is_protocol) {
        if (n->drv->prefetch) {
            n->drv->prefetch(n, offset, bytes);
        }
        return 0;
    }
    for (uint64_t done = 0; done < bytes;) {
        struct mapping m;
        int r = node_map(n, offset + done, bytes - done, 0, &m);
        if (r < 0) {
            return r;
        }
        struct node *backing = node_child(n, CHILD_BACKING);
        if (m.kind == MAP_DATA) {
            r = node_prefetch(m.file, m.host, m.length);
        } else if (m.kind == MAP_UNALLOCATED && backing &&
                   offset + done < backing->size) {
            r = node_prefetch(
                backing, offset + done,
                min_u64(m.length, backing->size - (offset + done)));
        }
        node_map_put(n, &m);
        if (r < 0) {
            return r;
        }
        done += m.length;
    }
    return 0;
}

int node_pread(struct node *n, void *buf, uint64_t bytes, uint64_t offset,
               unsigned flags)
{
    struct iovec v = {buf, bytes};
    return node_preadv(n, offset, bytes, &v, 1, flags);
}

int node_pwrite(struct node *n, const void *buf, uint64_t bytes,
                uint64_t offset, unsigned flags)
{
    struct iovec v = {(void *)(uintptr_t)buf, bytes};
    return node_pwritev(n, offset, bytes, &v, 1, flags);
}
