/* SPDX-License-Identifier: BSD-3-Clause */
/* Connecting to an NBD server, by libnbd: see nbd-client.h. */
#include "cli/nbd-client.h"

#include <errno.h>
#include <libnbd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/remote.h"

const char *const client_uri_schemes[] = {
    "nbd://",       "nbds://",       "nbd+unix://", "nbds+unix://",
    "nbd+vsock://", "nbds+vsock://", NULL,
};

bool client_is_uri(const char *text)
{
    const char *const *scheme = client_uri_schemes;

    for (; *scheme; scheme++) {
        if (strncmp(text, *scheme, strlen(*scheme)) == 0) {
            return true;
        }
    }
    return false;
}

static int libnbd_failed(struct error **errp)
{
    return remote_error(nbd_get_errno(), nbd_get_error(), errp);
}

/* nbd_connect_uri() forgets why a server was not good enough. */
static int connect_uri(struct nbd_handle *h, const char *uri)
{
    int r = nbd_aio_connect_uri(h, uri);

    while (r >= 0 && nbd_aio_is_connecting(h) == 1) {
        r = nbd_poll(h, -1);
    }
    return r >= 0 &&
                   (nbd_aio_is_negotiating(h) == 1 || nbd_aio_is_ready(h) == 1)
               ? 0
               : -1;
}

int client_connect(const char *uri, struct nbd_handle **hp, struct error **errp)
{
    struct nbd_handle *h = nbd_create();

    if (!h) {
        return libnbd_failed(errp);
    }
    /* The user's own URI may name files with keys. */
    if (nbd_set_uri_allow_local_file(h, true) < 0 ||
        nbd_set_full_info(h, true) < 0 || nbd_set_opt_mode(h, true) < 0 ||
        connect_uri(h, uri) < 0) {
        int r = libnbd_failed(errp);
        error_prefix(errp, "cannot connect to '%s': ", uri);
        nbd_close(h);
        return r;
    }
    *hp = h;
    return 0;
}

/* --- Which exports there are, for an error text --- */

struct names {
    char text[512];
    size_t used;
};

static int note_export_name(void *opaque, const char *name,
                            const char *description)
{
    struct names *n = opaque;
    size_t left = sizeof(n->text) - n->used;

    (void)description;
    int len = snprintf(n->text + n->used, left, "%s'%s'", n->used ? ", " : "",
                       name);
    if (len > 0 && (size_t)len < left) {
        n->used += (size_t)len;
    } else {
        n->text[n->used] = '\0';
    }
    return 0;
}

/* The server does not give the export. */
static int no_export(struct nbd_handle *h, struct error **errp)
{
    struct names names = {.used = 0};
    CLEANUP_FREE char *wanted = nbd_get_export_name(h);
    CLEANUP_ERROR struct error *why = NULL;
    nbd_list_callback list = {.callback = note_export_name,
                              .user_data = &names};
    int r = libnbd_failed(&why);

    if (nbd_aio_is_negotiating(h) == 1 && nbd_opt_list(h, list) < 0 &&
        r == -ENOTSUP && nbd_get_errno() == ENOTSUP &&
        nbd_get_tls_negotiated(h) == 0) {
        return remote_demands_tls(errp); /* it refuses whatever is asked */
    }
    return names.used > 0
               ? error_set(errp, ENOENT,
                           "the server does not give export '%s'; it has %s",
                           wanted ? wanted : "", names.text)
               : error_set(errp, -r, "%s", error_message(why));
}

static int check_context(struct nbd_handle *h, const char *context,
                         struct error **errp)
{
    return context && nbd_can_meta_context(h, context) != 1
               ? error_set(errp, ENOENT,
                           "the export has no metadata context '%s'", context)
               : 0;
}

int client_go(struct nbd_handle *h, const char *context, const char *other,
              struct error **errp)
{
    if ((context && nbd_add_meta_context(h, context) < 0) ||
        (other && nbd_add_meta_context(h, other) < 0)) {
        return libnbd_failed(errp);
    }
    /* A server of the old style leaves nothing to negotiate. */
    if (nbd_aio_is_negotiating(h) && nbd_opt_go(h) < 0) {
        return no_export(h, errp);
    }
    int r = check_context(h, context, errp);
    return r < 0 ? r : check_context(h, other, errp);
}
