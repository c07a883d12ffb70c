/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_PRUNE_H
#define NBDELTA_SERVER_STORE_PRUNE_H

/*
 * Points that go
 * ==============
 *
 * A point's file may be what the next point was made over.  So a point that
 * goes is merged into the next: what the next one's file decides is written
 * into the older file, which then takes its name.  Points after that one are
 * not touched.  prune.c has the steps.  A process may be killed between any two
 * of them: the points that stay can be read by any tool for qcow2, and
 * prune_recover does the rest.
 *
 * All functions block for storage.  The store was opened for writing, except
 * for prune_plan and prune_estimate.
 */
#include <stdint.h>

#include "store/name.h"
#include "store/rules.h"

struct error;
struct store;

/* Why a point stays, beside the reasons in rules.h. */
#define KEEP_UNREADABLE (1U << 16) /* its manifest cannot be used */
#define KEEP_NEEDED                                         \
    (1U << 17) /* a point that cannot be merged, since its  \
                  manifest cannot be used or it is pending, \
                  may have been made over this one */

struct prune_point {
    char name[POINT_NAME_MAX];
    unsigned kept;  /* why it stays; 0: it goes */
    uint64_t bytes; /* prune_estimate: what its end gives back */
};

/*
 * Decide for all points of @s, oldest first: store_count(s) elements, which the
 * caller frees.  -EINVAL: there is no rule.
 */
int prune_plan(struct store *s, const struct keep_rules *rules,
               struct prune_point **points, struct error **errp);

/*
 * Fill in `bytes`: what takes no room any more when all points that go are
 * gone.  Reads maps of images, no data.  Clusters that are compressed count in
 * full where the same point's file goes on.  Errors are those of opening
 * images.
 */
int prune_estimate(struct store *s, struct prune_point *points,
                   struct error **errp);

/*
 * Remove @point, which is not the latest.  *freed (or NULL) is increased by the
 * bytes that files take no more.  0: durable.
 *
 * These have changed nothing: -ENOENT: no such point; -EINVAL: it is the
 * latest; -EBUSY: it, or the point that it becomes a part of, is being read, or
 * a pending point needs it; -EUCLEAN: damage, named by disk, point and range,
 * that would become a part of a point that stays; -ENOSPC: there is no room.
 * After another error the journal may be there (store.h): prune_recover goes
 * on.
 */
int prune_point(struct store *s, const char *point, uint64_t *freed,
                struct error **errp);

struct prune_result {
    unsigned removed; /* points */
    uint64_t freed;   /* bytes */
};

/*
 * Remove all of @count @points that go, oldest first.  A point that cannot go
 * now (-EBUSY, -EUCLEAN, -ENOSPC of prune_point) is told to @left, and left.
 * So is a point, of whatever rule, whose manifest cannot be used (-EUCLEAN).
 * 0: all have gone; -EUCLEAN, -EBUSY, -ENOSPC, in this order: some were left.
 * Other errors end it.
 */
int prune_all(struct store *s, const struct prune_point *points, unsigned count,
              void (*left)(const char *point, const struct error *why),
              struct prune_result *result, struct error **errp);

/*
 * Each caller that has opened a store for writing calls this first.  If a
 * journal is there, finish, or undo, what it tells of.  *did (or NULL): a point
 * has gone.  It needs room for what is left to be merged: -ENOSPC.  -EBUSY:
 * somebody has an image of it open.  -EUCLEAN: the journal, or what it names,
 * is damaged.
 */
int prune_recover(struct store *s, bool *did, struct error **errp);

#endif /* NBDELTA_SERVER_STORE_PRUNE_H */
