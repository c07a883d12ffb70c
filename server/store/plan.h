/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_PLAN_H
#define NBDELTA_SERVER_STORE_PLAN_H

/*
 * What the next point has of each disk: all, or what has changed
 * ==============================================================
 *
 * Where the source cannot tell what has changed, all is read, and compared with
 * the parent.
 *
 * The parent is always the latest point: its checkpoint is the only one that
 * this directory keeps at the source.
 */
#include <stdbool.h>
#include <stdint.h>

#include "store/manifest.h"

struct error;
struct store;

struct plan_disk {
    /* What is known of the disk at the source. */
    const char *name;
    uint64_t size;
    const char *image;  /* as manifest_disk has it */
    const char *no_map; /* why the source cannot tell what has changed since the
                           latest point: a word (manifest.h); NULL: it can */

    /* Filled in. */
    enum disk_kind kind;
    enum disk_reason reason;
    const struct manifest_disk *parent; /* the store's; NULL: a full */
};

/*
 * Decide for @count disks.  @full: a full was asked for.  @point gets the name
 * of the latest point if any disk has a parent, or "".  Looks whether parents'
 * files are there, and whether they were found damaged.
 * -EINVAL: a disk cannot have this name here, or two have the same; -EUCLEAN:
 * @no_map is no word.
 */
int plan_make(struct store *s, struct plan_disk *disks, unsigned count,
              bool full, char point[POINT_NAME_MAX], struct error **errp);

/*
 * Is the disk that is kept in @image (NULL: nobody knows) another one than @d,
 * of the same name?  Its bitmaps have the same names, and are about points of
 * the other disk.
 */
bool plan_moved(const struct manifest_disk *d, const char *image);

/* Is it a full that nobody wanted: neither asked for, nor of a new disk? */
bool plan_fell_back(const struct plan_disk *d);

#endif /* NBDELTA_SERVER_STORE_PLAN_H */
