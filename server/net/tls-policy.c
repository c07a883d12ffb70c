/* SPDX-License-Identifier: BSD-3-Clause */
/* A server's TLS policy, from its options to its last user: see tls-policy.h.
 */
#include "net/tls-policy.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/error.h"
#include "nbdelta/tls-creds.h"
#include "net/tls.h"

struct tls_policy *tls_policy_new(enum tls_mode mode, struct tls_keys *keys,
                                  const char *authz)
{
    struct tls_policy *p = calloc(1, sizeof(*p));

    if (!p) {
        return NULL;
    }
    p->mode = mode;
    p->keys = tls_keys_ref(keys);
    p->authz = authz ? strdup(authz) : NULL;
    atomic_init(&p->users, 1);
    if (authz && !p->authz) {
        tls_policy_unref(p);
        return NULL;
    }
    return p;
}

int tls_policy_load(const char *mode, const char *certificates, const char *psk,
                    bool verify_peer, struct tls_policy **pp,
                    struct error **errp)
{
    bool optional = mode && strcmp(mode, "on") == 0;
    const struct tls_creds creds = {
        .kind = TLS_X509,
        .server = true,
        .verify_peer = verify_peer,
        .sanity_check = true,
        .dir = certificates,
    };
    struct tls_keys *keys;

    *pp = NULL;
    if ((mode && strcmp(mode, "off") == 0) || (!certificates && !psk)) {
        return 0;
    }
    int r = psk ? tls_keys_load_psk(psk, &keys, errp)
                : tls_keys_load(&creds, NULL, &keys, errp);
    if (r < 0) {
        return r;
    }
    *pp = tls_policy_new(optional ? TLS_ON : TLS_REQUIRE, keys, NULL);
    tls_keys_unref(keys);
    return *pp ? 0 : error_nomem(errp);
}

struct tls_policy *tls_policy_ref(struct tls_policy *p)
{
    if (p) {
        atomic_fetch_add(&p->users, 1);
    }
    return p;
}

void tls_policy_unref(struct tls_policy *p)
{
    if (p && atomic_fetch_sub(&p->users, 1) == 1) {
        tls_keys_unref(p->keys);
        free(p->authz);
        free(p);
    }
}
