/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TLS_CREDS_H
#define NBDELTA_TLS_CREDS_H

/*
 * TLS credentials: where a side of a connection finds its keys
 * ============================================================
 *
 * Objects "tls-creds-anon", "tls-creds-psk" and "tls-creds-x509" by their id,
 * known to a graph, for nodes that are clients and for servers.  A struct
 * tls_creds only has the checked properties: the code that speaks TLS loads the
 * files in `dir`.  It never changes.  After the object is deleted it lives as
 * long as there are references.
 *
 * Any thread may call these at any time; they do no I/O and do not wait.
 */
#include <jansson.h>

#include "nbdelta/types.h"

enum tls_kind { TLS_ANON, TLS_PSK, TLS_X509 };

struct tls_creds {
    enum tls_kind kind;
    bool server;            /* the endpoint that they are for */
    bool verify_peer;       /* the other side has to have a certificate */
    bool sanity_check;      /* TLS_X509: look at our own ones when they load */
    const char *id;         /* of the object */
    const char *dir;        /* NULL: none, only with TLS_ANON */
    const char *priority;   /* in gnutls' words, or NULL */
    const char *username;   /* TLS_PSK, a client's: "qemu" unless given */
    const char *passwordid; /* TLS_X509: the secret that opens the key */
};

/*
 * Make credentials of the properties of an object: "qom-type", "id",
 * "endpoint" ("client" unless given), "dir", "verify-peer", "priority";
 * "username" (psk); "sanity-check", "passwordid" (x509).
 * -EEXIST: the id is taken.  -EINVAL: bad properties.
 */
int tls_creds_create(struct graph *g, const json_t *properties,
                     struct error **errp);

/* Nobody finds the object any more.  -ENOENT: there is none of that id. */
int tls_creds_delete(struct graph *g, const char *id, struct error **errp);

/*
 * The credentials @id, for a server or a client, with a reference for the
 * caller.  -ENOENT: there are none.  -EINVAL: they are for the other endpoint.
 */
int tls_creds_get(struct graph *g, const char *id, bool server,
                  const struct tls_creds **credsp, struct error **errp);
void tls_creds_put(const struct tls_creds *c); /* NULL is fine */

#endif /* NBDELTA_TLS_CREDS_H */
