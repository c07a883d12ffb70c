/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dirty view of a disk: its bytes, with the status of a bitmap.
 *
 *   bits, copied at open   ......####....##......   one copy for all views
 *   status                 holes data holes  holes
 *   bytes                  those of the disk, live, all of them
 *
 * A client writes the data onto its older copy, and skips the holes.  It may
 * take holes for zeroes, so a dirty range is always data, even where the disk
 * has zeroes.  Clients read in blocks of their own size, so they also read and
 * write clean bytes beside dirty ones.  So clean ranges have their true bytes,
 * too, and reading too much does no harm.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/dirty.h"
#include "core/graph-priv.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

/* All copies of bits in a graph have at most so many bytes; one copy alone may
 * have more. */
#define COPIES_MAX (1 * GiB)

/* A copy of bits, shared by all views that were opened while the bitmap did not
 * change.  Control lock, except the bits, which do not change. */
struct view_bits {
    struct list link; /* in graph.view_bits */
    unsigned views;
    struct hbitmap_stamp of; /* what was copied */
    bool shared;             /* `of` is all of it: there was no successor */
    struct hbitmap *bits;
};

struct dirty_view {
    struct view_bits *copy;
};

/* As bitmap_run(); everything past the bits is dirty. */
static uint64_t run(const struct dirty_view *s, uint64_t offset, uint64_t bytes,
                    bool *dirty)
{
    const struct hbitmap *bits = s->copy->bits;
    uint64_t size = hbitmap_size(bits);

    if (offset >= size) {
        *dirty = true;
        return bytes;
    }
    return hbitmap_run(bits, offset, min_u64(offset + bytes, size), dirty);
}

static int view_map(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned flags, struct mapping *m)
{
    struct node *disk = node_child(n, CHILD_FILE);
    uint64_t size = node_size(disk);
    bool dirty;

    if (offset >= size) { /* it has shrunk */
        m->kind = MAP_UNALLOCATED;
        m->length = bytes;
        return 0;
    }
    m->length = min_u64(bytes, size - offset);
    m->kind = MAP_DATA;
    m->file = disk;
    m->host = offset;
    if (flags & MAP_STATUS) {
        m->length = run(n->state, offset, m->length, &dirty);
        /* OPAQUE keeps the core from looking below, where holes may be. */
        m->kind = dirty ? MAP_OPAQUE : MAP_UNALLOCATED;
    }
    return 0;
}

static void view_limits(struct node *n, struct limits *lim)
{
    lim->pref = node_child(n, CHILD_FILE)->limits.pref;
}

static void put_copy(struct view_bits *c)
{
    if (--c->views == 0) {
        list_remove(&c->link);
        hbitmap_free(c->bits);
        free(c);
    }
}

static void view_close(struct node *n)
{
    struct dirty_view *s = n->state;

    if (s->copy) {
        put_copy(s->copy);
    }
}

static const struct driver driver_dirty_view = {
    .name = "dirty-view",
    .passive = true,
    .state_size = sizeof(struct dirty_view),
    .close = view_close,
    .limits = view_limits,
    .map = view_map,
};

/* --- Copies. --- */

static int check_bitmap(const struct node *disk, const struct bitmap *bm,
                        bool own, struct error **errp)
{
    if (!bm->node ||
        !(own ? bitmap_is_of_disk(disk, bm) : node_is_below(disk, bm->node))) {
        return error_set(errp, ENOENT, "Bitmap '%s' is not found", bm->name);
    }
    if (atomic_load(&bm->inconsistent)) {
        return error_set(errp, EINVAL,
                         "Bitmap '%s' is inconsistent and cannot be used",
                         bm->name);
    }
    return 0;
}

/* A copy that has the bits that @bm has now, or NULL.  The copy's count is
 * exact, and the count of @bm is never less than its bits.  So equal counts
 * mean equal bits. */
static struct view_bits *find_copy(const struct graph *g,
                                   const struct bitmap *bm)
{
    const struct hbitmap_stamp now = hbitmap_stamp(bm->bits);

    list_for_each (at, &g->view_bits) {
        struct view_bits *c = list_entry(at, struct view_bits, link);

        if (c->shared && !bm->successor && c->of.bitmap == now.bitmap &&
            c->of.resets == now.resets &&
            hbitmap_count(c->bits) == hbitmap_count(bm->bits)) {
            return c;
        }
    }
    return NULL;
}

static int check_room(const struct graph *g, const struct bitmap *bm,
                      struct error **errp)
{
    uint64_t sum = 0;

    list_for_each (at, &g->view_bits) {
        sum += hbitmap_bytes(list_entry(at, struct view_bits, link)->bits);
    }
    return sum > 0 && sum + hbitmap_bytes(bm->bits) > COPIES_MAX
               ? error_set(errp, EDQUOT,
                           "the dirty views that are open hold copies of %u "
                           "MiB of bits, and there is no room for another one",
                           (unsigned)(sum / MiB))
               : 0;
}

/* Copy the bits of @b.  Guests may set bits meanwhile.  Bits are reset or
 * exchanged only in control sections, and this is another one. */
static int copy_bits(struct graph *g, const struct bitmap *bm,
                     struct view_bits **cp, struct error **errp)
{
    int r = check_room(g, bm, errp);
    struct view_bits *c = r < 0 ? NULL : calloc(1, sizeof(*c));

    if (r < 0) {
        return r;
    }
    if (c) {
        c->of = hbitmap_stamp(bm->bits);
        c->shared = !bm->successor;
        c->bits = hbitmap_copy(bm->bits);
    }
    if (!c || !c->bits) {
        free(c);
        return error_nomem(errp);
    }
    if (bm->successor) {
        hbitmap_merge(c->bits, bm->successor);
    }
    list_append(&g->view_bits, &c->link);
    *cp = c;
    return 0;
}

static int take_shared_bits(struct node *n, const struct bitmap *bm,
                            struct error **errp)
{
    struct dirty_view *s = n->state;
    struct view_bits *c = find_copy(n->graph, bm);
    int r = c ? 0 : copy_bits(n->graph, bm, &c, errp);

    if (r == 0) {
        c->views++;
        s->copy = c;
    }
    return r;
}

/* Open a view in a control section.  The caller has the node's only
 * reference. */
static int open_view(struct graph *g, struct node *disk,
                     const struct bitmap *bm, bool own, struct node **viewp,
                     struct error **errp)
{
    struct node *n;
    int r = check_bitmap(disk, bm, own, errp);

    r = r < 0 ? r : node_new(g, &driver_dirty_view, NULL, disk, &n, errp);
    if (r < 0) {
        return r;
    }
    n->flags.read_only = true;
    r = take_shared_bits(n, bm, errp);
    if (r == 0) {
        r = node_attach(n, CHILD_FILE, disk, "file", PERM_READ, PERM_ALL, errp);
    }
    if (r < 0) {
        node_unref(n);
        return r;
    }
    node_refresh_limits(n);
    *viewp = n;
    return 0;
}

int blk_dirty_view(struct graph *g, struct blk *b, struct bitmap *bm, bool own,
                   const char *user, struct blk **viewp, struct error **errp)
{
    struct node *n;

    graph_lock(g);
    int r = open_view(g, blk_node(b), bm, own, &n, errp);
    graph_unlock(g);
    if (r < 0) {
        return r;
    }
    r = blk_new(g, n, PERM_READ, PERM_ALL, user, viewp, errp);
    graph_lock(g);
    node_unref(n);
    graph_unlock(g);
    return r;
}
