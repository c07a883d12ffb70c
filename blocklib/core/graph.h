/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_GRAPH_H
#define NBDELTA_CORE_GRAPH_H

/*
 * Changing the graph, for core and jobs.  All of it happens inside graph_lock()
 * ... graph_unlock().  Functions that change edges drain the trees that they
 * touch (and leave them drained until graph_unlock()).
 */
#include "core/node.h"

/* --- graph.c --- */

/* A graph for nodes of the drivers @t.  NULL: no memory. */
struct graph *graph_new_with(const struct driver_table *t);
const struct driver_table *graph_drivers(const struct graph *g);

/* --- open.c, graph.c --- */

/* graph_open and graph_close without their own section.  node_unref closes
 * a node, and then its children, when the last reference goes. */
int graph_open_locked(struct graph *g, const json_t *options,
                      struct node **nodep, struct error **errp);
/* The same, without the backing file that the image names. */
int graph_open_alone(struct graph *g, const json_t *options,
                     struct node **nodep, struct error **errp);
/* Open the backing file that the image names, where none is open, and attach
 * it.  Drained. */
int node_open_backing(struct node *n, struct error **errp);
void node_ref(struct node *n);
void node_unref(struct node *n);

/*
 * Make a node of @drv that no options describe (a job's filter), without
 * children, with the size of @like.  @name NULL: a generated one ("#block12").
 * The caller has its only reference.
 */
int node_new(struct graph *g, const struct driver *drv, const char *name,
             struct node *like, struct node **nodep, struct error **errp);

/* Attach @child to @n.  -EBUSY on conflicting permissions.  The file child of
 * a node that passes permissions on gets those instead of @perm, @shared. */
int node_attach(struct node *n, unsigned index, struct node *child,
                const char *role, unsigned perm, unsigned shared,
                struct error **errp);
void node_detach(struct node *n, unsigned index);

/* Point all parents and users of @from to @to, except parents that are @to or
 * below it. */
void node_replace(struct node *from, struct node *to);

/* --- perm.c, graph.c --- */

/*
 * Filters, and formats that say so, want of their file child what their parents
 * want of them: nothing while they have none.  node_check_perms: does what @n's
 * parents want conflict with a user below?  -EBUSY, -EACCES.
 * node_hand_down_perms: give the permissions to the edges below, after a change
 * that was checked.
 */
int node_check_perms(const struct node *n, struct error **errp);
void node_hand_down_perms(struct node *n);

/* Could node_replace() be done?  -EBUSY on conflicting permissions, -EACCES if
 * @to is read-only and a user writes. */
int node_check_replace(const struct node *from, const struct node *to,
                       struct error **errp);

/* Refresh what the nodes above @n have from it: their limits, and the size of
 * nodes that have the size of their file child. */
void node_refresh_above(struct node *n);

/* Compute n->limits anew after its children have changed. */
void node_refresh_limits(struct node *n);

/* Set whether writes past the end extend @n: a protocol, or a filter over one,
 * which lets such writes through. */
void node_set_growable(struct node *n, bool growable);

/* Have requests in and below @n that wait for anything other than I/O look
 * again whether they shall wait.  Takes the control lock, and drains
 * nothing. */
void graph_wake_waiting(struct graph *g, struct node *n);

/*
 * graph_lock() and graph_drain(), for threads that nobody else has to wait for:
 * requests that hang in @n's tree hold up the caller, and no other section.
 * The caller has a reference to @n.  -ECANCELED: no section has begun, because
 * node_is_unwanted().
 */
int graph_lock_drained(struct graph *g, struct node *n);

/* Is @n below @top, or @top itself? */
bool node_is_below(const struct node *top, const struct node *n);

/* Would a write to @top be one to @n? */
bool node_writes_to(const struct node *top, const struct node *n);

/* --- policy.c --- */

struct door;

/* The image that names a file, and what for. */
struct named {
    const struct node *image;
    bool data; /* an external data file, else a backing file */
};

/*
 * Find the file at @path (as the kernel takes it) that an image names, if the
 * policy allows to open it.  On success the caller has @d to close; *only_read:
 * it may never be written to.  -EPERM, with the path and what would allow it.
 */
int policy_find(const struct named *by, const char *path, bool writable,
                struct door *d, bool *only_read, struct error **errp);

/* The node below @n, or @n itself, that holds the bytes. */
const struct node *node_at_bottom(const struct node *n);

/* @named relative to the directory of @image; malloc()ed. */
char *path_beside(const char *image, const char *named);

/* Does the graph leave bitmaps alone (graph_without_bitmaps)? */
bool graph_is_without_bitmaps(const struct graph *g);

#endif /* NBDELTA_CORE_GRAPH_H */
