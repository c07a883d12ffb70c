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
#include <stdbool.h>
#include <stdint.h>

#include "nbdelta/option.h"

struct error;
struct opts;
struct qcow2;

/* What a cluster holds; several bits: the image contradicts itself. */
enum qcow2_meta {
    QCOW2_META_HEADER = 1 << 0,
    QCOW2_META_L1 = 1 << 1,
    QCOW2_META_L2 = 1 << 2,
    QCOW2_META_REFTABLE = 1 << 3,
    QCOW2_META_REFBLOCK = 1 << 4,
    QCOW2_META_SNAPSHOT = 1 << 5, /* the table of snapshots */
    QCOW2_META_INACTIVE_L1 = 1 << 6,
    QCOW2_META_INACTIVE_L2 = 1 << 7, /* and no active one, when it was opened */
    QCOW2_META_BITMAP = 1 << 8,      /* directory, table or bits */
    QCOW2_META_TWICE = 1 << 9, /* there are two tables of one kind in it */
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

/*
 * The same of the kinds that the option overlap-check says are looked at, with
 * those left out that are @own, and with QCOW2_META_TWICE only if @own is
 * looked at.
 */
unsigned qcow2_overlap_others(const struct qcow2 *s, unsigned own,
                              uint64_t host, uint64_t bytes);

/* May a table of @own (0: data) be written there?  -EIO: another is there, and
 * the image is corrupt. */
int qcow2_overlap_check(struct qcow2 *s, unsigned own, uint64_t host,
                        uint64_t bytes);

/* The same after others have been found: the image is corrupt.  -EIO. */
int qcow2_overlap_corrupt(struct qcow2 *s, unsigned kinds, uint64_t host,
                          uint64_t bytes);

/* --- The option: none, constant, cached, all, or an object that says so of
 * each kind.  *kinds: enum qcow2_meta. --- */
extern const char *const qcow2_overlap_words[];
extern const struct option qcow2_overlap_members[];
int qcow2_overlap_take(struct opts *o, unsigned *kinds, struct error **errp);

/* Fill it anew from the tables in memory; drained.  -ENOMEM. */
int qcow2_overlap_load(struct qcow2 *s);
void qcow2_overlap_free(struct qcow2 *s);

#endif /* NBDELTA_QCOW2_OVERLAP_H */
