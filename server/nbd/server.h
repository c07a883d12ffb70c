/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NBD_SERVER_H
#define NBDELTA_SERVER_NBD_SERVER_H

/*
 * NBD servers: their sockets and connections
 * ==========================================
 *
 * A daemon has any number of servers, one of them without a name.  Each has
 * sockets, limits and exports of its own, and asks of its clients what its TLS
 * policy says.  One thread accepts for all of them, one pool works for all.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct conn;
struct daemon;
struct error;
struct export;
struct room;
struct server;
struct servers;
struct tls_policy;

/* Those of @d, for @d->exports.  NULL: no memory. */
struct servers *servers_new(struct daemon *d);

/* After servers_stop; nobody has a reference to a server any more.  NULL is
 * fine. */
void servers_free(struct servers *ss);

/* Is a client still there, and may ask for more? */
enum presence {
    CLIENT_LEAVING, /* no: it goes as soon as its last request is done */
    CLIENT_UNSURE,  /* that may be in what it has sent */
    CLIENT_HERE,
};

/* Begin to accept clients, and to delete exports that nobody uses. */
int servers_start(struct servers *ss, struct error **errp);

/* No new clients; what has been requested is done and answered, as far as
 * clients take it within seconds; connections have ended. */
void servers_stop(struct servers *ss);

/* Tell the connections that use @e, which is removed, to end. */
void servers_end_export(struct servers *ss, const struct export *e);

/* Seconds that a client may take to choose an export: unless told otherwise,
 * as QEMU; and no limit. */
#define HANDSHAKE_S       10
#define HANDSHAKE_FOREVER UINT32_MAX

struct server_options {
    const char *id;            /* NULL: the one without a name */
    unsigned max;              /* connections at once, others wait; 0: as many
                                  as there are descriptors for */
    unsigned max_per_address;  /* those above it are closed; 0: any number */
    unsigned handshake_s;      /* 0: HANDSHAKE_S */
    mode_t socket_mode;        /* of Unix sockets; 0: 0600 */
    struct tls_policy *policy; /* NULL: no TLS */
};

/* A server that runs from now on, without a socket yet; *sp has a reference.
 * -EEXIST: there is one of that name. */
int server_open(struct servers *ss, const struct server_options *o,
                struct server **sp, struct error **errp);

/* One that runs, with a reference; NULL: there is none. */
struct server *server_find(struct servers *ss, const char *id,
                           struct error **errp);
void server_unref(struct server *s); /* NULL is fine */

/* Listen on one more checked address (address.h). */
int server_listen(struct server *s, const json_t *addr, struct error **errp);

/* It does not run any more: nobody listens, nobody finds it, its connections
 * are told to end. */
void server_close(struct server *s);

/* What exports name it by (export_options); not 0, and never another's.  The
 * one without a name has always the same, also before it is opened. */
#define SERVER_UNNAMED 1
uint64_t server_serial(const struct server *s);

/* That of all servers. */
struct room *server_room(const struct server *s);

unsigned server_max(const struct server *s);
unsigned server_handshake_s(const struct server *s);

/* What it asks of its clients, with a reference; NULL: no TLS. */
struct tls_policy *server_policy(const struct server *s);

/* The same of the one that @e names. */
struct tls_policy *servers_policy(struct servers *ss, const struct export *e);

/* Does its TLS tell who a client is? */
bool server_can_identify(const struct server *s);

/* Does the authorization object @authz allow @identity (NULL: unknown)? */
bool server_allows(const struct server *s, const char *authz,
                   const char *identity);

/* A URI of its export @name, malloc()ed; NULL: no socket of it can be told. */
char *server_uri(struct server *s, const char *name);

/* The same of @e. */
char *servers_uri(struct servers *ss, const struct export *e);

/*
 * A connection enters transmission, or has executed its last request.
 *
 * A client that lost its connection and comes back must not find an old write
 * landing on a new one: so a connection to a writable export waits, before
 * it enters, until those to the same disk whose clients are gone have done or
 * dropped what they had received.
 */
void server_enter(struct server *s, struct conn *c);
void server_quiet(struct server *s, struct conn *c);

/* It gives up its export: all is done, and answered as far as its client
 * takes it. */
void server_leave(struct server *s, struct conn *c);

/* Of the clients of @e, only to be compared: one that is here for certain, one
 * that may be, one that is about to go; CLIENT_UNSURE too if there is none (it
 * may be about to come). */
enum presence servers_presence(struct servers *ss, const void *e);

/* The thread of a connection is about to end. */
void server_reap_soon(struct server *s);

#endif /* NBDELTA_SERVER_NBD_SERVER_H */
