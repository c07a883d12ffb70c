/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_OVERLAP_H
#define NBDELTA_QCOW2_OVERLAP_H

/*
 * Which clusters hold metadata, as memory knows it: a set of cluster numbers
 * with the kinds of each.  The set is asked before a cluster is handed out, and
 * before data are written in place, whatever refcounts and L2 entries say: an
 * image that contradicts itself must not lose its tables.
 *
 * The set is filled when the image is opened for writing, from what is in
 * memory then (no L2 table is read).  Code that makes a table adds it.  A
 * cluster leaves the set when its refcount becomes zero (alloc.c), not before.
 *
 * Asking takes no lock and may be done by any thread at any time; changes are
 * made under the meta lock.
 */
#include <stdint.h>

struct qcow2;

/* What a cluster holds; several bits: the image contradicts itself. */
enum qcow2_meta {
    QCOW2_META_HEADER = 1 << 0,
    QCOW2_META_L1 = 1 << 1,
    QCOW2_META_L2 = 1 << 2,
    QCOW2_META_REFTABLE = 1 << 3,
    QCOW2_META_REFBLOCK = 1 << 4,
    QCOW2_META_BITMAP = 1 << 5,   /* directory, table or bits */
    QCOW2_META_TWICE = 1 << 6,    /* there are two tables in it */
    QCOW2_META_SNAPSHOT = 1 << 7, /* the table of snapshots, and their L1 */
};

/* The clusters that [@host, @host + @bytes) touches are @kind.  -ENOMEM: the
 * set is as before, except that some clusters may be in it.  That does no harm
 * if nobody else has these clusters. */
int qcow2_overlap_add(struct qcow2 *s, unsigned kind, uint64_t host,
                      uint64_t bytes);

/* @cluster is free. */
void qcow2_overlap_drop(struct qcow2 *s, uint64_t cluster);

/* enum qcow2_meta of all clusters that the range touches; 0: none. */
unsigned qcow2_overlap_find(const struct qcow2 *s, uint64_t host,
                            uint64_t bytes);

/* Fill it anew from the tables in memory; drained.  -ENOMEM. */
int qcow2_overlap_load(struct qcow2 *s);
void qcow2_overlap_free(struct qcow2 *s);

#endif /* NBDELTA_QCOW2_OVERLAP_H */
