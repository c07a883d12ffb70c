/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Users move from the node that each has to one node, all of them or none:
 *
 *     export --> disk            export --> filter --> disk
 *
 * What a filter wants of the disk below depends on whether it has users, and
 * may be in conflict with users of the disk itself.  So all edges are taken
 * away before the first one is checked, in a drained section.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "core/blk-priv.h"
#include "core/blocker.h"
#include "core/flush.h"
#include "nbdelta/blk.h"
#include "nbdelta/error.h"

/* A job that has put a filter into the way of a user has to see all of its
 * writes. */
static int check_filters(const struct node *from, const struct node *to,
                         struct error **errp)
{
    const struct node *n = from;

    while (n->drv->is_filter && node_child(n, CHILD_FILE)) {
        if (!n->options && !node_is_below(to, n)) {
            int r = node_check_jobs(node_skip_filters(n), errp);
            return r < 0 ? r
                         : error_set(errp, EBUSY,
                                     "Node '%s' is busy: a filter of a job or "
                                     "of a backup is above it",
                                     node_name(node_skip_filters(n)));
        }
        n = node_child(n, CHILD_FILE);
    }
    return 0;
}

static void link_to(struct edge *e, struct node *n)
{
    list_append(&n->parents, &e->on_child);
    node_hand_down_perms(n);
}

static void unlink_from(struct edge *e, struct node *n)
{
    list_remove(&e->on_child);
    node_hand_down_perms(n);
}

static void move_edge(struct edge *e, struct node *to)
{
    struct node *from = e->child;

    edge_move_flushes(e, to);
    __atomic_store_n(&e->child, to, __ATOMIC_RELEASE); /* see blk_node */
    atomic_store(&e->tree, atomic_load(&to->tree));
    node_ref(to);
    node_unref(from);
}

/* Drained.  An edge still says where it came from, until all are moved. */
static int move_all(struct blk *const *users, unsigned count, struct node *to,
                    struct error **errp)
{
    unsigned done = 0;
    int r = 0;

    for (unsigned i = 0; i < count; i++) {
        unlink_from(&users[i]->root, users[i]->root.child);
    }
    while (r == 0 && done < count) {
        struct edge *e = &users[done]->root;

        r = edge_check(e, to, e->perm, errp);
        if (r == 0) {
            link_to(e, to);
            done++;
        }
    }
    for (unsigned i = 0; r < 0 && i < count; i++) {
        if (i < done) {
            unlink_from(&users[i]->root, to);
        }
        link_to(&users[i]->root, users[i]->root.child);
    }
    for (unsigned i = 0; r == 0 && i < count; i++) {
        move_edge(&users[i]->root, to);
    }
    return r;
}

/* Drained.  The user's next flush is one of another disk. */
static int leave_disk(struct edge *e, const struct node *to,
                      struct error **errp)
{
    const struct node *disk = node_skip_filters(e->child);

    int r = disk == node_skip_filters(to) ? 0 : edge_flush(e);
    return r < 0 ? error_set(errp, -r, "Node '%s' cannot be flushed: %s",
                             node_name(disk), strerror(-r))
                 : 0;
}

int blk_move(struct blk *const *users, unsigned count, struct node *to,
             struct error **errp)
{
    struct graph *g = to->graph;
    int r = 0;

    graph_lock(g);
    for (unsigned i = 0; r == 0 && i < count; i++) {
        r = check_filters(users[i]->root.child, to, errp);
    }
    if (r == 0) {
        graph_drain(g, to);
    }
    for (unsigned i = 0; r == 0 && i < count; i++) {
        graph_drain(g, users[i]->root.child);
        r = leave_disk(&users[i]->root, to, errp);
    }
    if (r == 0) {
        r = move_all(users, count, to, errp);
    }
    graph_unlock(g);
    return r;
}
