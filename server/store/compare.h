/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_COMPARE_H
#define NBDELTA_SERVER_STORE_COMPARE_H

/*
 * What differs between a disk and a point of it
 * =============================================
 *
 *      compare_new --> compare_tap, of many threads --> compare_finish
 *                                                            |
 *                                           compare_next, compare_free
 *
 * The disk's bytes are told by a transfer (its tap); what it does not tell is
 * not compared.  The sums of the point say of most units that they are the
 * same.  Of the others its files are read and held against their hashes, by
 * threads of its own.
 *
 * Memory: 2 bytes for each unit of the disk, 3 MiB for each of its threads, and
 * what layers.h has.
 */
#include <stdbool.h>
#include <stdint.h>

#include "store/name.h"

struct compare;
struct error;
struct store;

/*
 * With @disk as it was at @point.  Opens its files and starts threads.
 * -ENOENT: there is no such disk; -EBUSY: a prune works on a point; others.
 */
int compare_new(struct store *s, const char *point, const char *disk,
                struct compare **cp, struct error **errp);
void compare_free(struct compare *c); /* NULL is fine */

/*
 * These bytes are on the disk now (@buf NULL: zeroes): whole chunks (sums.h),
 * each once, a unit of which all is told or nothing.  May wait for the
 * threads.  As the `tap` of a transfer.  -EINVAL: it is no such thing;
 * -EUCLEAN: the point was found damaged, and more is not compared; -ENOMEM;
 * what a thread has failed with.
 */
int compare_tap(void *opaque, uint64_t offset, uint64_t bytes, const void *buf);

/* Part of the point that is not as it was written. */
struct compare_damage {
    char point[POINT_NAME_MAX]; /* whose file it is */
    uint64_t offset;            /* of the guest's disk */
    uint64_t bytes;
};

/*
 * All was told: wait for the threads.  -EUCLEAN: the point is damaged where it
 * was needed; *damage (or NULL) is the first such place.  -EINVAL: a unit was
 * told in part.
 */
int compare_finish(struct compare *c, struct compare_damage *damage,
                   struct error **errp);

/* After compare_finish, the next range in [@offset, the disk's end) that
 * differs, in whole chunks.  False: there is none. */
bool compare_next(const struct compare *c, uint64_t offset, uint64_t *start,
                  uint64_t *bytes);

#endif /* NBDELTA_SERVER_STORE_COMPARE_H */
