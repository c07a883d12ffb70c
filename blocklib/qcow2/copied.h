/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_COPIED_H
#define NBDELTA_QCOW2_COPIED_H

/* Old data that was copied to new clusters, and is not durable there yet
 * (copied.c has the picture). */
#include "qcow2/qcow2.h"

void qcow2_copied_init(struct qcow2 *s);
void qcow2_copied_free(struct qcow2 *s); /* the memory */

/* A count to give to qcow2_copied_note().  Ask for it before copying. */
static inline uint64_t qcow2_copied_losses(const struct qcow2 *s)
{
    return atomic_load(&s->copied.losses);
}

/* Guest bytes, in one cluster, were copied to a place that an entry in memory
 * is about to lead to.  None: nothing to note.  -ENOMEM. */
int qcow2_copied_note(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                      uint64_t losses) REQUIRES(s->meta);

/* Is so much noted that it should be written back? */
bool qcow2_copied_many(const struct qcow2 *s) REQUIRES(s->meta);

/* The first @count notes are durable. */
void qcow2_copied_durable(struct qcow2 *s, size_t count) REQUIRES(s->meta);

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

/* Write again what may be lost, so that the next flush covers it.  Blocks, for
 * some seconds at most besides I/O.  After an error the next flush must not
 * count.  Call it without flush_lock and meta. */
int qcow2_copied_mend(struct qcow2 *s);

#endif /* NBDELTA_QCOW2_COPIED_H */
