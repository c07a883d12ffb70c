/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_PIDFILE_H
#define NBDELTA_SERVER_SERVE_PIDFILE_H

/*
 * The file that tells the daemon's process id, and that it is ready.
 *
 * Who has written it keeps the file itself locked (as QEMU does, so that both
 * heed each other) until it ends, however that is: a file that is not locked is
 * nobody's, and is taken over.  What the file says is not believed.
 *
 * It appears in one step, with the id in it and locked.  Who takes over one
 * that is there holds the lock of that from the beginning until its own is in
 * the place, so of two that start at once one is refused; when there was none,
 * that is only when both want to write it.
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

/* -EEXIST: somebody who is alive has it; -EINVAL: what is there is no pidfile.
 * The lock stays with the children of fork(). */
int pidfile_check(struct pidfile *p, struct error **errp);

/* Write it in one step.  Errors as above: somebody may have come meanwhile. */
int pidfile_write(struct pidfile *p, struct error **errp);

/* Remove it, if it is still the one that we wrote; and give up all locks. */
void pidfile_remove(struct pidfile *p);

#endif /* NBDELTA_SERVER_SERVE_PIDFILE_H */
