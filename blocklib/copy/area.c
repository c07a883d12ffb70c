/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the source of a copy has: areas of one kind, of whole clusters.
 *
 *     source    |data   |zero            |data|below ...
 *     clusters  |   |   |   |   |   |   |   |   |
 *     areas     |data       |zero       |data   |below     not `merge`
 *               |data   |...|           |mixed  |          `merge`
 */
#include "copy/priv.h"
#include "nbdelta/bytes.h"

/* Areas of zeroes are larger than chunks, but have an end. */
#define ZERO_SKIP_MAX (1 * GiB)
#define ZERO_FAST_MAX (64 * MiB)

bool copy_is_above(const struct copy *c, const struct extent *e)
{
    if (c->copies_up) {
        return copy_up_wants(&c->up, e);
    }
    return e->depth < c->layers &&
           ((e->flags & EXTENT_ALLOCATED) || !(e->flags & EXTENT_ZERO) ||
            e->offset < c->zero_from);
}

/* The part of the source that begins at the first extent and is of one kind. */
struct look {
    const struct copy *copy;
    const uint64_t *most; /* how far it is worth looking, by kind */
    uint64_t bytes;       /* 0: nothing was seen yet */
    enum area_kind kind;
};

static int look_at_extent(const struct extent *e, void *opaque)
{
    struct look *l = opaque;
    enum area_kind kind = l->copy->merge && !copy_is_above(l->copy, e)
                              ? AREA_BELOW
                          : e->flags & EXTENT_ZERO ? AREA_ZERO
                                                   : AREA_DATA;

    if (l->bytes > 0 && l->kind != kind) {
        return 1;
    }
    l->kind = kind;
    l->bytes += e->length;
    return l->bytes >= l->most[kind];
}

uint64_t copy_zero_max(const struct copy *c)
{
    uint64_t most = c->target_zero                ? ZERO_SKIP_MAX
                    : c->target->limits.fast_zero ? ZERO_FAST_MAX
                                                  : 0;

    return max_u64(most, c->chunk);
}

/* Ask the source what begins at @offset.  Not less than 0: done. */
static int look(struct copy *c, uint64_t offset, uint64_t end, struct look *l)
{
    uint64_t far = max_u64(l->most[AREA_ZERO], l->most[AREA_DATA]);

    if (c->merge) {
        far = max_u64(far, l->most[AREA_BELOW]);
    }
    return node_extents(c->source, offset, min_u64(end - offset, far), 0,
                        look_at_extent, l);
}

/*
 * The kind of the area that begins at @offset, a cluster's start, and its
 * length in whole clusters, at most to @end and at most so many bytes of each
 * kind.  A cluster that is partly zero is data.
 */
static void cut_area(const struct copy *c, const struct look *l,
                     uint64_t offset, uint64_t end, struct area *a)
{
    const uint64_t *most = l->most;
    uint64_t enough = min_u64(end - offset, most[l->kind]);
    uint64_t bytes = min_u64(l->bytes, enough);
    uint64_t whole = offset + bytes == c->size ? bytes
                                               : align_down(bytes, c->cluster);
    *a = (struct area){offset, whole, l->kind};
    if (c->merge && whole == 0) {
        *a = (struct area){offset, min_u64(end - offset, c->cluster),
                           AREA_MIXED};
    } else if (!c->merge && (whole == 0 || l->kind == AREA_DATA)) {
        *a = (struct area){offset,
                           min_u64(align_up(bytes, c->cluster),
                                   min_u64(end - offset, most[AREA_DATA])),
                           AREA_DATA};
    }
}

int copy_classify(struct copy *c, uint64_t offset, uint64_t end,
                  const uint64_t most[AREA_KINDS], struct area *a)
{
    struct look l = {.copy = c, .most = most};
    int r = look(c, offset, end, &l);

    if (r < 0) {
        return r;
    }
    cut_area(c, &l, offset, end, a);
    return 0;
}

int copy_piece(struct copy *c, uint64_t offset, uint64_t end, struct area *a)
{
    static const uint64_t most[AREA_KINDS] = {UINT64_MAX, UINT64_MAX,
                                              UINT64_MAX};
    struct look l = {.copy = c, .most = most};
    int r = look(c, offset, end, &l);

    *a = (struct area){offset, l.bytes, l.kind};
    return r < 0 ? r : 0;
}

/*
 * The same for a worker.  The source may be far away, and tells of more than a
 * worker takes, so the rest serves for the next ones: what the set still has is
 * as it was (see 3. above), except where a copy is filled again (`merge`,
 * `changing`).
 */
int copy_classify_next(struct copy *c, uint64_t offset, uint64_t end,
                       const uint64_t most[AREA_KINDS], struct area *a)
{
    struct look l = {.copy = c, .most = most};

    if (!c->merge && !c->changing && offset >= c->known_from &&
        offset + c->cluster <= c->known_end) {
        l.kind = c->known_kind;
        l.bytes = c->known_end - offset;
    } else {
        int r = look(c, offset, end, &l);
        if (r < 0) {
            return r;
        }
        c->known_from = offset;
        c->known_end = offset + l.bytes;
        c->known_kind = l.kind;
    }
    cut_area(c, &l, offset, end, a);
    return 0;
}
