/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_FDSET_H
#define NBDELTA_FDSET_H

/*
 * Sets of descriptors that a user has passed
 * ==========================================
 *
 * A file node with the name "/dev/fdset/N" opens no file: it takes a duplicate
 * of the descriptor in set N that has its access mode.  So a process can use
 * files that it may not open itself.  A set has descriptors of one file, one
 * for each access mode.
 *
 * A set goes when it has no descriptor any more, and no node that uses one.
 *
 * Any thread may call these at any time; they do no I/O and do not wait.
 */
#include <jansson.h>

#include "nbdelta/types.h"

/* Descriptors in all sets of a graph. */
#define FDSET_FDS_MAX 1024

/*
 * Put @fd, which is the graph's from then on, into the set @id, which is made
 * where there is none.  @id -1: a new set, with the lowest number that is free.
 * @note (or NULL) is shown by fdset_query().  *idp is the set's number.
 * -EINVAL: @id is negative.  -EMFILE: FDSET_FDS_MAX.  An error leaves @fd to
 * the caller.
 */
int fdset_add(struct graph *g, int64_t id, int fd, const char *note,
              int64_t *idp, struct error **errp);

/* Close @fd of the set @id; @fd -1: all of the set.  What nodes have of it
 * stays open.  -ENOENT: there is none. */
int fdset_remove(struct graph *g, int64_t id, int fd, struct error **errp);

/* An array of QMP's FdsetInfo; NULL: no memory. */
json_t *fdset_query(struct graph *g);

#endif /* NBDELTA_FDSET_H */
