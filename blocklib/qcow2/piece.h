/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_PIECE_H
#define NBDELTA_QCOW2_PIECE_H

/* A part of a write: a run of guest bytes that gets, or has, one place in the
 * data file (piece.c has the picture). */
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"

/* Clusters in one L2 table that are treated alike. */
struct qcow2_piece {
    uint64_t offset; /* guest bytes of the request */
    uint64_t bytes;
    uint64_t host;          /* of the first byte of the request */
    uint64_t head;          /* bytes before it that are written, too, */
    uint64_t tail;          /* and behind it */
    bool with_head;         /* these are written */
    bool with_tail;         /* (what reads as zeroes anyway need not be) */
    char *old;              /* what is in head and tail, or NULL */
    uint64_t losses;        /* when it was planned: copied.h */
    uint64_t clusters;      /* that were allocated for it */
    struct qcow2_table *l2; /* pinned, if entries are to be put in */
    bool placed;            /* there is a place already, and it is ours alone */
    bool in_place;          /* and there is data: nothing changes */
    bool fresh;             /* reads as zeroes where it is not written */
    bool copied_up;         /* what the request writes is old data, too */
};

/*
 * Find or allocate the host clusters of the first piece of a request, whose
 * clusters the caller has locked.  After a success: _end or _drop, and then
 * _free.  @nowait: -EAGAIN where that takes more than looking at memory; then
 * nothing has changed.
 */
int qcow2_piece_plan(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                     bool nowait, struct qcow2_piece *p) REQUIRES(s->meta);

/* Get the old data that go to the new place.  With REQ_NOWAIT: -EAGAIN where
 * that has to wait, or takes long. */
int qcow2_piece_gather(struct qcow2 *s, struct qcow2_piece *p, unsigned flags)
    EXCLUDES(s->meta);

/* Write head, data and tail to the piece's place.  @flags: REQ_NOWAIT,
 * REQ_UNCACHED. */
int qcow2_piece_write(struct qcow2 *s, struct qcow2_piece *p,
                      const struct iovec *iov, int cnt, unsigned flags)
    EXCLUDES(s->meta);

/* A part of the place, or all of it, is about to be written. */
void qcow2_piece_overwrite(struct qcow2 *s, const struct qcow2_piece *p);

/* The data are there, or @r says why not: let the L2 entries say so, or give
 * back what was allocated.  Returns @r, or what went wrong now. */
int qcow2_piece_end(struct qcow2 *s, const struct qcow2_piece *p, int r)
    REQUIRES(s->meta);

/* Give back what was allocated for a piece of which no byte was written. */
void qcow2_piece_drop(struct qcow2 *s, const struct qcow2_piece *p)
    REQUIRES(s->meta);

/* Let the L2 entries say that the piece is @kind, at its place. */
int qcow2_piece_link(struct qcow2 *s, const struct qcow2_piece *p,
                     enum qcow2_kind kind) REQUIRES(s->meta);

void qcow2_piece_free(struct qcow2 *s, struct qcow2_piece *p);

#endif /* NBDELTA_QCOW2_PIECE_H */
