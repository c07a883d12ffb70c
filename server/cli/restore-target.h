/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_RESTORE_TARGET_H
#define NBDELTA_SERVER_CLI_RESTORE_TARGET_H

/*
 * Where a disk is restored to: a qcow2 or raw file, a block device, an NBD URI,
 * an image of Ceph.
 *
 * Everything that speaks against it is found before a byte of it changes.
 */
#include <stdbool.h>
#include <stdint.h>

struct blk;
struct error;
struct graph;
struct node;

struct restore_target {
    /* Given by the caller. */
    const char *name;
    const char *format; /* "qcow2" or "raw"; NULL: by the name's ending */
    uint64_t size;      /* of the disk */
    const char *store;  /* path of the backup directory, without links */
    bool force;         /* it need not be empty */

    /* What target_open has found. */
    struct node *node;
    struct blk *blk;
    bool created; /* the file, or image, is new */
    bool empty;   /* it reads as zeroes */
    bool remote;  /* it is an NBD export */
    int alone;    /* descriptor that keeps a device from being mounted; or -1 */
};

/*
 * Create or open it.  -EBUSY: it is in use: a process has its lock, it is
 * mounted, or the file of a loop device, or a client of its cluster has it
 * open.  -EEXIST: it is not empty, and nothing was forced.  -EINVAL: it is
 * inside of the backup directory, or has another size (devices and exports may
 * be larger).
 */
int target_open(struct graph *g, struct restore_target *t, struct error **errp);

/* Close it, and remove the file if it is new and shall not be @kept. */
void target_close(struct graph *g, struct restore_target *t, bool kept);

#endif /* NBDELTA_SERVER_CLI_RESTORE_TARGET_H */
