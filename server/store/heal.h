/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_HEAL_H
#define NBDELTA_SERVER_STORE_HEAL_H

/*
 * Damage is healed from the disk as it is now
 * ===========================================
 *
 * What verify found damaged in a file of a point (POINT.verified) may be on the
 * disk still: the hashes of the point say so.  Then a new file is made beside
 * the old one, of what of it is right and what the disk has, and takes its
 * name.  A .sums file is made again from its image, if that gives the hash that
 * the manifest has.  What is nowhere is marked as lost: it is not looked for
 * again until somebody verifies the point.
 *
 * Blocks.  The store is open for writing.  Memory: 3 MiB, the sums of a file,
 * what blocklib has for two images.
 */
#include <stdbool.h>
#include <stdint.h>

struct blk;
struct error;
struct store;

struct heal_result {
    uint64_t files; /* that were damaged */
    uint64_t whole; /* of these: that are right again */
};

/* Is there damage of the disk, in any point, that is not marked as lost? */
bool heal_wanted(const struct store *s, const char *disk);

/*
 * Heal all files of @disk.  @source: the disk, as it is now.  @tick is called
 * now and then; non-zero (-errno, with *errp) ends it, and all files are as
 * they were or healed.  Otherwise errors are of the directory: -ENOSPC...
 */
int heal_disk(struct store *s, const char *disk, struct blk *source,
              int (*tick)(void *opaque, struct error **errp), void *opaque,
              struct heal_result *result, struct error **errp);

#endif /* NBDELTA_SERVER_STORE_HEAL_H */
