/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_UNIX_SOCKET_H
#define NBDELTA_SERVER_UNIX_SOCKET_H

/* Unix sockets that listen, of the NBD server and of the monitor. */
#include <sys/types.h>

struct error;

struct unix_socket {
    int fd;     /* close-on-exec, non-blocking */
    char *path; /* malloc()ed; NULL: of another family */
    dev_t dev;  /* which file it made */
    ino_t ino;
};

/*
 * Listen at @path, with @mode from the first moment.  A socket that is there
 * is replaced only if nobody listens on it (-EADDRINUSE).
 */
int unix_socket_listen(struct unix_socket *u, const char *path, mode_t mode,
                       struct error **errp);

/* Close it, and remove its file if that is still the one it made. */
void unix_socket_close(struct unix_socket *u);

#endif /* NBDELTA_SERVER_UNIX_SOCKET_H */
