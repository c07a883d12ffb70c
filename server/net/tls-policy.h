/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_TLS_POLICY_H
#define NBDELTA_SERVER_NET_TLS_POLICY_H

/* What a server asks of its clients.  Does not change, and is shared by the
 * server and its connections. */

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
    char *authz; /* the object that says who may come; NULL: all may */
    _Atomic unsigned users;
};

/* References to @keys and @authz (a copy) are its own.  NULL: no memory. */
struct tls_policy *tls_policy_new(enum tls_mode mode, struct tls_keys *keys,
                                  const char *authz);

/*
 * What the options --tls and so on ask for: @mode is NULL or one of its words,
 * @certificates a directory, @psk a file, one of them or none.  *pp is NULL
 * where that is no TLS.
 */
int tls_policy_load(const char *mode, const char *certificates, const char *psk,
                    bool verify_peer, struct tls_policy **pp,
                    struct error **errp);

/* Of no policy, which is TLS_OFF, there are no references. */
struct tls_policy *tls_policy_ref(struct tls_policy *p); /* NULL is fine */
void tls_policy_unref(struct tls_policy *p);             /* NULL is fine */

static inline enum tls_mode tls_policy_mode(const struct tls_policy *p)
{
    return p ? p->mode : TLS_OFF;
}

#endif /* NBDELTA_SERVER_NET_TLS_POLICY_H */
