/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_CENSUS_H
#define NBDELTA_QCOW2_CENSUS_H

/*
 * How often each cluster of an image is referred to, and by what: two bytes a
 * cluster, in memory that is there only where something was counted.
 */
#include <stdbool.h>
#include <stdint.h>

struct census;

/* What refers to a cluster. */
enum census_flag {
    CENSUS_DATA = 1 << 0,     /* data of a disk */
    CENSUS_L2 = 1 << 1,       /* L1 entries */
    CENSUS_REFCOUNT = 1 << 2, /* it is refcount table or block */
    CENSUS_META = 1 << 3,     /* it is something else that is no data */
    CENSUS_TWICE = 1 << 4,    /* two parts of the structures, L2 tables aside */
    CENSUS_COPIED = 1 << 5,   /* an entry that says that it is the only one */
    CENSUS_SHARED = 1 << 6,   /* an entry that does not say that */
};

/* For clusters below @clusters.  NULL: no memory. */
struct census *census_new(uint64_t clusters);
void census_free(struct census *c); /* NULL is fine */

/* The number of clusters that it can count. */
uint64_t census_size(const struct census *c);

/* @times more references to @cluster.  Clusters that are not below its size are
 * not counted. */
void census_add(struct census *c, uint64_t cluster, uint32_t times,
                unsigned flags);
void census_clear(struct census *c, uint64_t cluster);

uint64_t census_count(const struct census *c, uint64_t cluster);
unsigned census_flags(const struct census *c, uint64_t cluster);

/* Does the cluster belong to two that cannot share one? */
bool census_clash(unsigned flags);

#endif /* NBDELTA_QCOW2_CENSUS_H */
