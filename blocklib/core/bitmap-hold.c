/* SPDX-License-Identifier: BSD-3-Clause */
/* Bitmaps that a user outside of jobs holds for a while: exports.  Copies of
 * their bits. */
#include <errno.h>
#include <stdatomic.h>

#include "core/dirty.h"
#include "core/graph.h"
#include "nbdelta/error.h"

void bitmap_ref(struct bitmap *bm)
{
    atomic_fetch_add(&bm->refs, 1);
}

/* Find the first node of the chain that has the bitmap.  Control section. */
static struct node *node_with(struct node *n, const char *name)
{
    struct bitmap *bm;

    while (n && bitmap_lookup(n, name, BITMAP_USE_ANY, &bm, NULL) < 0) {
        n = node_child(n, n->drv->is_filter ? CHILD_FILE : CHILD_BACKING);
    }
    return n;
}

struct node *bitmap_below(struct graph *g, struct node *n, const char *name)
{
    graph_lock(g);
    n = node_child(node_skip_filters(n), CHILD_BACKING);
    n = n ? node_with(n, name) : NULL;
    graph_unlock(g);
    return n;
}

int bitmap_hold(struct graph *g, struct node *n, const char *name, bool below,
                struct bitmap **bmp, struct error **errp)
{
    struct bitmap *bm = NULL;
    int r = 0;

    graph_lock(g);
    graph_drain(g, n);
    if (below) {
        n = node_with(n, name);
    }
    if (!n) {
        r = error_set(errp, ENOENT, "Bitmap '%s' is not found", name);
    } else {
        r = bitmap_lookup(n, name, BITMAP_USE_READ, &bm, errp);
    }
    if (r == 0) {
        bm->users++;
        bitmap_ref(bm);
        *bmp = bm;
    }
    graph_unlock(g);
    return r;
}

void bitmap_release(struct graph *g, struct bitmap *bm)
{
    graph_lock(g);
    if (bm->node) {
        graph_drain(g, bm->node);
    }
    bm->users--;
    graph_unlock(g);
    bitmap_unref(bm);
}

bool bitmap_enabled(const struct bitmap *bm)
{
    return bm->enabled;
}

struct node *bitmap_node(const struct bitmap *bm)
{
    return bm->node;
}

struct hbitmap *bitmap_share_bits(struct bitmap *bm)
{
    rwlock_wrlock(&bm->lock); /* readers may be where the bits are */
    struct hbitmap *bits = hbitmap_share(bm->bits);
    if (bits && bm->successor) {
        hbitmap_fill(bits, bm->successor);
    }
    rwlock_unlock(&bm->lock);
    return bits;
}
