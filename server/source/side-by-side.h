/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_SIDE_BY_SIDE_H
#define NBDELTA_SERVER_SOURCE_SIDE_BY_SIDE_H

/* Many things that each wait for somebody far away, a few at once. */

struct error;

struct side_by_side {
    unsigned count;
    /* Called once for each number below `count`, in any order, by any of
     * several threads. */
    int (*fn)(void *opaque, unsigned i, struct error **errp);
    /* The user wants an end: have calls that wait return.  NULL: they are
     * waited for, and so are all others.  One thread, once. */
    void (*stop)(void *opaque);
    void *opaque;
    int stop_fd; /* readable: the user wants an end; -1: none */
};

/* Blocks until no call is under way.  After a failure no further one begins,
 * and the first is returned; -ECANCELED after `stop`. */
int side_by_side_run(const struct side_by_side *s, struct error **errp);

#endif /* NBDELTA_SERVER_SOURCE_SIDE_BY_SIDE_H */
