/* SPDX-License-Identifier: BSD-3-Clause */
/* The keys by which a backup run shows who it is to a source on another host:
 * credentials of the run's graph, made of the words of the command line. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/backup-priv.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/tls-creds.h"

#define CREDS_ID "backup"
#define PSK_NAME "keys.psk" /* credentials name the directory, not the file */

static int make_creds(struct graph *g, const char *kind, const char *dir,
                      const char *username, struct error **errp)
{
    CLEANUP_JSON json_t *properties = json_pack(
        "{s:s, s:s, s:s, s:s, s:s*}", "qom-type", kind, "id", CREDS_ID,
        "endpoint", "client", "dir", dir, "username", username);

    return properties
               ? tls_creds_create(g, properties, errp)
               : error_set(errp, EINVAL, "'%s' is not a text in UTF-8", dir);
}

static int make_psk(struct graph *g, const char *file, const char *username,
                    struct error **errp)
{
    CLEANUP_FREE char *dir = strdup(file);
    char *name = dir ? strrchr(dir, '/') : NULL;

    if (!dir) {
        return error_nomem(errp);
    }
    if (strcmp(name ? name + 1 : dir, PSK_NAME) != 0) {
        return error_set(errp, EINVAL,
                         "--tls-psk: the name of the file has to be '%s', not "
                         "'%s'",
                         PSK_NAME, name ? name + 1 : dir);
    }
    if (name) {
        *(name == dir ? name + 1 : name) = '\0';
    }
    return make_creds(g, "tls-creds-psk", name ? dir : ".", username, errp);
}

int run_make_tls(const struct run *r, const char **id, struct error **errp)
{
    const struct backup_options *o = r->o;
    int result = 0;

    if (o->tls_certificates) {
        result = make_creds(r->graph, "tls-creds-x509", o->tls_certificates,
                            NULL, errp);
    } else if (o->tls_psk) {
        result = make_psk(r->graph, o->tls_psk, o->tls_username, errp);
    }
    *id = o->tls_certificates || o->tls_psk ? CREDS_ID : NULL;
    return result;
}
