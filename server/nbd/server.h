/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NBD_SERVER_H
#define NBDELTA_SERVER_NBD_SERVER_H

/*
 * NBD servers: their sockets and connections
 * ==========================================
 *
 * A daemon has any number of servers, one of them without a name.  Each has
 * sockets, limits and exports of its own, and a TLS policy, which says what it
 * asks of its clients.  One thread accepts for all servers, and one pool works
 * for all.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "net/unix-socket.h"

struct conn;
struct daemon;
struct error;
struct export;
struct room;
struct server;
struct servers;
struct spinners;
struct tls_policy;

/* The servers of @d, with its exports.  NULL: no memory. */
struct servers *servers_new(struct daemon *d);

/* Call it after servers_stop(), when nobody has a reference to a server any
 * more.  NULL is fine. */
void servers_free(struct servers *ss);

/* Is a client still there, and may it ask for more? */
enum presence {
    CLIENT_LEAVING, /* no: it goes as soon as its last request is done */
    CLIENT_UNSURE,  /* it may have sent already that it goes */
    CLIENT_HERE,    /* yes: it waits, with a connection that is open */
};

/* Begin to accept clients. */
int servers_start(struct servers *ss, struct error **errp);

/* Accept no more clients.  Requests that have come are done and answered, as
 * far as clients take the answers within seconds.  Then all connections have
 * ended. */
void servers_stop(struct servers *ss);

/* Tell the connections that use @e, which is removed, to end. */
void servers_end_export(struct servers *ss, const struct export *e);

/* Seconds that a client may take to choose an export: by default, which is
 * QEMU's; and without a limit. */
#define HANDSHAKE_S       10
#define HANDSHAKE_FOREVER UINT32_MAX

struct server_options {
    const char *id;              /* NULL: the one without a name */
    unsigned max;                /* connections at once, others wait; 0: as many
                                    as there are descriptors for */
    unsigned max_per_address;    /* from one address, others are closed; 0: any
                                    number */
    unsigned handshake_s;        /* 0: HANDSHAKE_S */
    struct socket_access access; /* to Unix sockets */
    struct tls_policy *policy;   /* NULL: no TLS */
};

/* Make a server that runs from now on, without a socket yet; *sp has a
 * reference.  -EEXIST: there is a server of that name. */
int server_open(struct servers *ss, const struct server_options *o,
                struct server **sp, struct error **errp);

/* The server @id if it runs, with a reference; NULL: it does not. */
struct server *server_find(struct servers *ss, const char *id,
                           struct error **errp);
void server_unref(struct server *s); /* NULL is fine */

/* Listen on one more checked address (address.h). */
int server_listen(struct server *s, const json_t *addr, struct error **errp);

/* Let @s run no more: nobody listens, nobody finds it, and its connections are
 * told to end. */
void server_close(struct server *s);

/* The number by which exports name their server (export_options): not 0, and
 * never that of another server.  The server without a name has always the same
 * number, also before it is opened. */
#define SERVER_UNNAMED 1
uint64_t server_serial(const struct server *s);

/* The room that all servers share. */
struct room *server_room(const struct server *s);

/* The connections, of all servers, that spin. */
struct spinners *server_spinners(const struct server *s);

unsigned server_max(const struct server *s);
unsigned server_handshake_s(const struct server *s);

/* The policy that @s has for its clients, with a reference; NULL: no TLS. */
struct tls_policy *server_policy(const struct server *s);

/* The same of the server that @e names. */
struct tls_policy *servers_policy(struct servers *ss, const struct export *e);

/* Does the TLS of @s tell who a client is? */
bool server_can_identify(const struct server *s);

/* Does the authorization object @authz allow @identity (NULL: unknown)? */
bool server_allows(const struct server *s, const char *authz,
                   const char *identity);

/* A URI of the export @name of @s, malloc()ed.  NULL: no memory, or no socket
 * of @s has a URI. */
char *server_uri(struct server *s, const char *name);

/* Tell the log on what the servers listen. */
void servers_tell(struct servers *ss);

/* An array of {"server"?, "clients", "turned-away", "max-connections"?,
 * "max-connections-per-address"?} for the servers that run.  NULL: no memory.
 */
json_t *servers_query(struct servers *ss);

/* A URI of @e. */
char *servers_uri(struct servers *ss, const struct export *e);

/*
 * A connection enters transmission, or has executed its last request.
 *
 * When a client loses its connection and comes back, an old write must not land
 * on a new one.  So a connection to a writable export waits before it enters:
 * connections to the same disk whose clients are gone have to do or drop all
 * that they have received first.
 */
void server_enter(struct server *s, struct conn *c);
void server_quiet(struct server *s, struct conn *c);

/* A connection gives up its export: all is done, and answered as far as its
 * client takes it. */
void server_leave(struct server *s, struct conn *c);

/* The highest presence among the clients of @e.  CLIENT_UNSURE also if there is
 * none, because one may be about to come.  @e is only compared. */
enum presence servers_presence(struct servers *ss, const void *e);

/* The thread of a connection is about to end. */
void server_reap_soon(struct server *s);

#endif /* NBDELTA_SERVER_NBD_SERVER_H */
