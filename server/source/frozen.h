/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_FROZEN_H
#define NBDELTA_SERVER_SOURCE_FROZEN_H

/* Frozen disks that an NBD server has: the options of their nodes. */
#include <jansson.h>

struct error;
struct source_disk;
struct source_options;

/* What of the options is the same for all exports of a source. */
struct frozen {
    char *tls_creds; /* or NULL */
    unsigned connections;
    unsigned reconnect_s;
};

int frozen_init(struct frozen *r, const struct source_options *o,
                struct error **errp);
void frozen_free(struct frozen *r);

/* The options of nodes for the URI; "server" and, where it has them, "export",
 * "tls"...  @host: where "localhost" is; NULL: here. */
int frozen_address(const char *uri, const char *host, json_t **options,
                   struct error **errp);

/*
 * Write d->options and, with @context ("qemu:dirty-bitmap:..."), d->dirty.
 * @address: options as above; @export: the export's name, NULL: as there.
 * Borrows all.
 */
int frozen_fill(const struct frozen *r, struct source_disk *d,
                const json_t *address, const char *export, const char *context,
                struct error **errp);

#endif /* NBDELTA_SERVER_SOURCE_FROZEN_H */
