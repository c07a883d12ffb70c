/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_SNAPSHOTS_H
#define NBDELTA_QCOW2_SNAPSHOTS_H

/*
 * Internal snapshots: disks of the past that share clusters with this one
 * =======================================================================
 *
 *   header --> snapshot table --> entry: id, name, date, size of the disk
 *                                   \--> an L1 table of its own
 *                                          \--> L2 tables --> data
 *
 * A cluster that the active disk shares with a snapshot has a refcount of more
 * than one, and no COPIED.  So it is copied before it is written.  In memory
 * the flags of an L2 table count only if the L1 entry that leads to the table
 * has COPIED, too: a shared table is shared with all that it leads to.
 *
 * Memory has the table's bytes as they are on disk.  Entries are parsed when
 * they are needed, and keep extra data that we do not know.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct error;
struct node;
struct qcow2;
struct qcow2_header;

/* As QEMU has them, except the size of the table: theirs is 64 MiB. */
#define QCOW2_SNAPSHOTS_MAX         65536
#define QCOW2_SNAPSHOT_EXTRA_MAX    1024
#define QCOW2_SNAPSHOT_TABLE_MAX    (UINT64_C(16) << 20)
#define QCOW2_SNAPSHOT_HEAD         40 /* bytes of an entry, at least */
#define QCOW2_SNAPSHOT_NO_ICOUNT    UINT64_MAX
#define QCOW2_SNAPSHOT_L1_OFFSET_AT 0 /* in an entry */

/* An entry.  Texts are bytes without an end, in the table. */
struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size; /* entries */
    uint32_t date_sec;
    uint32_t date_nsec;
    uint64_t vm_clock_nsec;
    uint64_t vm_state_size; /* bytes */
    uint64_t disk_size;     /* bytes; UINT64_MAX: it does not say */
    uint64_t icount;        /* or QCOW2_SNAPSHOT_NO_ICOUNT */
    const char *id;
    uint32_t id_len;
    const char *name;
    uint32_t name_len;
    uint64_t bytes; /* of the entry, with what fills it up to 8 */
};

struct qcow2_snapshots {
    unsigned char *table; /* malloc()ed */
    uint64_t bytes;       /* with what fills up the last entry */
    uint32_t *at;         /* where the entries begin in it */
    uint32_t count;
    uint64_t offset;    /* in the file; 0: there is no table */
    const char *broken; /* why the table in the file cannot be read, or NULL */
};

/* --- snapshot-table.c: the table as bytes.  Pure. --- */

/* The bytes of the entry that begins with the QCOW2_SNAPSHOT_HEAD bytes @head;
 * 0: it is larger than any may be. */
uint64_t qcow2_snapshot_size(const unsigned char *head);

/* Parse the entry at @bytes.  0; -EAGAIN: the entry has more than @len bytes,
 * without what fills it up; -EFBIG. */
int qcow2_snapshot_parse(const unsigned char *bytes, uint64_t len,
                         struct qcow2_snapshot *sn);

/* Entry @i of a table that is in memory. */
void qcow2_snapshot_get(const struct qcow2_snapshots *t, uint32_t i,
                        struct qcow2_snapshot *sn);

/*
 * The first snapshot with this id, and this name; NULL: whatever it has.
 * Returns its index, or -ENOENT.
 */
int64_t qcow2_snapshot_find(const struct qcow2_snapshots *t, const char *id,
                            const char *name);

/*
 * The snapshot that @which means: an id, or else a name; or, as in QEMU, a list
 * of "snapshot.id=ID" and "snapshot.name=NAME" with one or both of them, in
 * which a comma that belongs to a value is doubled.  -ENOENT; -EINVAL: it
 * begins as such a list, and is none; -ENOMEM.
 */
int64_t qcow2_snapshot_which(const struct qcow2_snapshots *t,
                             const char *which);

/* *after, which the caller frees, is @t and one entry more, or one less.
 * -ENOMEM, -EFBIG. */
int qcow2_snapshots_with(const struct qcow2_snapshots *t,
                         const struct qcow2_snapshot *sn,
                         struct qcow2_snapshots *after);
int qcow2_snapshots_without(const struct qcow2_snapshots *t, uint32_t i,
                            struct qcow2_snapshots *after);

/* Say when entry @i was made, in seconds and nanoseconds. */
void qcow2_snapshot_date(struct qcow2_snapshots *t, uint32_t i, uint32_t sec,
                         uint32_t nsec);

/* An id that is a number, larger than all others. */
uint64_t qcow2_snapshot_next_id(const struct qcow2_snapshots *t);

void qcow2_snapshots_free(struct qcow2_snapshots *t);

/* --- snapshot-load.c --- */

/* Read the table that the header names.  A table that cannot be read is no
 * error: it is `broken`. -ENOMEM, and errors of reading. */
int qcow2_snapshots_load(struct node *file, const struct qcow2_header *h,
                         struct qcow2_snapshots *t, struct error **errp);

/* May an image with this table be written to? */
int qcow2_snapshots_check(const struct qcow2_header *h,
                          const struct qcow2_snapshots *t, struct error **errp);

/* Can the L1 table of a snapshot be where the entry says? */
bool qcow2_snapshot_has_l1(const struct qcow2 *s,
                           const struct qcow2_snapshot *sn);

/* The snapshot that @which means (qcow2_snapshot_which).  -ENOENT, -EINVAL. */
int qcow2_snapshot_choose(const struct qcow2_snapshots *t, const char *which,
                          struct qcow2_snapshot *sn, struct error **errp);

/* *size: bytes of the snapshot's disk, in an image whose L2 tables describe
 * @span bytes each and whose disk has @now.  -EUCLEAN: it has no L1 table that
 * can be right. */
int qcow2_snapshot_shape(const struct qcow2 *s, uint64_t span, uint64_t now,
                         const struct qcow2_snapshot *sn, uint64_t *size,
                         struct error **errp);

/* --- snapshot.c --- */

/* driver.snapshots */
extern const struct driver_snapshots qcow2_snapshot_methods;

/* SnapshotInfo of each, as in ImageInfo; a new reference, or NULL. */
json_t *qcow2_snapshots_describe(const struct qcow2_snapshots *t);

/* SnapshotInfo of one; a new reference, or NULL. */
json_t *qcow2_snapshot_describe(const struct qcow2_snapshot *sn);

/* --- snapshot-view.c --- */

/* The table is another one now.  Drained, or at open. */
void qcow2_snapshots_changed(struct qcow2 *s);

/* Say that @file is read as the snapshot with this L1 table, until the file is
 * closed. */
void qcow2_snapshot_mark(struct node *file, uint64_t l1_offset);
/* Does a view of the disk show it, or does another open of the file, in
 * whatever process, say so? */
bool qcow2_snapshot_shown(struct qcow2 *s, uint64_t l1_offset);

#endif /* NBDELTA_QCOW2_SNAPSHOTS_H */
