/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_UNIX_SOCKET_H
#define NBDELTA_SERVER_NET_UNIX_SOCKET_H

/* Unix sockets that listen, of the NBD server and of the monitor. */
#include <stdbool.h>
#include <sys/types.h>

struct error;
struct socket_file;

struct unix_socket {
    int fd;                   /* close-on-exec, non-blocking */
    struct socket_file *file; /* NULL: another family, or an inherited socket */
};

/* Who may connect to a socket: those who may write to its file. */
struct socket_access {
    mode_t mode;    /* of the file; 0: 0600 */
    bool has_group; /* the file belongs to @group, else to the process's */
    gid_t group;
};

/*
 * Listen at @path.  @access (NULL: the user alone) holds before the first
 * client can connect.  A socket that is there is replaced only if nobody
 * listens on it; else -EADDRINUSE.  -EPERM: the group is not the process's to
 * give.
 */
int unix_socket_listen(struct unix_socket *u, const char *path,
                       const struct socket_access *access, struct error **errp);

/* Close @u, and remove its file if that is still the file that @u has made. */
void unix_socket_close(struct unix_socket *u);

/*
 * When the process ends, the file of a socket goes last, because its absence
 * says that images are free.  After unix_sockets_keep(), the files of sockets
 * that are closed stay, dead.  unix_sockets_forget() removes them, and the
 * files of sockets that are still open.
 */
void unix_sockets_keep(void);
void unix_sockets_forget(void);

#endif /* NBDELTA_SERVER_NET_UNIX_SOCKET_H */
