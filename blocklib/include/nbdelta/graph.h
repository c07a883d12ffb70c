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

/* Close what is left (nodes flushed, in order), and free.  No blk may be
 * left.  NULL is fine. */
void graph_close_all(struct graph *g);
void graph_free(struct graph *g);

/* --- core/policy.c --- */

/*
 * The implicit-open policy.  An image is hostile: the name of a file *inside*
 * of it is followed only as far as is said here, links resolved.  Children
 * that the options name explicitly are not restricted.
 */
enum graph_follow {
    /* Regular files in the directory of that image and below; a data file
     * there is written to only if it belongs to the owner of the image.  (A
     * device has no directory of its own.) */
    FOLLOW_BESIDE,
    FOLLOW_DATA, /* data files of others there are written to, too */
    FOLLOW_NONE,
};
void graph_follow(struct graph *g, enum graph_follow how);

/* Whatever @how: also the file @path, or all that is below the directory,
 * devices, too. */
int graph_allow_path(struct graph *g, const char *path, struct error **errp);

/* For those who only look at headers: data files of images are not opened.
 * Data in them then answer with -ENOMEDIUM. */
void graph_without_data(struct graph *g);

/* Nor are the bitmaps of images that are read-only loaded: images tell what
 * their directories say, and nodes have none. */
void graph_without_bitmaps(struct graph *g);

/* --- core/open.c --- */

/*
 * Open a tree of nodes from options of blockdev-add's shape.  Keys of every
 * node: driver, node-name, read-only, auto-read-only, discard, cache.direct,
 * cache.no-flush, detect-zeroes, force-share.  Children are
 * objects, names of existing nodes, or (backing) null for none.
 * The new node *nodep belongs to the graph until graph_close().
 *
 * -EINVAL: a bad option; it is named in @errp.  -EEXIST: the node name is
 * taken.  -EAGAIN: another process holds the image's lock.  -EACCES, -ENOENT
 * and the like from the file.  -EPERM: refused by the implicit-open policy.
 * -ENOTSUP: a feature of the image that we lack.  -EUCLEAN: the image is
 * damaged.
 */
int graph_open(struct graph *g, const json_t *options, struct node **nodep,
               struct error **errp);

/* Undo graph_open: close @n and the children that only it uses.
 * -EBUSY when something else uses it. */
int graph_close(struct graph *g, struct node *n, struct error **errp);

/* Undo graph_open, also while others use @n, who keep it alive.  @n may be a
 * filter that a job has put above. */
void graph_forget(struct graph *g, struct node *n);

/* --- core/reopen-options.c --- */

/*
 * Change the options of open nodes: @list is an array of objects as graph_open
 * takes them, complete (what is not given returns to its default), each with
 * the "node-name" of a node.  Children that a node has opened itself can be
 * changed with it; "file" and "backing" can become other nodes, by name, and
 * "backing" null.  All of it happens or, on an error, nothing.
 * -EINVAL: an option that cannot be changed; -EBUSY, -EACCES: permissions.
 */
int graph_reopen(struct graph *g, const json_t *list, struct error **errp);

/* --- core/graph.c, core/yank.c, core/salvage.c --- */

/* All is about to end: requests of any node that wait for what may never come
 * (a connection) fail after a second, and so do later ones; those that only
 * wait for their time (throttle) or for somebody's word (blkdebug) go on.
 * Takes the control lock. */
void graph_give_up(struct graph *g);

/* The part of it that nobody can hold up, for nodes that wait for a server:
 * takes no lock of the graph.  Opens that wait for one fail. */
void graph_stop_waiting(struct graph *g);

/*
 * The process is about to end, and threads in it are stuck in storage that
 * hangs: flush and close all that answers, within @limit_ns, whoever uses it,
 * and tell the names of the other nodes.  Nothing can be done with the graph
 * any more, not even be freed: trees stay locked.
 */
void graph_salvage(struct graph *g, uint64_t limit_ns,
                   void (*given_up)(const char *name, void *opaque),
                   void *opaque);

/* --- core/graph.c --- */

/* A node by its name, or NULL.  The pointer lives until the node is closed;
 * a caller who does not rule that out holds the monitor lock (job.h). */
struct node *graph_find(struct graph *g, const char *name);

/* Visit all nodes, oldest first; non-zero from @fn stops and is returned.
 * No lock is held during @fn, and the same rule as for graph_find holds. */
int graph_each(struct graph *g, int (*fn)(struct node *n, void *opaque),
               void *opaque);

/*
 * Control sections.  graph_lock() admits one thread.  graph_drain() then
 * waits until no request is inside @n's tree and holds new ones back, until
 * graph_unlock().  Several trees may be drained: that is one point in time.
 * Inside, no blk_*() I/O: it would wait for ourselves.
 */
void graph_lock(struct graph *g);
void graph_drain(struct graph *g, struct node *n);
void graph_unlock(struct graph *g);

/*
 * Wait until the tree of the node @name can be drained, with no lock held for
 * long meanwhile: requests that hang hold up who calls this, and nobody else.
 * For those who are about to drain it under locks that others need.
 * -ETIMEDOUT after @limit_ns, with a text that names the node.  0 also where
 * there is no such node.  Requests that wait for anything but I/O are woken,
 * as by a drain.  graph_settle_match: the first node that @fn, called under
 * the control lock, says is meant.
 */
int graph_settle(struct graph *g, const char *name, uint64_t limit_ns,
                 struct error **errp);
typedef bool node_match_fn(const struct node *n, void *opaque);
int graph_settle_match(struct graph *g, node_match_fn *fn, void *opaque,
                       uint64_t limit_ns, struct error **errp);

/* Facts of one node. */
const char *node_name(const struct node *n);
const char *node_driver(const struct node *n); /* "qcow2", "file", ... */
uint64_t node_size(const struct node *n);
bool node_read_only(const struct node *n);

/* The cluster size of the image; 0: the format has no clusters. */
uint32_t node_cluster_size(const struct node *n);

/* What the files of the image (not of its backing file) take on their disks.
 * False: nobody knows, as of an export. */
bool node_disk_bytes(struct graph *g, const struct node *n, uint64_t *bytes);

/* The node's file name, or JSON options where no name can tell it.
 * Lives as long as the node. */
const char *node_filename(const struct node *n);

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
