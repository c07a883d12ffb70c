/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_TLS_POLICY_H
#define NBDELTA_SERVER_NET_TLS_POLICY_H

/* A policy says what a server asks of its clients.  It does not change, and is
 * shared by the server and its connections. */
#include <stdbool.h>

struct error;
struct tls_keys;

enum tls_mode {
    TLS_OFF,
    TLS_ON,      /* clients may start it */
    TLS_REQUIRE, /* they get nothing before they have */
};

struct tls_policy {
    enum tls_mode mode;
    struct tls_keys *keys;
    char *authz; /* the object that says which clients may come; NULL: all */
    _Atomic unsigned users;
};

/* The policy has a reference to @keys and a copy of @authz of its own.  NULL:
 * no memory. */
struct tls_policy *tls_policy_new(enum tls_mode mode, struct tls_keys *keys,
                                  const char *authz);

/*
 * The policy that the options --tls and so on ask for.  @mode is NULL or one of
 * the words of --tls.  @certificates is a directory, or @psk is a file, or both
 * are NULL.  *pp is NULL when the options ask for no TLS.
 */
int tls_policy_load(const char *mode, const char *certificates, const char *psk,
                    bool verify_peer, struct tls_policy **pp,
                    struct error **errp);

/* NULL, which is the policy TLS_OFF, has no references. */
struct tls_policy *tls_policy_ref(struct tls_policy *p); /* NULL is fine */
void tls_policy_unref(struct tls_policy *p);             /* NULL is fine */

static inline enum tls_mode tls_policy_mode(const struct tls_policy *p)
{
    return p ? p->mode : TLS_OFF;
}

#endif /* NBDELTA_SERVER_NET_TLS_POLICY_H */
