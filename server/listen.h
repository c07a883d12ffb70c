/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_LISTEN_H
#define NBDELTA_SERVER_LISTEN_H

struct error;

/*
 * A listening Unix socket at @path with mode 0600, close-on-exec.  A socket
 * that is there already is replaced if nobody listens on it; any other file
 * is not touched (-EADDRINUSE, -EEXIST).  Returns the descriptor or -errno.
 */
int listen_unix(const char *path, struct error **errp);

#endif /* NBDELTA_SERVER_LISTEN_H */
