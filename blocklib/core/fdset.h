/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_FDSET_H
#define NBDELTA_CORE_FDSET_H

/* Sets of descriptors from the inside. */
#include "nbdelta/fdset.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"

struct fdset_table {
    mutex_t lock;     /* the last of all locks */
    struct list list; /* guarded by lock: sets, the lowest number first */
    unsigned fds;     /* guarded by lock: in all of them */
};

void fdset_table_init(struct fdset_table *t);
void fdset_table_destroy(struct fdset_table *t);

/* What a node holds of a set. */
struct fdset_use;

/* Does @filename mean a set? */
bool fdset_is_name(const char *filename);

/*
 * A duplicate of the descriptor in the set that @filename means which has the
 * access mode of @flags (O_RDONLY, O_RDWR).  With O_DIRECT in @flags that is
 * set, or else taken away; it belongs to the open file, so all duplicates have
 * it.  *use goes to fdset_put() when the duplicate has been closed, or is
 * about to be.  -ENOENT: no such set; -EACCES: no such descriptor in it.
 */
int fdset_dup(struct graph *g, const char *filename, int flags,
              struct fdset_use **use, struct error **errp);

/* Give back @use.  True: no other duplicate of its descriptor was given out.
 * Locks that the open file has are this node's alone then. */
bool fdset_put(struct graph *g, struct fdset_use *use);

#endif /* NBDELTA_CORE_FDSET_H */
