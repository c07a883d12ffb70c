/* SPDX-License-Identifier: BSD-3-Clause */
/* Frozen disks that an NBD server has: see frozen.h. */
#include "source/frozen.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"
#include "source/source.h"

#define CONNECTIONS 4
#define RECONNECT_S 60

int frozen_init(struct frozen *r, const struct source_options *o,
                struct error **errp)
{
    r->tls_creds = o->tls_creds ? strdup(o->tls_creds) : NULL;
    r->connections = o->connections > 0 ? o->connections : CONNECTIONS;
    r->reconnect_s = o->timeout_s > 0 ? o->timeout_s : RECONNECT_S;
    return o->tls_creds && !r->tls_creds ? error_nomem(errp) : 0;
}

void frozen_free(struct frozen *r)
{
    free(r->tls_creds);
    r->tls_creds = NULL;
}

int frozen_address(const char *uri, const char *host, json_t **options,
                   struct error **errp)
{
    int r = options_from_nbd_name(uri, options, errp);
    json_t *server = r < 0 ? NULL : json_object_get(*options, "server");
    const char *named = json_string_value(json_object_get(server, "host"));

    if (host && named && strcmp(named, "localhost") == 0 &&
        json_object_set_new(server, "host", json_string(host)) < 0) {
        return error_nomem(errp);
    }
    return r;
}

/* A new object for a node of its own, or NULL. */
static json_t *node_options(const struct frozen *r, const json_t *address,
                            const char *export)
{
    json_t *o = json_deep_copy(address);

    if (!o || json_object_set_new(o, "driver", json_string("nbd")) < 0 ||
        json_object_set_new(o, "read-only", json_true()) < 0 ||
        json_object_set_new(o, "reconnect-delay",
                            json_integer(r->reconnect_s)) < 0 ||
        (export && json_object_set_new(o, "export", json_string(export)) < 0)) {
        json_decref(o);
        return NULL;
    }
    if (json_is_true(json_object_get(o, "tls")) && r->tls_creds) {
        (void)json_object_del(o, "tls");
        if (json_object_set_new(o, "tls-creds", json_string(r->tls_creds)) <
            0) {
            json_decref(o);
            return NULL;
        }
    }
    return o;
}

int frozen_fill(const struct frozen *r, struct source_disk *d,
                const json_t *address, const char *export, const char *context,
                struct error **errp)
{
    CLEANUP_JSON json_t *disk = node_options(r, address, export);
    CLEANUP_JSON json_t *view = context ? node_options(r, address, export)
                                        : NULL;

    if (!disk || (context && !view) ||
        json_object_set_new(disk, "connections", json_integer(r->connections)) <
            0 ||
        (context && json_object_set_new(view, "x-dirty-bitmap",
                                        json_string(context)) < 0)) {
        return error_nomem(errp);
    }
    d->options = json_incref(disk);
    d->dirty = json_incref(view);
    return 0;
}
