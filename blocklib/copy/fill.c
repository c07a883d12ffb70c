/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The set of a copy: what is put into it, and what is left over.
 *
 *                            base              gone
 *   the whole disk           none              clusters that are done
 *   a bitmap of a point      the bitmap's bits clusters that are done
 *   ranges, other bitmaps    clusters to do    none, unless there are views
 *   copy_refill              clusters to do    none
 */
#include <errno.h>
#include <stdatomic.h>

#include "copy/priv.h"
#include "core/dirty.h"
#include "nbdelta/bytes.h"

/* Bytes of a map that one look covers, so that drains do not wait. */
#define SKIP_STEP (256 * MiB)

/* --- Filling --- */

uint64_t copy_left(const struct copy *c)
{
    uint64_t past = align_up(c->size, c->cluster) - c->size;
    bool last = false;

    if (past > 0) {
        (void)copy_set_run(&c->todo, c->size - 1, c->size, &last);
    }
    return copy_set_count(&c->todo, c->size, c->cluster) - (last ? past : 0);
}

/* Make the base what it shall be.  NULL: it has all. */
static void set_base(struct copy *c, struct hbitmap *base)
{
    hbitmap_free(c->todo.base);
    c->todo.base = base;
    if (c->shown) {
        c->visible.base = base;
    }
}

/* The base of single clusters, to be added to.  Clusters are taken out of it,
 * unless there are views.  NULL: the set has all already. */
static struct hbitmap *own_base(struct copy *c)
{
    if (c->todo.base && !c->shown) {
        hbitmap_free(c->todo.gone);
        c->todo.gone = NULL;
    }
    return c->todo.base;
}

void copy_add(struct copy *c, uint64_t offset, uint64_t bytes)
{
    if (bytes == c->size && c->todo.gone) {
        set_base(c, NULL);
    } else if (bytes > 0 && own_base(c)) {
        hbitmap_set(c->todo.base, offset, bytes);
    }
    atomic_store(&c->total, copy_left(c));
}

void copy_add_bits(struct copy *c, const struct hbitmap *bits)
{
    if (c->size > 0 && own_base(c)) {
        hbitmap_fill(c->todo.base, bits);
        atomic_store(&c->total, copy_left(c));
    }
}

void copy_take_bits(struct copy *c, struct hbitmap *bits)
{
    if (hbitmap_granularity(bits) < c->cluster || c->size == 0) {
        copy_add_bits(c, bits);
        hbitmap_free(bits);
    } else {
        set_base(c, bits);
        atomic_store(&c->total, copy_left(c));
    }
}

void copy_refill(struct copy *c, struct hbitmap *bits)
{
    hbitmap_free(c->todo.gone);
    c->todo.gone = NULL;
    set_base(c, bits);
    c->size = hbitmap_size(bits);
    c->target_zero = false; /* the target has been written to */
    c->zero_from = UINT64_MAX;
    atomic_fetch_add(&c->total, copy_left(c));
}

/* --- Skipping --- */

struct skip {
    struct copy *c;
    uint64_t start; /* of what the images below decide, up to end */
    uint64_t end;
};

/* Skip the whole clusters of [start, end). */
static void skip_run(struct skip *s)
{
    struct copy *c = s->c;
    uint64_t from = align_up(s->start, c->cluster);
    uint64_t end = s->end == c->size ? s->end : align_down(s->end, c->cluster);
    uint64_t start;
    uint64_t bytes;

    while (from < end && copy_set_next(&c->todo, from, end, &start, &bytes)) {
        copy_set_take(&c->todo, start, bytes);
        atomic_fetch_sub(&c->total, bytes);
        from = start + bytes;
    }
}

static int skip_extent(const struct extent *e, void *opaque)
{
    struct skip *s = opaque;

    if (copy_is_above(s->c, e)) {
        skip_run(s);
        s->start = e->offset + e->length;
    }
    s->end = e->offset + e->length;
    return 0;
}

/* Inside a request of the tree. */
static int skip_some(struct copy *c, uint64_t offset, uint64_t bytes)
{
    struct skip s = {.c = c, .start = offset, .end = offset};
    struct range_req req;

    range_lock(&c->in_hand, &req, offset, bytes, true);
    int r = node_extents(c->source, offset, bytes, 0, skip_extent, &s);
    if (r == 0) {
        skip_run(&s);
    }
    range_unlock(&c->in_hand, &req);
    return r;
}

static bool is_stopped(struct copy *c)
{
    mutex_lock(&c->lock);
    bool stop = c->stop;
    mutex_unlock(&c->lock);
    return stop;
}

int copy_skip_below(struct copy *c)
{
    uint64_t most = max_u64(SKIP_STEP, c->cluster);
    int r = 0;

    while (r == 0 && c->skip_cursor < c->size) {
        uint64_t bytes = min_u64(most, c->size - c->skip_cursor);

        if (is_stopped(c)) {
            return COPY_STOPPED;
        }
        struct tree *t = node_enter(atomic_load(&c->inside), false);
        r = skip_some(c, c->skip_cursor, bytes);
        node_leave(t);
        c->skip_cursor += r == 0 ? bytes : 0;
        r = r == -ERESTART ? 0 : r;
    }
    return r;
}

static int find_data(const struct extent *e, void *opaque)
{
    (void)opaque;
    return e->flags & EXTENT_ZERO ? 0 : 1;
}

int copy_look_at_target(struct copy *c)
{
    uint64_t at = 0;
    int r = 0;

    while (r == 0 && at < c->size && !c->target_zero) {
        uint64_t bytes = min_u64(SKIP_STEP, c->size - at);

        if (is_stopped(c)) {
            return COPY_STOPPED;
        }
        node_unwanted = &c->given_up;
        struct tree *t = node_enter(atomic_load(&c->inside), false);
        r = node_extents(c->target, at, bytes, 0, find_data, NULL);
        at += r == 0 ? bytes : 0;
        c->target_zero = r == 0 && at == c->size;
        node_leave(t);
        node_unwanted = NULL;
        r = r == -ERESTART ? 0 : r;
    }
    return 0;
}

/* The disk may have changed its size since. */
void copy_merge_left(const struct copy *c, struct bitmap *bm)
{
    uint64_t size = min_u64(hbitmap_size(bm->bits), c->size);
    uint64_t start;
    uint64_t len;

    for (uint64_t at = 0;
         at < size && copy_set_next(&c->todo, at, size, &start, &len);
         at = start + len) {
        hbitmap_set(bm->bits, start, len);
    }
    bitmap_nest(bm->node, bm);
}
