/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_NODE_H
#define NBDELTA_CORE_NODE_H

/*
 * The inside of a node, and I/O from parent to child
 * =================================================
 *
 * node_*() I/O takes no tree lock: the caller is inside a request that came
 * through blk_*() (and holds the tree's lock for reading), or in a control
 * section that has drained the tree.
 */
#include <stdatomic.h>

#include "core/driver.h"
#include "core/flush.h"
#include "core/rangelock.h"
#include "nbdelta/blk.h"
#include "nbdelta/graph.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"

/*
 * The lock of a connected part of the graph.  Trees merge when an edge
 * connects them; the memory of a tree is recycled but not freed before the
 * graph is, so that a reader can lock first and look afterwards.
 */
struct tree {
    rwlock_t lock;
    _Atomic unsigned draining; /* how many want it for writing, or have it */
    _Atomic bool tried;        /* graph_settle is about to want it */

    /* Control lock. */
    struct list nodes; /* of struct node.in_tree */
    struct list in_graph;
    struct tree *next_free;
    struct tree *next_drained;
    bool drained;     /* the control section holds it for writing */
    uint64_t born_in; /* the section that made it; 0: others may be inside */
};

/* A parent's or a user's hold on a node. */
struct edge {
    struct node *child;
    struct node *parent;  /* NULL: it is a blk's */
    const char *role;     /* "file", "backing", "target", "root" */
    char *user;           /* for texts, of a blk: "export 'vda'" */
    unsigned perm;        /* enum perm */
    unsigned shared;      /* enum perm */
    bool may_grow;        /* wants PERM_RESIZE where it wants PERM_WRITE */
    bool gives_up;        /* of a blk: does without what an inactive node has
                             not, and has it again when the node is active */
    unsigned given_up;    /* enum perm: what that is now */
    bool inherits;        /* the child was opened by the parent's options */
    struct list on_child; /* in child->parents */
    struct tree *_Atomic tree;       /* of a blk: the child's */
    flush_mark seen;                 /* what the owner was told (flush.h) */
    struct throttle_group *throttle; /* of a blk, or NULL: changes in a drained
                                        tree */
};

/* What becomes of a write of nothing but zeroes. */
enum detect_zeroes { DETECT_OFF, DETECT_ON, DETECT_UNMAP };

/* What children inherit unless their own options say otherwise. */
struct node_flags {
    bool read_only;
    bool auto_read_only;   /* become read-only where writing is not possible */
    bool direct;           /* cache.direct */
    bool no_flush;         /* cache.no-flush */
    bool unmap;            /* discard=unmap */
    uint8_t detect_zeroes; /* enum detect_zeroes; not inherited */
    bool force_share;      /* do not take image locks that conflict */
    bool locking;          /* file: take image locks at all */
    bool inactive;         /* another process may write to the image
                              (core/activity.c); implies read_only */
    bool writes_later;     /* inactive, and writable when it is active */
};

/* Does the node, or will it when it is active, refuse to be written to? */
static inline bool node_flags_read_only(const struct node_flags *f)
{
    return f->read_only && !f->writes_later;
}
static inline void node_flags_set_read_only(struct node_flags *f)
{
    f->read_only = true;
    f->writes_later = false;
}
/* What it writes when it is active stays as it is. */
static inline void node_flags_set_active(struct node_flags *f, bool active)
{
    bool writes = !node_flags_read_only(f);

    f->inactive = !active;
    f->writes_later = writes && !active;
    f->read_only = !writes || !active;
}

/*
 * A guard for reads that a node leaves to its backing node, while the backing
 * node is about to change.  A range is *held* if the backing node has not
 * changed it yet; it will be copied up before it changes.  So bytes that were
 * held before and after they were read are true.  Bytes that are not held any
 * more are in the node itself by then: ask first, and then the node's map.
 */
struct read_guard {
    /* Is @offset held, and for how many bytes, at most to @end, is the answer
     * the same?  A range that is not held never is again.  0: all is lost
     * (-EIO). */
    uint64_t (*run)(const void *opaque, uint64_t offset, uint64_t end,
                    bool *held);
    const void *opaque;
};

struct node {
    /* --- Set at open, never changed. --- */
    const struct driver *drv;
    struct graph *graph;
    char *name;
    void *state; /* drv->state_size zeroed bytes */
    struct limits limits;
    struct node_flags flags;
    uint32_t cluster_size; /* of the format; 0: it has none */
    char *filename;        /* what a user would type to open it */
    char *image_backing;   /* backing file as the image names it, or NULL */
    char *image_backing_fmt;
    bool growable;             /* protocol: writes past the end extend it */
    bool probed;               /* the format was guessed from the content */
    bool implicit;             /* a job's filter that the user gave no name */
    bool only_read;            /* protocol: an image names it, and must not have
                                  it written to (policy.c) */
    struct node *preopened;    /* during open: the file child, for probing */
    const struct named *named; /* during open: what names the file */

    /* --- Tree lock. --- */
    struct edge *child[CHILD_MAX]; /* NULL where there is none */
    struct list bitmaps;           /* of struct bitmap.on_node (dirty.h) */
    struct bitmap *recording;      /* the first bitmap that records */
    bool blind; /* a filter that does not look at writes now: they pass, as if
                   its driver had no methods for them */
    const struct read_guard *guard; /* or NULL */

    /* --- Control lock. --- */
    struct list parents; /* of struct edge.on_child */
    json_t *options;     /* what it was opened with; NULL: by a job */
    struct list in_graph;
    struct list in_tree;
    unsigned refs;        /* edges, and one for the graph (graph_open) */
    bool monitor_owned;   /* the graph's reference is there */
    bool opened;          /* drv->open has succeeded */
    bool visited;         /* scratch of walks */
    bool bitmaps_changed; /* persistent ones, and not stored yet */
    unsigned job_count;   /* jobs that work on it (blocker.h) */
    const char *job_type; /* of the last job */
    unsigned open_depth;  /* during open: images stacked above */

    /* --- Own lock. --- */
    struct range_lock rmw; /* requests while limits.align > 1 */
    struct flushes flushes;

    /* --- Atomic. --- */
    _Atomic uint64_t size;
    _Atomic uint64_t highest;   /* end of what was ever written */
    _Atomic uint64_t threshold; /* tell of a write past it; 0: of none */
    _Atomic uint64_t noted;     /* see threshold.c */
    struct tree *_Atomic tree;
    _Atomic bool bitmaps_doubt; /* what the image says of its bitmaps may not
                                   do: no data change before the driver has
                                   healed them */
};

/*
 * Enter a request: lock the tree of @n for reading.  With @nowait, NULL instead
 * of waiting for a drain.  A request must not enter twice.
 */
struct tree *node_enter(struct node *n, bool nowait);
void node_leave(struct tree *t);

/* In a request: is a drain coming, so that it must not wait for permission? */
static inline bool node_is_draining(const struct node *n)
{
    return atomic_load(&atomic_load(&n->tree)->draining) > 0;
}

/* A filter whose driver does not want to see what changes the disk. */
static inline bool node_passes_writes(const struct node *n)
{
    return n->drv->is_filter && (n->blind || !n->drv->pwritev);
}

/*
 * How far this thread's request of a user (blk_*) has come.  A request that has
 * changed a part of its range, and not all of it, keeps the tree until it has
 * done the rest.  A point in time begins in a drain, so it has the request
 * whole or not at all.
 */
enum node_progress {
    PROGRESS_NONE, /* it is no user's: what it does by half harms nothing */
    PROGRESS_UNTOUCHED, /* nothing has changed yet */
    PROGRESS_CHANGED,
};
extern _Thread_local enum node_progress node_progress;

/* Say that a part of the request is done, and that there is more. */
static inline void node_request_changed(void)
{
    if (node_progress == PROGRESS_UNTOUCHED) {
        node_progress = PROGRESS_CHANGED;
    }
}

/* In a request that waits for another one: shall it leave the tree to a drain,
 * with -ERESTART?  A request that has begun to change something goes on
 * waiting, so the wait has to have a limit. */
static inline bool node_shall_restart(const struct node *n)
{
    return node_is_draining(n) && node_progress != PROGRESS_CHANGED;
}

/* Once the flag is set, nobody wants the requests of this thread any more: they
 * wait for nothing except I/O, and fail.  I/O across a network ends soon, even
 * at the price of the connection.  NULL: the requests are wanted.  Code that
 * waits in such a request looks at the flag every now and then; after
 * graph_wake_waiting() it looks at once. */
extern _Thread_local const _Atomic bool *node_unwanted;

static inline bool node_is_unwanted(void)
{
    return node_unwanted && atomic_load(node_unwanted);
}

/* Is the caller a control section that has drained the tree, and not a request?
 * Then no request can come and end what it waits for. */
static inline bool node_is_drained(const struct node *n)
{
    return atomic_load(&n->tree)->drained;
}

static inline struct node *node_child(const struct node *n, unsigned i)
{
    return n->child[i] ? n->child[i]->child : NULL;
}

/* Has the image a backing file, or may it have one when it is opened again?
 * Then unallocated clusters need not read as zeroes for good. */
static inline bool node_may_have_backing(const struct node *n)
{
    return n->child[CHILD_BACKING] || n->image_backing;
}

/* --- For open methods (control section). --- */

/*
 * Open or find the child that @opts names under @key ("file") and attach it
 * as child[@index]; its bytes may be read, and written where this node is
 * writable; @grow lets writes extend it (resizing needs no more).  -EINVAL when
 * the key is missing.
 */
int node_open_child(struct node *n, struct opts *opts, const char *key,
                    unsigned index, bool grow, struct error **errp);

/*
 * Open or find the file that holds the data of an image, and attach it as
 * child[CHILD_DATA]; the metadata are in child[CHILD_FILE].  It is what @opts
 * names under "data-file", else the file @named by the image (or NULL), by way
 * of the policy.  No child, and 0, in a graph that opens none
 * (graph_without_data).
 */
int node_open_data(struct node *n, struct opts *opts, const char *named,
                   struct error **errp);

/* --- I/O; flags are enum req_flags.  See blk.h for errors. --- */

int node_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                const struct iovec *iov, int iovcnt, unsigned flags);
int node_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                 const struct iovec *iov, int iovcnt, unsigned flags);
int node_zero(struct node *n, uint64_t offset, uint64_t bytes, unsigned flags);
/* Whole clusters, by a driver that has write_compressed. */
int node_write_compressed(struct node *n, const void *buf, uint64_t bytes,
                          uint64_t offset);
/*
 * Have a range of @n share the bytes that @from has @at: as if they were
 * written, and no byte moves.  After an error anything may be in the range, and
 * the caller reads and writes instead.  -ENOTSUP: these two cannot share, or
 * not this range.
 */
int node_clone(struct node *n, uint64_t offset, uint64_t bytes,
               struct node *from, uint64_t at);
int node_discard(struct node *n, uint64_t offset, uint64_t bytes);
/* node_discard() in spite of the node's discard option. */
int node_give_back(struct node *n, uint64_t offset, uint64_t bytes);
/* For a caller who has no edge of its own; others: edge_flush(). */
int node_flush(struct node *n);
int node_prefetch(struct node *n, uint64_t offset, uint64_t bytes);

/* With one flat buffer. */
int node_pread(struct node *n, void *buf, uint64_t bytes, uint64_t offset,
               unsigned flags);
int node_pwrite(struct node *n, const void *buf, uint64_t bytes,
                uint64_t offset, unsigned flags);

/* map of this layer alone, filters passed; put it back with node_map_put after
 * success.  m->file and m->host are then of @n's file child, or of the child
 * that has its data. */
int node_map(struct node *n, uint64_t offset, uint64_t bytes, unsigned flags,
             struct mapping *m);
void node_map_put(struct node *n, struct mapping *m);

/* Walk all layers, as blk_extents(). */
int node_extents(struct node *n, uint64_t offset, uint64_t bytes,
                 unsigned flags, extent_fn *fn, void *opaque);

/* Resize in a drained section: driver, size, bitmaps, and the nodes above. */
int node_resize(struct node *n, uint64_t size, struct error **errp);

/* The file child of @n has another size, or is another node: drained. */
void node_follow_size(struct node *n);

/* May @n become smaller?  -EBUSY: a job works on it, or on a node above that
 * has the same size. */
int node_check_shrink(const struct node *n, struct error **errp);

/* Note that a write up to @end is about to happen (threshold.c). */
void node_note_write_past(struct node *n, uint64_t end);
static inline void node_note_write(struct node *n, uint64_t end)
{
    if (end > atomic_load_explicit(&n->noted, memory_order_relaxed)) {
        node_note_write_past(n, end);
    }
}

/* For drivers: tell whom graph_on_size() has named, with any locks. */
void node_tell_size(const struct node *n);

/* For drivers: tell whom graph_on_corruption() has named. */
void node_tell_corruption(const struct node *n, const struct corruption *c);

/* @n or, if it is a filter, the first node below that is none; NULL is fine. */
static inline struct node *node_skip_filters(const struct node *n)
{
    while (n && n->drv->is_filter) {
        n = node_child(n, CHILD_FILE);
    }
    return (struct node *)(uintptr_t)n;
}

/* @n or, if it is a filter of a job, which takes it away at its end, the first
 * node below that is none. */
static inline struct node *node_skip_job_filters(struct node *n)
{
    while (n && !n->options && n->drv->is_filter && node_child(n, CHILD_FILE)) {
        n = node_child(n, CHILD_FILE);
    }
    return n;
}

/* Cut @bytes to what is alike for the guard of @n; true: it is held. */
static inline bool node_guard(const struct node *n, uint64_t offset,
                              uint64_t *bytes)
{
    bool held = false;

    if (n->guard) {
        *bytes = n->guard->run(n->guard->opaque, offset, offset + *bytes,
                               &held);
    }
    return held;
}

/* Is the range, which was held, still held?  Then the bytes that were read are
 * true. */
static inline bool node_guard_holds(const struct node *n, uint64_t offset,
                                    uint64_t bytes)
{
    uint64_t len = bytes;

    return node_guard(n, offset, &len) && len == bytes;
}

#endif /* NBDELTA_CORE_NODE_H */
