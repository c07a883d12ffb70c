/* SPDX-License-Identifier: BSD-3-Clause */
/* The front door: checks, the tree lock, and in. */
#include "nbdelta/blk.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/blocker.h"
#include "core/dirty.h"
#include "core/graph_priv.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "util/iov.h"

struct blk {
    struct graph *graph;
    struct edge root; /* child changes under the tree lock */
};

int blk_new(struct graph *g, struct node *n, unsigned perm, unsigned shared,
            const char *user, struct blk **blkp, struct error **errp)
{
    struct blk *b = calloc(1, sizeof(*b));
    char *who = strdup(user);

    if (!b || !who) {
        free(b);
        free(who);
        return error_set(errp, ENOMEM, "no memory for %s", user);
    }
    b->graph = g;
    b->root = (struct edge){
        .child = n,
        .role = "root",
        .user = who,
        .perm = perm,
        .shared = shared,
    };
    graph_lock(g);
    int r = edge_link(&b->root, errp);
    graph_unlock(g);
    if (r < 0) {
        free(who);
        free(b);
        return r;
    }
    *blkp = b;
    return 0;
}

void blk_free(struct blk *b)
{
    if (b) {
        graph_lock(b->graph);
        edge_unlink(&b->root);
        graph_unlock(b->graph);
        free(b->root.user);
        free(b);
    }
}

/*
 * A request that had to make room for a drain (-ERESTART) leaves the tree and
 * begins again: to do all of it once more does no harm.
 */

/* A request: the tree is entered, the node found, the range checked. */
static struct tree *enter(struct blk *b, unsigned flags, struct node **np)
{
    struct tree *t = edge_enter(&b->root, flags & REQ_NOWAIT);
    *np = t ? b->root.child : NULL;
    return t;
}

/* The same where waiting is no matter. */
static struct tree *enter_wait(struct blk *b, struct node **np)
{
    struct tree *t = edge_enter(&b->root, false);
    *np = b->root.child;
    return t;
}

static int check(const struct blk *b, const struct node *n, uint64_t offset,
                 uint64_t bytes, unsigned perm)
{
    if ((b->root.perm & perm) != perm) {
        return -EPERM;
    }
    return range_inside(offset, bytes, n->size) ? 0 : -EINVAL;
}

struct node *blk_node(const struct blk *b)
{
    struct blk *locked = (struct blk *)(uintptr_t)b;
    struct tree *t = edge_enter(&locked->root, false);
    struct node *n = b->root.child;
    node_leave(t);
    return n;
}

struct bitmap *blk_bitmap_find(struct blk *b, const char *name)
{
    struct tree *t = edge_enter(&b->root, false);
    struct bitmap *bm = bitmap_find_in_chain(b->root.child, name);
    node_leave(t);
    return bm;
}

json_t *blk_bitmap_names(struct blk *b)
{
    struct tree *t = edge_enter(&b->root, false);
    json_t *names = bitmap_names_in_chain(b->root.child);

    node_leave(t);
    return names;
}

uint64_t blk_size(const struct blk *b)
{
    struct blk *locked = (struct blk *)(uintptr_t)b;
    struct tree *t = edge_enter(&locked->root, false);
    uint64_t size = b->root.child->size;
    node_leave(t);
    return size;
}

void blk_get_limits(const struct blk *b, struct blk_limits *lim)
{
    struct blk *locked = (struct blk *)(uintptr_t)b;
    struct tree *t = edge_enter(&locked->root, false);
    const struct limits *l = &b->root.child->limits;
    *lim = (struct blk_limits){
        .align = l->align,
        .pref = l->pref,
        .max_transfer = l->max_transfer,
        .fast_zero = l->fast_zero,
        .unmap = l->zero_unmaps && b->root.child->flags.unmap,
    };
    node_leave(t);
}

int blk_preadv(struct blk *b, const struct iovec *iov, int iovcnt,
               uint64_t offset, unsigned flags)
{
    uint64_t bytes = iov_bytes(iov, iovcnt);
    struct node *n;
    int r;

    do {
        struct tree *t = enter(b, flags, &n);
        if (!t) {
            return -EAGAIN;
        }
        r = check(b, n, offset, bytes, PERM_READ);
        if (r == 0 && bytes > 0) {
            r = node_preadv(n, offset, bytes, iov, iovcnt, flags);
        }
        node_leave(t);
    } while (r == -ERESTART);
    return r;
}

int blk_pwritev(struct blk *b, const struct iovec *iov, int iovcnt,
                uint64_t offset, unsigned flags)
{
    uint64_t bytes = iov_bytes(iov, iovcnt);
    struct node *n;
    int r;

    do {
        struct tree *t = enter(b, flags, &n);
        if (!t) {
            return -EAGAIN;
        }
        r = check(b, n, offset, bytes, PERM_WRITE);
        if (r == 0 && bytes > 0) {
            r = node_pwritev(n, offset, bytes, iov, iovcnt, flags);
        }
        node_leave(t);
    } while (r == -ERESTART);
    return r;
}

int blk_pread(struct blk *b, void *buf, uint64_t bytes, uint64_t offset,
              unsigned flags)
{
    struct iovec v = { buf, bytes };
    return blk_preadv(b, &v, 1, offset, flags);
}

int blk_pwrite(struct blk *b, const void *buf, uint64_t bytes,
               uint64_t offset, unsigned flags)
{
    struct iovec v = { (void *)(uintptr_t)buf, bytes };
    return blk_pwritev(b, &v, 1, offset, flags);
}

int blk_zero(struct blk *b, uint64_t offset, uint64_t bytes, unsigned flags)
{
    struct node *n;
    int r;

    do {
        struct tree *t = enter(b, flags, &n);
        if (!t) {
            return -EAGAIN;
        }
        r = check(b, n, offset, bytes, PERM_WRITE);
        if (r == 0 && bytes > 0) {
            r = node_zero(n, offset, bytes, flags);
        }
        node_leave(t);
    } while (r == -ERESTART);
    return r;
}

int blk_discard(struct blk *b, uint64_t offset, uint64_t bytes)
{
    struct node *n;
    int r;

    do {
        struct tree *t = enter_wait(b, &n);
        r = check(b, n, offset, bytes, PERM_WRITE);
        if (r == 0 && bytes > 0) {
            r = node_discard(n, offset, bytes);
        }
        node_leave(t);
    } while (r == -ERESTART);
    return r;
}

int blk_flush(struct blk *b)
{
    struct node *n;
    int r;

    do {
        struct tree *t = enter_wait(b, &n);
        r = node_flush(n);
        node_leave(t);
    } while (r == -ERESTART);
    return r;
}

int blk_prefetch(struct blk *b, uint64_t offset, uint64_t bytes)
{
    struct node *n;
    int r;

    do {
        struct tree *t = enter_wait(b, &n);
        r = check(b, n, offset, bytes, PERM_READ);
        if (r == 0 && bytes > 0) {
            r = node_prefetch(n, offset, bytes);
        }
        node_leave(t);
    } while (r == -ERESTART);
    return r;
}

/* What was told of a walk that may begin again. */
struct told {
    extent_fn *fn;
    void *opaque;
    uint64_t end;
};

static int tell(const struct extent *e, void *opaque)
{
    struct told *told = opaque;

    told->end = e->offset + e->length;
    return told->fn(e, told->opaque);
}

int blk_extents(struct blk *b, uint64_t offset, uint64_t bytes,
                unsigned flags, extent_fn *fn, void *opaque)
{
    struct told told = {fn, opaque, offset};
    uint64_t end = offset + bytes;
    struct node *n;
    int r;

    do {
        struct tree *t = enter(b, flags, &n);
        if (!t) {
            return -EAGAIN;
        }
        r = check(b, n, offset, bytes, PERM_READ);
        if (r == 0 && told.end < end) {
            r = node_extents(n, told.end, end - told.end, flags, tell, &told);
        }
        node_leave(t);
    } while (r == -ERESTART);
    return r;
}

int blk_resize(struct blk *b, uint64_t size, struct error **errp)
{
    if (!(b->root.perm & PERM_RESIZE)) {
        return error_set(errp, EPERM, "%s may not resize the disk",
                         b->root.user);
    }
    graph_lock(b->graph);
    graph_drain(b->graph, b->root.child);
    int r = size < node_size(b->root.child)
                ? node_check_jobs(b->root.child, errp)
                : 0;
    if (r == 0) {
        r = node_resize(b->root.child, size, errp);
    }
    graph_unlock(b->graph);
    return r;
}
