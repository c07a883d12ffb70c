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

#endif /* NBDELTA_QCOW2_REPAIR_H */
