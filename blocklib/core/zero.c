/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Zero and discard.
 *
 *      |<- head ->|<------- aligned ------->|<- tail ->|
 *       written            driver's zero        written
 *
 * A driver zeroes whole units (limits.zero_align) itself.  The head and the
 * tail are written as zeroes, unless the driver can zero them, too (zero_part).
 * A range that reads as zeroes is zeroed all the same: if it is unallocated, it
 * may show a backing file another time.  Formats without a zero of their own
 * (raw) hand it down through map.
 */
#include <errno.h>

#include "core/dirty.h"
#include "core/io.h"
#include "nbdelta/bytes.h"
#include "util/iov.h"

#define ZEROES_LEN (64 * KiB)

static const char zeroes[ZEROES_LEN] __attribute__((aligned(4096)));

static int write_as_data(struct node *n, uint64_t offset, uint64_t bytes,
                         unsigned flags)
{
    while (bytes > 0) {
        struct iovec iov[BLK_IOV_MAX];
        uint64_t len = 0;
        int cnt = 0;

        while (cnt < BLK_IOV_MAX && len < bytes) {
            uint64_t part = min_u64(bytes - len, ZEROES_LEN);
            iov[cnt++] = (struct iovec){(void *)(uintptr_t)zeroes, part};
            len += part;
        }
        int r = node_write_unmarked(n, offset, len, iov, cnt, flags);
        if (r < 0) {
            return r;
        }
        offset += len;
        bytes -= len;
        if (bytes > 0) {
            node_request_changed();
        }
    }
    return 0;
}

static int zero_mapped(struct node *n, uint64_t offset, uint64_t bytes,
                       unsigned flags)
{
    while (bytes > 0) {
        struct mapping m;
        int r = node_map(n, offset, bytes, MAP_WRITE, &m);
        if (r < 0) {
            return r;
        }
        if (m.kind == MAP_DATA) {
            r = node_zero(m.file, m.host, m.length, flags);
            node_map_put(n, &m);
        } else {
            node_map_put(n, &m);
            r = flags & REQ_NO_FALLBACK ? -ENOTSUP
                                        : write_as_data(n, offset, m.length, 0);
        }
        if (r < 0) {
            return r;
        }
        offset += m.length;
        bytes -= m.length;
        if (bytes > 0) {
            node_request_changed();
        }
    }
    return 0;
}

/* Zero a part of a unit, or of two. */
static int zero_partial(struct node *n, uint64_t offset, uint64_t bytes)
{
    uint64_t unit = n->limits.zero_align;

    while (bytes > 0) {
        uint64_t len = min_u64(bytes, align_down(offset, unit) + unit - offset);
        int r = n->drv->zero_part ? n->drv->zero_part(n, offset, len)
                                  : -ENOTSUP;

        if (r == -ENOTSUP) {
            r = write_as_data(n, offset, len, 0);
        }
        if (r < 0) {
            return r;
        }
        offset += len;
        bytes -= len;
        if (bytes > 0) {
            node_request_changed();
        }
    }
    return 0;
}

static int zero_split(struct node *n, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    uint64_t unit = n->limits.zero_align;
    uint64_t end = offset + bytes;
    uint64_t from = align_up(offset, unit);
    uint64_t to = end == n->size ? end : align_down(end, unit);

    if (from >= to) {
        return zero_partial(n, offset, bytes);
    }
    unsigned dropped = REQ_FUA | REQ_NOWAIT | REQ_UNCACHED |
                       (~n->drv->flags_zero & REQ_NO_FALLBACK);
    int r = n->drv->zero(n, from, to - from, flags & ~dropped);
    if (r == -ENOTSUP && !(flags & REQ_NO_FALLBACK)) {
        r = write_as_data(n, from, to - from, 0);
    }
    if (r == 0 && (offset < from || to < end)) {
        node_request_changed();
        r = zero_partial(n, offset, from - offset);
    }
    if (r == 0) {
        r = zero_partial(n, to, end - to);
    }
    return r;
}

int node_zero(struct node *n, uint64_t offset, uint64_t bytes, unsigned flags)
{
    uint64_t failures = node_flush_failures(n);
    int r;

    if (n->flags.read_only) {
        return -EPERM;
    }
    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    if ((flags & REQ_NO_FALLBACK) && !n->limits.fast_zero) {
        return -ENOTSUP;
    }
    r = bitmap_mark(n, offset, bytes, 0);
    if (r < 0) {
        return r;
    }
    node_note_write(n, offset + bytes);
    if (node_passes_writes(n) && (n->blind || !n->drv->zero)) {
        return node_zero(node_child(n, CHILD_FILE), offset, bytes, flags);
    }
    bool fua = flags & REQ_FUA;
    flags &= ~(unsigned)REQ_FUA;
    if (n->drv->zero) {
        r = zero_split(n, offset, bytes, flags);
    } else if (n->drv->is_protocol || n->drv->is_filter) {
        r = flags & REQ_NO_FALLBACK ? -ENOTSUP
                                    : write_as_data(n, offset, bytes, 0);
    } else {
        r = zero_mapped(n, offset, bytes, flags);
    }
    return r == 0 && fua ? node_flush_since(n, failures) : r;
}

static int discard(struct node *n, uint64_t offset, uint64_t bytes,
                   bool always);

static int discard_mapped(struct node *n, uint64_t offset, uint64_t bytes,
                          bool always)
{
    while (bytes > 0) {
        struct mapping m;
        int r = node_map(n, offset, bytes, MAP_WRITE, &m);
        if (r < 0) {
            return r;
        }
        if (m.kind == MAP_DATA) {
            r = discard(m.file, m.host, m.length, always);
        }
        node_map_put(n, &m);
        if (r < 0) {
            return r;
        }
        offset += m.length;
        bytes -= m.length;
        if (bytes > 0) {
            node_request_changed();
        }
    }
    return 0;
}

static int discard(struct node *n, uint64_t offset, uint64_t bytes, bool always)
{
    if (n->flags.read_only) {
        return -EPERM;
    }
    int r = bitmap_mark(n, offset, bytes, 0);
    if (r < 0) {
        return r;
    }
    if (n->drv->is_filter && (n->blind || !n->drv->discard)) {
        return discard(node_child(n, CHILD_FILE), offset, bytes, always);
    }
    if (!n->flags.unmap && !always) {
        return 0;
    }
    if (!n->drv->discard) {
        return n->drv->is_protocol ? 0
                                   : discard_mapped(n, offset, bytes, always);
    }
    uint64_t end = offset + bytes;
    uint64_t from = align_up(offset, n->limits.zero_align);
    uint64_t to = end == n->size ? end : align_down(end, n->limits.zero_align);
    return from < to ? n->drv->discard(n, from, to - from) : 0;
}

int node_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    return discard(n, offset, bytes, false);
}

int node_give_back(struct node *n, uint64_t offset, uint64_t bytes)
{
    return discard(n, offset, bytes, true);
}
