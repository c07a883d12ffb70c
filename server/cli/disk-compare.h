/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_DISK_COMPARE_H
#define NBDELTA_SERVER_CLI_DISK_COMPARE_H

/* Do two disks have the same content? */
#include <stdbool.h>
#include <stdint.h>

struct blk;
struct error;

/* What was met first, seen from the beginning of the disks. */
enum disk_difference {
    DISKS_SAME,
    DISKS_DIFFER,        /* a byte, at `offset` */
    DISKS_STATUS_DIFFERS /* of the range at `offset`; only if `strict` */
};

struct disk_compare {
    /* Set by the caller. */
    struct blk *disk[2];
    bool strict; /* data, zeroes and holes have to be in the same places */

    /* Told meanwhile, for other threads: how far it is, in bytes of the larger
     * disk. */
    _Atomic uint64_t done;

    /* The result. */
    enum disk_difference difference;
    uint64_t offset;
};

/*
 * Compare all of both.  Of disks of different sizes, what the larger one has
 * behind the end of the other has to be zeroes.  Reads by several threads;
 * memory: 16 MiB for data, 4 MiB for what is known of ranges.  Blocks.
 *
 * Errors are those of the disk that could not be read, *failed (0 or 1).  They
 * lie before any difference.  -ENOMEM is no disk's: *failed is -1.
 */
int disk_compare(struct disk_compare *c, int *failed, struct error **errp);

#endif /* NBDELTA_SERVER_CLI_DISK_COMPARE_H */
