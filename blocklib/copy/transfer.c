/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Transfers: the copy engine without a job.
 *
 *         user "transfer"
 *               |
 *             join           a filter of ours, which only makes one tree of
 *            /    \          the two: workers enter it here
 *       source    target
 *
 * Nobody's writes are copied before they change something, so a worker is all
 * that ever moves a unit.  The set is filled before the workers start.
 */
#include "nbdelta/transfer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "copy/copy.h"
#include "core/blocker.h"
#include "core/graph.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

#define WORKERS_DEFAULT 16

/* Images have whole sectors, disks may have any size. */
#define SECTOR 512

/* A look at a dirty map goes this far at once, so that drains do not wait. */
#define LOOK_STEP (1 * GiB)

static int refuse_resize(struct node *n, uint64_t size, struct error **errp)
{
    (void)size;
    return error_set(errp, EBUSY, "Node '%s' is being copied",
                     node_name(node_child(n, CHILD_FILE)));
}

static const struct driver driver_join = {
    .name = "transfer",
    .is_filter = true,
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .resize = refuse_resize,
};

struct transfer {
    /* Set by transfer_new. */
    struct graph *graph;
    struct copy *copy;
    struct node *join; /* control lock; NULL: not yet */
    struct blk *user;

    _Atomic bool stopped;
};

/* --- Beginning and end --- */

static int check_ends(struct node *source, struct node *target,
                      const struct transfer_options *o, struct error **errp)
{
    uint64_t size = node_size(source);
    uint64_t room = node_size(target);
    const struct node *image = node_skip_filters(target);

    if (node_is_below(source, target) || node_is_below(target, source)) {
        return error_set(errp, EINVAL,
                         "Node '%s' cannot be copied to '%s': one is a part "
                         "of the other",
                         node_name(source), node_name(target));
    }
    if (room != size && room != align_up(size, SECTOR)) {
        return error_set(errp, EINVAL,
                         "Source and target have different sizes (%" PRIu64
                         " and %" PRIu64 " bytes)",
                         size, room);
    }
    if (target->flags.read_only) {
        return error_set(errp, EACCES, "Node '%s' is read-only",
                         node_name(target));
    }
    if (o->compress && !target->drv->write_compressed) {
        return error_set(errp, ENOTSUP,
                         "Compression is not supported by the target, of "
                         "driver '%s'",
                         target->drv->name);
    }
    if (o->target_zero && node_may_have_backing(image)) {
        return error_set(errp, EINVAL,
                         "A target that has a backing file does not read as "
                         "zeroes");
    }
    return 0;
}

static struct copy *make_copy(const struct node *source,
                              const struct node *target,
                              const struct transfer_options *o)
{
    const struct copy_options c = {
        .size = node_size(source),
        .cluster = copy_cluster_for(target),
        .past = node_size(target) - node_size(source),
        .compress = o->compress,
        .target_zero = o->target_zero,
        .max_workers = o->workers > 0 ? o->workers : WORKERS_DEFAULT,
        .max_chunk = o->max_chunk,
        .share = o->share,
        .uncached = true,
        .find_zeroes = true,
        .moved = o->tap,
        .moved_opaque = o->opaque,
    };

    return copy_new(&c);
}

static int join_locked(struct transfer *t, struct node *source,
                       struct node *target, struct error **errp)
{
    int r;

    if ((r = node_check_jobs(source, errp)) < 0 ||
        (r = node_check_jobs(target, errp)) < 0 ||
        (r = node_new(t->graph, &driver_join, NULL, source, &t->join, errp)) <
            0) {
        return r;
    }
    r = node_attach(t->join, CHILD_FILE, source, "file", PERM_READ, PERM_ALL,
                    errp);
    if (r == 0) {
        r = node_attach(t->join, CHILD_TARGET, target, "target",
                        PERM_READ | PERM_WRITE, PERM_READ, errp);
    }
    if (r < 0) {
        node_unref(t->join);
        t->join = NULL;
        return r;
    }
    node_refresh_limits(t->join);
    node_block(source, "transfer");
    node_block(target, "transfer");
    graph_drain(t->graph, t->join);
    copy_set_ends(t->copy, t->join, source, target);
    return 0;
}

static int join_ends(struct transfer *t, struct node *source,
                     struct node *target, const struct transfer_options *o,
                     struct error **errp)
{
    graph_lock(t->graph);
    int r = check_ends(source, target, o, errp);
    if (r == 0) {
        t->copy = make_copy(source, target, o);
        r = t->copy ? join_locked(t, source, target, errp) : error_nomem(errp);
    }
    graph_unlock(t->graph);
    return r < 0 ? r
                 : blk_new(t->graph, t->join, PERM_READ, PERM_ALL, "transfer",
                           &t->user, errp);
}

int transfer_new(struct graph *g, struct node *source, struct node *target,
                 const struct transfer_options *o, struct transfer **tp,
                 struct error **errp)
{
    struct transfer *t = calloc(1, sizeof(*t));

    if (!t) {
        return error_nomem(errp);
    }
    t->graph = g;
    int r = join_ends(t, source, target, o, errp);
    if (r < 0) {
        transfer_free(t);
        return r;
    }
    copy_set_speed(t->copy, o->speed);
    *tp = t;
    return 0;
}

static void part_locked(struct transfer *t)
{
    graph_drain(t->graph, t->join);
    copy_set_ends(t->copy, NULL, NULL, NULL);
    node_unblock(node_child(t->join, CHILD_FILE));
    node_unblock(node_child(t->join, CHILD_TARGET));
    node_detach(t->join, CHILD_TARGET);
    node_unref(t->join);
}

void transfer_free(struct transfer *t)
{
    if (!t) {
        return;
    }
    blk_free(t->user);
    graph_lock(t->graph);
    if (t->join) {
        part_locked(t);
    }
    graph_unlock(t->graph);
    copy_free(t->copy);
    free(t);
}

/* --- The set --- */

uint64_t transfer_unit(const struct transfer *t)
{
    return copy_cluster(t->copy);
}

void transfer_add(struct transfer *t, uint64_t offset, uint64_t bytes)
{
    copy_add(t->copy, offset, bytes);
}

bool transfer_next(const struct transfer *t, uint64_t offset, uint64_t *start,
                   uint64_t *bytes)
{
    return copy_next(t->copy, offset, start, bytes);
}

struct dirty {
    struct transfer *transfer;
    uint64_t next; /* all before it is known */
};

/*
 * Of such a node, what is dirty is what is not data (drivers/nbd.c).  A unit
 * that is dirty anywhere is wanted, whatever follows in it: a map that is
 * finer than units costs no more than one question for each of these.
 */
static int take_dirty(const struct extent *e, void *opaque)
{
    struct dirty *d = opaque;
    struct transfer *t = d->transfer;
    uint64_t end = e->offset + e->length;

    if (e->flags & EXTENT_DATA) {
        d->next = end;
    } else {
        copy_add(t->copy, e->offset, e->length);
        d->next = min_u64(align_up(end, copy_cluster(t->copy)),
                          copy_size(t->copy));
    }
    return d->next > end || atomic_load(&t->stopped);
}

static int check_view(const struct transfer *t, struct node *view,
                      struct error **errp)
{
    graph_lock(t->graph);
    const struct node *n = node_skip_filters(view);
    bool dirty = n->options && json_object_get(n->options, "x-dirty-bitmap");
    graph_unlock(t->graph);
    if (!dirty || strcmp(node_driver(n), "nbd") != 0) {
        return error_set(errp, EINVAL,
                         "Node '%s' is no export that was opened with "
                         "x-dirty-bitmap",
                         node_name(view));
    }
    if (node_size(view) != copy_size(t->copy)) {
        return error_set(errp, EINVAL,
                         "The export with the dirty map has %" PRIu64
                         " bytes, the source %" PRIu64,
                         node_size(view), copy_size(t->copy));
    }
    return 0;
}

static int look_at_dirty(struct dirty *d, struct node *view)
{
    uint64_t size = copy_size(d->transfer->copy);
    int r = 0;

    while (r >= 0 && d->next < size && !atomic_load(&d->transfer->stopped)) {
        struct tree *tree = node_enter(view, false);
        r = node_extents(view, d->next, min_u64(LOOK_STEP, size - d->next), 0,
                         take_dirty, d);
        node_leave(tree);
        r = r == -ERESTART ? 0 : r;
    }
    return r < 0 ? r : 0;
}

int transfer_add_dirty(struct transfer *t, struct node *view,
                       struct error **errp)
{
    struct dirty d = {.transfer = t};
    int r = check_view(t, view, errp);

    if (r < 0) {
        return r;
    }
    node_unwanted = copy_given_up(t->copy);
    r = look_at_dirty(&d, view);
    node_unwanted = NULL;
    if (atomic_load(&t->stopped)) {
        return error_set(errp, ECANCELED, "The copy was cancelled");
    }
    return r < 0 ? error_set(errp, -r, "cannot read the dirty map of '%s': %s",
                             node_name(view), strerror(-r))
                 : 0;
}

/* --- Moving --- */

static int flush_target(struct transfer *t)
{
    struct tree *tree = node_enter(t->join, false);

    node_unwanted = copy_given_up(t->copy);
    int r = edge_flush(t->join->child[CHILD_TARGET]);
    node_unwanted = NULL;
    node_leave(tree);
    return r;
}

static int move_all(struct transfer *t, enum copy_side *side)
{
    int r = copy_run(t->copy, side);

    while (r == 0 && (r = flush_target(t)) == -ERESTART) {
        r = 0;
    }
    return r;
}

static int tell_failure(const struct transfer *t, enum copy_side side, int r,
                        struct error **errp)
{
    const char *why = strerror(-r);

    if (side == COPY_READ) {
        return error_set(errp, -r, "cannot read '%s': %s",
                         node_filename(node_child(t->join, CHILD_FILE)), why);
    }
    if (side == COPY_WRITE) {
        return error_set(errp, -r, "cannot write to '%s': %s",
                         node_filename(node_child(t->join, CHILD_TARGET)), why);
    }
    return error_set(errp, -r, "cannot go on with what was copied: %s", why);
}

int transfer_run(struct transfer *t, enum transfer_end *end,
                 struct error **errp)
{
    static const enum transfer_end ends[] = {
        [COPY_READ] = TRANSFER_SOURCE,
        [COPY_WRITE] = TRANSFER_TARGET,
        [COPY_TELL] = TRANSFER_TAP,
    };
    enum copy_side side = COPY_WRITE;
    int r = move_all(t, &side);

    if (atomic_load(&t->stopped)) {
        return error_set(errp, ECANCELED, "The copy was cancelled");
    }
    if (r < 0 && end) {
        *end = ends[side];
    }
    return r < 0 ? tell_failure(t, side, r, errp) : 0;
}

/* --- From other threads --- */

void transfer_stop(struct transfer *t)
{
    if (!atomic_exchange(&t->stopped, true)) {
        copy_stop(t->copy, true);
        copy_give_up(t->copy);
        graph_wake_waiting(t->graph, t->join);
    }
}

void transfer_set_speed(struct transfer *t, uint64_t speed)
{
    copy_set_speed(t->copy, speed);
}

void transfer_progress(const struct transfer *t, struct transfer_progress *p)
{
    const struct copy_counters *k = copy_counters(t->copy);

    copy_progress(t->copy, &p->done, &p->total);
    p->read = atomic_load(&k->read);
    p->written = atomic_load(&k->written);
    p->shared = atomic_load(&k->shared);
    p->zero = atomic_load(&k->zeroed);
}
