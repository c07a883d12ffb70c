/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Are our own certificates fit for use?  Certificates that cannot work are
 * refused when they are loaded, where the administrator sees it, and not by
 * a client later.
 */
#include <errno.h>
#include <time.h>

#include "nbdelta/error.h"
#include "net/tls-priv.h"

#define CERTS_MAX 64

enum role { ROLE_CA, ROLE_SERVER, ROLE_CLIENT };
static const char *const role_names[] = {"CA", "server", "client"};

struct certs {
    gnutls_x509_crt_t at[CERTS_MAX];
    unsigned count;
};

const char *tls_reason(unsigned status)
{
    return status & GNUTLS_CERT_REVOKED ? "The certificate has been revoked"
           : status & GNUTLS_CERT_SIGNER_NOT_FOUND
               ? "The certificate hasn't got a known issuer"
           : status & GNUTLS_CERT_EXPIRED ? "The certificate has expired"
           : status & GNUTLS_CERT_NOT_ACTIVATED
               ? "The certificate is not yet activated"
           : status & GNUTLS_CERT_INSECURE_ALGORITHM
               ? "The certificate uses an insecure algorithm"
           : status & GNUTLS_CERT_UNEXPECTED_OWNER
               ? "Certificate does not match the hostname"
               : "The certificate is not trusted";
}

static void certs_free(struct certs *c)
{
    while (c->count > 0) {
        gnutls_x509_crt_deinit(c->at[--c->count]);
    }
}

static int load_certificates(struct certs *c, const char *path, enum role role,
                             struct error **errp)
{
    gnutls_datum_t data;
    int r = gnutls_load_file(path, &data);

    if (r < 0) {
        return error_set(errp, EACCES, "Cannot load CA cert list %s: %s", path,
                         gnutls_strerror(r));
    }
    c->count = CERTS_MAX;
    r = gnutls_x509_crt_list_import(c->at, &c->count, &data,
                                    GNUTLS_X509_FMT_PEM, 0);
    gnutls_free(data.data);
    if (r < 0) {
        c->count = 0;
        return error_set(errp, EINVAL, "Unable to import %s certificate %s: %s",
                         role_names[role], path, gnutls_strerror(r));
    }
    return 0;
}

static int check_times(gnutls_x509_crt_t crt, const char *path, enum role role,
                       struct error **errp)
{
    time_t now = time(NULL);

    if (gnutls_x509_crt_get_expiration_time(crt) < now) {
        return error_set(errp, EINVAL, "The %s certificate %s has expired",
                         role_names[role], path);
    }
    if (gnutls_x509_crt_get_activation_time(crt) > now) {
        return error_set(errp, EINVAL,
                         "The %s certificate %s is not yet active",
                         role_names[role], path);
    }
    return 0;
}

static int check_constraints(gnutls_x509_crt_t crt, const char *path,
                             enum role role, struct error **errp)
{
    int r = gnutls_x509_crt_get_basic_constraints(crt, NULL, NULL, NULL);

    if (r < 0 && r != GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE) {
        return error_set(errp, EINVAL,
                         "Unable to query certificate %s basic constraints: %s",
                         path, gnutls_strerror(r));
    }
    if (role != ROLE_CA) {
        return r > 0 ? error_set(errp, EINVAL,
                                 "The certificate %s basic constraints show a "
                                 "CA, but we need one for a %s",
                                 path, role_names[role])
                     : 0;
    }
    if (r < 0) {
        return error_set(errp, EINVAL,
                         "The certificate %s is missing basic constraints for "
                         "a CA",
                         path);
    }
    return r > 0 ? 0
                 : error_set(errp, EINVAL,
                             "The certificate %s basic constraints do not show "
                             "a CA",
                             path);
}

/* A certificate without a usage allows every use.  A usage that is not critical
 * is only advice. */
static int check_usage(gnutls_x509_crt_t crt, const char *path, enum role role,
                       struct error **errp)
{
    unsigned usage = 0;
    unsigned critical = 0;
    int r = gnutls_x509_crt_get_key_usage(crt, &usage, &critical);

    if (r < 0 || !critical) {
        return 0;
    }
    if (role == ROLE_CA && !(usage & GNUTLS_KEY_KEY_CERT_SIGN)) {
        return error_set(errp, EINVAL,
                         "Certificate %s usage does not permit certificate "
                         "signing",
                         path);
    }
    if (role != ROLE_CA && !(usage & GNUTLS_KEY_DIGITAL_SIGNATURE)) {
        return error_set(errp, EINVAL,
                         "Certificate %s usage does not permit digital "
                         "signature",
                         path);
    }
    return 0;
}

#define OID_PURPOSE "2.5.29.37"

static int check_purpose(gnutls_x509_crt_t crt, const char *path,
                         enum role role, struct error **errp)
{
    const char *oid = role == ROLE_SERVER ? GNUTLS_KP_TLS_WWW_SERVER
                                          : GNUTLS_KP_TLS_WWW_CLIENT;
    unsigned critical = 0;
    size_t size = 0;

    if (role == ROLE_CA || gnutls_x509_crt_check_key_purpose(crt, oid, 0)) {
        return 0;
    }
    (void)gnutls_x509_crt_get_extension_by_oid(crt, OID_PURPOSE, 0, NULL, &size,
                                               &critical);
    return critical ? error_set(errp, EINVAL,
                                "Certificate %s purpose does not allow use "
                                "with a TLS %s",
                                path, role_names[role])
                    : 0;
}

static int check_certificate(gnutls_x509_crt_t crt, const char *path,
                             enum role role, struct error **errp)
{
    int r;

    if ((r = check_times(crt, path, role, errp)) < 0 ||
        (r = check_constraints(crt, path, role, errp)) < 0 ||
        (r = check_usage(crt, path, role, errp)) < 0) {
        return r;
    }
    return check_purpose(crt, path, role, errp);
}

/* Check both lists, which are loaded; @own may be empty. */
static int check_loaded(const struct certs *cas, const char *ca,
                        const struct certs *own, const char *cert,
                        enum role role, struct error **errp)
{
    unsigned status = 0;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < cas->count; i++) {
        r = check_certificate(cas->at[i], ca, ROLE_CA, errp);
    }
    if (r < 0 || own->count == 0) {
        return r;
    }
    r = check_certificate(own->at[0], cert, role, errp);
    if (r < 0) {
        return r;
    }
    r = gnutls_x509_crt_list_verify(own->at, own->count, cas->at, cas->count,
                                    NULL, 0, 0, &status);
    if (r < 0) {
        return error_set(errp, EINVAL,
                         "Unable to verify %s certificate %s against CA "
                         "certificate %s",
                         role_names[role], cert, ca);
    }
    return status == 0 ? 0
                       : error_set(errp, EINVAL,
                                   "Our own certificate %s failed validation "
                                   "against %s: %s",
                                   cert, ca, tls_reason(status));
}

int tls_check_files(const char *ca, const char *cert, bool server,
                    struct error **errp)
{
    enum role role = server ? ROLE_SERVER : ROLE_CLIENT;
    struct certs cas = {.count = 0};
    struct certs own = {.count = 0};
    int r = load_certificates(&cas, ca, ROLE_CA, errp);

    if (r == 0 && cert) {
        r = load_certificates(&own, cert, role, errp);
    }
    if (r == 0) {
        r = check_loaded(&cas, ca, &own, cert, role, errp);
    }
    certs_free(&cas);
    certs_free(&own);
    return r;
}
