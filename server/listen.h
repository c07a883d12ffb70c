/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_LISTEN_H
#define NBDELTA_SERVER_LISTEN_H

/* The NBD server: its sockets and connections. */

struct conn;
struct error;
struct exports;
struct server;

struct server *server_new(struct exports *exports); /* NULL: no memory */
void server_free(struct server *s); /* after server_stop; NULL is fine */

/* A Unix socket, mode 0600.  One that is there is replaced only if nobody
 * listens on it; it is removed by server_stop. */
int server_listen_unix(struct server *s, const char *path, struct error **errp);

/* A TCP socket on each of the addresses that @host has; NULL: on those of
 * the local host. */
int server_listen_tcp(struct server *s, const char *host, const char *port,
                      struct error **errp);

/* Begin to accept clients. */
int server_start(struct server *s, struct error **errp);

/* No new clients; what has been requested is done and answered, as far as
 * clients take it within seconds; connections end. */
void server_stop(struct server *s);

/*
 * A connection enters transmission, or has executed its last request.
 *
 * A client that lost its connection and comes back must not find an old write
 * landing on a new one: so a connection to a writable export waits, before
 * it enters, until those whose clients are gone have done or dropped what
 * they had received.
 */
void server_enter(struct server *s, struct conn *c);
void server_quiet(struct server *s, struct conn *c);

/* The thread of a connection is about to end. */
void server_reap_soon(struct server *s);

#endif /* NBDELTA_SERVER_LISTEN_H */
