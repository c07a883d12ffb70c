/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Marking what is written, at the price of one bitmap.
 *
 * Checkpoints of a disk are bitmaps that began one after another, so what a
 * newer one has dirty the older ones have dirty, too:
 *
 *      oldest   # # # # . # # .        outer
 *               # # . # . # . .          ^
 *      newest   # . . # . . . .        inner
 *
 * Recording bitmaps are kept in nests, in which each has all bits of its
 * inner one.  A write looks at the innermost first and goes outwards until
 * one has its bits set: all further out have them.  Then it sets bits from
 * there inwards, so that at every moment
 *
 *   - a bit is set in a bitmap only after it is set in the outer one, and after
 *     the outer one was armed: a writer that finds it set need not look further
 *     out.
 *
 * The format keeps bits in the image that are set and were armed: it never
 * writes fewer bits (`arm` in core/driver.h).  The bitmap in which the bits
 * were found is armed again, because the writer that has set them may still be
 * waiting for that.
 *
 * If a failed write or flush has left the image with fewer bits, the node is in
 * doubt (node->bitmaps_doubt).  Nothing is marked or written then before the
 * format has healed it.
 *
 *      node->recording -> inner -> ... -> outer      one nest
 *                           | rest
 *                           +-> inner -> ...         the next one
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "core/dirty.h"
#include "nbdelta/bytes.h"

struct hbitmap *bitmap_collecting(const struct bitmap *bm)
{
    return bm->successor ? bm->successor : bm->bits;
}

/* --- Nests, in drained sections --- */

static bool covers(const struct bitmap *outer, const struct bitmap *inner)
{
    return !atomic_load(&outer->inconsistent) &&
           !atomic_load(&inner->inconsistent) &&
           outer->granularity >= inner->granularity &&
           hbitmap_covers(bitmap_collecting(outer), bitmap_collecting(inner));
}

/* For qsort: bitmaps with fewer dirty bytes come first.  Of equal ones the
 * newer comes first: they are given newest first, and `rank` keeps that
 * order. */
struct ranked {
    struct bitmap *bm;
    uint64_t count;
    unsigned rank;
};

static int compare(const void *va, const void *vb)
{
    const struct ranked *a = va;
    const struct ranked *b = vb;

    if (a->count != b->count) {
        return a->count < b->count ? -1 : 1;
    }
    return a->rank < b->rank ? -1 : 1;
}

/* Link all recording bitmaps by `rest`, newest first, in no nest.  Also link
 * bitmaps that would record if they were not inconsistent. */
static unsigned link_apart(struct node *n)
{
    struct bitmap **end = &n->recording;
    unsigned count = 0;

    for (struct list *at = n->bitmaps.prev; at != &n->bitmaps; at = at->prev) {
        struct bitmap *bm = list_entry(at, struct bitmap, on_node);
        bm->inner = NULL;
        if (bm->enabled || bm->recorded) {
            *end = bm;
            end = &bm->rest;
            count++;
        } else {
            bm->outer = NULL;
        }
    }
    *end = NULL;
    return count;
}

/* Build nests of @sorted.  A pair that was nested stays so unless one of the
 * two is @changed (NULL: all have changed). */
static void link_nests(struct node *n, const struct ranked *sorted,
                       unsigned count, const struct bitmap *changed)
{
    struct bitmap *older = NULL;

    for (unsigned i = count; i-- > 0;) {
        struct bitmap *bm = sorted[i].bm;
        bool known = older && bm->outer == older && changed && bm != changed &&
                     older != changed;

        bm->outer = older && (known || covers(older, bm)) ? older : NULL;
        bm->rest = bm->outer ? older->rest : older;
        if (bm->outer) {
            older->inner = bm;
        }
        older = bm;
    }
    n->recording = older;
}

void bitmap_nest(struct node *n, const struct bitmap *changed)
{
    unsigned count = link_apart(n);

    if (count < 2) {
        if (n->recording) {
            n->recording->outer = NULL;
        }
        return;
    }
    struct ranked *sorted = calloc(count, sizeof(*sorted));
    struct bitmap *bm = n->recording;
    for (unsigned i = 0; i < count; i++) {
        if (sorted) {
            sorted[i] =
                (struct ranked){bm, hbitmap_count(bitmap_collecting(bm)), i};
        } else { /* each for itself does, too */
            bm->outer = NULL;
        }
        bm = bm->rest;
    }
    if (sorted) {
        qsort(sorted, count, sizeof(*sorted), compare);
        link_nests(n, sorted, count, changed);
        free(sorted);
    }
}

void bitmap_nest_again(struct node *n)
{
    static const struct bitmap nobody;

    bitmap_nest(n, &nobody);
}

void bitmap_set_enabled(struct bitmap *bm, bool enabled)
{
    bm->enabled = enabled;
    bitmap_nest(bm->node, bm);
}

/* --- Marking, in requests --- */

/* Clip the range to the bits.  A node that has grown has no bits past the old
 * end until its bitmaps follow it. */
static uint64_t bytes_inside_bitmap(const struct hbitmap *bits, uint64_t offset,
                                    uint64_t bytes)
{
    uint64_t size = hbitmap_size(bits);

    return offset < size ? min_u64(bytes, size - offset) : 0;
}

static bool is_marked(const struct bitmap *bm, uint64_t offset, uint64_t bytes)
{
    const struct hbitmap *bits = bitmap_collecting(bm);
    uint64_t here = bytes_inside_bitmap(bits, offset, bytes);

    return here == 0 || hbitmap_all_set(bits, offset, here);
}

static int mark_one(struct node *n, struct bitmap *bm, uint64_t offset,
                    uint64_t bytes, bool nowait)
{
    struct hbitmap *bits = bitmap_collecting(bm);
    uint64_t here = bytes_inside_bitmap(bits, offset, bytes);

    if (here > 0) {
        hbitmap_set(bits, offset, here);
    }
    return bm->stored ? n->drv->bitmaps->arm(n, bm, offset, bytes, nowait) : 0;
}

static int mark_nest(struct node *n, struct bitmap *innermost, uint64_t offset,
                     uint64_t bytes, bool nowait)
{
    struct bitmap *bm = innermost;
    int r = 0;

    while (bm->outer && !is_marked(bm, offset, bytes)) {
        bm = bm->outer;
    }
    for (; r == 0 && bm; bm = bm->inner) {
        r = mark_one(n, bm, offset, bytes, nowait);
    }
    return r;
}

int bitmap_mark_slow(struct node *n, uint64_t offset, uint64_t bytes,
                     bool nowait)
{
    int r = atomic_load(&n->bitmaps_doubt) ? n->drv->bitmaps->heal(n, nowait)
                                           : 0;

    for (struct bitmap *bm = n->recording; r == 0 && bm; bm = bm->rest) {
        r = mark_nest(n, bm, offset, bytes, nowait);
    }
    return r;
}

/* --- Marking in two steps, in drained sections --- */

int bitmap_mark_ahead(struct node *n, uint64_t offset, uint64_t bytes)
{
    int r = atomic_load(&n->bitmaps_doubt) ? n->drv->bitmaps->heal(n, false)
                                           : 0;

    list_for_each (at, &n->bitmaps) {
        struct bitmap *bm = list_entry(at, struct bitmap, on_node);

        if (r == 0 && (bm->enabled || bm->recorded) && bm->stored) {
            r = n->drv->bitmaps->arm(n, bm, offset, bytes, false);
        }
    }
    return r;
}

void bitmap_mark_bits(struct node *n, uint64_t offset, uint64_t bytes)
{
    list_for_each (at, &n->bitmaps) {
        const struct bitmap *bm = list_entry(at, struct bitmap, on_node);
        struct hbitmap *bits = bitmap_collecting(bm);
        uint64_t here = bytes_inside_bitmap(bits, offset, bytes);

        if (bm->enabled && here > 0) {
            hbitmap_set(bits, offset, here);
        }
    }
}
