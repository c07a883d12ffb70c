/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * copy-before-write: a filter that keeps a point in time of its child.
 *
 *      guests                 snapshot-access, the job's workers
 *           |                    |  reads
 *     copy-before-write ---- FILE --> source
 *           |                    |
 *           +------------- TARGET --> target
 *
 * A request that changes the disk (write, zero, discard) first has the copy
 * engine copy what is needed of the range, then passes.  Reads and flushes
 * pass.
 *
 * A job puts the filter in place with a copy of the job's (cbw_insert).  There,
 * a copy that fails never fails or delays the guest's request any further: the
 * point in time is given up instead, and the job fails.  (QEMU fails the
 * guest's request there.)  A node that options describe has its own copy, of
 * what its bitmap has when the node is opened.  On failures it does what its
 * options say.
 */
#include "copy/copy-before-write.h"

#include <errno.h>
#include <inttypes.h>

#include "core/blocker.h"
#include "core/dirty.h"
#include "core/graph-priv.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

struct cbw {
    struct copy *copy; /* tree lock; NULL: not yet, or not any more */
    bool by_job;       /* the copy is a job's; set once n is in place */
    bool discards;     /* the copy discards what it has of the file child */
};

static void set_ends(struct node *n)
{
    const struct cbw *s = n->state;

    if (s->copy) {
        copy_set_ends(s->copy, n, node_child(n, CHILD_FILE),
                      node_child(n, CHILD_TARGET));
    }
}

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

/* New bytes of a disk that grows are not part of the point in time.
 * (blk_resize lets nobody cut off a disk that a job works on.) */
static int cbw_resize(struct node *n, uint64_t size, struct error **errp)
{
    const struct cbw *s = n->state;

    if (size < copy_size(s->copy)) {
        return error_set(errp, EBUSY,
                         "Node '%s' keeps a point in time of %" PRIu64
                         " bytes, which cannot be cut off",
                         node_name(n), copy_size(s->copy));
    }
    return node_resize(node_child(n, CHILD_FILE), size, errp);
}

static void cbw_drain(struct node *n)
{
    const struct cbw *s = n->state;
    if (s->copy) {
        copy_hurry(s->copy);
    }
}

static void cbw_drained(struct node *n)
{
    const struct cbw *s = n->state;
    if (s->copy) {
        copy_settle(s->copy);
    }
}

static struct copy *cbw_snapshot(const struct node *n)
{
    const struct cbw *s = n->state;
    return s->copy;
}

/* Writes past the filter would harm the point in time, so it shares none. */
static void cbw_child_perms(const struct node *n, struct perms *p)
{
    const struct cbw *s = n->state;

    if (p->used || s->by_job) {
        p->shared &= PERM_READ;
    }
    if (s->discards) {
        p->perm |= PERM_WRITE;
    }
}

static void cbw_tell_bits(const struct node *n, bitmap_fn *tell, void *opaque)
{
    const struct cbw *s = n->state;

    if (s->copy) {
        copy_tell_bits(s->copy, tell, opaque);
    }
}

/* --- With options --- */

static int check_target(const struct node *source, const struct node *target,
                        struct error **errp)
{
    if (node_writes_to(target, source)) {
        return error_set(errp, ENOTSUP,
                         "Node '%s' is part of the chain of the target '%s'",
                         node_name(source), node_name(target));
    }
    return 0;
}

/* A target above the source leaves reads to the source: give it a guard. */
static int guard_target(struct node *n, struct copy *copy, struct error **errp)
{
    struct node *target = node_child(n, CHILD_TARGET);

    if (!node_is_below(target, node_child(n, CHILD_FILE))) {
        return 0;
    }
    target = node_skip_filters(target);
    if (target->guard) {
        return error_set(errp, EBUSY,
                         "Node '%s' is the target of another "
                         "copy-before-write node",
                         node_name(target));
    }
    target->guard = copy_guard(copy);
    return 0;
}

static void unguard_target(const struct node *n, const struct copy *copy)
{
    struct node *target = node_skip_filters(node_child(n, CHILD_TARGET));

    if (target->guard == copy_guard(copy)) {
        target->guard = NULL;
    }
}

static const char *const on_error_words[] = {"break-guest-write",
                                             "break-snapshot", NULL};

static const struct option bitmap_options[] = {
    OPTION("name", STR, .required = true),
    OPTION("node", STR, .required = true),
    OPTIONS_END,
};

static const struct option cbw_options[] = {
    OPTION("file", NODE, .required = true),
    OPTION("target", NODE, .required = true),
    OPTION("bitmap", OBJECT, .members = bitmap_options),
    OPTION("cbw-timeout", UINT, .type_name = "uint64"),
    OPTION("min-cluster-size", UINT, .type_name = "uint64"),
    OPTION("on-cbw-error", ENUM, .words = on_error_words),
    OPTIONS_END,
};

/* Look up the bitmap whose bits of this moment are wanted; NULL: no such
 * option. */
static int take_bitmap(struct node *n, struct opts *opts, struct bitmap **bmp,
                       struct error **errp)
{
    const char *node = NULL;
    const char *name = NULL;
    int r;

    *bmp = NULL;
    if (!opts_has(opts, "bitmap")) {
        return 0;
    }
    if ((r = opts_str(opts, "bitmap.node", &node, errp)) < 0 ||
        (r = opts_str(opts, "bitmap.name", &name, errp)) < 0) {
        return r;
    }
    if (!node || !name) {
        return error_set(errp, EINVAL, "Parameter 'bitmap.%s' is missing",
                         node ? "name" : "node");
    }
    struct node *of = graph_find_locked(n->graph, node);
    if (!of) {
        return error_set(errp, ENOENT, "Node '%s' not found", node);
    }
    graph_drain(n->graph, of);
    r = bitmap_lookup(of, name, BITMAP_USE_READ, bmp, errp);
    if (r == 0 && hbitmap_size((*bmp)->bits) != n->size) {
        r = error_set(errp, EINVAL,
                      "Bitmap '%s' has another size than node '%s'", name,
                      node_name(n));
    }
    return r;
}

static int take_policy(struct opts *opts, struct copy_policy *p,
                       struct error **errp)
{
    unsigned on_error = 0;
    uint64_t timeout = 0;
    int r;

    if ((r = opts_enum(opts, "on-cbw-error", on_error_words, &on_error, errp)) <
            0 ||
        (r = opts_uint(opts, "cbw-timeout", UINT32_MAX, &timeout, errp)) < 0) {
        return r;
    }
    *p = (struct copy_policy){
        .break_write = on_error == 0,
        .max_wait_ms = timeout * 1000,
    };
    return 0;
}

static int make_own_copy(struct node *n, const struct copy_policy *policy,
                         uint64_t cluster, const struct bitmap *bm,
                         struct error **errp)
{
    struct cbw *s = n->state;
    struct copy_options o = {
        .size = node_size(n),
        .cluster = cluster,
        /* A file takes data at once until its file system hangs. */
        .quick = policy->max_wait_ms == 0,
        .policy = *policy,
    };

    struct copy *copy = copy_new(&o);
    if (!copy) {
        return error_nomem(errp);
    }
    if (bm) {
        copy_add_bits(copy, bm->bits);
    } else {
        copy_add(copy, 0, o.size);
    }
    int r = copy_show(copy) < 0 ? error_nomem(errp)
                                : guard_target(n, copy, errp);
    if (r < 0) {
        copy_free(copy);
        return r;
    }
    s->copy = copy;
    set_ends(n);
    return 0;
}

static int cbw_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct copy_policy policy;
    uint64_t least = 0;
    uint64_t cluster;
    struct bitmap *bm;
    int r;

    if (!opts_has(opts, "file") || !opts_has(opts, "target")) {
        return error_set(errp, EINVAL, "Parameter '%s' is missing",
                         opts_has(opts, "file") ? "target" : "file");
    }
    if ((r = node_open_child(n, opts, "file", CHILD_FILE, false, errp)) < 0 ||
        (r = node_open_child(n, opts, "target", CHILD_TARGET, false, errp)) <
            0) {
        return r;
    }
    const struct node *file = node_child(n, CHILD_FILE);
    const struct node *target = node_child(n, CHILD_TARGET);
    n->size = node_size(file);
    if (node_size(target) < n->size) {
        return error_set(errp, EINVAL,
                         "The target '%s' is smaller than node '%s'",
                         node_name(target), node_name(file));
    }
    if ((r = check_target(file, target, errp)) < 0 ||
        (r = take_bitmap(n, opts, &bm, errp)) < 0 ||
        (r = take_policy(opts, &policy, errp)) < 0 ||
        (r = opts_uint(opts, "min-cluster-size", UINT64_MAX, &least, errp)) <
            0 ||
        (r = copy_choose_cluster(target, least, &cluster, errp)) < 0) {
        return r;
    }
    return make_own_copy(n, &policy, cluster, bm, errp);
}

static void cbw_close(struct node *n)
{
    struct cbw *s = n->state;

    if (!s->by_job) {
        unguard_target(n, s->copy);
        copy_free(s->copy);
    }
}

/* How long guests wait for copies: QEMU tells no such thing. */
static void cbw_stats(struct node *n, json_t *own)
{
    const struct cbw *s = n->state;

    if (s->copy) {
        (void)json_object_set_new(own, "delay", copy_query_delay(s->copy));
    }
}

const struct driver driver_cbw = {
    .name = "copy-before-write",
    .options = cbw_options,
    .is_filter = true,
    .state_size = sizeof(struct cbw),
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .open = cbw_open,
    .close = cbw_close,
    .stats = cbw_stats,
    .child_perms = cbw_child_perms,
    .file_changed = set_ends,
    .resize = cbw_resize,
    .pwritev = cbw_pwritev,
    .zero = cbw_zero,
    .discard = cbw_discard,
    .drain = cbw_drain,
    .drained = cbw_drained,
    .snapshot = cbw_snapshot,
    .tell_bits = cbw_tell_bits,
};

/* --- By a job --- */

static int insert_above(struct node *n, struct node *source, struct copy *copy,
                        struct error **errp)
{
    struct cbw *s = n->state;

    int r = guard_target(n, copy, errp);
    if (r < 0) {
        return r;
    }
    s->copy = copy;
    s->by_job = true;
    s->discards = copy_discards_source(copy);
    node_refresh_limits(n);
    node_replace(source, n);
    r = node_check_perms(n, errp);
    if (r < 0) {
        node_replace(n, source);
        unguard_target(n, copy);
        return r;
    }
    node_hand_down_perms(n);
    set_ends(n);
    return 0;
}

int cbw_insert(struct graph *g, struct node *source, struct node *target,
               struct copy *copy, const char *name, struct node **filterp,
               struct error **errp)
{
    struct node *n;
    int r;

    if ((r = check_target(source, target, errp)) < 0 ||
        (r = node_check_jobs(source, errp)) < 0 ||
        (r = node_check_jobs(target, errp)) < 0) {
        return r;
    }
    r = node_new(g, &driver_cbw, name, source, &n, errp);
    if (r < 0) {
        return r;
    }
    r = node_attach(n, CHILD_FILE, source, "file", PERM_READ, PERM_ALL, errp);
    if (r == 0) {
        r = node_attach(n, CHILD_TARGET, target, "target",
                        PERM_READ | PERM_WRITE, PERM_READ, errp);
    }
    if (r == 0) {
        r = insert_above(n, source, copy, errp);
    }
    if (r < 0) {
        ((struct cbw *)n->state)->by_job = true; /* close frees no copy */
        node_unref(n);
        return r;
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
    copy_set_ends(copy, NULL, NULL, NULL);
    unguard_target(filter, copy);
    s->copy = NULL;
    node_unblock(node_child(filter, CHILD_TARGET));
    node_detach(filter, CHILD_TARGET);
    node_unref(filter);
}
