/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_ADDRESS_URI_H
#define NBDELTA_SERVER_NET_ADDRESS_URI_H

/* NBD URIs, as the NBD project's doc/uri.md has them. */
#include <stdbool.h>

/*
 * The URI of the export @name of the server that listens on the socket @fd,
 * malloc()ed.  With @tls the scheme says so.  The host of a socket that is
 * bound to all addresses is "localhost".  A Unix socket has its absolute path.
 * NULL: no memory, or nobody can reach the socket by a URI (it is a Unix socket
 * that is unnamed or abstract).
 */
char *address_uri(int fd, bool tls, const char *name);

#endif /* NBDELTA_SERVER_NET_ADDRESS_URI_H */
