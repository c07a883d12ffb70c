/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_TLS_CREDS_H
#define NBDELTA_CORE_TLS_CREDS_H

/* TLS credentials from the inside: the set in a graph. */
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "nbdelta/tls-creds.h"

struct tls_creds_set {
    mutex_t lock;     /* the last of all locks */
    struct list list; /* guarded by lock */
};

void tls_creds_set_init(struct tls_creds_set *s);

/* Free the credentials that are left, except the ones that others have
 * references to. */
void tls_creds_set_destroy(struct tls_creds_set *s);

#endif /* NBDELTA_CORE_TLS_CREDS_H */
