/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVER_H
#define NBDELTA_SERVER_SERVER_H

/* The NBD server: sockets that listen, and the connections they bring. */
struct error;
struct exports;
struct server;

struct server *server_new(struct exports *exports);

/*
 * Add a socket, before server_start.  Unix: created with mode 0600; a stale
 * one is replaced only if nobody listens on it (-EADDRINUSE).  TCP: every
 * address that @address (a name, IPv4 or IPv6; NULL: localhost) stands for.
 */
int server_listen_unix(struct server *s, const char *path,
                       struct error **errp);
int server_listen_tcp(struct server *s, const char *address, const char *port,
                      struct error **errp);

/* Begin to accept. */
int server_start(struct server *s, struct error **errp);

/* No new clients; requests that were received are finished and answered;
 * clients that do not take their replies are cut off after a few seconds.
 * Socket files are removed. */
void server_stop(struct server *s);
void server_free(struct server *s); /* after server_stop; NULL is fine */

#endif /* NBDELTA_SERVER_SERVER_H */
