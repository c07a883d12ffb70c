/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_REHEAD_H
#define NBDELTA_QCOW2_REHEAD_H

/* The first cluster of an image, laid out anew (rehead.c). */
#include <stdbool.h>
#include <stdint.h>

#define QCOW2_HEAD_SECTOR 512

struct qcow2_rehead {
    /* Set by the caller. */
    const unsigned char *old; /* the cluster as it is on disk, */
    uint64_t size;            /* its bytes, */
    unsigned char *new;       /* and room for the new one */
    uint32_t version;         /* that the image gets */
    uint64_t compatible;      /* features, of version 3 */
    uint64_t autoclear;
    const char *backing;     /* the name; NULL: there is no backing file */
    const char *backing_fmt; /* or NULL */
    const char *data_file;   /* or NULL */

    /* The result: what has to be written before the first sector is. */
    uint64_t tail; /* 0: nothing */
    uint64_t tail_bytes;
};

/*
 * Fill in the new cluster.  With any part of the tail written the old first
 * sector means what it did; with all of it, the new one means what is wanted.
 * -ENOSPC: there is no room for both.
 */
int qcow2_rehead(struct qcow2_rehead *h);

#endif /* NBDELTA_QCOW2_REHEAD_H */
