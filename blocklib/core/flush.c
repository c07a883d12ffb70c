/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Flushes, and errors of flushes that nobody asked for.
 *
 * Storage tells once that it has lost what was written: the flush that meets
 * the error fails, and the next one succeeds.  The one that fails can be a
 * driver's own (it arms a bitmap, or orders metadata), or another user's.  All
 * who wrote have to know.
 *
 *     guest 1   guest 2      seen 1, seen 0: guest 2 is still to be told
 *          \    /
 *          qcow2             failed: 1
 *            |               seen 2
 *           nbd              failed: 2
 *
 *  1. A node counts its flushes that failed (`failed`).  An edge notes the
 *     count that its owner was told (`seen`).  So each owner is told of each
 *     failure, and once.
 *  2. A flush of a node fails, too, if a file child's count is not what the
 *     edge has seen.  That is a failure of the node itself, for the owners
 *     above: so errors rise as far as somebody flushes.  A driver's own flush
 *     of its child tells the driver, and leaves the edge as it is.
 *  3. The node's count grows before the edge below has seen the child's.  Of
 *     two flushes at once, the one that finds nothing below finds the new count
 *     above.
 *  4. Of two flushes that are in storage at once, either may get the error of
 *     what was written before both.  So one that succeeds waits for the
 *     others that had begun by then.  Only nodes without children need that.
 *  5. An edge that is new starts with the failures that no owner was told, as
 *     the same guest may come by another way.
 *
 * All of this is what Linux does for descriptors of a file (errseq_t).
 */
#include "core/flush.h"

#include <errno.h>

#include "core/event.h"
#include "core/graph.h"
#include "core/node.h"

#define ERRNO_MASK UINT64_C(0xfff)
#define SHORT_NS   UINT64_C(5000000) /* guests may wait for such a flush */
#define LOOK_MS    100 /* between two looks whether the request is wanted */

/* The children that a flush of the parent covers. */
static const unsigned covered[] = {CHILD_FILE, CHILD_DATA};

#define COVERED (sizeof(covered) / sizeof(covered[0]))

void node_flushes_init(struct flushes *f)
{
    mutex_init(&f->lock, LOCK_FLUSHES, NULL);
    cond_init(&f->ended);
    list_init(&f->running);
    atomic_init(&f->failed, FLUSH_NONE);
    atomic_init(&f->told, FLUSH_NONE);
}

void node_flushes_destroy(struct flushes *f)
{
    mutex_destroy(&f->lock);
    cond_destroy(&f->ended);
}

uint64_t node_flush_failures(const struct node *n)
{
    return atomic_load(&n->flushes.failed);
}

static int error_of(uint64_t failed)
{
    return failed & ERRNO_MASK ? -(int)(failed & ERRNO_MASK) : -EIO;
}

/* A flush that makes room for a drain, or would have to wait, has not been. */
static bool is_failure(int r)
{
    return r < 0 && r != -ERESTART && r != -EAGAIN;
}

static void count_failure(struct flushes *f, int r) REQUIRES(f->lock)
{
    uint64_t next = (atomic_load(&f->failed) | ERRNO_MASK) + 1;

    atomic_store(&f->failed, next | ((uint64_t)-r & ERRNO_MASK));
}

static void raise_to(flush_mark *count, uint64_t to)
{
    uint64_t old = atomic_load(count);

    while (old < to && !atomic_compare_exchange_weak(count, &old, to)) {
    }
}

static void has_seen(struct edge *e, uint64_t failed)
{
    raise_to(&e->seen, failed);
    raise_to(&e->child->flushes.told, failed);
}

/* --- In storage --- */

void node_flush_begin(struct node *n, struct flush_run *run)
{
    struct flushes *f = &n->flushes;

    mutex_lock(&f->lock);
    run->number = ++f->begun;
    list_append(&f->running, &run->link);
    mutex_unlock(&f->lock);
}

static bool is_running(const struct flushes *f, uint64_t last)
{
    return !list_empty(&f->running) &&
           list_entry(f->running.next, struct flush_run, link)->number <= last;
}

void node_flush_end(struct node *n, struct flush_run *run, int r)
{
    struct flushes *f = &n->flushes;

    mutex_lock(&f->lock);
    list_remove(&run->link);
    cond_broadcast(&f->ended);
    if (is_failure(r)) {
        count_failure(f, r);
    }
    for (uint64_t last = f->begun;
         r == 0 && is_running(f, last) && !node_is_unwanted();) {
        (void)cond_wait_ms(&f->ended, &f->lock, LOOK_MS);
    }
    mutex_unlock(&f->lock);
}

/* --- In the graph --- */

/* Is there something that the owner of the edge to a child was not told? */
static bool has_news(const struct node *n)
{
    for (unsigned i = 0; i < COVERED; i++) {
        const struct edge *e = n->child[covered[i]];

        if (e && node_flush_failures(e->child) != atomic_load(&e->seen)) {
            return true;
        }
    }
    return false;
}

/* A flush has come back from the children with @r. */
static int take_news(struct node *n, int r)
{
    struct flushes *f = &n->flushes;
    uint64_t failed[COVERED] = {0};

    if (r == 0 ? !has_news(n) : !is_failure(r)) {
        return r;
    }
    mutex_lock(&f->lock);
    for (unsigned i = 0; i < COVERED; i++) {
        const struct edge *e = n->child[covered[i]];

        failed[i] = e ? node_flush_failures(e->child) : 0;
        if (r == 0 && e && failed[i] != atomic_load(&e->seen)) {
            r = error_of(failed[i]);
        }
    }
    if (r < 0) { /* else another flush of this node was told */
        count_failure(f, r);
    }
    for (unsigned i = 0; i < COVERED; i++) {
        if (n->child[covered[i]]) {
            has_seen(n->child[covered[i]], failed[i]);
        }
    }
    mutex_unlock(&f->lock);
    return r;
}

static int pass_on(struct node *n)
{
    struct node *child = node_child(n, CHILD_FILE);

    if (child && !n->drv->is_filter) {
        node_event(child, EVENT_FLUSH_TO_OS);
    }
    if (n->drv->flush) {
        return n->drv->flush(n);
    }
    if (!child) {
        return 0;
    }
    if (!n->drv->is_filter && !n->flags.no_flush) {
        node_event(child, EVENT_FLUSH_TO_DISK);
    }
    return node_flush(child);
}

int node_flush(struct node *n)
{
    struct flush_run run;

    if (n->flags.read_only && !n->drv->is_filter) {
        return 0;
    }
    if (!n->drv->is_protocol) {
        return take_news(n, pass_on(n));
    }
    node_flush_begin(n, &run);
    int r = pass_on(n);
    node_flush_end(n, &run, r);
    return r;
}

int node_flush_since(struct node *n, uint64_t since)
{
    int r = node_flush(n);
    uint64_t failed = node_flush_failures(n);

    return r == 0 && failed != since ? error_of(failed) : r;
}

/* Each flush except the last takes at most 3/4 of the time of the one before
 * it. */
int node_flush_ahead(struct node *n, int (*flush)(struct node *n),
                     uint64_t *began)
{
    uint64_t took = UINT64_MAX;
    uint64_t before;

    do {
        uint64_t begin = now_ns();
        int r = flush(n);

        if (r < 0) {
            return r;
        }
        if (began) {
            *began = begin;
        }
        before = took;
        took = now_ns() - begin;
    } while (took > SHORT_NS && took <= before / 4 * 3 && !node_is_draining(n));
    return 0;
}

/* What was seen before counts, not what another flush of this owner has seen
 * meanwhile: that one began before, and what it was told concerns both. */
int edge_flush(struct edge *e)
{
    uint64_t seen = atomic_load(&e->seen);
    int r = node_flush(e->child);
    uint64_t failed = node_flush_failures(e->child);

    if (failed != seen && (r == 0 || is_failure(r))) {
        has_seen(e, failed);
        r = r < 0 ? r : error_of(failed);
    }
    return r;
}

void edge_begin_flushes(struct edge *e)
{
    atomic_store(&e->seen, atomic_load(&e->child->flushes.told));
}

static bool is_owed(const struct edge *e);

/* Would a flush of the node tell of something below it that failed? */
static bool owes(const struct node *n)
{
    bool owed = false;

    for (unsigned i = 0; i < COVERED && !owed; i++) {
        const struct edge *below = n->child[covered[i]];
        owed = below && is_owed(below);
    }
    return owed;
}

/* Would a flush for the owner of the edge tell something old? */
static bool is_owed(const struct edge *e)
{
    return node_flush_failures(e->child) != atomic_load(&e->seen) ||
           owes(e->child);
}

bool node_flush_has_failed(const struct node *n, uint64_t since)
{
    return node_flush_failures(n) != since || owes(n);
}

bool node_has_fua(const struct node *n)
{
    bool own = n->drv->flags_write & REQ_FUA;

    if (!n->drv->is_filter) {
        return own;
    }
    const struct node *child = node_child(n, CHILD_FILE);
    return (own || !n->drv->pwritev) && child && node_has_fua(child);
}

void edge_move_flushes(struct edge *e, const struct node *to)
{
    atomic_store(&e->seen,
                 is_owed(e) ? FLUSH_OWED : atomic_load(&to->flushes.told));
}
