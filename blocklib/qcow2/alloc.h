/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_ALLOC_H
#define NBDELTA_QCOW2_ALLOC_H

/* Clusters: which are free, how many refer to each, and room in the file. */
#include "qcow2/qcow2.h"

/* --- alloc.c --- */

/*
 * Allocate up to @want clusters in a row; *got >= 1.  *fresh: they were never
 * written and read as zeroes.  Refcounts are set in memory.  Where the search
 * takes long, it ends with -EINPROGRESS, so that others get the meta lock:
 * qcow2_try_again.
 */
int qcow2_alloc(struct qcow2 *s, uint64_t want, uint64_t *host, uint64_t *got,
                bool *fresh) REQUIRES(s->meta);
/* As qcow2_alloc(), of what a refcount block in memory says.  -EAGAIN: that is
 * not enough, and nothing has changed. */
int qcow2_alloc_nowait(struct qcow2 *s, uint64_t want, uint64_t *host,
                       uint64_t *got, bool *fresh) REQUIRES(s->meta);
/* Allocate exactly @count in a row, for metadata of @kind (enum qcow2_meta).
 * Only the search for an L2 table's one cluster may end with -EINPROGRESS. */
int qcow2_alloc_exact(struct qcow2 *s, unsigned kind, uint64_t count,
                      uint64_t *host) REQUIRES(s->meta);

/* Take back an allocation that nothing has referred to, on disk or here. */
void qcow2_alloc_undo(struct qcow2 *s, uint64_t host, uint64_t clusters)
    REQUIRES(s->meta);
/* The same of data clusters in which no byte was written: if they were @fresh,
 * they are again. */
void qcow2_alloc_undo_unwritten(struct qcow2 *s, uint64_t host,
                                uint64_t clusters, bool fresh)
    REQUIRES(s->meta);

/* A reference to these clusters is gone from memory: drop their refcount as
 * soon as that is on disk and nobody moves their bytes any more. */
int qcow2_free_later(struct qcow2 *s, uint64_t host, uint64_t clusters)
    REQUIRES(s->meta);

/* Drop refcounts of runs that are due.  Discards first. */
int qcow2_release_freed(struct qcow2 *s) EXCLUDES(s->meta);

/* Add one reference to a cluster that has some.  -EOVERFLOW: its refcount is at
 * its maximum. */
int qcow2_ref_more(struct qcow2 *s, uint64_t host) REQUIRES(s->meta);
/* Take back one reference, that nothing has used, to each cluster of these
 * bytes.  They do not go through limbo: a caller that tries again for want of
 * room would find there what it has just left itself, for ever. */
void qcow2_ref_undo(struct qcow2 *s, uint64_t host, uint64_t bytes)
    REQUIRES(s->meta);

/* One reference more to each cluster of these bytes.  A failure, as of
 * qcow2_ref_more(), has changed nothing. */
int qcow2_ref_add(struct qcow2 *s, uint64_t host, uint64_t bytes)
    REQUIRES(s->meta);

/* The highest refcount that there is, and that there can be. */
int qcow2_refcount_highest(struct qcow2 *s, uint64_t *highest)
    EXCLUDES(s->meta);
uint64_t qcow2_refcount_max(const struct qcow2 *s);

/* The refcount of a cluster. */
int qcow2_refcount_get(struct qcow2 *s, uint64_t cluster, uint64_t *count)
    REQUIRES(s->meta);
/* Lower *@end to one behind the last cluster in [@first, *end) that has a
 * refcount, or to @first.  They are of one refcount block. */
int qcow2_refcount_last(struct qcow2 *s, uint64_t first, uint64_t *end)
    REQUIRES(s->meta);

/* How large the refcount table becomes that has entry @needed - 1 and does not
 * have it yet: *clusters, and *blocks that count these.  Of @s only its shape
 * and reftable_size count.  -EFBIG: no image has such a table. */
int qcow2_measure_reftable(const struct qcow2 *s, uint64_t needed,
                           uint64_t *blocks, uint64_t *clusters);

/* refcount.c: one entry of a block of 2^@order bit wide refcounts. */
uint64_t qcow2_refcount_load(const void *block, unsigned order, uint64_t index);
void qcow2_refcount_store(void *block, unsigned order, uint64_t index,
                          uint64_t count);

/* --- room.c --- */

/* The L1 and the refcount table have room in the file by pages of so many
 * bytes. */
#define QCOW2_TABLE_PAGE UINT64_C(4096)

/* Has @file nothing at all there?  Then it reads as zeroes. */
bool qcow2_is_hole(struct node *file, uint64_t host, uint64_t bytes);

/* Give new metadata blocks in the file, which read as zeroes then.  -ENOSPC. */
int qcow2_take_room(struct qcow2 *s, uint64_t host, uint64_t bytes)
    REQUIRES(s->meta);
/* Give blocks to a table of the caches that is about to be changed. */
int qcow2_keep_room(struct qcow2 *s, struct qcow2_table *t) REQUIRES(s->meta);
/* Give blocks to entry @index of the L1 or the refcount table.  -EIO: there is
 * something else. */
int qcow2_keep_entry_room(struct qcow2 *s, uint64_t table_offset,
                          const _Atomic uint64_t *table, uint64_t entries,
                          uint64_t index) REQUIRES(s->meta);

/*
 * Is an operation that ended with *r, and has changed nothing, worth another
 * try?  It is if it found no room and clusters have been freed since *seen,
 * which is `released` as it was before the first try.  It also is if it has to
 * go on with a search (-EINPROGRESS).  Flushes, and waits a limited time for
 * requests that use freed clusters.  False: the error is in *r.
 */
bool qcow2_try_again(struct qcow2 *s, int *r, uint64_t *seen) EXCLUDES(s->meta);

#endif /* NBDELTA_QCOW2_ALLOC_H */
