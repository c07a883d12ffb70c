/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NBD_EXPORT_H
#define NBDELTA_SERVER_NBD_EXPORT_H

/*
 * Exports: what NBD clients can open, by name
 * ===========================================
 *
 * The set has a reference to an export, and so has each connection that uses
 * it.  Removing gives up the set's reference: new clients do not find the
 * export any more.  When the last connection has gone, exports_collect()
 * deletes it, under the monitor lock.
 *
 * NAME@dirty=BITMAP is a view of the export NAME: the ranges that BITMAP, which
 * NAME offers, has dirty.  NAME@snapshot=SNAP is one, too: the disk as an
 * internal snapshot of its image has it.  Views are not listed.  Only the
 * client that has asked for one finds it, and it goes with NAME.  A view has a
 * node, and copies bits or reads tables, only after it was opened: a client
 * that asks about one costs nothing.
 */
#include <jansson.h>

#include "log/log.h"
#include "nbd/pool.h"
#include "nbdelta/job.h"
#include "nbdelta/list.h"

struct blk;
struct bitmap;
struct daemon;
struct error;
struct graph;
struct node;
struct exports;

struct tls_policy;

/* A rule lets a client in that @authz (NULL: all) allows, and that has done
 * what @policy (NULL: nothing) asks for.  Clients that @authz_writable (NULL:
 * all) allows, too, may write. */
struct export_rule {
    struct tls_policy *policy; /* with a reference */
    char *authz;
    char *authz_writable;
};

/* A client may open an export when one of its rules lets it in. */
struct export_rules {
    struct export_rule *at;
    unsigned count;
};

/* Add a rule.  The strings are copied; NULL is fine.  -ENOMEM. */
int export_rules_add(struct export_rules *rs, struct tls_policy *policy,
                     const char *authz, const char *authz_writable);
void export_rules_free(struct export_rules *rs);

struct export_options {
    uint64_t server;         /* its clients can open it (server_serial) */
    const char *server_id;   /* name of the server; NULL: it has none */
    const char *id;          /* for block-export-*; unique */
    const char *name;        /* on the wire; unique in its server */
    const char *description; /* or NULL */
    struct node *node;
    bool writable;
    bool writethrough;     /* each write is durable before it is answered */
    bool allocation_depth; /* offer the context qemu:allocation-depth */
    bool all_bitmaps;      /* offer the bitmaps that the node has then */
    bool is_default;       /* answers to the name "", too, if it is first */
    bool of_backup;        /* not a disk: no command takes it for a device */
    bool allow_inactive;   /* clients may only read while the node is */
    const char *authz;     /* authorization to open it; NULL: for all */
    const char *authz_writable; /* and to write, beside that */
    /* In place of these two, if there are any: the rules of the export that it
     * is derived from. */
    const struct export_rules *rules;
};

struct export_bitmap {
    struct bitmap *bitmap;
    char *name; /* of its context, behind "qemu:dirty-bitmap:" */
};

struct export
{
    /* Set at creation. */
    uint64_t server;
    char *server_id; /* or NULL */
    char *id;
    char *name;
    char *description;   /* or NULL */
    struct blk *blk;     /* of a view: NULL until it is opened */
    struct share *share; /* of the pool; a view has the share of its disk */
    bool writable;
    bool writethrough;
    bool allocation_depth;
    bool all_bitmaps;
    bool is_default;
    bool of_backup;
    struct export_rules rules; /* of a view: the rules of `of` hold */
    uint64_t serial;           /* not 0; no other export has or had it */
    struct export *of;        /* what a view shows, with a reference; or NULL */
    struct bitmap *of_bitmap; /* with a reference, or NULL */
    char *of_snapshot;        /* as blk_snapshot_view() takes it, or NULL */
    uint64_t of_size;         /* bytes of the snapshot's disk */

    /* Set before clients can find the export: bitmaps that it holds and offers.
     */
    struct export_bitmap *bitmaps;
    unsigned bitmap_count;

    /* Guarded by the log. */
    struct log_limit io_errors;
    struct log_limit refusals;
    struct log_limit ignored; /* trims */

    /* Guarded by the lock of the set. */
    struct list in_set;
    unsigned refs;
    unsigned visits; /* of exports_each: they keep the export, too */
    bool stuck;      /* its disk could not be drained, for it to end */
    bool ending;     /* it is about to be deleted: no more visits */
    bool removed;
    uint64_t idle_since; /* now_ns() when its last client went */
};

/* The set of @d, which has a graph now, and jobs before exports_start().  @emit
 * is called under the monitor lock, as the function of jobs_new() is.  NULL: no
 * memory. */
struct exports *exports_new(struct daemon *d, job_event_fn *emit, void *opaque);
void exports_free(struct exports *s); /* no connection is left; NULL is fine */

/* Call @fn when storage fails a client's request to @e, a disk, with @error
 * (positive).  It is called from any thread, with any locks, and must not wait.
 * Set it before there are clients. */
typedef void export_error_fn(const struct export *e, bool is_read, int error,
                             void *opaque);
void exports_on_error(struct exports *s, export_error_fn *fn, void *opaque);
void export_tell_error(const struct exports *s, const struct export *e,
                       bool is_read, int error);

/* -EEXIST: there is an export with this id. */
int exports_check_id(struct exports *s, const char *id, struct error **errp);

/* Make an export that no client finds yet.  -EEXIST: the id or the name is
 * taken. */
int export_new(struct exports *s, const struct export_options *o,
               struct export **ep, struct error **errp);

/* Offer the bitmap @name of @n, or of a node below (bitmap_hold), under the
 * name @as.  -EEXIST: another bitmap has that name in this export. */
int export_add_bitmap_as(struct exports *s, struct export *e, struct node *n,
                         const char *name, bool below, const char *as,
                         struct error **errp);

/* The same under its own name. */
static inline int export_add_bitmap(struct exports *s, struct export *e,
                                    struct node *n, const char *name,
                                    bool below, struct error **errp)
{
    return export_add_bitmap_as(s, e, n, name, below, name, errp);
}

/* Let clients find @e from now on; or drop it, because it is not wanted.  Both
 * take @e. */
void export_publish(struct exports *s, struct export *e);
void export_drop(struct exports *s, struct export *e);

/* Tell the log that @e is there. */
void export_tell(const struct export *e);

/*
 * The export of @server with this name, with a reference; NULL: there is none.
 * A view is made anew each time, and is not open.  When @may_open says no of
 * the export that it would show, no view is made, and that export is returned.
 */
typedef bool may_open_fn(const struct export *e, void *opaque);
struct export *exports_find(struct exports *s, uint64_t server,
                            const char *name, may_open_fn *may_open,
                            void *opaque);
/* Open a view, once; errors as of blk_dirty_view() and blk_snapshot_view(). */
int export_open_view(struct exports *s, struct export *e, struct error **errp);

/* Does each open of @e show the same at a time, also as a view? */
bool export_is_one_disk(const struct export *e);

/* The disk that @e shows, also when @e is a view that is not open: for its
 * limits; and its size, in bytes. */
struct blk *export_disk(const struct export *e);
uint64_t export_size(const struct export *e);

/* The export with this id, with a reference; NULL: there is none. */
struct export *exports_find_id(struct exports *s, const char *id);
void export_unref(struct exports *s, struct export *e); /* NULL is fine */

/* Let no new clients find the export.  -ENOENT; -EALREADY: it was removed
 * before; with @safe -EBUSY: it has clients.  *ep is the export, with a
 * reference: the caller has to tell its clients to go. */
int exports_remove(struct exports *s, const char *id, bool safe,
                   struct export **ep, struct error **errp);
/* The same for all exports of @server (0: of all servers). */
void exports_remove_all(struct exports *s, uint64_t server);

/* Is the name taken in @server? */
bool exports_has_name(struct exports *s, uint64_t server, const char *name);

/* An array of {"id", "clients"} for all exports.  NULL: no memory. */
json_t *exports_query_clients(struct exports *s);

/* How many connections use the export @id, 0 if it is not there; and for how
 * many nanoseconds none has used it (UINT64_MAX: none can any more). */
unsigned exports_clients(struct exports *s, const char *id);
uint64_t exports_idle_ns(struct exports *s, const char *id);

/* Has @e been removed, or the export that it is a view of? */
bool export_is_removed(struct exports *s, const struct export *e);

/* Start the thread that deletes an export that was removed when its last client
 * goes.  Stop it without the monitor lock, after the last connection has ended.
 */
int exports_start(struct exports *s, struct error **errp);
void exports_stop(struct exports *s);

/* Delete the exports that are removed and have no clients, and tell of it
 * (BLOCK_EXPORT_DELETED).  Exports whose disks do not come to rest within a
 * second in all, or a moment each, are left to the thread. */
void exports_collect(struct exports *s, struct jobs *j) REQUIRES(j->lock);

/* Wait until all removed exports of @server (0: of all servers) are deleted.
 * The monitor lock is given up meanwhile. */
void exports_settle(struct exports *s, struct jobs *j, uint64_t server)
    REQUIRES(j->lock);

/* Give up the monitor lock for a moment, at most until an export is deleted;
 * then collect. */
void exports_pause(struct exports *s, struct jobs *j) REQUIRES(j->lock);

/* As exports_settle(), for the one removed export that has this id, if there is
 * one, whatever becomes of others. */
void exports_settle_one(struct exports *s, struct jobs *j, const char *id)
    REQUIRES(j->lock);

/* Visit the exports that are not removed, oldest first, without any lock: @fn
 * may wait, and the export stays until @fn returns.  The first result of @fn
 * other than 0 ends the visits, and is returned. */
int exports_each(struct exports *s, int (*fn)(struct export *e, void *opaque),
                 void *opaque);

/* How many exports show @n, without views; removed exports count until they are
 * deleted. */
unsigned exports_on_node(struct exports *s, const struct node *n);

/* BlockExportInfo of all, newest first; NULL: no memory. */
json_t *exports_query(struct exports *s);

#endif /* NBDELTA_SERVER_NBD_EXPORT_H */
