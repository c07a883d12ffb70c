/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_TLS_PRIV_H
#define NBDELTA_SERVER_NET_TLS_PRIV_H

/* What tls-keys.c, tls-check.c and tls-session.c share. */
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdatomic.h>

#include "nbdelta/tls-creds.h"
#include "net/tls.h"

struct renewal;

struct tls_keys {
    enum tls_kind kind;
    bool server;
    bool verify_peer;
    gnutls_priority_t priority;
    union {
        gnutls_certificate_credentials_t x509;
        gnutls_psk_server_credentials_t psk_server;
        gnutls_psk_client_credentials_t psk_client;
        gnutls_anon_server_credentials_t anon_server;
        gnutls_anon_client_credentials_t anon_client;
        void *any; /* NULL: not made yet */
    } cred;
    struct renewal *renewal; /* or NULL: the keys stay as they are */
    _Atomic unsigned users;
};

/* --- tls-keys.c --- */

/* @k, or keys from its files if these have changed since; with a reference for
 * a session. */
struct tls_keys *tls_keys_now(struct tls_keys *k);

/* --- tls-check.c --- */

/* Why a certificate that was verified with @status is not trusted. */
const char *tls_reason(unsigned status);

/* Will peers accept the CA's certificates in @ca and our own in @cert (NULL:
 * none)?  -EINVAL: no, with a text in QEMU's words. */
int tls_check_files(const char *ca, const char *cert, bool server,
                    struct error **errp);

#endif /* NBDELTA_SERVER_NET_TLS_PRIV_H */
