/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_CHECK_H
#define NBDELTA_QCOW2_CHECK_H

/* Between check.c, which finds what is wrong, and repair.c, which mends it. */
#include "nbdelta/image.h"
#include "qcow2/census.h"
#include "qcow2/walk.h"

/* One look at the whole image, and what it found. */
struct qcow2_check {
    const struct image_check_options *o;
    bool quiet; /* findings are not told */
    struct qcow2_image im;
    struct qcow2_census *census;

    uint64_t corruptions;
    uint64_t leaks;
    uint64_t claims; /* of the corruptions: COPIED, where only the refcount is
                        too high; they go with the leak */
    bool unknown;    /* a structure cannot be followed: what it leads to may be
                        what seems to leak */
    bool clash;      /* a cluster belongs to two that cannot share it */
    bool low;        /* a refcount is lower than it has to be */
    bool flags;      /* COPIED is wrong somewhere */
    bool broken;     /* an entry leads nowhere, or contradicts itself */
    uint64_t end;    /* clusters up to the last that counts, */
    uint64_t referred; /* or that something refers to */

    struct image_check stats;
    uint64_t fragment_table; /* of the last data cluster, */
    uint64_t fragment_next;  /* and where the next one would be in a row */
};

/* Look at the image in @file.  Release it, also after a failure. */
int qcow2_check_run(struct qcow2_check *k, struct node *file,
                    const struct image_check_options *o, bool quiet,
                    struct error **errp);
void qcow2_check_release(struct qcow2_check *k);

/* Tell the user. */
__attribute__((format(printf, 3, 4))) void qcow2_check_tell(
    const struct image_check_options *o, enum image_fault fault,
    const char *fmt, ...);

/* image_check for qcow2. */
int qcow2_check(struct node *file, const struct image_check_options *o,
                struct image_check *c, struct error **errp);

/* --- lazy.c --- */

/* If the header in @file, which is about to be written to, says that refcounts
 * are out of date, repair the image and read *h again; unless that would take
 * more than about a second.  -EUCLEAN: it cannot be repaired.  After a failure
 * *h is released. */
int qcow2_count_anew(struct node *file, struct qcow2_header *h,
                     struct error **errp);

/* --- refblocks.c --- */

struct qcow2_refblock {
    uint64_t first; /* cluster */
    uint64_t count; /* clusters */
    uint64_t host;  /* of the block; 0: there is none */
    void *bytes;    /* of it, or zeroes */
};

/* Call @fn for each refcount block, in the order of the file, then for what no
 * block covers of @clusters (with no block). */
typedef int qcow2_refblock_fn(struct qcow2_refblock *b, void *opaque);
int qcow2_each_refblock(const struct qcow2_image *im, uint64_t clusters,
                        qcow2_refblock_fn *fn, void *opaque);

#endif /* NBDELTA_QCOW2_CHECK_H */
