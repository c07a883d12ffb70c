/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sizes that somebody else changes.
 *
 *     another client        a driver's callback       a thread of the program
 *     resizes the image --> node_tell_size() -------> graph_follow_size():
 *                           (any locks)               asks, drains, adopts
 *
 * A disk that shrinks below a job keeps its size here; what is no more fails.
 */
#include <errno.h>
#include <inttypes.h>

#include "core/blocker.h"
#include "core/dirty.h"
#include "core/graph-priv.h"
#include "core/graph.h"
#include "nbdelta/error.h"

void graph_on_size(struct graph *g, size_fn *fn, void *opaque)
{
    g->on_size = fn;
    g->size_opaque = opaque;
}

void node_tell_size(const struct node *n)
{
    if (n->graph->on_size) {
        n->graph->on_size(node_name(n), n->graph->size_opaque);
    }
}

/* The node, with a reference, if its size may be another's matter.  A file that
 * a format makes longer has its length from there. */
static struct node *take(struct graph *g, const char *name)
{
    graph_lock(g);
    struct node *n = graph_find_locked(g, name);
    if (n && (!n->drv->size_there || n->growable)) {
        n = NULL;
    }
    if (n) {
        node_ref(n);
    }
    graph_unlock(g);
    return n;
}

/* Drained. */
static int adopt(struct node *n, uint64_t size, struct error **errp)
{
    uint64_t old = n->size;
    int r = size < old ? node_check_shrink(n, errp) : node_check_jobs(n, errp);

    if (r == 0 && size > old) {
        r = bitmap_resize_all(n, old, size, errp);
    }
    if (r < 0) {
        return r;
    }
    n->size = size;
    if (size < old) {
        r = bitmap_resize_all(n, old, size, errp);
    }
    node_refresh_above(n);
    return r;
}

int graph_follow_size(struct graph *g, const char *name, struct error **errp)
{
    struct node *n = take(g, name);
    uint64_t size = 0;
    int r = n ? n->drv->size_there(n, &size) : 0;

    if (!n) {
        return 0;
    }
    graph_lock(g);
    if (r == 0 && size != n->size && size <= BLK_SIZE_MAX && !n->growable) {
        graph_drain(g, n);
        r = adopt(n, size, errp);
        if (r < 0) {
            error_prefix(errp,
                         "node '%s' keeps its size of %" PRIu64
                         " bytes, and its image has %" PRIu64 ": ",
                         name, n->size, size);
        }
    } else if (r < 0) {
        r = r == -EAGAIN
                ? 0
                : error_set(errp, -r, "cannot ask for the size of node '%s'",
                            name);
    }
    node_unref(n);
    graph_unlock(g);
    return r;
}
