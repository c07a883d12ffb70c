/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_PIDFILE_H
#define NBDELTA_SERVER_PIDFILE_H

/* The file that tells the daemon's process id, and that it is ready. */
#include <stdbool.h>
#include <sys/types.h>

struct error;

struct pidfile {
    const char *path; /* as given; NULL: none */
    bool written;
    dev_t dev;
    ino_t ino;
};

/* -EEXIST: the file is there, of an nbdelta that is alive. */
int pidfile_check(const char *path, struct error **errp);

/* Write it in one step. */
int pidfile_write(struct pidfile *p, struct error **errp);

/* Remove it, if it is still the one that we wrote. */
void pidfile_remove(struct pidfile *p);

#endif /* NBDELTA_SERVER_PIDFILE_H */
