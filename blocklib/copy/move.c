/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How a copy moves an area: by zeroes, by clusters that two files share, or
 * through memory.
 *
 *     zero    -> zero the target, unless it is zeroes already
 *     data    -> share whole clusters (node_clone), or
 *                read, look for zeroes, compress perhaps, write
 *     mixed   -> each piece by its own kind
 *     below   -> nothing: the target has it
 *
 * What is in the target leaves the set, and is told (`moved`).
 */
#include <errno.h>
#include <stdatomic.h>

#include "copy/priv.h"
#include "nbdelta/bytes.h"

/* Bytes that the target has behind a range that ends at @end. */
static uint64_t past_of(const struct copy *c, uint64_t end)
{
    return end == c->size ? c->past : 0;
}

/* The range is in the target. */
static int note_moved(struct copy *c, uint64_t offset, uint64_t bytes,
                      const void *buf, enum copy_side *side)
{
    if (c->merge) {
        return 0; /* the range may be part of a cluster: move_run notes it */
    }
    if (c->moved) {
        *side = COPY_TELL;
        int r = c->moved(c->moved_opaque, offset, bytes, buf);
        if (r < 0) {
            return r;
        }
    }
    atomic_fetch_add(buf ? &c->counters.written : &c->counters.zeroed, bytes);
    copy_set_take(&c->todo, offset, bytes);
    atomic_fetch_add(&c->done, bytes);
    return 0;
}

static int move_zeroes(struct copy *c, uint64_t offset, uint64_t bytes,
                       enum copy_side *side)
{
    if (c->copies_up) {
        *side = COPY_WRITE;
        return node_copy_up(c->target, offset, bytes, NULL, 0);
    }
    if (!c->target_zero) {
        *side = COPY_WRITE;
        int r = node_zero(c->target, offset, bytes + past_of(c, offset + bytes),
                          c->keep_space ? 0 : REQ_MAY_UNMAP);
        if (r < 0) {
            return r;
        }
    }
    return note_moved(c, offset, bytes, NULL, side);
}

/* Write the bytes that were read.  @buf has room behind them for what the
 * target has past the end of the source. */
static int write_data(struct copy *c, uint64_t offset, uint64_t bytes,
                      char *buf, enum copy_side *side)
{
    uint64_t past = past_of(c, offset + bytes); /* less than a cluster */

    *side = COPY_WRITE;
    if (c->copies_up) {
        return node_copy_up(c->target, offset, bytes, buf,
                            c->uncached ? REQ_UNCACHED : 0);
    }
    memset(buf + bytes, 0, past);
    int r = c->compress
                ? node_write_compressed(c->target, buf, bytes + past, offset)
                : node_pwrite(c->target, buf, bytes + past, offset,
                              c->uncached ? REQ_UNCACHED : 0);
    return r < 0 ? r : note_moved(c, offset, bytes, buf, side);
}

/* Bytes of @buf, in whole clusters, that are all zeroes (*zero), or all not. */
static uint64_t alike(const struct copy *c, const char *buf, uint64_t bytes,
                      bool *zero)
{
    uint64_t at = min_u64(c->cluster, bytes);

    *zero = bytes_are_zero(buf, at);
    while (at < bytes) {
        uint64_t len = min_u64(c->cluster, bytes - at);

        if (bytes_are_zero(buf + at, len) != *zero) {
            break;
        }
        at += len;
    }
    return at;
}

static int move_buffer(struct copy *c, uint64_t offset, uint64_t bytes,
                       char *buf, enum copy_side *side)
{
    int r = 0;

    for (uint64_t done = 0; r == 0 && done < bytes;) {
        uint64_t at = offset + done;
        uint64_t len = bytes - done;
        bool zero = false;

        if (c->find_zeroes) {
            len = alike(c, buf + done, len, &zero);
        }
        r = zero ? move_zeroes(c, at, len, side)
                 : write_data(c, at, len, buf + done, side);
        done += len;
    }
    return r;
}

/* Have the whole clusters of the range share their bytes with the source, if
 * that works; *done: those that do. */
static int share_data(struct copy *c, uint64_t offset, uint64_t bytes,
                      const void *buf, uint64_t *done, enum copy_side *side)
{
    uint64_t whole = align_down(bytes, c->cluster);

    if (whole == 0 || !is_aligned(offset, c->cluster) ||
        !atomic_load(&c->share)) {
        return 0;
    }
    int r = node_clone(c->target, offset, whole, c->source, offset);
    if (r == -ENOTSUP) {
        atomic_store(&c->share, false);
    }
    if (r < 0) {
        return r == -ERESTART ? r : 0; /* reading or writing will fail, too */
    }
    *done = whole;
    atomic_fetch_add(&c->counters.shared, whole);
    return note_moved(c, offset, whole, buf, side);
}

static int move_data(struct copy *c, uint64_t offset, uint64_t bytes, void *buf,
                     enum copy_side *side)
{
    uint64_t done = 0;
    int shared = share_data(c, offset, bytes, buf, &done, side);

    if (shared < 0) {
        return shared;
    }
    while (done < bytes) {
        uint64_t at = offset + done;
        uint64_t len = min_u64(bytes - done, c->buffer_size);

        *side = COPY_READ;
        int r = node_pread(c->source, buf, len, at, 0);
        if (r < 0) {
            return r;
        }
        atomic_fetch_add(&c->counters.read, len);
        r = move_buffer(c, at, len, buf, side);
        if (r < 0) {
            return r;
        }
        done += len;
    }
    return 0;
}

/* Move each piece of a mixed cluster by its own kind. */
static int move_mixed(struct copy *c, uint64_t offset, uint64_t bytes,
                      void *buf, enum copy_side *side)
{
    for (uint64_t end = offset + bytes; offset < end;) {
        struct area a;

        *side = COPY_READ;
        int r = copy_piece(c, offset, end, &a);
        if (r == 0) {
            r = a.kind == AREA_ZERO   ? move_zeroes(c, offset, a.bytes, side)
                : a.kind == AREA_DATA ? move_data(c, offset, a.bytes, buf, side)
                                      : 0;
        }
        if (r < 0) {
            return r;
        }
        offset += a.bytes;
    }
    return 0;
}

static int move_run(struct copy *c, enum area_kind kind, uint64_t offset,
                    uint64_t bytes, void *buf, enum copy_side *side)
{
    int r = kind == AREA_DATA    ? move_data(c, offset, bytes, buf, side)
            : kind == AREA_ZERO  ? move_zeroes(c, offset, bytes, side)
            : kind == AREA_MIXED ? move_mixed(c, offset, bytes, buf, side)
                                 : 0;
    if (r == 0 && c->merge) {
        copy_set_take(&c->todo, offset, bytes);
        atomic_fetch_add(&c->done, bytes);
    }
    return r;
}

int copy_area(struct copy *c, const struct area *a, void *buf,
              enum copy_side *side)
{
    uint64_t end = a->offset + a->bytes;
    uint64_t start;
    uint64_t bytes;
    int r = copy_check(c, side);

    for (uint64_t at = a->offset;
         r == 0 && at < end && copy_set_next(&c->todo, at, end, &start, &bytes);
         at = start + bytes) {
        r = move_run(c, a->kind, start, bytes, buf, side);
        if (r == 0 && c->discard_source) {
            /* A guest that writes here waits for the range lock, because the
             * range must not be discarded after it was written.  A discard is a
             * hint, so its failure is none of the copy. */
            (void)node_discard(c->source, start, bytes);
        }
    }
    return r;
}

/* Are the first clusters of a run zeroes, or data?  Cuts the run where it is
 * the other one. */
static bool starts_with_zeroes(const struct copy *c, const char *buf,
                               uint64_t *bytes)
{
    uint64_t at = min_u64(c->cluster, *bytes);
    bool zero = bytes_are_zero(buf, at);
    uint64_t part;

    for (; at < *bytes; at += part) {
        part = min_u64(c->cluster, *bytes - at);
        if (bytes_are_zero(buf + at, part) != zero) {
            break;
        }
    }
    *bytes = at;
    return zero;
}

int copy_range_now(struct copy *c, uint64_t offset, uint64_t end, void *buf)
{
    enum copy_side side;
    uint64_t start;
    uint64_t bytes;
    int r = copy_check(c, &side);

    if (end > node_size(c->source)) {
        return -EAGAIN; /* waiting, one learns why */
    }
    while (r == 0 && offset < end &&
           copy_set_next(&c->todo, offset, end, &start, &bytes)) {
        r = node_pread(c->source, buf, bytes, start, REQ_NOWAIT);
        bool zero = r == 0 && starts_with_zeroes(c, buf, &bytes);
        if (zero && !c->target_zero) {
            r = -EAGAIN; /* zeroing may wait */
        } else if (r == 0 && !zero) {
            r = node_pwrite(c->target, buf, bytes, start, REQ_NOWAIT);
        }
        if (r == 0) {
            atomic_fetch_add(&c->counters.saved, bytes);
            r = note_moved(c, start, bytes, zero ? NULL : buf, &side);
        }
        offset = start + bytes;
    }
    return r;
}

int copy_range_locked(struct copy *c, uint64_t offset, uint64_t end, void *buf,
                      enum copy_side *side)
{
    uint64_t start;
    uint64_t bytes;

    *side = COPY_READ;
    if (end > node_size(c->source)) {
        return -EIO; /* somebody has cut the source off */
    }
    while (offset < end &&
           copy_set_next(&c->todo, offset, end, &start, &bytes)) {
        const uint64_t most[AREA_KINDS] = {bytes, bytes, bytes};
        struct area a;
        int r = copy_classify(c, start, start + bytes, most, &a);
        if (r == 0) {
            r = copy_area(c, &a, buf, side);
        }
        if (r < 0) {
            return r;
        }
        atomic_fetch_add(&c->counters.saved, a.bytes);
        offset = a.offset + a.bytes;
    }
    return 0;
}
