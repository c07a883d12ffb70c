/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_ADDRESS_URI_H
#define NBDELTA_SERVER_NET_ADDRESS_URI_H

/* NBD URIs, as the NBD project's doc/uri.md has them. */
#include <stdbool.h>

/*
 * The URI of the export @name of who listens on the socket @fd, malloc()ed;
 * with @tls its scheme says so.  A socket that is bound to all addresses is
 * told as "localhost", a Unix socket by its absolute path.  NULL: no memory, or
 * nobody could reach it by a URI (an unnamed or abstract Unix socket).
 */
char *address_uri(int fd, bool tls, const char *name);

#endif /* NBDELTA_SERVER_NET_ADDRESS_URI_H */
