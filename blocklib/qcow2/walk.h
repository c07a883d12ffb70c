/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_WALK_H
#define NBDELTA_QCOW2_WALK_H

/*
 * Everything in an image that refers to a part of its file
 * ========================================================
 *
 *   header --> refcount table --> refcount blocks
 *     |  \---> L1 table ------------> L2 tables --> data, compressed data
 *     |          of the disk, and of each snapshot
 *     |------> snapshot table
 *     \------> bitmap directory --> bitmap tables --> bits
 *
 * The walk reads the file, not what an open image has in memory, and trusts
 * nothing in it.  A reference that leads nowhere is told as such, and the walk
 * goes on.  It works on images that no open accepts.
 *
 * L2 tables are read once each, in the order of the file, not in that of
 * the references to them.
 */
#include "qcow2/qcow2.h"

/* A header that could be read, and what it says of the shape of tables. */
struct qcow2_image {
    struct node *file;
    uint64_t file_size; /* bytes */
    struct qcow2_header h;
    struct qcow2 shape; /* nothing but the shape, for l2.c */
};

/*
 * Read the header of @file.  Tables may be missing or lead anywhere.  -EINVAL:
 * this is no header, -ENOTSUP: it has features that change what tables mean;
 * -EIO.  Release it after success.
 */
int qcow2_image_read(struct node *file, struct qcow2_image *im,
                     struct error **errp);
void qcow2_image_release(struct qcow2_image *im);

enum qcow2_owner {
    QCOW2_OWN_HEADER,
    QCOW2_OWN_REFTABLE,
    QCOW2_OWN_REFBLOCK,
    QCOW2_OWN_L1,
    QCOW2_OWN_L2,
    QCOW2_OWN_DATA,   /* a cluster of the disk, also one that reads as zeroes */
    QCOW2_OWN_PACKED, /* compressed bytes of one */
    QCOW2_OWN_SNAPSHOTS,
    QCOW2_OWN_BITMAP_DIR,
    QCOW2_OWN_BITMAP_TABLE,
    QCOW2_OWN_BITMAP,
    QCOW2_OWN_LUKS,
};

/* The active disk's L1 table; snapshots are 1, 2, ... */
#define QCOW2_ACTIVE 0

/* As many parts of what a reference is for may be lost each on its own. */
#define QCOW2_REF_PARTS 32

/* A reference. */
struct qcow2_ref {
    enum qcow2_owner owner;
    uint64_t host; /* of the part of the file, in bytes */
    uint64_t bytes;
    uint64_t entry; /* where in the file the 8 bytes with the place stand; 0:
                       it has none, or they are not known */
    uint64_t guest; /* of L2 tables and data: the disk's part that it is for */
    uint64_t guest_bytes;
    uint32_t kept;     /* of what is wrong: the parts of these bytes, a bit
                          each, that are as good as they were */
    uint32_t disk;     /* QCOW2_ACTIVE if that has it, else a snapshot */
    uint32_t times;    /* as many tables have this entry */
    bool copied;       /* it says that nobody else refers to it */
    bool external;     /* it leads into the data file, not into this one */
    uint32_t readable; /* of the snapshot table: entries before what is wrong */
    bool behind;       /* it leads behind the end of the file */
    const char *wrong; /* why it leads nowhere, or cannot be followed; NULL: it
                          does not */
};

struct qcow2_walker {
    /* Told of each reference; what is wrong with an entry otherwise is told by
     * one more call, with no bytes.  Non-zero ends the walk. */
    int (*refer)(const struct qcow2_ref *r, void *opaque);
    /* After the references of an L2 table (of `host`), with its bytes; NULL: no
     * need.  Non-zero ends the walk. */
    int (*table)(const struct qcow2_ref *table, struct qcow2_table *t,
                 void *opaque);
    void *opaque;
};

/* Blocks.  0; what a function of @w returned; -ENOMEM; an error of reading:
 * nobody knows then what is there, so nothing can be said of it. */
int qcow2_walk(const struct qcow2_image *im, const struct qcow2_walker *w);

/* Read a part of the file; what lies behind its end is zeroes. */
int qcow2_image_pread(const struct qcow2_image *im, void *buf, uint64_t bytes,
                      uint64_t host);

/* The refcount table: entries in host byte order, malloc()ed; *count 0, and
 * NULL, where it cannot be read.  -ENOMEM. */
int qcow2_image_reftable(const struct qcow2_image *im, uint64_t **table,
                         uint64_t *count);

#endif /* NBDELTA_QCOW2_WALK_H */
