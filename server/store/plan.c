/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the next point has of each disk: see plan.h.
 *
 *     asked for all? -- full, asked
 *     no such disk in the latest point? -- full, new-disk or no-checkpoint
 *     its manifest or a file missing?   -- full, parent-missing
 *     was it found damaged?             -- full, parent-damaged
 *     another size?                     -- full, resized
 *     another image?                    -- compared, moved
 *     the source cannot tell?           -- compared, the source's word
 *     else                              -- increment
 *
 * A parent's own parents count as it does: an increment over a chain that
 * cannot be read is worth nothing.
 */
#include "store/plan.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/store.h"
#include "store/verify.h"

/* Was the disk in any point? */
static bool was_there(const struct store *s, const char *disk)
{
    for (unsigned i = 0; i < store_count(s); i++) {
        const struct manifest *m = store_point(s, i)->manifest;

        if (m && manifest_find(m, disk)) {
            return true;
        }
    }
    return false;
}

static bool file_there(struct store *s, const char *disk, const char *point,
                       const char *ending)
{
    CLEANUP_CLOSE int fd = -1;

    return store_open_file(s, disk, point, ending, &fd, NULL, NULL) == 0;
}

/* Can the disk of @point be read, with its parents? */
static enum disk_reason check_chain(struct store *s, const char *point,
                                    const struct manifest_disk *d)
{
    while (d) {
        const struct manifest_disk *parent = NULL;

        if (!file_there(s, d->name, point, "qcow2") ||
            !file_there(s, d->name, point, "sums")) {
            return REASON_PARENT_MISSING;
        }
        if (verified_damaged(s, point, d->name)) {
            return REASON_PARENT_DAMAGED;
        }
        if (store_parent(s, d, &parent, NULL) < 0) {
            return store_named(s, d->parent) ? REASON_PARENT_DAMAGED
                                             : REASON_PARENT_MISSING;
        }
        point = d->parent;
        d = parent;
    }
    return REASON_NONE;
}

bool plan_moved(const struct manifest_disk *d, const char *image)
{
    return d->image && image && strcmp(d->image, image) != 0;
}

/* Why nothing can be put over @last; REASON_NONE: something can. */
static enum disk_reason find_reason(struct store *s,
                                    const struct store_point *last,
                                    const struct plan_disk *p,
                                    const struct manifest_disk **parent)
{
    enum disk_reason reason = REASON_NONE;

    if (!last) {
        return REASON_NEW_DISK;
    }
    if (!last->manifest) {
        return REASON_PARENT_DAMAGED;
    }
    *parent = manifest_find(last->manifest, p->name);
    if (!*parent) {
        return was_there(s, p->name) ? REASON_NO_CHECKPOINT : REASON_NEW_DISK;
    }
    reason = check_chain(s, last->name, *parent);
    if (reason == REASON_NONE && (*parent)->size != p->size) {
        reason = REASON_RESIZED;
    }
    return reason;
}

/* Why the parent has to be compared with all of the disk. */
static enum disk_reason find_doubt(const struct plan_disk *p,
                                   const struct manifest_disk *parent)
{
    enum disk_reason reason = REASON_NONE;

    if (plan_moved(parent, p->image)) {
        return REASON_MOVED;
    }
    if (p->no_map) {
        (void)disk_reason_from(p->no_map, &reason);
    }
    return reason;
}

static int check_disk(const struct plan_disk *disks, unsigned i,
                      struct error **errp)
{
    enum disk_reason reason;
    int r = disk_name_check(disks[i].name, errp);

    for (unsigned k = 0; r == 0 && k < i; k++) {
        if (strcmp(disks[k].name, disks[i].name) == 0) {
            r = error_set(errp, EINVAL, "two disks have the name '%s'",
                          disks[i].name);
        }
    }
    if (r == 0 && disks[i].no_map &&
        !disk_reason_from(disks[i].no_map, &reason)) {
        r = error_set(errp, EUCLEAN, "'%s' is no reason for a full backup",
                      disks[i].no_map);
    }
    return r;
}

int plan_make(struct store *s, struct plan_disk *disks, unsigned count,
              bool full, char point[POINT_NAME_MAX], struct error **errp)
{
    const struct store_point *last = store_latest(s);

    point[0] = '\0';
    for (unsigned i = 0; i < count; i++) {
        int r = check_disk(disks, i, errp);
        if (r < 0) {
            return r;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        struct plan_disk *p = &disks[i];
        const struct manifest_disk *parent = NULL;

        p->parent = NULL;
        p->reason = full ? REASON_ASKED : find_reason(s, last, p, &parent);
        p->kind = DISK_FULL;
        if (p->reason == REASON_NONE) {
            p->reason = find_doubt(p, parent);
            p->kind = p->reason == REASON_NONE ? DISK_INCREMENT : DISK_COMPARED;
            p->parent = parent;
        }
        if (p->parent && last) {
            memcpy(point, last->name, POINT_NAME_MAX);
        }
    }
    return 0;
}

bool plan_fell_back(const struct plan_disk *d)
{
    return d->kind == DISK_FULL && d->reason != REASON_ASKED &&
           d->reason != REASON_NEW_DISK;
}
