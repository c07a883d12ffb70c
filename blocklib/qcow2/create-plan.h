/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_CREATE_PLAN_H
#define NBDELTA_QCOW2_CREATE_PLAN_H

/* What a new image shall be, and how large its parts are. */
#include "qcow2/create-luks.h"
#include "qcow2/qcow2.h"

enum preallocation { /* enum image_room */
                     PRE_OFF,
                     PRE_METADATA,
                     PRE_FALLOC,
                     PRE_FULL,
};

struct create_plan {
    /* Asked for. */
    uint64_t size;
    uint64_t cluster_size;
    unsigned cluster_bits;
    unsigned version;
    unsigned refcount_order;
    unsigned compression;
    unsigned preallocation;
    bool lazy;
    bool extended; /* L2 entries, for subclusters */
    bool exact;    /* the size is not to be rounded */
    char *backing; /* as the image will have it, malloc()ed */
    const char *backing_fmt;
    const char *data_file; /* as it is made */
    char *data_name;       /* as the image will have it, malloc()ed */
    bool data_raw;
    struct create_luks luks;
    struct graph *secrets; /* has the secret for it, or NULL */
    bool data_exists; /* and is not touched; then the image must not exist */

    /* Worked out: clusters, in the order in which they lie. */
    uint64_t l1_entries;
    uint64_t reftable;
    uint64_t refblocks;
    uint64_t l1;
    uint64_t luks_clusters;
    uint64_t l2;   /* all that the disk needs, or 0 */
    uint64_t data; /* of the image that is full; 0 of a new one */
};

/* Guest bytes of an L2 table. */
uint64_t qcow2_plan_span(const struct create_plan *p);

/* Take the options of an image, and work out where everything will be.  @p has
 * zeroes, except for `exact` and `secrets`; it keeps pointers into @opts.
 * -EINVAL, -ENOTSUP: an option; -EFBIG.  Call qcow2_plan_drop in any case. */
int qcow2_plan_make(struct opts *opts, struct create_plan *p,
                    struct error **errp);
void qcow2_plan_drop(struct create_plan *p);

/* Bytes of the file once all of the disk is written, with data clusters whether
 * there is a data file or not: as the driver does it, which grows the refcount
 * table meanwhile. */
uint64_t qcow2_plan_full(const struct create_plan *p);

#endif /* NBDELTA_QCOW2_CREATE_PLAN_H */
