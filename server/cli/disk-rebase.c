/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An image gets what another backing file does not have: see disk-rebase.h.
 *
 *     the image     |own  |nothing                      |own   |
 *     it shows      |     |aaaa|bbbb|0000|0000|cccc     |      |
 *     new backing   |     |aaaa|xxxx|0000|xxxx|cccc     |
 *     written to it       |    |bbbb|    |zero|
 *
 * A unit is what the image allocates at once.  Zeroes are made, not left out:
 * what is unallocated would show the new backing file.
 */
#include "cli/disk-rebase.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define PIECE (2 * MiB)

struct work {
    struct disk_rebase *d;
    uint64_t unit;
    uint8_t *old; /* PIECE bytes each */
    uint8_t *new;
};

/* A range where the image has nothing of its own. */
struct gap {
    uint64_t start;
    uint64_t end; /* start: none is found yet */
};

static int join_gap(const struct extent *e, void *opaque)
{
    struct gap *g = opaque;

    if ((e->flags & EXTENT_ALLOCATED) && e->depth == 0) {
        return g->end > g->start;
    }
    if (g->end == g->start) {
        g->start = e->offset;
    }
    g->end = e->offset + e->length;
    return 0;
}

/* --- A piece --- */

static int put_unit(struct work *w, uint64_t offset, const uint8_t *bytes,
                    uint64_t len)
{
    w->d->copied += len;
    return bytes_are_zero(bytes, len)
               ? blk_zero(w->d->image, offset, len, REQ_MAY_UNMAP)
               : blk_pwrite(w->d->image, bytes, len, offset, 0);
}

/* Behind its end, the backing file is zeroes. */
static int read_new(struct work *w, uint64_t offset, uint64_t len)
{
    struct blk *b = w->d->backing;
    uint64_t size = b ? blk_size(b) : 0;
    uint64_t have = offset < size ? min_u64(len, size - offset) : 0;

    memset(w->new + have, 0, len - have);
    return have > 0 ? blk_pread(b, w->new, have, offset, 0) : 0;
}

static int do_piece(struct work *w, uint64_t offset, uint64_t len)
{
    int r = blk_pread(w->d->image, w->old, len, offset, 0);

    r = r < 0 ? r : read_new(w, offset, len);
    for (uint64_t at = 0; r == 0 && at < len;) {
        uint64_t end = align_down(offset + at, w->unit) + w->unit - offset;
        uint64_t part = min_u64(len, end) - at;

        if (memcmp(w->old + at, w->new + at, part) != 0) {
            r = put_unit(w, offset + at, w->old + at, part);
        }
        at += part;
    }
    return r;
}

/* --- */

static int do_gap(struct work *w, const struct gap *g)
{
    int r = 0;

    for (uint64_t at = g->start; r == 0 && at < g->end;) {
        uint64_t len = min_u64(g->end, align_down(at, PIECE) + PIECE) - at;

        r = do_piece(w, at, len);
        at += len;
        w->d->done = at;
    }
    return r;
}

static int do_all(struct work *w)
{
    uint64_t size = blk_size(w->d->image);
    uint64_t at = 0;

    while (at < size) {
        struct gap g = {at, at};
        int r = blk_extents(w->d->image, at, size - at, 0, join_gap, &g);

        if (r >= 0 && g.end == g.start) {
            return 0;
        }
        r = r < 0 ? r : do_gap(w, &g);
        if (r < 0) {
            return r;
        }
        at = g.end;
    }
    return 0;
}

int disk_rebase(struct disk_rebase *d, struct error **errp)
{
    CLEANUP_FREE uint8_t *old = malloc(PIECE);
    CLEANUP_FREE uint8_t *new = malloc(PIECE);
    struct blk_limits lim;
    int r;

    if (!old || !new) {
        return error_nomem(errp);
    }
    blk_get_limits(d->image, &lim);
    struct work w = {
        .d = d,
        .unit = min_u64(max_u64(lim.pref, lim.align), PIECE),
        .old = old,
        .new = new,
    };
    r = do_all(&w);
    return r < 0
               ? error_set(errp, -r, "cannot copy near offset %" PRIu64 ": %s",
                           (uint64_t)d->done, strerror(-r))
               : 0;
}
