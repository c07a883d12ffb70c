/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_COPIED_H
#define NBDELTA_QCOW2_COPIED_H

/* Old data that was copied to new clusters, and is not durable there yet
 * (copied.c has the picture). */
#include "qcow2/qcow2.h"

void qcow2_copied_init(struct qcow2 *s);
void qcow2_copied_free(struct qcow2 *s); /* the memory */

/* --- Noting: copied.c --- */

/* A count to give to qcow2_copied_note().  Ask for it before copying. */
static inline uint64_t qcow2_copied_losses(const struct qcow2 *s)
{
    return atomic_load(&s->copied.losses);
}

/* Make room for what so many clusters need at most.  -ENOMEM. */
int qcow2_copied_reserve(struct qcow2 *s, uint64_t clusters) REQUIRES(s->meta);

/* Guest bytes, in one cluster, were copied to @host, which an entry in memory
 * is about to lead to.  @t: their table, as it is before that.  None: nothing
 * to note. */
void qcow2_copied_note(struct qcow2 *s, const struct qcow2_table *t,
                       uint64_t offset, uint64_t bytes, uint64_t host,
                       uint64_t losses) REQUIRES(s->meta);

/*
 * A part of the data file, or of its end, gets bytes that are not old data.
 * Call it before, with the guest's range locked or a ticket that is older than
 * a look at `mending` which was false.
 */
void qcow2_copied_overwrite(struct qcow2 *s, uint64_t host, uint64_t bytes);

/* Is so much noted that it should be written back? */
bool qcow2_copied_many(const struct qcow2 *s);

/* The first @count notes are durable. */
void qcow2_copied_durable(struct qcow2 *s, size_t count)
    REQUIRES(s->flush_lock);

/* --- Losing and mending: copied-mend.c --- */

/* A flush has failed.  Takes no lock. */
static inline void qcow2_copied_lost(struct qcow2 *s)
{
    atomic_fetch_add(&s->copied.losses, 1);
}

/* Has something to be mended, if anything is noted? */
static inline bool qcow2_copied_are_lost(const struct qcow2 *s)
{
    return qcow2_copied_losses(s) != atomic_load(&s->copied.mended);
}

/* Copy again what may be lost, so that the next flush covers it.  Blocks, for
 * some seconds at most besides I/O.  After an error the next flush must not
 * count. */
int qcow2_copied_mend(struct qcow2 *s) REQUIRES(s->flush_lock);

#endif /* NBDELTA_QCOW2_COPIED_H */
