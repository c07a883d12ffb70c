/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What libnbd says, for people: see remote.h.
 *
 * libnbd has no codes for these, so its words are looked for.  Where a version
 * has others, these are told as they are.
 */
#include "nbdelta/remote.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "nbdelta/error.h"

/* The part of @why behind the name of a function of @library that it begins
 * with; or NULL. */
static const char *behind(const char *why, const char *library)
{
    const char *colon = strstr(why, ": ");

    return colon && strncmp(why, library, strlen(library)) == 0 ? colon + 2
                                                                : NULL;
}

int remote_demands_tls(struct error **errp)
{
    return error_set(errp, ENOTSUP,
                     "the server demands TLS: connect by nbds:// or "
                     "nbds+unix://, with tls-psk-file=FILE or "
                     "tls-certificates=DIR (a node: with tls-creds)");
}

int remote_error(int code, const char *why, struct error **errp)
{
    why = why ? why : "the server closed the connection";
    why = behind(why, "nbd_") ? behind(why, "nbd_") : why;
    code = code > 0 ? code : EIO;
    if (strstr(why, "requires TLS encryption")) {
        return remote_demands_tls(errp);
    }
    if (strstr(why, "TLS setting is 'require'")) {
        return error_set(errp, code,
                         "the server has no TLS: connect by nbd:// or "
                         "nbd+unix://, or give it keys ('nbdelta serve' takes "
                         "--tls-certificates or --tls-psk)");
    }
    const char *tls = behind(why, "gnutls_");
    return tls ? error_set(errp, code, "TLS handshake failed: %s%s", tls,
                           strstr(tls, "fatal alert")
                               ? " (the server refuses the key, or the "
                                 "certificate)"
                               : "")
               : error_set(errp, code, "%s", why);
}
