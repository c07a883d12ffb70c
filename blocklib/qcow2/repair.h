/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_REPAIR_H
#define NBDELTA_QCOW2_REPAIR_H

/* Between the files of the repair: repair.c says in which order they work. */
#include "qcow2/check.h"

/* What is copied to a new place, because something else is where it is. */
struct qcow2_move {
    enum qcow2_movers {
        QCOW2_MOVE_DATA,   /* all entries with data at the host byte `key` */
        QCOW2_MOVE_TABLES, /* all L1 entries that lead there */
        QCOW2_MOVE_ENTRY,  /* the entry at the file's byte `key` alone */
    } of;
    uint64_t key;
    uint64_t from; /* host bytes */
    uint64_t bytes;
    uint64_t to;
    uint64_t times; /* references */
};

struct qcow2_moves {
    struct qcow2_move *all;
    size_t count;
    size_t room;
    size_t sorted; /* so many of them are in order, and unlike */
};

/* Note one, while the damage is looked at.  -ENOMEM. */
int qcow2_moves_add(struct qcow2_moves *m, const struct qcow2_move *move);
/* All are noted. */
void qcow2_moves_sort(struct qcow2_moves *m);
/* The move with that key, or NULL. */
const struct qcow2_move *qcow2_moves_find(const struct qcow2_moves *m,
                                          enum qcow2_movers of, uint64_t key);

/* Clusters of the repair's own, in a row behind all others. */
struct qcow2_annex {
    uint64_t first;   /* cluster */
    uint64_t *counts; /* of each */
    size_t count;
    size_t room;
};

/* @clusters more, with that refcount; *first is a cluster.  -ENOMEM. */
int qcow2_annex_take(struct qcow2_annex *a, uint64_t clusters, uint64_t count,
                     uint64_t *first);

/* A new refcount structure in the annex, which counts all clusters at least as
 * often as they are referred to, or were counted.  It is written, not flushed;
 * nothing leads to it yet. */
struct qcow2_new_refcounts {
    uint64_t host;
    uint32_t clusters;
};
int qcow2_rebuild_refcounts(const struct qcow2_check *k, struct qcow2_annex *a,
                            struct qcow2_new_refcounts *new,
                            struct error **errp);

/* Write refcounts down to the number of references, where they are higher.
 * *lowered: clusters. */
int qcow2_lower_refcounts(const struct qcow2_check *k, uint64_t *lowered,
                          struct error **errp);

/* --- The repair --- */

/* An L1 entry that gets another value. */
struct l1_fix {
    uint64_t at;   /* where it stands in the file */
    bool lost;     /* it leads nowhere */
    uint64_t from; /* else the L2 table that it leads to, perhaps copied */
};

/* A change to an entry of the L2 table that the walk is at. */
struct l2_fix {
    uint64_t offset; /* guest byte, in the table */
    enum { FIX_ZERO, FIX_FLAGS, FIX_MOVE, FIX_OWN } how;
    uint64_t to;
};

struct repair {
    const struct qcow2_check *k; /* the first look */
    const struct image_check_options *o;
    struct node *file;
    struct qcow2_annex annex;
    struct qcow2_moves moves;
    struct l1_fix *l1_fixes;
    size_t l1_count;
    size_t l1_room;
    struct l2_fix *l2_fixes; /* of one table */
    size_t l2_count;
    size_t l2_room;

    bool backing;       /* what is unallocated shows another image */
    bool guest_changed; /* something reads as zeroes that could not be read */
    uint64_t highest;   /* refcount */

    bool new_l1;
    uint64_t l1_host;
    uint32_t l1_size;      /* entries, after the repair */
    bool l1_lost;          /* the old one cannot be read */
    uint32_t snapshots;    /* that are left */
    uint64_t zero_tables;  /* L1 entries that will lead to a table of zeroes */
    uint64_t zero_table;   /* host of the first of these tables */
    uint64_t zero_entries; /* of version 2: that lead to a cluster of zeroes */
    uint64_t zero_cluster; /* host of the first of these clusters */
    uint64_t zero_used;    /* references to it that were given out */
    uint64_t lost_from;    /* a range that was lost, not yet told */
    uint64_t lost_bytes;
};

/* Can the place of a lost part of the disk not simply be left empty? */
static inline bool qcow2_repair_needs_zeroes(const struct repair *p)
{
    return p->backing;
}

/* repair-plan.c: look at everything that is to be changed, and note it in *p.
 * Tells what is lost.  -ENOMEM. */
int qcow2_repair_plan(struct repair *p);
/* Is something else where a part of a structure is, that is no L2 table? */
bool qcow2_repair_is_taken(const struct repair *p, uint64_t host);
/* Does each cluster of the data file have what the guest sees there? */
bool qcow2_repair_is_raw(const struct repair *p);

/* repair-write.c: write, behind the end, all that entries will lead to. */
int qcow2_repair_write(struct repair *p);
/* Make the entry for guest @offset of @t, which has @times users, zeroes. */
void qcow2_repair_zero_entry(struct repair *p, struct qcow2_table *t,
                             uint64_t offset, uint64_t times);
/* The place of the table of zeroes for the @user-th L1 entry. */
uint64_t qcow2_repair_zero_table(const struct repair *p, uint64_t user);

/* repair-mend.c: change bitmaps, then entries; flush. */
int qcow2_repair_mend(struct repair *p, struct error **errp);

#endif /* NBDELTA_QCOW2_REPAIR_H */
