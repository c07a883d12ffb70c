/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_SET_H
#define NBDELTA_COPY_SET_H

/*
 * Sets of clusters of which clusters are only ever taken out
 * ==========================================================
 *
 *      base   1 1 1 1 0 0 1 1     what was put in; NULL: all that there is
 *      gone   0 0 1 0 0 0 0 1     what was taken out since
 *      set    1 1 0 1 0 0 1 0
 *
 * So a set costs nothing before clusters are taken out of it, however large the
 * disk is, and sets can have one base.  The granules of a base may be larger
 * than a cluster.  A set without `gone` has its base for itself, and clusters
 * are taken out of that.
 *
 * All functions may run in any number of threads.  A cluster that was taken out
 * when the call returns is in the set for no call that begins later.
 */
#include "core/hbitmap.h"

struct copy_set {
    struct hbitmap *base;
    struct hbitmap *gone; /* of clusters; only what base has */
};

/* The first part of the set in [@from, @end) that has no gap, cut at the ends.
 * False: there is none. */
bool copy_set_next(const struct copy_set *s, uint64_t from, uint64_t end,
                   uint64_t *start, uint64_t *bytes);

/* Is @offset (< @end) in the set?  Returns for how many bytes, up to @end, the
 * answer is the same; perhaps it is the same behind these. */
uint64_t copy_set_run(const struct copy_set *s, uint64_t offset, uint64_t end,
                      bool *in);

/* Take out the clusters of a range that is in the set, or was. */
void copy_set_take(const struct copy_set *s, uint64_t offset, uint64_t bytes);

/* The clusters in the set, in bytes, the last one whole.  @size: of the disk.
 * While clusters are taken out it may be a little less. */
uint64_t copy_set_count(const struct copy_set *s, uint64_t size,
                        uint64_t cluster);

#endif /* NBDELTA_COPY_SET_H */
