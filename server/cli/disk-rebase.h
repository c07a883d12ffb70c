/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_DISK_REBASE_H
#define NBDELTA_SERVER_CLI_DISK_REBASE_H

/* Making an image independent of what its backing file has. */
#include <stdint.h>

struct blk;
struct error;

struct disk_rebase {
    /* Set by the caller. */
    struct blk *image;   /* with its backing file; for writing, too */
    struct blk *backing; /* another one; NULL: none */

    /* Told meanwhile, for other threads, in bytes of the disk. */
    _Atomic uint64_t done;
    uint64_t copied; /* bytes that were written to the image */
};

/*
 * Write to the image what it shows where it has nothing of its own and
 * @backing has something else.  What the image shows does not change, at any
 * moment.  Then @backing can take the place of its backing file.  Blocks.
 * Nothing is durable yet.  Errors are those of the storage.
 */
int disk_rebase(struct disk_rebase *d, struct error **errp);

#endif /* NBDELTA_SERVER_CLI_DISK_REBASE_H */
