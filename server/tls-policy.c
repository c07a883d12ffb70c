/* SPDX-License-Identifier: BSD-3-Clause */
#include "tls-policy.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "tls.h"

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
