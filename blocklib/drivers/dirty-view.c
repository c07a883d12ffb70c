/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dirty view of a disk: its bytes, with the status of a bitmap.
 *
 *   bits, copied at open   ......####....##......
 *   status                 holes data holes  holes
 *   bytes                  those of the disk, live, all of them
 *
 * A client writes what is data onto what it has from before, and skips the
 * holes.  It may take them for zeroes, so what is dirty is data in any case,
 * also where the disk has zeroes.  Clients read in blocks of their own size,
 * though, and beside what is dirty they read and write what is not: so that
 * has its true bytes.  Nothing ever goes wrong by reading too much.
 */
#include <errno.h>

#include "core/dirty.h"
#include "core/graph.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

struct dirty_view {
    struct hbitmap *bits;
};

/* As bitmap_run: what lies past the bits is dirty. */
static uint64_t run(const struct dirty_view *s, uint64_t offset, uint64_t bytes,
                    bool *dirty)
{
    uint64_t size = hbitmap_size(s->bits);

    if (offset >= size) {
        *dirty = true;
        return bytes;
    }
    return hbitmap_run(s->bits, offset, min_u64(offset + bytes, size), dirty);
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
        /* Nobody shall look below, where holes may be. */
        m->kind = dirty ? MAP_OPAQUE : MAP_UNALLOCATED;
    }
    return 0;
}

static void view_limits(struct node *n, struct limits *lim)
{
    lim->pref = node_child(n, CHILD_FILE)->limits.pref;
}

static void view_close(struct node *n)
{
    struct dirty_view *s = n->state;

    hbitmap_free(s->bits);
}

static const struct driver driver_dirty_view = {
    .name = "dirty-view",
    .state_size = sizeof(struct dirty_view),
    .close = view_close,
    .limits = view_limits,
    .map = view_map,
};

/* The bits of now; the tree of @n is drained. */
static int copy_bits(const struct node *n, const struct bitmap *bm,
                     struct error **errp)
{
    struct dirty_view *s = n->state;

    if (!bm->node || !node_is_below(n, bm->node)) {
        return error_set(errp, ENOENT, "Bitmap '%s' is not found", bm->name);
    }
    if (atomic_load(&bm->inconsistent)) {
        return error_set(errp, EINVAL,
                         "Bitmap '%s' is inconsistent and cannot be used",
                         bm->name);
    }
    s->bits = hbitmap_copy(bm->bits);
    if (!s->bits) {
        return error_set(errp, ENOMEM, "no memory for a bitmap");
    }
    if (bm->successor) {
        hbitmap_merge(s->bits, bm->successor);
    }
    return 0;
}

/* In a control section.  The caller has the node's only reference. */
static int open_view(struct graph *g, struct node *disk,
                     const struct bitmap *bm, struct node **viewp,
                     struct error **errp)
{
    struct node *n;
    int r = node_new(g, &driver_dirty_view, NULL, disk, &n, errp);

    if (r < 0) {
        return r;
    }
    n->flags.read_only = true;
    r = node_attach(n, CHILD_FILE, disk, "file", PERM_READ, PERM_ALL, errp);
    r = r < 0 ? r : copy_bits(n, bm, errp);
    if (r < 0) {
        node_unref(n);
        return r;
    }
    node_refresh_limits(n);
    *viewp = n;
    return 0;
}

int blk_dirty_view(struct graph *g, struct blk *b, struct bitmap *bm,
                   const char *user, struct blk **viewp, struct error **errp)
{
    struct node *n;

    graph_lock(g);
    int r = open_view(g, blk_node(b), bm, &n, errp);
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
