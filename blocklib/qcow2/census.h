/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_CENSUS_H
#define NBDELTA_QCOW2_CENSUS_H

/*
 * How often each cluster of an image is referred to, and by what: two bytes a
 * cluster, in memory that is there only where something was counted.
 */
#include <stdbool.h>
#include <stdint.h>

struct qcow2_census;

/* What refers to a cluster. */
enum qcow2_census_flag {
    CENSUS_DATA = 1 << 0,     /* data of a disk */
    CENSUS_L2 = 1 << 1,       /* L1 entries */
    CENSUS_REFCOUNT = 1 << 2, /* it is refcount table or block */
    CENSUS_META = 1 << 3,     /* it is something else that is no data */
    CENSUS_TWICE = 1 << 4,    /* two parts of the structures, L2 tables aside */
    CENSUS_COPIED = 1 << 5,   /* an entry that says that it is the only one */
    CENSUS_SHARED = 1 << 6,   /* an entry that does not say that */
};

/* For clusters below @clusters.  NULL: no memory. */
struct qcow2_census *qcow2_census_new(uint64_t clusters);
void qcow2_census_free(struct qcow2_census *c); /* NULL is fine */

/* The number of clusters that it can count. */
uint64_t qcow2_census_size(const struct qcow2_census *c);

/* @times more references to @cluster.  Clusters that are not below its size are
 * not counted. */
void qcow2_census_add(struct qcow2_census *c, uint64_t cluster, uint32_t times,
                      unsigned flags);
void qcow2_census_clear(struct qcow2_census *c, uint64_t cluster);
/* One reference less, if there is one. */
void qcow2_census_drop(struct qcow2_census *c, uint64_t cluster);

uint64_t qcow2_census_count(const struct qcow2_census *c, uint64_t cluster);
unsigned qcow2_census_flags(const struct qcow2_census *c, uint64_t cluster);

/* Does the cluster belong to two that cannot share one? */
bool qcow2_census_clash(unsigned flags);

#endif /* NBDELTA_QCOW2_CENSUS_H */
