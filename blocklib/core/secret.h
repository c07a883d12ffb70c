/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_SECRET_H
#define NBDELTA_CORE_SECRET_H

/* Secrets from the inside: the set in a graph. */
#include "nbdelta/list.h"
#include "nbdelta/secret.h"
#include "nbdelta/thread.h"

struct secret_set {
    mutex_t lock;     /* the last of all locks */
    struct list list; /* guarded by lock */
};

void secret_set_init(struct secret_set *s);
void secret_set_destroy(struct secret_set *s);

/* A copy of some bytes that nobody else may see. */
struct secret {
    unsigned char *bytes; /* malloc()ed */
    size_t len;
};

/* The secret @id.  -ENOENT: there is none.  Release it after success. */
int secret_get(struct graph *g, const char *id, struct secret *s,
               struct error **errp);
void secret_release(struct secret *s); /* what is zeroes is fine */

#endif /* NBDELTA_CORE_SECRET_H */
