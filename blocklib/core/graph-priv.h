/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_GRAPH_PRIV_H
#define NBDELTA_CORE_GRAPH_PRIV_H

/* Between graph.c, open.c, policy.c and blk.c. */
#include "core/fdset.h"
#include "core/graph.h"
#include "core/secret.h"
#include "core/tls-creds.h"
#include "core/yank.h"

#define NODE_NAME_MAX 255 /* bytes; QEMU takes 31, export names are longer */

struct graph {
    const struct driver_table *drivers;
    mutex_t lock; /* the control lock */

    /* Guarded by lock. */
    struct list nodes; /* oldest first */
    struct list trees; /* all that were ever made */
    struct tree *free_trees;
    struct tree *drained; /* by this control section */
    uint64_t section;     /* number of this control section, from 1 on */
    uint64_t next_name;
    struct list throttle_groups;
    struct list view_bits; /* of open dirty views (drivers/dirty-view.c) */
    struct list *toils;    /* of who opens nodes in this section, or NULL */

    /* Implicit-open policy: set before the first open (policy.c). */
    char **allowed; /* absolute, resolved, without a slash at the end */
    size_t allowed_count;
    enum graph_follow follow;
    bool without_data;
    bool without_backing; /* of this section: graph_open_alone */
    bool without_bitmaps;

    /* Set before the first open: graph_on_corruption(),
     * graph_on_threshold(), graph_on_size(). */
    corruption_fn *on_corruption; /* or NULL */
    void *corruption_opaque;
    threshold_fn *on_threshold; /* or NULL */
    void *threshold_opaque;
    size_fn *on_size; /* or NULL */
    void *size_opaque;

    struct tls_creds_set tls_creds; /* has a lock of its own */
    struct secret_set secrets;      /* so has this */
    struct yank_set yanks;          /* and this */
    struct fdset_table fdsets;      /* and this */
};

/* A node with a name and nothing else: refs is 1, not opened. */
int node_alloc(struct graph *g, const struct driver *drv, const char *name,
               struct node **nodep, struct error **errp);

struct node *graph_find_locked(struct graph *g, const char *name);

/* May @e, as an edge to @child, have @perm?  -EACCES: the child is read-only.
 * -EBUSY: another parent or user objects. */
int edge_check(const struct edge *e, const struct node *child, unsigned perm,
               struct error **errp);

/* Let go of what an inactive node does not give, or have it again: only of a
 * user that does without it. */
void edge_give_up(struct edge *e);
void edge_have_again(struct edge *e);

/* Does @n pass the permissions that users want on to its file child
 * (graph.h)? */
static inline bool node_passes_perms(const struct node *n)
{
    return n->drv->is_filter || n->drv->passes_perms;
}

/* Give a new edge to the file child of such a node its permissions. */
void edge_inherit_perms(struct edge *e);

/* Put @e (filled in, except for the lists) on its child; or take it off. */
int edge_link(struct edge *e, struct error **errp);
void edge_unlink(struct edge *e);
/* Take the edge to a child off (NULL: none), with its reference to the child;
 * and put it back, without a check, or free it. */
struct edge *node_take_child(struct node *n, unsigned index);
void node_put_child(struct node *n, unsigned index, struct edge *e);
void edge_free(struct edge *e);

/* Tell requests inside that wait for anything other than I/O to go on, because
 * the tree is about to be locked for writing.  Control lock. */
void graph_begin_drain(struct tree *t);

struct tree *edge_enter(struct edge *e, bool nowait);

/* Enter a request of @b; *n is the node that it is attached to. */
struct tree *blk_enter(struct blk *b, struct node **n);

#endif /* NBDELTA_CORE_GRAPH_PRIV_H */
