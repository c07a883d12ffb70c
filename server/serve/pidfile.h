/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_PIDFILE_H
#define NBDELTA_SERVER_SERVE_PIDFILE_H

/*
 * The file that tells the daemon's process id, and that it is ready.
 *
 * The process that has written it keeps the file itself locked until it ends in
 * whatever way.  QEMU does the same, so both heed each other.  A file that is
 * not locked is nobody's, and is taken over.  What the file says is not
 * believed.
 *
 * The file appears in one step, locked and with the id in it.  A process that
 * takes over a file holds the lock of the old file from the beginning until its
 * own file is in the place.  So of two that start at once one is refused.
 * Without an old file one is refused only when both want to write theirs.
 */
#include <stdbool.h>
#include <sys/types.h>

struct error;

struct pidfile {
    const char *path; /* as given; NULL: none, and nothing here does anything */
    int stale;        /* the one that was there, locked; -1: none */
    int fd;           /* our own, locked; -1: not written yet */
};
#define PIDFILE_INIT          \
    {                         \
        .stale = -1, .fd = -1 \
    }

/* May the file be written?  -EEXIST: a process that is alive has it; -EINVAL:
 * the file that is there is no pidfile.  The lock stays with the children of
 * fork(). */
int pidfile_check(struct pidfile *p, struct error **errp);

/* Write it in one step.  Errors as above: somebody may have come meanwhile. */
int pidfile_write(struct pidfile *p, struct error **errp);

/* Remove it, if it is still the one that we wrote; and give up all locks. */
void pidfile_remove(struct pidfile *p);

#endif /* NBDELTA_SERVER_SERVE_PIDFILE_H */
