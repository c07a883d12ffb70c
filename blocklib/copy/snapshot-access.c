/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * snapshot-access: the disk as it was when the node below it began to keep
 * that point in time (copy-before-write).
 *
 *      client                    guest
 *        |                         |
 *      snapshot-access --FILE--> copy-before-write --FILE--> source
 *                                       +----------TARGET--> target
 *
 * Reads and status come from the copy engine, which knows where each block is
 * (copy/view.c).  A discard tells the engine that a block is not needed any
 * more.  Above a snapshot of the storage there is no engine (`plain`).  The
 * node wants no permissions: what it reads is not what others write.
 */
#include "copy/snapshot-access.h"

#include <errno.h>

#include "copy/copy.h"
#include "core/graph.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

struct access {
    bool plain; /* set before there are requests */
    bool ended; /* tree lock */
};

/* NULL: the point in time has ended, or the node below is another one now,
 * which keeps nothing. */
static struct copy *copy_of(const struct node *n)
{
    const struct access *s = n->state;
    const struct node *below = node_child(n, CHILD_FILE);

    return below->drv->snapshot && !s->ended ? below->drv->snapshot(below)
                                             : NULL;
}

/* The error of a request when there is no copy. */
static int nothing_kept(const struct node *n)
{
    const struct access *s = n->state;

    return s->ended ? -EIO : -ENOTSUP;
}

void snapshot_access_end(struct node *n)
{
    struct access *s = n->state;

    graph_drain(n->graph, n);
    s->ended = true;
}

void snapshot_access_plain(struct node *n)
{
    struct access *s = n->state;

    s->plain = true;
}

/* Of a node that is plain: that below it, or NULL when it has ended. */
static struct node *shown(const struct node *n)
{
    const struct access *s = n->state;

    return s->plain && !s->ended ? node_child(n, CHILD_FILE) : NULL;
}

static int access_map(struct node *n, uint64_t offset, uint64_t bytes,
                      unsigned flags, struct mapping *m)
{
    struct copy *c = copy_of(n);

    if (shown(n)) {
        m->kind = MAP_DATA;
        m->length = bytes;
        m->file = shown(n);
        m->host = offset;
        return 0;
    }
    if ((flags & MAP_STATUS) && c) {
        return copy_view_map(c, offset, bytes, flags, m);
    }
    m->kind = MAP_OPAQUE;
    m->length = bytes;
    return 0;
}

static int access_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                         const struct iovec *iov, int cnt, unsigned flags)
{
    struct copy *c = copy_of(n);

    return c ? copy_view_preadv(c, offset, bytes, iov, cnt, flags)
             : nothing_kept(n);
}

static int access_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                          const struct iovec *iov, int cnt, unsigned flags)
{
    (void)n;
    (void)offset;
    (void)bytes;
    (void)iov;
    (void)cnt;
    (void)flags;
    return -ENOTSUP; /* the past does not change */
}

static int access_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct copy *c = copy_of(n);

    if (shown(n)) {
        return 0;
    }
    return c ? copy_view_discard(c, offset, bytes) : nothing_kept(n);
}

static int access_flush(struct node *n)
{
    (void)n;
    return 0;
}

static void access_limits(struct node *n, struct limits *lim)
{
    const struct limits *below = &node_child(n, CHILD_FILE)->limits;
    const struct copy *c = copy_of(n);

    lim->pref = below->pref;
    lim->zero_unmaps = true; /* it frees space of the target */
    if (c) {
        lim->zero_align = (uint32_t)min_u64(copy_cluster(c), 1 * GiB);
    }
}

static void access_child_perms(const struct node *n, struct perms *p)
{
    (void)n;
    p->perm = 0;
    p->shared = PERM_ALL;
}

static const struct option access_options[] = {
    OPTION("file", NODE, .required = true),
    OPTIONS_END,
};

static int access_open(struct node *n, struct opts *opts, struct error **errp)
{
    int r = opts_has(opts, "file")
                ? node_open_child(n, opts, "file", CHILD_FILE, false, errp)
                : error_set(errp, EINVAL, "Parameter 'file' is missing");

    if (r < 0) {
        return r;
    }
    const struct node *below = node_child(n, CHILD_FILE);
    if (!copy_of(n)) {
        return error_set(errp, EINVAL,
                         "Node '%s' (%s) keeps no snapshot to be accessed",
                         node_name(below), node_driver(below));
    }
    n->size = node_size(below);
    return 0;
}

const struct driver driver_snapshot_access = {
    .name = "snapshot-access",
    .options = access_options,
    .state_size = sizeof(struct access),
    .passes_perms = true,
    .open = access_open,
    .limits = access_limits,
    .child_perms = access_child_perms,
    .map = access_map,
    .preadv = access_preadv,
    .pwritev = access_pwritev,
    .discard = access_discard,
    .flush = access_flush,
};
