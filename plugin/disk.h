/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_PLUGIN_DISK_H
#define NBDELTA_PLUGIN_DISK_H

/*
 * The disks that are exported
 * ===========================
 *
 * All connections share one tree of nodes per disk.  The tree is open, and its
 * files are locked, as long as nbdkit runs.  It is open read-only until the
 * first client comes that may write: only then is it known that nbdkit was not
 * started with -r.  A disk with bitmap= is opened for writing at once.
 */
#include "config.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "nbdelta/types.h"

struct disk {
    /* Set at creation. */
    const struct source *source;

    /* Guarded by the lock of the disks. */
    struct node *node; /* NULL: closed */
    struct blk *blk;   /* valid while clients > 0, for them without the lock */
    bool writable;
    bool stays_read_only; /* opening it for writing was not permitted */
    unsigned clients;
};

struct disks {
    struct graph *graph;
    const struct config *config;
    struct disk *all; /* by the order of config.sources */
    unsigned count;
    mutex_t lock;
    struct list opened; /* guarded by lock */
};

/* No disk is open then.  @c must outlive *ds.  -ENOMEM; or a directory of
 * allow-path= is not there. */
int disks_new(const struct config *c, struct disks **dsp, struct error **errp);
void disks_free(struct disks *ds); /* all are closed; NULL is fine */

/* Open all, making bitmaps that are missing; all or none is open afterwards.
 * Threads may be started. */
int disks_open(struct disks *ds, struct error **errp);

/* Flush and close all disks, and what clients have opened, which nbdkit does
 * not close on its way out.  Their threads end.  No request may be in flight.
 * Returns the first error of flushing; the disks are closed all the same. */
int disks_close(struct disks *ds, struct error **errp);

/* What a client has opened: a disk, or a view of one. */
struct opened {
    struct list link;
    struct disk *disk;
    struct blk *blk;
    bool writable;
    const char *bitmap;   /* it is a view, of this one; or NULL */
    const char *snapshot; /* the same */
};

/*
 * Open the export @name.  A disk's name ("": the first disk's) opens the disk;
 * NAME@dirty=BITMAP opens a view that has the status of a bitmap
 * (blk_dirty_view()), NAME@snapshot=SNAP one of the disk as it was
 * (blk_snapshot_view()).  @readonly: the client will not write.  -ENOENT: there
 * is no such export; -EINVAL: the bitmap is inconsistent.  End *op by
 * disks_leave(); @name must live up to then.
 */
int disks_enter(struct disks *ds, const char *name, bool readonly,
                struct opened **op, struct error **errp);
void disks_leave(struct disks *ds, struct opened *o);

/* Call @fn with the name of each export, views included (@bitmap is NULL for
 * the others).  Non-zero stops and is returned. */
int disks_each_export(struct disks *ds,
                      int (*fn)(const char *name, const char *bitmap,
                                void *opaque),
                      void *opaque);

#endif /* NBDELTA_PLUGIN_DISK_H */
