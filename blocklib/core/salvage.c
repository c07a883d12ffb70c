/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The end of a process in which threads are stuck: trees that answer are
 * closed.
 *
 * There is a thread for each tree: it takes the tree for writing, as a control
 * section would, and keeps it.  So a thread that wakes up meanwhile enters no
 * tree that is being closed.  A control section that waits for storage may hold
 * the control lock for ever.  Then all of this is done without the lock: the
 * trees of that section cannot be taken.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/dirty.h"
#include "core/graph-priv.h"
#include "nbdelta/graph.h"

#define LOCK_MS 1000
#define NS      UINT64_C(1000000000)

struct closer {
    struct tree *tree;
    _Atomic bool done;
};

static bool has_open_parent(const struct node *n)
{
    list_for_each (at, &n->parents) {
        const struct node *p = list_entry(at, struct edge, on_child)->parent;
        if (p && p->opened) {
            return true;
        }
    }
    return false;
}

/* An open node without an open node above; NULL: none is left. */
static struct node *next_node(struct tree *t)
{
    list_for_each (at, &t->nodes) {
        struct node *n = list_entry(at, struct node, in_tree);
        if (n->opened && !has_open_parent(n)) {
            return n;
        }
    }
    return NULL;
}

/* Does a job, or a point in time, use nodes of the tree?  Then a bitmap may
 * have its bits in two parts, and is not stored: the image has all bits, as
 * after a crash. */
static bool is_used(struct tree *t)
{
    list_for_each (at, &t->nodes) {
        const struct node *n = list_entry(at, struct node, in_tree);
        if (n->job_count > 0 || !n->options) {
            return true;
        }
        list_for_each (b, &n->bitmaps) {
            if (list_entry(b, struct bitmap, on_node)->successor) {
                return true;
            }
        }
    }
    return false;
}

static bool flush_all(struct tree *t)
{
    bool whole = true;

    list_for_each (at, &t->nodes) {
        struct node *n = list_entry(at, struct node, in_tree);
        if (n->opened && !n->flags.read_only && !has_open_parent(n)) {
            whole &= node_flush(n) == 0;
        }
    }
    return whole;
}

static void *closer_thread(void *opaque) NO_LOCK_ANALYSIS
{
    struct closer *c = opaque;
    struct tree *t = c->tree;
    struct node *n;

    graph_begin_drain(t);
    rwlock_wrlock(&t->lock);
    t->drained = true;
    bool whole = flush_all(t);
    while (!is_used(t) && (n = next_node(t))) {
        if (n->drv->drained) {
            n->drv->drained(n);
        }
        if (!n->flags.read_only && !n->drv->is_filter) {
            whole &= node_flush(n) == 0;
        }
        if (n->drv->close) {
            n->drv->close(n);
        }
        n->opened = false;
    }
    atomic_store(&c->done, whole);
    return NULL; /* the tree is kept, and the memory, too */
}

static bool all_done(const struct closer *c, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!atomic_load(&c[i].done)) {
            return false;
        }
    }
    return true;
}

/* Tell of the nodes that a user knows: opened by name, and not below
 * another. */
static void tell_tree(const struct tree *t,
                      void (*given_up)(const char *name, void *opaque),
                      void *opaque)
{
    list_for_each (at, &t->nodes) {
        const struct node *n = list_entry(at, struct node, in_tree);
        if (n->monitor_owned) {
            given_up(n->name, opaque);
        }
    }
}

static size_t start_closers(struct graph *g, struct closer *c)
{
    size_t count = 0;

    list_for_each (at, &g->trees) {
        struct tree *t = list_entry(at, struct tree, in_graph);
        pthread_t thread;

        if (!list_empty(&t->nodes)) {
            c[count].tree = t;
            (void)thread_start(&thread, "closer", closer_thread, &c[count]);
            count++;
        }
    }
    return count;
}

void graph_salvage(struct graph *g, uint64_t limit_ns,
                   void (*given_up)(const char *name, void *opaque),
                   void *opaque) NO_LOCK_ANALYSIS
{
    uint64_t end = now_ns() + limit_ns;
    size_t room = 0;

    (void)mutex_lock_ms(&g->lock, LOCK_MS); /* for good, if it is to be had */
    list_for_each (at, &g->trees) {
        room++;
    }
    struct closer *c = calloc(room + 1, sizeof(*c));
    size_t count = c ? start_closers(g, c) : 0;
    while (!all_done(c, count) && now_ns() < end) {
        struct timespec pause = {0, 20 * 1000000L};
        (void)nanosleep(&pause, NULL);
    }
    for (size_t i = 0; i < count; i++) {
        if (!atomic_load(&c[i].done)) {
            tell_tree(c[i].tree, given_up, opaque);
        }
    }
}
