/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_NBD_CLIENT_H
#define NBDELTA_SERVER_CLI_NBD_CLIENT_H

/* A connection to an NBD server, for sub-commands that look at an export. */
#include <stdbool.h>

struct error;
struct nbd_handle;

/* How NBD URIs begin; ends with NULL. */
extern const char *const client_uri_schemes[];

/* Is @text an NBD URI, not the name of a file? */
bool client_is_uri(const char *text);

/*
 * Connect to @uri and negotiate up to the point where options can be asked
 * (libnbd's nbd_opt_*).  The handle must be closed.
 */
int client_connect(const char *uri, struct nbd_handle **h, struct error **errp);

/* Open the export that the URI names, with the metadata contexts @context and
 * @other; each can be NULL.  -ENOENT: the server has no such export, or no such
 * context. */
int client_go(struct nbd_handle *h, const char *context, const char *other,
              struct error **errp);

#endif /* NBDELTA_SERVER_CLI_NBD_CLIENT_H */
