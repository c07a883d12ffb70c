/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NBD_EXPORT_H
#define NBDELTA_SERVER_NBD_EXPORT_H

/*
 * Exports: what NBD clients can open, by name
 * ===========================================
 *
 * The set has a reference to an export, and so has each connection that uses
 * it.  Removing gives up that of the set: new clients do not find it any
 * more, and when the last connection has gone it is deleted, which takes the
 * monitor lock: exports_collect().
 *
 * NAME@dirty=BITMAP is a view of the export NAME: what a bitmap that it offers
 * has dirty.  It is not listed, nobody but the client that asked for it finds
 * it, and it goes with NAME.  Only when it is opened it has a node, and copies
 * bits; who asks about it costs nothing.
 */
#include <jansson.h>

#include "log.h"
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

/* Whom it lets in: a client that @authz (NULL: all) allows, and that has done
 * what @policy (NULL: nothing) asks for; and who of these may write. */
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

/* One more; the strings are copied, NULL is fine.  -ENOMEM. */
int export_rules_add(struct export_rules *rs, struct tls_policy *policy,
                     const char *authz, const char *authz_writable);
void export_rules_free(struct export_rules *rs);

struct export_options {
    uint64_t server;         /* whose clients can open it (server_serial) */
    const char *server_id;   /* its name; NULL: it has none */
    const char *id;          /* of block-export-*; unique */
    const char *name;        /* on the wire; unique in its server */
    const char *description; /* or NULL */
    struct node *node;
    bool writable;
    bool writethrough;     /* each write is durable before it is answered */
    bool allocation_depth; /* offer that context */
    bool all_bitmaps;      /* offer those that the node has at that moment */
    bool is_default;       /* answers to the name "", too, if it is first */
    bool of_backup;        /* no disk: no command takes it for a device */
    const char *authz;     /* who may open it: an authorization; NULL: all */
    const char *authz_writable; /* and who of these may write */
    /* In place of these two, if there are any: of what it is derived from. */
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
    struct share *share; /* of the pool; a view has that of its disk */
    bool writable;
    bool writethrough;
    bool allocation_depth;
    bool all_bitmaps;
    bool is_default;
    bool of_backup;
    struct export_rules rules; /* of a view: those of `of` hold */
    uint64_t serial;           /* not 0, and no other has or had it */
    struct export *of; /* a view: of this one, with a reference; or NULL */
    struct bitmap *of_bitmap; /* with a reference, or NULL */

    /* Set before clients can find it: bitmaps that it holds and offers. */
    struct export_bitmap *bitmaps;
    unsigned bitmap_count;

    /* The log's. */
    struct log_limit io_errors;
    struct log_limit refusals;
    struct log_limit ignored; /* trims */

    /* Guarded by the lock of the set. */
    struct list in_set;
    unsigned refs;
    unsigned visits; /* of exports_each: they keep it, too */
    bool stuck;      /* its disk could not be drained for its end */
    bool ending;     /* it is about to be deleted: no more visits */
    bool removed;
    uint64_t idle_since; /* now_ns() when its last client went */
};

/* Of @d, which has a graph; jobs before exports_start.  @emit is called under
 * the monitor lock, as that of jobs_new.  NULL: no memory. */
struct exports *exports_new(struct daemon *d, job_event_fn *emit, void *opaque);
void exports_free(struct exports *s); /* no connection is left; NULL is fine */

/* -EEXIST: there is one with this id. */
int exports_check_id(struct exports *s, const char *id, struct error **errp);

/* An export of its own that no client finds yet.  -EEXIST: the id or the name
 * is taken. */
int export_new(struct exports *s, const struct export_options *o,
               struct export **ep, struct error **errp);

/* Offer the bitmap @name of @n, or of what is below (bitmap_hold), under the
 * name @as.  -EEXIST: another has that name here. */
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

/* Clients find it from now on; or it is not wanted.  @e is taken. */
void export_publish(struct exports *s, struct export *e);
void export_drop(struct exports *s, struct export *e);

/*
 * That of @server by its name, with a reference; NULL when there is none.  A
 * view is a new one each time, and not open; where @may_open says no of the
 * export that it would be of, it is not made, and that export returned.
 */
typedef bool may_open_fn(const struct export *e, void *opaque);
struct export *exports_find(struct exports *s, uint64_t server,
                            const char *name, may_open_fn *may_open,
                            void *opaque);
/* Open a view, once: as blk_dirty_view. */
int export_open_view(struct exports *s, struct export *e, struct error **errp);

/* The disk that @e shows, also a view that is not open: for its size and the
 * like. */
struct blk *export_disk(const struct export *e);

/* By its id. */
struct export *exports_find_id(struct exports *s, const char *id);
void export_unref(struct exports *s, struct export *e); /* NULL is fine */

/* New clients do not find it any more.  -ENOENT; -EALREADY: it was removed
 * before; with @safe -EBUSY: it has clients.  Those that are left have to be
 * told to go: *ep, with a reference. */
int exports_remove(struct exports *s, const char *id, bool safe,
                   struct export **ep, struct error **errp);
/* All of @server; 0: of all. */
void exports_remove_all(struct exports *s, uint64_t server);

/* Is the name taken in @server? */
bool exports_has_name(struct exports *s, uint64_t server, const char *name);

/* Connections that use the export @id, 0 if there is none; and for how many
 * nanoseconds there has been none (UINT64_MAX: nobody can any more). */
unsigned exports_clients(struct exports *s, const char *id);
uint64_t exports_idle_ns(struct exports *s, const char *id);

/* Has it been removed, or what it is a view of? */
bool export_is_removed(struct exports *s, const struct export *e);

/* A thread that deletes what was removed when its last client goes; and its
 * end, without the monitor lock, after the last connection's. */
int exports_start(struct exports *s, struct error **errp);
void exports_stop(struct exports *s);

/* Delete those that are removed and without clients, and tell of it
 * (BLOCK_EXPORT_DELETED); but those whose disks do not come to rest within a
 * second in all, or a moment each, are left to the thread. */
void exports_collect(struct exports *s, struct jobs *j) REQUIRES(j->lock);

/* Wait until all of @server (0: of all) that are removed are deleted, with the
 * monitor lock given up meanwhile. */
void exports_settle(struct exports *s, struct jobs *j, uint64_t server)
    REQUIRES(j->lock);

/* Give up the monitor lock for a moment, at most until one is deleted; then
 * collect. */
void exports_pause(struct exports *s, struct jobs *j) REQUIRES(j->lock);

/* The same for one, whatever becomes of others: that which @id named when it
 * was removed, if it is there at all. */
void exports_settle_one(struct exports *s, struct jobs *j, const char *id)
    REQUIRES(j->lock);

/* Visit those that are not removed, oldest first, without any lock: @fn may
 * wait, and the export stays until it returns.  What @fn returns other than 0
 * ends that and is returned. */
int exports_each(struct exports *s, int (*fn)(struct export *e, void *opaque),
                 void *opaque);

/* BlockExportInfo of all, newest first; NULL: no memory. */
json_t *exports_query(struct exports *s);

#endif /* NBDELTA_SERVER_NBD_EXPORT_H */
