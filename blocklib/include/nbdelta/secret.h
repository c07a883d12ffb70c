/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SECRET_H
#define NBDELTA_SECRET_H

/*
 * Secrets: passphrases of encrypted images
 * ========================================
 *
 * Objects "secret" by their id, known to a graph, for the images that its nodes
 * open ("encrypt.key-secret").  The bytes are copied; they are overwritten when
 * the object is deleted.  An image that is open needs its secret no more.
 *
 * Any thread may call these at any time; they do no I/O and do not wait.
 */
#include <stddef.h>

#include "nbdelta/types.h"

/* -EEXIST: the id is taken. */
int secret_create(struct graph *g, const char *id, const void *bytes,
                  size_t len, struct error **errp);

/* -ENOENT: there is none of that id. */
int secret_delete(struct graph *g, const char *id, struct error **errp);

#endif /* NBDELTA_SECRET_H */
