/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_GRAPH_H
#define NBDELTA_GRAPH_H

/*
 * The graph: nodes with names, opened, found, drained and closed
 * =============================================================
 *
 * Opening and closing may be called from any thread at any time.  They
 * block, and while they attach to a node that is in use they hold back the
 * requests of its tree for that moment.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "nbdelta/types.h"

/* --- drivers/table.c --- */

struct graph *graph_new(void);

/* --- core/graph.c --- */

/* graph_close_all closes all nodes that are left, flushed, users before the
 * nodes that they use; it blocks.  graph_free does that and frees the graph.
 * Free all blks before.  NULL is fine. */
void graph_close_all(struct graph *g);
void graph_free(struct graph *g);
static inline void graph_cleanup(struct graph **g)
{
    graph_free(*g);
}
#define CLEANUP_GRAPH __attribute__((cleanup(graph_cleanup)))

/* --- core/policy.c --- */

/*
 * The implicit-open policy.  An image may be hostile: the name of a file
 * *inside* of it is followed only as far as this says, with links resolved.
 * Children that the options name explicitly are not restricted.
 */
enum graph_follow {
    /* Regular files in the directory of that image and below; a data file
     * there is written to only if it belongs to the owner of the image.  (A
     * device has no directory of its own.) */
    FOLLOW_BESIDE,
    FOLLOW_DATA, /* the same, and data files of any owner are written to */
    FOLLOW_NONE, /* no file that an image names is opened */
};
void graph_follow(struct graph *g, enum graph_follow how);

/* Whatever graph_follow says, also follow names to the file @path or, if it is
 * a directory, to all files and devices below it.  Errors are those of
 * realpath(3). */
int graph_allow_path(struct graph *g, const char *path, struct error **errp);

/* For programs that only look at headers: data files of images are not opened.
 * Requests for data in them then fail with -ENOMEDIUM. */
void graph_without_data(struct graph *g);

/* For the same programs: bitmaps of read-only images are not loaded.  Queries
 * of an image tell what its bitmap directory says; its node has no bitmaps. */
void graph_without_bitmaps(struct graph *g);

/* --- core/graph.c --- */

/* An image was found to contradict itself. */
struct corruption {
    const char *node;
    const char *text; /* what is wrong: one phrase */
    bool placed;      /* where in its file is known: */
    uint64_t offset;
    uint64_t bytes;
    bool fatal; /* the node is written no more; else it was read only */
};

/* Call @fn for each from now on, once a node.  It is called from any thread,
 * with any locks: it must not wait, and must not call the library.  Call this
 * before there are nodes. */
typedef void corruption_fn(const struct corruption *c, void *opaque);
void graph_on_corruption(struct graph *g, corruption_fn *fn, void *opaque);

/* --- core/threshold.c --- */

/*
 * Tell, once, of the next write to @n that ends past the offset @threshold
 * (bytes); 0: of none.  A node below an image is written where the image puts
 * its clusters, so this says that the image has grown.  Takes no lock, and
 * waits for nothing.
 */
void node_set_threshold(struct node *n, uint64_t threshold);

/* Call @fn when a write goes @exceeded bytes past the threshold of the node
 * named @node.  The rules are those of graph_on_corruption. */
typedef void threshold_fn(const char *node, uint64_t threshold,
                          uint64_t exceeded, void *opaque);
void graph_on_threshold(struct graph *g, threshold_fn *fn, void *opaque);

/* --- core/follow.c --- */

/* Call @fn when another client may have changed the size of the image of the
 * node named @node.  The rules are those of graph_on_corruption. */
typedef void size_fn(const char *node, void *opaque);
void graph_on_size(struct graph *g, size_fn *fn, void *opaque);

/* Have that node, and the ones above that show it, have the size of the image.
 * Nothing happens when they have, or the node has gone.  -EBUSY: a job works on
 * it, and it keeps the old size.  Not in a control section; it drains, so
 * graph_settle() first; it blocks for as long as the image's storage does. */
int graph_follow_size(struct graph *g, const char *name, struct error **errp);

/* --- core/open.c --- */

/*
 * Open a tree of nodes from options of blockdev-add's shape.  Keys of every
 * node: driver, node-name, active, read-only, auto-read-only, discard,
 * cache.direct, cache.no-flush, detect-zeroes, force-share.  A child is an
 * object, the name of an existing node or, for a backing file that shall not be
 * opened, null. The new node *nodep belongs to the graph until graph_close().
 *
 * -EINVAL: a bad option; it is named in @errp.  -EEXIST: the node name is
 * taken.  -EAGAIN: another process holds the image's lock.  -EACCES, -ENOENT
 * and others come from opening the file.  -EPERM: the implicit-open policy
 * refuses a file.  -ENOTSUP: the image has a feature that we lack.  -EUCLEAN:
 * the image is damaged.
 */
int graph_open(struct graph *g, const json_t *options, struct node **nodep,
               struct error **errp);

/* Undo graph_open: close @n and the children that only @n uses.  Blocks.
 * -EBUSY: @n is in use. */
int graph_close(struct graph *g, struct node *n, struct error **errp);

/* Could graph_close() close @n if @users of its users, with all views of the
 * node's bitmaps, were gone?  0, or the error of graph_close(). */
int graph_check_close(struct graph *g, const struct node *n, unsigned users,
                      struct error **errp);

/* Undo graph_open, also while @n is in use: its users keep it alive.  @n may be
 * a filter that a job has put above the node. */
void graph_forget(struct graph *g, struct node *n);

/* --- core/reopen-options.c --- */

/*
 * Change the options of open nodes.  @list is an array of objects as graph_open
 * takes them, each with the "node-name" of a node.  They are complete: an
 * option that is not given returns to its default.  Children that a node has
 * opened itself can be changed with it; "file" and "backing" can become other
 * nodes, by name, and "backing" can become null.  All changes happen or, on an
 * error, none.  Drains, so it blocks. -EINVAL: an option that cannot be
 * changed; -EBUSY, -EACCES: permissions.
 */
int graph_reopen(struct graph *g, const json_t *list, struct error **errp);

/* --- core/activity.c --- */

/*
 * Have the node @name (NULL: all nodes), with its children, be inactive, so
 * that another process may write to its image; or active again.  An inactive
 * node is read-only, and its files have no locks; what it had in memory is
 * durable, and its persistent bitmaps are in the image and not on the node.
 * When it is active it has read the image anew.  Children that have another
 * active parent stay active.
 *
 * All nodes change, or none.  Drains, so it blocks.  -EPERM: an active parent,
 * or a user that needs to write (and was not made with PERM_GIVES_UP); -EBUSY:
 * a bitmap is in use; -EAGAIN: another process has the image's lock; other
 * errors come from what is written back or read.
 */
int graph_set_active(struct graph *g, const char *name, bool active,
                     struct error **errp);

/* --- core/graph.c, core/yank.c, core/salvage.c --- */

/* The process is about to end.  Requests of any node that wait for something
 * that may never come (a connection) fail after a second, and so do later ones.
 * Requests that only wait for their time (throttle) or to be resumed (blkdebug)
 * go on.  Takes the control lock. */
void graph_give_up(struct graph *g);

/* The part of graph_give_up for nodes that wait for a server.  It takes no lock
 * of the graph, so nobody can hold it up.  Opens that wait for a server fail.
 */
void graph_stop_waiting(struct graph *g);

/*
 * The process is about to end, and threads in it are stuck in storage that
 * hangs.  Flush and close all nodes that answer within @limit_ns, also those in
 * use, and call @given_up with the names of the other nodes.  Do nothing with
 * the graph afterwards, and do not free it: trees stay locked.
 */
void graph_salvage(struct graph *g, uint64_t limit_ns,
                   void (*given_up)(const char *name, void *opaque),
                   void *opaque);

/* --- core/graph.c --- */

/* A node by its name, or NULL.  The pointer lives until the node is closed.
 * Hold the monitor lock (job.h) unless something else rules that out. */
struct node *graph_find(struct graph *g, const char *name);

/* A reference keeps the node open, whatever else happens to it; meanwhile
 * graph_close() says that it is in use.  Take the first one while something
 * else keeps it. */
void graph_ref(struct graph *g, struct node *n);
void graph_unref(struct graph *g, struct node *n);

/* Visit all nodes, oldest first; non-zero from @fn stops and is returned.
 * No lock is held during @fn, and the same rule as for graph_find holds. */
int graph_each(struct graph *g, int (*fn)(struct node *n, void *opaque),
               void *opaque);

/*
 * Control sections.  graph_lock() admits one thread.  graph_drain() then
 * waits until no request is inside @n's tree and holds new ones back, until
 * graph_unlock().  Several trees may be drained: that is one point in time.
 * Do no blk_*() I/O inside: it would wait for the end of the section.
 */
void graph_lock(struct graph *g);
void graph_drain(struct graph *g, struct node *n);
void graph_unlock(struct graph *g);

/*
 * Wait until the tree of the node @name can be drained.  Call it before a drain
 * under locks that others need: it holds no lock for long, so requests that
 * hang hold up its caller and nobody else.  Requests that wait for anything
 * except I/O are woken, as by a drain.  0 also if there is no such node.
 * -ETIMEDOUT after @limit_ns, with a text that names the node.
 *
 * graph_settle_match takes the first node for which @fn returns true.  @fn is
 * called under the control lock.
 */
int graph_settle(struct graph *g, const char *name, uint64_t limit_ns,
                 struct error **errp);
typedef bool node_match_fn(const struct node *n, void *opaque);
int graph_settle_match(struct graph *g, node_match_fn *fn, void *opaque,
                       uint64_t limit_ns, struct error **errp);

/* Facts of one node. */
const char *node_name(const struct node *n);
const char *node_driver(const struct node *n); /* "qcow2", "file", ... */
uint64_t node_size(const struct node *n);      /* bytes */
bool node_read_only(const struct node *n);     /* also while it is inactive: is
                                                  it, when it is active? */
bool node_active(const struct node *n);

/* The cluster size of the image, in bytes; 0: the format has no clusters. */
uint32_t node_cluster_size(const struct node *n);

/* The bytes that the files of the image, without its backing file, take on
 * their disks.  False: that is unknown, as for an export. */
bool node_disk_bytes(struct graph *g, const struct node *n, uint64_t *bytes);

/* The node's file name, or "json:" options if no file name describes the node.
 * Lives as long as the node. */
const char *node_filename(const struct node *n);

/* Is nobody else at the bytes of @n?  Locks of files say so when they are
 * opened; this asks storage that has none.  -EBUSY: somebody has them open, and
 * not just for reading.  Nobody changes the graph meanwhile.  Blocks. */
int node_check_alone(struct node *n, struct error **errp);

/* The backing node, or NULL. */
struct node *node_backing(const struct node *n);

/* --- core/query.c, core/stats.c, core/graph-query.c --- */

/* BlockDeviceInfo as in query-named-block-nodes: "node-name", "drv",
 * "file", "ro", "image", "dirty-bitmaps", ...  A new reference. */
json_t *node_query(struct graph *g, struct node *n);

/* BlockStats as in query-blockstats with query-nodes.  A new reference. */
json_t *node_query_stats(struct graph *g, struct node *n);

/* ImageInfo as `qemu-img info --output json` prints it: "filename",
 * "format", "virtual-size", "actual-size", "cluster-size",
 * "backing-filename", "format-specific", ...  A new reference. */
json_t *node_image_info(struct graph *g, struct node *n);

/* XDbgBlockGraph: all nodes, users and edges.  A new reference. */
json_t *graph_query(struct graph *g);

/* --- drivers/table.c --- */

/* Names of all drivers, NULL-terminated, in alphabetical order. */
const char *const *graph_driver_names(void);

#endif /* NBDELTA_GRAPH_H */
