/* SPDX-License-Identifier: BSD-3-Clause */
/* The front door of requests: it checks them, locks the tree, and passes them
 * on. */
#include "nbdelta/blk.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/blk-priv.h"
#include "core/blocker.h"
#include "core/dirty.h"
#include "core/throttle-group.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "util/iov.h"

int blk_new(struct graph *g, struct node *n, unsigned perm, unsigned shared,
            const char *user, struct blk **blkp, struct error **errp)
{
    struct blk *b = calloc(1, sizeof(*b));
    char *who = strdup(user);

    if (!b || !who) {
        free(b);
        free(who);
        return error_nomem(errp);
    }
    b->graph = g;
    b->root = (struct edge){
        .child = n,
        .role = "root",
        .user = who,
        .perm = perm & PERM_ALL,
        .shared = shared,
        .gives_up = perm & PERM_GIVES_UP,
    };
    graph_lock(g);
    if (n->flags.inactive) {
        edge_give_up(&b->root);
    }
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
        if (b->root.throttle) {
            throttle_group_put(b->root.throttle);
        }
        graph_unlock(b->graph);
        free(b->root.user);
        free(b);
    }
}

/* Do not go by way of the tree, which storage may hold up: a caller that only
 * asks, maybe about all exports, waits for no disk. */
struct node *blk_node(const struct blk *b)
{
    return __atomic_load_n(&b->root.child, __ATOMIC_ACQUIRE);
}

static bool is_root(const struct node *n, void *opaque)
{
    return n == blk_node(opaque);
}

bool blk_settle(struct blk *b, uint64_t limit_ns)
{
    return graph_settle_match(b->graph, is_root, b, limit_ns, NULL) == 0;
}

/* The nodes below change in control sections only. */
struct node *blk_disk(const struct blk *b)
{
    graph_lock(b->graph);
    struct node *n = node_skip_job_filters(b->root.child);
    graph_unlock(b->graph);
    return n;
}

struct node *blk_disk_named(const struct blk *b, const char *name)
{
    graph_lock(b->graph);
    struct node *n = b->root.child;
    while (strcmp(n->name, name) != 0 && n->drv->is_filter &&
           node_child(n, CHILD_FILE)) {
        n = node_child(n, CHILD_FILE);
    }
    if (strcmp(n->name, name) != 0) {
        n = node_skip_job_filters(b->root.child);
    }
    graph_unlock(b->graph);
    return n;
}

struct node *node_shown(struct graph *g, struct node *n)
{
    graph_lock(g);
    while (n->implicit) {
        n = node_child(n, CHILD_FILE);
    }
    graph_unlock(g);
    return n;
}

bool blk_shows(const struct blk *b, const struct node *n)
{
    graph_lock(b->graph);
    bool same = node_skip_filters(b->root.child) == node_skip_filters(n);
    graph_unlock(b->graph);
    return same;
}

struct tree *blk_enter(struct blk *b, struct node **n)
{
    struct tree *t = edge_enter(&b->root, false);

    *n = b->root.child;
    return t;
}

struct bitmap *blk_bitmap_find(struct blk *b, const char *name)
{
    struct tree *t = edge_enter(&b->root, false);
    struct bitmap *bm = bitmap_find_of_disk(b->root.child, name);
    node_leave(t);
    return bm;
}

json_t *blk_bitmap_names(struct blk *b)
{
    struct tree *t = edge_enter(&b->root, false);
    json_t *names = bitmap_names_of_disk(b->root.child);

    node_leave(t);
    return names;
}

int blk_bitmap_is_own(struct blk *b, const struct bitmap *bm, bool nowait)
{
    struct tree *t = edge_enter(&b->root, nowait);

    if (!t) {
        return -EAGAIN;
    }
    bool own = bitmap_is_of_disk(b->root.child, bm);
    node_leave(t);
    return own;
}

uint64_t blk_size(const struct blk *b)
{
    struct blk *locked = (struct blk *)(uintptr_t)b;
    struct tree *t = edge_enter(&locked->root, false);
    uint64_t size = b->root.child->size;
    node_leave(t);
    return size;
}

bool blk_discards(const struct blk *b)
{
    struct blk *locked = (struct blk *)(uintptr_t)b;
    struct tree *t = edge_enter(&locked->root, false);
    bool unmap = b->root.child->flags.unmap;
    node_leave(t);
    return unmap;
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
        .far = l->far,
        .unmap = l->zero_unmaps && b->root.child->flags.unmap,
    };
    node_leave(t);
}

/* --- Requests --- */

/* What a request is, and where it has got to. */
struct request {
    int (*work)(const struct request *q);
    enum stats_op op;
    unsigned perm; /* what the user must be allowed to */
    uint64_t offset;
    uint64_t bytes;
    unsigned flags;
    const struct iovec *iov;
    int iovcnt;
    struct told *told;
    struct edge *root; /* of a flush */
    bool inside;       /* no client has asked for it */

    struct node *node;
};

/* Clients of an inactive node can read, and nothing else. */
static bool is_open_to(const struct request *q)
{
    return !q->node->flags.inactive || q->op == STATS_READ || q->inside;
}

static int check_request(const struct blk *b, const struct request *q)
{
    return (b->root.perm & q->perm) != q->perm                 ? -EPERM
           : !is_open_to(q)                                    ? -EPERM
           : !range_inside(q->offset, q->bytes, q->node->size) ? -EINVAL
                                                               : 0;
}

/* Wait for the turn of a read or write, where its user has limits. */
static int take_turn(const struct blk *b, const struct request *q)
{
    bool moves = q->op == STATS_READ || q->op == STATS_WRITE;

    return moves && b->root.throttle
               ? throttle_group_wait(b->root.throttle, q->node,
                                     q->op == STATS_WRITE, q->bytes, q->flags)
               : 0;
}

/*
 * Enter the tree, find the node, check the range, do the request, and count its
 * end.  A request that has to make room for a drain (-ERESTART) leaves the tree
 * and begins again: doing all of it once more does no harm.  By then it has
 * changed nothing, or all (node_progress).  -EAGAIN, only with REQ_NOWAIT: it
 * would have to wait.
 */
static int carry_out(struct blk *b, struct request *q)
{
    struct stats_timer timer;
    bool had_turn = false;
    bool refused;
    int r;

    do {
        stats_begin(&timer, q->flags);
        struct tree *tree = edge_enter(&b->root, q->flags & REQ_NOWAIT);
        if (!tree) {
            return -EAGAIN;
        }
        node_progress = PROGRESS_UNTOUCHED;
        q->node = b->root.child;
        r = check_request(b, q);
        refused = r < 0;
        if (r == 0 && !had_turn) {
            r = take_turn(b, q);
            had_turn = true;
        }
        if (r == 0 && (q->bytes > 0 || q->op == STATS_FLUSH)) {
            r = q->work(q);
        }
        node_progress = PROGRESS_NONE;
        node_leave(tree);
    } while (r == -ERESTART);
    if (refused) {
        stats_invalid(&b->stats, q->op);
    } else {
        stats_end(&b->stats, q->op, q->bytes, &timer, r);
    }
    return r;
}

static int do_read(const struct request *q)
{
    return node_preadv(q->node, q->offset, q->bytes, q->iov, q->iovcnt,
                       q->flags);
}

int blk_preadv(struct blk *b, const struct iovec *iov, int iovcnt,
               uint64_t offset, unsigned flags)
{
    struct request q = {
        .work = do_read,
        .op = STATS_READ,
        .perm = PERM_READ,
        .offset = offset,
        .bytes = iov_bytes(iov, iovcnt),
        .flags = flags,
        .iov = iov,
        .iovcnt = iovcnt,
    };

    return carry_out(b, &q);
}

static int do_write(const struct request *q)
{
    return node_pwritev(q->node, q->offset, q->bytes, q->iov, q->iovcnt,
                        q->flags);
}

int blk_pwritev(struct blk *b, const struct iovec *iov, int iovcnt,
                uint64_t offset, unsigned flags)
{
    struct request q = {
        .work = do_write,
        .op = STATS_WRITE,
        .perm = PERM_WRITE,
        .offset = offset,
        .bytes = iov_bytes(iov, iovcnt),
        .flags = flags,
        .iov = iov,
        .iovcnt = iovcnt,
    };

    return carry_out(b, &q);
}

int blk_pread(struct blk *b, void *buf, uint64_t bytes, uint64_t offset,
              unsigned flags)
{
    struct iovec v = {buf, bytes};
    return blk_preadv(b, &v, 1, offset, flags);
}

int blk_pwrite(struct blk *b, const void *buf, uint64_t bytes, uint64_t offset,
               unsigned flags)
{
    struct iovec v = {(void *)(uintptr_t)buf, bytes};
    return blk_pwritev(b, &v, 1, offset, flags);
}

/* As in QEMU, a disk that ignores discards keeps its space also for zeroes. */
static int do_zero(const struct request *q)
{
    unsigned kept = q->node->flags.unmap ? 0 : REQ_MAY_UNMAP;

    return node_zero(q->node, q->offset, q->bytes, q->flags & ~kept);
}

int blk_zero(struct blk *b, uint64_t offset, uint64_t bytes, unsigned flags)
{
    struct request q = {
        .work = do_zero,
        .op = STATS_WRITE,
        .perm = PERM_WRITE,
        .offset = offset,
        .bytes = bytes,
        .flags = flags,
    };

    return carry_out(b, &q);
}

static int do_discard(const struct request *q)
{
    return node_discard(q->node, q->offset, q->bytes);
}

int blk_discard(struct blk *b, uint64_t offset, uint64_t bytes)
{
    struct request q = {
        .work = do_discard,
        .op = STATS_UNMAP,
        .perm = PERM_WRITE,
        .offset = offset,
        .bytes = bytes,
    };

    return carry_out(b, &q);
}

static int do_flush(const struct request *q)
{
    return edge_flush(q->root);
}

int blk_flush(struct blk *b)
{
    struct request q = {
        .work = do_flush,
        .op = STATS_FLUSH,
        .root = &b->root,
    };

    return carry_out(b, &q);
}

static int do_prefetch(const struct request *q)
{
    return node_prefetch(q->node, q->offset, q->bytes);
}

int blk_prefetch(struct blk *b, uint64_t offset, uint64_t bytes)
{
    struct request q = {
        .work = do_prefetch,
        .op = STATS_NONE,
        .perm = PERM_READ,
        .offset = offset,
        .bytes = bytes,
    };

    return carry_out(b, &q);
}

/* How far the caller was told the extents of a walk that may begin again. */
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

static int do_extents(const struct request *q)
{
    uint64_t from = q->told->end;
    uint64_t end = q->offset + q->bytes;

    return from < end ? node_extents(q->node, from, end - from, q->flags, tell,
                                     q->told)
                      : 0;
}

int blk_extents(struct blk *b, uint64_t offset, uint64_t bytes, unsigned flags,
                extent_fn *fn, void *opaque)
{
    struct told told = {fn, opaque, offset};
    struct request q = {
        .work = do_extents,
        .op = STATS_NONE,
        .perm = PERM_READ,
        .offset = offset,
        .bytes = bytes,
        .flags = flags,
        .told = &told,
    };

    return carry_out(b, &q);
}

json_t *blk_query_stats(struct blk *b)
{
    graph_lock(b->graph);
    json_t *info = node_device_stats(b->root.child, &b->stats);
    graph_unlock(b->graph);
    return info;
}

static int do_flush_ahead(const struct request *q)
{
    return node_flush_ahead(q->node, node_flush, NULL);
}

/* Flush what guests have written, so that flushes are short while they are held
 * up.  The guest that the user stands for learns of a failure from its own next
 * flush. */
static int flush_ahead(struct blk *b, struct error **errp)
{
    struct request q = {
        .work = do_flush_ahead, .op = STATS_FLUSH, .inside = true};
    int r = bitmap_store_ahead(b->root.child, false, errp);

    if (r == 0 && (r = carry_out(b, &q)) < 0) {
        r = error_set(errp, -r, "cannot flush '%s': %s",
                      node_name(b->root.child), strerror(-r));
    }
    return r;
}

int blk_resize(struct blk *b, uint64_t size, struct error **errp)
{
    if (!(b->root.perm & PERM_RESIZE)) {
        return error_set(errp, EPERM, "%s may not resize the disk",
                         b->root.user);
    }
    int r = flush_ahead(b, errp);
    if (r < 0) {
        return r;
    }
    graph_lock(b->graph);
    graph_drain(b->graph, b->root.child);
    r = size < node_size(b->root.child) ? node_check_shrink(b->root.child, errp)
                                        : node_check_jobs(b->root.child, errp);
    if (r == 0) {
        r = node_resize(b->root.child, size, errp);
    }
    graph_unlock(b->graph);
    return r;
}

void blk_unwanted_when(const _Atomic bool *flag)
{
    node_unwanted = flag;
}
