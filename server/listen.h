/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_LISTEN_H
#define NBDELTA_SERVER_LISTEN_H

/* The NBD server: its sockets and connections. */

#include <jansson.h>
#include <stdbool.h>

struct conn;
struct daemon;
struct error;
struct export;
struct server;
struct tls_policy;

/* The server of @d->exports.  NULL: no memory. */
struct server *server_new(struct daemon *d);
void server_free(struct server *s); /* after server_stop; NULL is fine */

/* It runs from now on (-EEXIST: it did), with at most @max connections at
 * once (0: no limit); the others wait.  @p (NULL: no TLS) holds for its
 * clients.  With the monitor lock, or before there are threads. */
int server_open(struct server *s, unsigned max, struct tls_policy *p,
                struct error **errp);
bool server_running(struct server *s);
unsigned server_max(struct server *s);

/* Can its clients be known, by TLS? */
bool server_has_tls(struct server *s);

/* Does the authorization object @authz allow @identity (NULL: unknown)? */
bool server_allows(const struct server *s, const char *authz,
                   const char *identity);

/* Listen on one more checked address (address.h); Unix sockets have the mode
 * 0600. */
int server_listen(struct server *s, const json_t *addr, struct error **errp);

/* It does not run any more: nobody listens, connections are told to end. */
void server_close(struct server *s);

/* Tell the connections that use @e, which is removed, to end. */
void server_end_export(struct server *s, const struct export *e);

/* Begin to accept clients, and to delete exports that nobody uses. */
int server_start(struct server *s, struct error **errp);

/* No new clients; what has been requested is done and answered, as far as
 * clients take it within seconds; connections have ended. */
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
