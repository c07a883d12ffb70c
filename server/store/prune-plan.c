/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which points go, and what that gives back.
 *
 * A run of points that go, one over the other, becomes a part of the point that
 * is over them all.  From there on down, a cluster with data is given back when
 * a file above it decides it, too:
 *
 *     stays   next    |  x x      |     covered:   x x
 *     goes    b       |x x     x  |        1 back  xxx  x
 *     goes    a       |  x   x x  |        2 back
 *     stays   parent
 *
 * Where nothing is over the run, its files go as they are.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "store/prune-priv.h"

/* --- Deciding --- */

static bool needs(const struct store_point *p, const char *name)
{
    for (unsigned i = 0; p && p->manifest && i < p->manifest->count; i++) {
        if (strcmp(p->manifest->disks[i].parent, name) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_unreadable(const struct store *s, unsigned i)
{
    return i < store_count(s) && !store_point(s, i)->manifest;
}

/* A backup is made over the point before it.  So an unreadable manifest may
 * need that, with the hash that it has now: nothing is merged into it. */
unsigned prune_must_keep(const struct store *s, unsigned i)
{
    if (is_unreadable(s, i)) {
        return KEEP_UNREADABLE;
    }
    return is_unreadable(s, i + 1) || is_unreadable(s, i + 2) ||
                   needs(store_pending(s), store_point(s, i)->name)
               ? KEEP_NEEDED
               : 0;
}

/* Rules count points that can be restored. */
static void apply(const struct store *s, const struct keep_rules *rules,
                  struct prune_point *points, int64_t *times, unsigned *kept)
{
    unsigned count = 0;

    for (unsigned i = 0; i < store_count(s); i++) {
        if (store_point(s, i)->manifest) {
            times[count++] = point_name_time(store_point(s, i)->name);
        }
    }
    rules_apply(rules, times, count, kept);
    for (unsigned i = 0, k = 0; i < store_count(s); i++) {
        memcpy(points[i].name, store_point(s, i)->name, POINT_NAME_MAX);
        points[i].kept = prune_must_keep(s, i);
        points[i].kept |= store_point(s, i)->manifest ? kept[k++] : 0;
    }
}

int prune_plan(struct store *s, const struct keep_rules *rules,
               struct prune_point **points, struct error **errp)
{
    unsigned room = store_count(s) + 1;
    CLEANUP_FREE int64_t *times = calloc(room, sizeof(*times));
    CLEANUP_FREE unsigned *kept = calloc(room, sizeof(*kept));

    if (!rules_any(rules)) {
        return error_set(errp, EINVAL, "no rule says which points to keep");
    }
    *points = calloc(room, sizeof(**points));
    if (!times || !kept || !*points) {
        free(*points);
        *points = NULL;
        return error_nomem(errp);
    }
    apply(s, rules, *points, times, kept);
    return 0;
}

/* --- What it gives back --- */

struct cover {
    uint64_t *bits;   /* chunks that a file above decides */
    bool all;         /* all of them: nothing is above */
    uint64_t covered; /* bytes of data of this file that are covered */
};

/* For blk_extents. */
static int cover_extent(const struct extent *e, void *opaque)
{
    struct cover *c = opaque;
    bool data = (e->flags & EXTENT_DATA) && !(e->flags & EXTENT_ZERO);
    uint64_t end = e->offset + e->length;

    if (!(e->flags & EXTENT_ALLOCATED)) {
        return 0;
    }
    for (uint64_t at = e->offset; at < end;) {
        uint64_t stop = min_u64(align_down(at, SUMS_CHUNK) + SUMS_CHUNK, end);
        uint64_t *word = &c->bits[at / SUMS_CHUNK / 64];
        uint64_t bit = UINT64_C(1) << (at / SUMS_CHUNK % 64);

        c->covered += data && (*word & bit) ? stop - at : 0;
        *word |= bit;
        at = stop;
    }
    return 0;
}

static int cover_file(struct store *s, const char *disk, uint64_t size,
                      const char *point, struct cover *c, struct error **errp)
{
    struct graph *g = graph_new();
    struct node *n = NULL;
    struct blk *b = NULL;
    int r = g ? layer_open(s, g, disk, point, false, &n, errp)
              : error_nomem(errp);

    c->covered = 0;
    r = r < 0 ? r : blk_new(g, n, PERM_READ, PERM_ALL, "prune", &b, errp);
    if (r == 0) {
        r = blk_extents(b, 0, min_u64(size, blk_size(b)), 0, cover_extent, c);
        r = r < 0 ? error_set(errp, -r, "cannot look at disk '%s' of %s: %s",
                              disk, point, strerror(-r))
                  : 0;
    }
    blk_free(b);
    graph_free(g);
    return r;
}

/* The index of a point by its name, or the number of points. */
static unsigned index_of(const struct store *s, const char *name)
{
    const struct store_point *p = store_named(s, name);

    return p && p != store_pending(s) ? (unsigned)(p - store_point(s, 0))
                                      : store_count(s);
}

/* The point whose disk was made over that of the i-th, or the number of
 * points. */
static unsigned find_above(const struct store *s, unsigned i, const char *disk)
{
    for (unsigned k = i + 1; k < store_count(s); k++) {
        const struct manifest *m = store_point(s, k)->manifest;
        const struct manifest_disk *d = m ? manifest_find(m, disk) : NULL;

        if (d && strcmp(d->parent, store_point(s, i)->name) == 0) {
            return k;
        }
    }
    return store_count(s);
}

/* From the i-th point on down, as long as points go. */
static int estimate_run(struct store *s, struct prune_point *points, unsigned i,
                        const char *disk, uint64_t size, struct cover *c,
                        struct error **errp)
{
    int r = 0;

    while (r == 0 && i < store_count(s) && points[i].kept == 0) {
        const struct manifest_disk *d =
            manifest_find(store_point(s, i)->manifest, disk);

        if (!d || d->size != size) {
            break;
        }
        if (!c->all) {
            r = cover_file(s, disk, size, points[i].name, c, errp);
        }
        points[i].bytes += c->all ? merge_disk_bytes(s, disk, points[i].name)
                                  : c->covered;
        i = index_of(s, d->parent);
    }
    return r;
}

/* Of a disk of a point that goes, unless one that goes is over it. */
static int estimate_disk(struct store *s, struct prune_point *points,
                         unsigned i, const struct manifest_disk *d,
                         struct error **errp)
{
    unsigned above = find_above(s, i, d->name);
    uint64_t words = d->size / SUMS_CHUNK / 64 + 1;
    struct cover c = {.all = above == store_count(s)};
    int r = 0;

    if (!c.all && points[above].kept == 0) {
        return 0;
    }
    CLEANUP_FREE uint64_t *bits = c.all ? NULL : calloc(words, sizeof(*bits));
    if (!c.all && !bits) {
        return error_nomem(errp);
    }
    c.bits = bits;
    if (!c.all) {
        r = cover_file(s, d->name, d->size, points[above].name, &c, errp);
    }
    return r < 0 ? r : estimate_run(s, points, i, d->name, d->size, &c, errp);
}

int prune_estimate(struct store *s, struct prune_point *points,
                   struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < store_count(s); i++) {
        const struct manifest *m = store_point(s, i)->manifest;

        for (unsigned k = 0; r == 0 && points[i].kept == 0 && m && k < m->count;
             k++) {
            r = estimate_disk(s, points, i, &m->disks[k], errp);
        }
    }
    return r;
}
