/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_SNAPSHOT_CHANGE_H
#define NBDELTA_QCOW2_SNAPSHOT_CHANGE_H

/* Between snapshot.c, which says what comes when, and the files that do it. */
#include "nbdelta/internal-snapshot.h"
#include "qcow2/alloc.h"
#include "qcow2/qcow2.h"

/* A snapshot that is being made; meta lock. */
struct qcow2_making {
    uint64_t raised; /* guest bytes: all references below are counted twice */
    int broken;      /* -errno: some are not, and nobody can tell which */
};

/* References that are being counted: snapshot-counts.c. */
struct qcow2_counting {
    int step;
    uint64_t l1_bytes; /* of all snapshots */
    uint64_t *tables;  /* L2 tables of snapshots, sorted, */
    size_t count;
    size_t at;         /* and how many of them are counted */
    uint64_t compared; /* clusters that have been compared */

    /* --- meta lock --- */
    struct qcow2_census *census;
    uint64_t upto; /* guest bytes: all references of the disk below count */
};

/* A change that goes on: see snapshot.c. */
struct qcow2_change {
    struct qcow2 *s;
    enum internal_verb verb;
    struct qcow2_snapshots after; /* the table that will count, */
    uint64_t table_bytes;         /* and the room for it in the file */
    uint32_t index;               /* of the snapshot, in the table it is in */

    uint64_t *l1; /* make: of the disk at that instant; else of the snapshot */
    uint32_t l1_size;
    uint64_t l1_offset; /* of a new L1 table, */
    uint64_t l1_bytes;  /* and its room in the file; 0: there is none */

    struct qcow2_making making;
    struct qcow2_counting counting;
    unsigned step;
    uint64_t next; /* guest byte, or L1 entry, up to which it has come */
    bool counted;  /* counts are high enough for a disk to be dropped */
    bool begun;    /* make: something has changed */
    bool in_doubt; /* the header may lead to either table */

    /* apply: what the disk will have. */
    uint64_t new_size;
    uint32_t l1_needed; /* entries */
    uint64_t new_l1_offset;
    uint64_t new_l1_bytes; /* 0: there is none */
};

/* --- snapshot.c --- */

/* Returns @r, with a text for a failure. */
int qcow2_change_failed(const struct qcow2_change *c, int r,
                        struct error **errp);

/* --- snapshot-refs.c: references of a disk, table by table. --- */

/* All that the entries for [@offset, @offset + @bytes) of the table lead to has
 * one reference more.  A failure, as of qcow2_ref_more(), has changed
 * nothing. */
int qcow2_refs_raise(struct qcow2 *s, const struct qcow2_table *t,
                     uint64_t offset, uint64_t bytes) REQUIRES(s->meta);
/* One reference less, of those that nothing on disk and no request has. */
int qcow2_refs_lower(struct qcow2 *s, const struct qcow2_table *t,
                     uint64_t offset, uint64_t bytes) REQUIRES(s->meta);
/* The same for one part of the file. */
int qcow2_ref_drop(struct qcow2 *s, uint64_t host, uint64_t bytes)
    REQUIRES(s->meta);
/* Say of each entry whether its cluster has no other reference. */
int qcow2_refs_own(struct qcow2 *s, struct qcow2_table *t, uint64_t offset,
                   uint64_t bytes) REQUIRES(s->meta);

/* Count them @times.  False: some lead to where nothing can be. */
bool qcow2_refs_count(struct qcow2 *s, const struct qcow2_table *t,
                      uint64_t offset, uint64_t bytes, uint32_t times,
                      struct qcow2_census *n);

/* Can every count be raised once more by what the active disk refers to?
 * Reads all tables if some count is high.  -EOVERFLOW. */
int qcow2_refs_fit(struct qcow2 *s) EXCLUDES(s->meta);

/* --- snapshot-make.c --- */

/* Steps: 0: done; 1: call it again. */
int qcow2_make_begin(struct qcow2_change *c, struct error **errp);
void qcow2_make_share(struct qcow2_change *c); /* at the instant; drained */
void qcow2_make_undo(struct qcow2_change *c);  /* the same */
int qcow2_make_abort(struct qcow2_change *c);

/* --- snapshot-counts.c --- */

/* Can a disk be dropped without harm for others?  Steps: 0: yes; 1: call it
 * again.  -EUCLEAN: a count is too low.  Nothing changes. */
int qcow2_counts_check(struct qcow2_change *c, struct error **errp);
/* Free what it has taken.  May be called more than once. */
void qcow2_counts_end(struct qcow2_change *c);

/* --- snapshot-drop.c --- */

/* Drop the references of the disk of the L1 table `l1`.  1: call it again. */
int qcow2_drop_disk(struct qcow2_change *c);

/* Entry @index of the active disk's L1 table, and all entries that it leads to,
 * get COPIED where nothing else has what they lead to. */
int qcow2_own_entries(struct qcow2 *s, uint64_t index) EXCLUDES(s->meta);

/* May an L2 table of a disk of the past be there?  -EIO: the image is
 * corrupt. */
int qcow2_drop_check(struct qcow2 *s, uint64_t host);

/* --- snapshot-view.c: of struct driver_snapshots --- */

int qcow2_view_look(struct node *n, const char *which,
                    struct snapshot_found **foundp, struct error **errp);
int qcow2_view_show(struct node *n, struct snapshot_found *found,
                    struct node **viewp, struct error **errp);
void qcow2_view_forget(struct snapshot_found *found);
int qcow2_view_measure(struct node *n, const char *which, uint64_t *size,
                       struct error **errp);

/* --- snapshot-apply.c --- */

/* Can the disk become the snapshot? */
int qcow2_apply_check(struct qcow2_change *c, const struct qcow2_snapshot *sn,
                      struct error **errp);
/* Steps, as above: count what the snapshot has once more; take that back. */
int qcow2_apply_raise(struct qcow2_change *c);
int qcow2_apply_abort(struct qcow2_change *c);
/* Write the new L1 table; durable. */
int qcow2_apply_write(struct qcow2_change *c);
int qcow2_apply_act(struct qcow2_change *c); /* drained */

#endif /* NBDELTA_QCOW2_SNAPSHOT_CHANGE_H */
