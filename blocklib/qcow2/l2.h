/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_L2_H
#define NBDELTA_QCOW2_L2_H

/* What L2 tables say is at a guest offset, and changing it (l2.c).  What an
 * entry looks like is in l2-entry.h. */
#include "qcow2/qcow2.h"

/* What is at a guest offset. */
enum qcow2_kind {
    QCOW2_KIND_UNALLOCATED,       /* nothing: what the backing file has */
    QCOW2_KIND_UNALLOCATED_ALLOC, /* the same, with a place for data */
    QCOW2_KIND_ZERO_PLAIN,        /* zeroes */
    QCOW2_KIND_ZERO_ALLOC,        /* zeroes, with a place for data */
    QCOW2_KIND_NORMAL,            /* data */
    QCOW2_KIND_COMPRESSED,
};

struct qcow2_at {
    enum qcow2_kind kind;
    bool copied;      /* nobody else refers to its cluster */
    bool wrong;       /* it leads to a place where there can be none */
    bool contradicts; /* its bits say what cannot be of some subcluster */
    uint64_t bytes;   /* of the disk are alike, and in a row */
    uint64_t host;    /* of all that have a place: where the offset itself is */
    struct qcow2_run packed; /* the compressed bytes of this cluster, at most */
};

/* What is at guest @offset, which @t describes, and for how many of @bytes; not
 * beyond the end of the table. */
void qcow2_l2_look(const struct qcow2 *s, const struct qcow2_table *t,
                   uint64_t offset, uint64_t bytes, struct qcow2_at *at);

/* The same for @bytes (not 0) one after the other, at most @most times. Returns
 * how many. */
unsigned qcow2_l2_look_many(const struct qcow2 *s, const struct qcow2_table *t,
                            uint64_t offset, uint64_t bytes,
                            struct qcow2_at *at, unsigned most);

/* As qcow2_l2_look() for what only asks where clusters are, and how many:
 * @offset is the start of one, and its subclusters are not told apart. */
void qcow2_l2_look_whole(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t offset, uint64_t bytes, struct qcow2_at *at);
/* -EIO, and the image is corrupt: what was found cannot be followed. */
int qcow2_l2_check(struct qcow2 *s, const struct qcow2_at *at);

/* The table that describes guest @offset, pinned, to be changed: made if it is
 * missing, copied if it is shared. */
int qcow2_l2_get_writable(struct qcow2 *s, uint64_t offset,
                          struct qcow2_table **tp) REQUIRES(s->meta);

/* The same where the table is in memory, and can be changed there without
 * further ado; else -EAGAIN. */
int qcow2_l2_get_ready(struct qcow2 *s, uint64_t offset,
                       struct qcow2_table **tp) REQUIRES(s->meta);

/*
 * Make whole subclusters (or the end of the disk) in such a table @kind, which
 * is not COMPRESSED.  Kinds that have a place are at @host on.  A cluster that
 * gets another place takes all of its data there: the caller has copied what
 * is not in these bytes.  A compressed cluster becomes one kind as a whole.
 * UNALLOCATED_ALLOC gives a place, and changes nothing else.  Clusters that
 * were there before, if they are others, or nothing is in them any more, are
 * free later.  -EIO: one of the old clusters is not data; all is changed
 * nonetheless.
 */
int qcow2_l2_put(struct qcow2 *s, struct qcow2_table *t, uint64_t offset,
                 uint64_t bytes, enum qcow2_kind kind, uint64_t host)
    REQUIRES(s->meta);
/* Make one cluster a compressed one, as qcow2_l2_put() does for others. */
int qcow2_l2_put_packed(struct qcow2 *s, struct qcow2_table *t, uint64_t offset,
                        const struct qcow2_run *packed) REQUIRES(s->meta);

/* Does the L1 entry lead to a cluster that is an L2 table and nothing else?  A
 * table that is shared will be copied, and loses a reference. */
bool qcow2_l2_is_table(const struct qcow2 *s, uint64_t entry);

/* Take COPIED from all entries: what they lead to is shared. */
void qcow2_l2_share(const struct qcow2 *s, struct qcow2_table *t);

/* What the entry for guest @offset has that its kind does not have, or NULL.
 * *lost: subclusters, a bit each, of which nobody knows therefore what they
 * are. */
const char *qcow2_l2_odd(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t offset, uint32_t *lost);
/* The subclusters of guest @offset's cluster that have data, a bit each; all
 * if the entry does not say. */
uint32_t qcow2_l2_data_parts(const struct qcow2 *s, const struct qcow2_table *t,
                             uint64_t offset);

/* Where in its table the entry for guest @offset begins, in bytes. */
uint64_t qcow2_l2_place(const struct qcow2 *s, uint64_t offset);

/* For a repair: change the entry for guest @offset, the start of a cluster, in
 * a table that no cache has.  Nothing is freed. */

/* It leads where @at says.  Subclusters stay as they are; one that contradicts
 * itself reads as zeroes. */
void qcow2_l2_mend(const struct qcow2 *s, struct qcow2_table *t,
                   uint64_t offset, const struct qcow2_at *at);
/* What it leads to is lost, and reads as zeroes; also if it is empty.  Not of
 * version 2. */
void qcow2_l2_mend_zero(const struct qcow2 *s, struct qcow2_table *t,
                        uint64_t offset);
/* It leads to data at @host, all of it. */
void qcow2_l2_mend_own(const struct qcow2 *s, struct qcow2_table *t,
                       uint64_t offset, uint64_t host);

/* Fill a table of a new image, for guest @offset on: each cluster of a disk of
 * @size bytes is @kind, and has the same place in the data file. */
void qcow2_l2_fill(const struct qcow2 *s, struct qcow2_table *t,
                   uint64_t offset, uint64_t size, enum qcow2_kind kind);

#endif /* NBDELTA_QCOW2_L2_H */
