/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_UNIX_SOCKET_H
#define NBDELTA_SERVER_NET_UNIX_SOCKET_H

/* Unix sockets that listen, of the NBD server and of the monitor. */
#include <sys/types.h>

struct error;
struct socket_file;

struct unix_socket {
    int fd;                   /* close-on-exec, non-blocking */
    struct socket_file *file; /* NULL: of another family, or given */
};

/*
 * Listen at @path, with @mode from the first moment.  A socket that is there
 * is replaced only if nobody listens on it (-EADDRINUSE).
 */
int unix_socket_listen(struct unix_socket *u, const char *path, mode_t mode,
                       struct error **errp);

/* Close it, and remove its file if that is still the one it made. */
void unix_socket_close(struct unix_socket *u);

/*
 * At the end of the process a socket that is gone says that images are free.
 * keep: files of sockets that are closed from now on stay, dead; forget: they
 * go, and so do those of sockets that are still open.
 */
void unix_sockets_keep(void);
void unix_sockets_forget(void);

#endif /* NBDELTA_SERVER_NET_UNIX_SOCKET_H */
