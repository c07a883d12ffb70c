/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * copy-before-write: a filter that keeps a point in time of its child.
 *
 *      exports, jobs                       job's workers
 *           |                                    |
 *     copy-before-write ---- FILE --> source <---+  reads
 *           |                                    |
 *           +------------- TARGET --> target <---+  writes
 *
 * What changes the disk (write, zero, discard) first has the copy engine
 * copy what is needed of the range, then passes.  Reads and flushes pass.
 *
 * A copy that fails never fails or delays the guest's request any further:
 * the point in time is given up instead, and the job that wants it fails.
 * (QEMU fails the guest's request there.)
 */
#include "drivers/cbw.h"

#include <errno.h>

#include "core/blocker.h"
#include "core/driver.h"
#include "nbdelta/error.h"

struct cbw {
    struct copy *copy; /* tree lock */
    bool by_job;       /* set once it is in place */
};

static int copy_first(struct node *n, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    const struct cbw *s = n->state;
    return copy_before_write(s->copy, offset, bytes, flags);
}

static int cbw_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int iovcnt, unsigned flags)
{
    int r = copy_first(n, offset, bytes, flags);
    return r < 0 ? r
                 : node_pwritev(node_child(n, CHILD_FILE), offset, bytes, iov,
                                iovcnt, flags);
}

static int cbw_zero(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned flags)
{
    int r = copy_first(n, offset, bytes, flags);
    return r < 0 ? r
                 : node_zero(node_child(n, CHILD_FILE), offset, bytes, flags);
}

static int cbw_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    int r = copy_first(n, offset, bytes, 0);
    return r < 0 ? r : node_discard(node_child(n, CHILD_FILE), offset, bytes);
}

/* What grows is not part of the point in time; blk_resize lets nobody cut off
 * what a job works on. */
static int cbw_resize(struct node *n, uint64_t size, struct error **errp)
{
    return node_resize(node_child(n, CHILD_FILE), size, errp);
}

static int cbw_open(struct node *n, struct opts *opts, struct error **errp)
{
    (void)opts;
    return error_set(errp, ENOTSUP,
                     "node '%s': '%s' nodes are made by backup jobs only",
                     node_name(n), node_driver(n));
}

/* A write that came past the filter would harm the point in time. */
static void cbw_child_perms(const struct node *n, struct perms *p)
{
    const struct cbw *s = n->state;

    if (p->used || s->by_job) {
        p->shared &= PERM_READ;
    }
}

const struct driver driver_cbw = {
    .name = "copy-before-write",
    .is_filter = true,
    .state_size = sizeof(struct cbw),
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .open = cbw_open,
    .child_perms = cbw_child_perms,
    .resize = cbw_resize,
    .pwritev = cbw_pwritev,
    .zero = cbw_zero,
    .discard = cbw_discard,
};

/* Would a write to @top be one to @n? */
static bool writes_to(const struct node *top, const struct node *n)
{
    if (top == n) {
        return true;
    }
    for (unsigned i = 0; i < CHILD_MAX; i++) {
        if (i != CHILD_BACKING && top->child[i] &&
            writes_to(top->child[i]->child, n)) {
            return true;
        }
    }
    return false;
}

int cbw_insert(struct graph *g, struct node *source, struct node *target,
               struct copy *copy, const char *name, struct node **filterp,
               struct error **errp)
{
    struct node *n;

    if (writes_to(target, source)) {
        return error_set(errp, ENOTSUP,
                         "Node '%s' is part of the chain of the target '%s'",
                         node_name(source), node_name(target));
    }
    int r = node_new(g, &driver_cbw, name, source, &n, errp);
    if (r < 0) {
        return r;
    }
    r = node_attach(n, CHILD_FILE, source, "file", PERM_READ, PERM_ALL, errp);
    if (r == 0) {
        r = node_attach(n, CHILD_TARGET, target, "target",
                        PERM_READ | PERM_WRITE, PERM_READ, errp);
    }
    if (r < 0) {
        node_unref(n);
        return r;
    }
    struct cbw *s = n->state;
    s->copy = copy;
    s->by_job = true;
    node_refresh_limits(n);
    node_replace(source, n);
    r = node_check_perms(n, errp);
    if (r < 0) {
        node_replace(n, source);
        node_unref(n);
        return r;
    }
    node_hand_down_perms(n);
    copy_set_filter(copy, n);
    if (node_is_below(target, source)) { /* it leaves reads to it */
        node_skip_filters(target)->guard = copy_guard(copy);
    }
    node_block(n, "backup");
    node_block(target, "backup");
    *filterp = n;
    return 0;
}

void cbw_remove(struct node *filter)
{
    struct cbw *s = filter->state;
    struct copy *copy = s->copy;

    graph_drain(filter->graph, filter);
    node_replace(filter, node_child(filter, CHILD_FILE));
    copy_set_filter(copy, NULL);
    node_skip_filters(node_child(filter, CHILD_TARGET))->guard = NULL;
    s->copy = NULL;
    node_unblock(node_child(filter, CHILD_TARGET));
    node_detach(filter, CHILD_TARGET);
    node_unref(filter);
}
