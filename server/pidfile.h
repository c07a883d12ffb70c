/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_PIDFILE_H
#define NBDELTA_SERVER_PIDFILE_H

struct error;

/*
 * Write our process number to @path, all at once: whoever sees the file reads
 * a whole number.  The file is locked while we live; -EBUSY when that of
 * another living process is there.  Returns a descriptor to keep, or -errno.
 */
int pidfile_write(const char *path, struct error **errp);

/* Remove it. */
void pidfile_remove(const char *path, int fd);

#endif /* NBDELTA_SERVER_PIDFILE_H */
