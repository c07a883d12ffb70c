/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Inactive nodes: images that another process may write to.
 *
 *   active  ----------------------------------->  inactive
 *           users let go of write and resize      read-only; its children are
 *           the driver writes back all it has     shared with everybody, files
 *           bitmaps are stored, and go            have no locks; bytes can be
 *                                                 read, of the old state
 *           <-----------------------------------
 *           files are locked, and sized anew; the driver reads the image anew,
 *           with its bitmaps; users have their permissions again
 *
 * Nodes go with their children, each of which is a step of a reopen: all of
 * them change, or none does.  A parent becomes inactive before its children,
 * and active after them; so an active node never has an inactive child.
 */
#include "core/activity.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/dirty.h"
#include "core/graph-priv.h"
#include "core/reopen.h"
#include "nbdelta/error.h"

static int add_step(struct reopen *set, struct node *n, bool active,
                    struct error **errp)
{
    struct node_flags to = n->flags;

    node_flags_set_active(&to, active);
    n->visited = true;
    graph_drain(n->graph, n);
    return reopen_add_one(set, n, &to, errp);
}

/* --- Becoming inactive --- */

/* Has it a parent that stays active? */
static bool has_active_parent(const struct node *n)
{
    list_for_each (at, &n->parents) {
        const struct node *p = list_entry(at, struct edge, on_child)->parent;
        if (p && !p->flags.inactive && !p->visited) {
            return true;
        }
    }
    return false;
}

static bool has_parent(const struct node *n)
{
    list_for_each (at, &n->parents) {
        if (list_entry(at, struct edge, on_child)->parent) {
            return true;
        }
    }
    return false;
}

/* A job's own nodes have state that nobody could read anew. */
static int check_may_rest(const struct node *n, struct error **errp)
{
    if (n->job_count > 0 || !n->options) {
        return error_set(errp, EPERM, "%s", strerror(EPERM));
    }
    list_for_each (at, &n->bitmaps) {
        const struct bitmap *bm = list_entry(at, struct bitmap, on_node);
        if (bm->persistent && bitmap_is_busy(bm)) {
            return error_set(errp, EBUSY,
                             "Bitmap '%s' is currently in use by another "
                             "operation and cannot be used",
                             bm->name);
        }
    }
    return 0;
}

static int add_resting(struct reopen *set, struct node *n, struct error **errp)
{
    if (n->flags.inactive || n->visited || has_active_parent(n)) {
        return 0;
    }
    int r = check_may_rest(n, errp);
    if (r == 0) {
        r = add_step(set, n, false, errp);
    }
    for (unsigned i = 0; i < CHILD_MAX && r == 0; i++) {
        r = n->child[i] ? add_resting(set, n->child[i]->child, errp) : 0;
    }
    return r;
}

/* --- Becoming active --- */

static int add_waking(struct reopen *set, struct node *n, struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; i < CHILD_MAX && r == 0; i++) {
        r = n->child[i] ? add_waking(set, n->child[i]->child, errp) : 0;
    }
    return r == 0 && n->flags.inactive && !n->visited
               ? add_step(set, n, true, errp)
               : r;
}

/* --- Both --- */

static int add(struct reopen *set, struct node *n, bool active,
               struct error **errp)
{
    return active ? add_waking(set, n, errp) : add_resting(set, n, errp);
}

static void forget_visits(struct graph *g)
{
    list_for_each (at, &g->nodes) {
        list_entry(at, struct node, in_graph)->visited = false;
    }
}

/* @n NULL: all nodes. */
static int set_active(struct graph *g, struct node *n, bool active,
                      struct error **errp)
{
    struct reopen set;
    int r = 0;

    reopen_init(&set);
    forget_visits(g);
    if (n) {
        r = add(&set, n, active, errp);
    } else {
        list_for_each (at, &g->nodes) {
            struct node *one = list_entry(at, struct node, in_graph);
            r = r == 0 && (active || !has_parent(one))
                    ? add(&set, one, active, errp)
                    : r;
        }
    }
    if (r == 0) {
        r = reopen_apply(&set, errp);
    }
    reopen_finish(&set, r == 0);
    return r;
}

int node_set_active(struct node *n, bool active, struct error **errp)
{
    forget_visits(n->graph);
    if (!active && has_active_parent(n)) {
        return error_set(errp, EPERM, "Node has active parent node");
    }
    int r = set_active(n->graph, n, active, errp);
    if (r < 0 && !active) {
        error_prefix(errp, "Failed to inactivate node: ");
    }
    return r;
}

int node_check_filter(const struct node *n, const char *role,
                      const char *filter, struct error **errp)
{
    char next[32];

    if (node_active(n)) {
        return 0;
    }
    (void)snprintf(next, sizeof(next), "#block%" PRIu64, n->graph->next_name);
    return error_set(errp, EPERM,
                     "Inactive '%s' can't be a %s child of active '%s'",
                     node_name(n), role, filter ? filter : next);
}

int graph_set_active(struct graph *g, const char *name, bool active,
                     struct error **errp)
{
    int r;

    graph_lock(g);
    struct node *n = name ? graph_find_locked(g, name) : NULL;
    if (name && !n) {
        r = error_set(errp, ENODEV,
                      "Failed to find node with node-name='%.200s'", name);
    } else if (n) {
        r = node_set_active(n, active, errp);
    } else {
        r = set_active(g, NULL, active, errp);
        if (r < 0 && !active) {
            error_prefix(errp, "Failed to inactivate all nodes: ");
        }
    }
    graph_unlock(g);
    return r;
}
