/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_CACHE_H
#define NBDELTA_QCOW2_CACHE_H

/*
 * A write-back cache of metadata tables (L2 tables or refcount blocks), each
 * one cluster, by their offset in the file.
 *
 * A pinned table stays in memory at its address.  Its content is changed only
 * by the holder of the image's meta lock, and read by any thread that has it
 * pinned.  The cache never writes a table back by itself, because only flush.c
 * knows the order: when all tables are dirty or pinned it grows past its limit,
 * and `qcow2_cache_pressed` tells the writers to do something.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/event.h"
#include "nbdelta/list.h"

struct qcow2_cache;

struct qcow2_table {
    uint64_t offset;
    void *data;               /* big-endian, as on disk */
    _Atomic uint32_t changes; /* of entries of two words: l2-entry.h */
    bool has_room; /* the file has blocks for it (room.c); meta lock */

    /* Guarded by the cache's lock. */
    struct qcow2_table *hash_next;
    struct list lru; /* least recently used first; only while unpinned */
    unsigned pins;
    bool dirty;
    bool loading;
};

/* NULL: no memory.  @max: tables to keep. */
struct qcow2_cache *qcow2_cache_new(struct node *file, size_t table_size,
                                    size_t max);
/* The events that the file is told before a table is read, and before one is
 * written (event.h). */
void qcow2_cache_set_events(struct qcow2_cache *c, enum node_event load,
                            enum node_event update);
/* Use another file of the same content from now on; nothing is dirty. */
void qcow2_cache_set_file(struct qcow2_cache *c, struct node *file);

/* Dirty tables are lost.  NULL is fine. */
void qcow2_cache_free(struct qcow2_cache *c);

/* Pin the table at @offset, reading it when it is not there.  -EAGAIN with
 * @nowait when that would be needed. */
int qcow2_cache_get(struct qcow2_cache *c, uint64_t offset, bool nowait,
                    struct qcow2_table **tp);
/* Pin a new table of zeroes for @offset.  It is dirty.  If the cache has an old
 * table there, that is forgotten. */
int qcow2_cache_new_table(struct qcow2_cache *c, uint64_t offset,
                          struct qcow2_table **tp);
void qcow2_cache_put(struct qcow2_cache *c, struct qcow2_table *t);
void qcow2_cache_mark_dirty(struct qcow2_cache *c, struct qcow2_table *t);

/* The table's cluster is free: forget it unwritten.  Nobody has it pinned. */
void qcow2_cache_forget(struct qcow2_cache *c, uint64_t offset);

/* Copies of dirty tables.  What is zeroes is an empty set. */
struct qcow2_dirty {
    struct qcow2_table *table;
    void *copy;
};
struct qcow2_dirty_set {
    struct qcow2_dirty *list;
    size_t room;  /* elements that have memory for a copy */
    size_t count; /* that have one */
};
/* Get memory for as many copies as are needed now, before the meta lock is
 * taken: guests wait for that lock, and new memory takes longer than copying.
 * A success is not needed. */
void qcow2_cache_make_room(struct qcow2_cache *c, struct qcow2_dirty_set *set);
/* Copy all dirty tables, which are pinned and clean afterwards.  -ENOMEM:
 * nothing has changed.  The caller holds the meta lock. */
int qcow2_cache_collect(struct qcow2_cache *c, struct qcow2_dirty_set *set);
/* Write the copies, lowest offset first; stops at the first error. */
int qcow2_cache_write(struct qcow2_cache *c, const struct qcow2_dirty_set *set);
/* Unpin and free; @failed makes the tables dirty again. */
void qcow2_cache_release(struct qcow2_cache *c, struct qcow2_dirty_set *set,
                         bool failed);

/* Are so many tables dirty that they should be written back? */
bool qcow2_cache_pressed(struct qcow2_cache *c);

#endif /* NBDELTA_QCOW2_CACHE_H */
