/* SPDX-License-Identifier: BSD-3-Clause */
/* Loading credentials from a directory into the objects of gnutls, and again
 * when the files have changed. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log/log.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/thread.h"
#include "net/stamp.h"
#include "net/tls-priv.h"

/* TLS 1.2 and later.  A server chooses the cipher, and takes the cheapest one
 * that the client has.  Otherwise that would be ChaCha20 with PSK, because a
 * client sorts AES-256 first, and the hash of AES-256 is not that of the key.
 */
#define CIPHERS                                                 \
    "-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305:" \
    "+AES-128-CCM:+AES-256-CCM:+AES-128-CBC:+AES-256-CBC"
#define VERSIONS       "-VERS-TLS1.0:-VERS-TLS1.1"
#define CLIENT_DEFAULT "NORMAL:" VERSIONS
#define SERVER_DEFAULT CLIENT_DEFAULT ":" CIPHERS ":%SERVER_PRECEDENCE"

static const char *const additions[] = {
    [TLS_X509] = "",
    [TLS_PSK] = ":+ECDHE-PSK:+DHE-PSK:+PSK",
    [TLS_ANON] = ":+ANON-ECDH:+ANON-DH",
};

static int set_priority(struct tls_keys *k, const char *given,
                        struct error **errp)
{
    CLEANUP_FREE char *text = NULL;
    const char *base = given       ? given
                       : k->server ? SERVER_DEFAULT
                                   : CLIENT_DEFAULT;

    if (asprintf(&text, "%s%s", base, additions[k->kind]) < 0) {
        text = NULL;
        return error_nomem(errp);
    }
    int r = gnutls_priority_init(&k->priority, text, NULL);
    return r < 0 ? error_set(errp, EINVAL,
                             "Unable to set TLS session priority %s: %s", text,
                             gnutls_strerror(r))
                 : 0;
}

/* --- Files. --- */

static int check_file(const char *path, struct error **errp)
{
    return access(path, R_OK) < 0
               ? error_set(errp, errno, "Unable to access credentials %s: %s",
                           path, strerror(errno))
               : 0;
}

/* *path becomes the path of @name in the directory, malloc()ed.  NULL: the file
 * is not there, and not needed. */
static int find_file(const struct tls_creds *c, const char *name, bool needed,
                     char **path, struct error **errp)
{
    if (asprintf(path, "%s/%s", c->dir, name) < 0) {
        *path = NULL;
        return error_nomem(errp);
    }
    if (!needed && access(*path, F_OK) < 0 && errno == ENOENT) {
        free(*path);
        *path = NULL;
        return 0;
    }
    return check_file(*path, errp);
}

static int check_allocated(int r, struct error **errp)
{
    return r < 0 ? error_set(errp, ENOMEM, "Cannot allocate credentials: %s",
                             gnutls_strerror(r))
                 : 0;
}

/* --- X.509. --- */

struct x509_files {
    char *ca;
    char *crl;
    char *cert;
    char *key;
};

static void files_free(struct x509_files *f)
{
    free(f->ca);
    free(f->crl);
    free(f->cert);
    free(f->key);
}

static int find_files(const struct tls_creds *c, struct x509_files *f,
                      struct error **errp)
{
    const char *cert = c->server ? "server-cert.pem" : "client-cert.pem";
    const char *key = c->server ? "server-key.pem" : "client-key.pem";
    int r;

    if ((r = find_file(c, "ca-cert.pem", true, &f->ca, errp)) < 0 ||
        (r = find_file(c, "ca-crl.pem", false, &f->crl, errp)) < 0 ||
        (r = find_file(c, cert, c->server, &f->cert, errp)) < 0) {
        return r;
    }
    return find_file(c, key, c->server, &f->key, errp);
}

static int load_files(struct tls_keys *k, const struct x509_files *f,
                      const char *password, struct error **errp)
{
    int r = check_allocated(
        gnutls_certificate_allocate_credentials(&k->cred.x509), errp);

    if (r < 0) {
        return r;
    }
    r = gnutls_certificate_set_x509_trust_file(k->cred.x509, f->ca,
                                               GNUTLS_X509_FMT_PEM);
    if (r < 0) {
        return error_set(errp, EINVAL, "Cannot load CA certificate '%s': %s",
                         f->ca, gnutls_strerror(r));
    }
    if (f->cert && f->key) {
        r = gnutls_certificate_set_x509_key_file2(
            k->cred.x509, f->cert, f->key, GNUTLS_X509_FMT_PEM, password, 0);
        if (r < 0) {
            return error_set(errp, EINVAL,
                             "Cannot load certificate '%s' & key '%s': %s",
                             f->cert, f->key, gnutls_strerror(r));
        }
    }
    r = f->crl ? gnutls_certificate_set_x509_crl_file(k->cred.x509, f->crl,
                                                      GNUTLS_X509_FMT_PEM)
               : 0;
    if (r < 0) {
        return error_set(errp, EINVAL, "Cannot load CRL '%s': %s", f->crl,
                         gnutls_strerror(r));
    }
    gnutls_certificate_set_known_dh_params(k->cred.x509,
                                           GNUTLS_SEC_PARAM_MEDIUM);
    return 0;
}

static int load_x509(struct tls_keys *k, const struct tls_creds *c,
                     const char *password, struct error **errp)
{
    struct x509_files f = {.ca = NULL};
    int r = find_files(c, &f, errp);

    if (r == 0 && c->sanity_check) {
        r = tls_check_files(f.ca, f.cert, c->server, errp);
    }
    if (r == 0) {
        r = load_files(k, &f, password, errp);
    }
    files_free(&f);
    return r;
}

/* --- PSK. --- */

static int load_psk_server(struct tls_keys *k, const char *path,
                           struct error **errp)
{
    int r = check_file(path, errp);

    if (r < 0 || (r = check_allocated(gnutls_psk_allocate_server_credentials(
                                          &k->cred.psk_server),
                                      errp)) < 0) {
        return r;
    }
    r = gnutls_psk_set_server_credentials_file(k->cred.psk_server, path);
    if (r == 0) {
        r = gnutls_psk_set_server_known_dh_params(k->cred.psk_server,
                                                  GNUTLS_SEC_PARAM_MEDIUM);
    }
    return r < 0 ? error_set(errp, EINVAL, "Cannot read PSK file %s: %s", path,
                             gnutls_strerror(r))
                 : 0;
}

/* The key of @user among lines USER:KEY; without data: it is not there. */
static gnutls_datum_t find_key(const gnutls_datum_t *file, const char *user)
{
    const char *at = (const char *)file->data;
    const char *end = at + file->size;
    size_t len = strlen(user);

    while (at < end) {
        const char *eol = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((eol ? eol : end) - at);

        if (n > len && memcmp(at, user, len) == 0 && at[len] == ':') {
            n -= n > 0 && at[n - 1] == '\r';
            return (gnutls_datum_t){
                file->data + (at - (const char *)file->data) + len + 1,
                (unsigned)(n - len - 1)};
        }
        at = eol ? eol + 1 : end;
    }
    return (gnutls_datum_t){NULL, 0};
}

static int load_psk_client(struct tls_keys *k, const char *path,
                           const char *user, struct error **errp)
{
    gnutls_datum_t file;
    int r = gnutls_load_file(path, &file);

    if (r < 0) {
        return error_set(errp, EACCES, "Cannot read PSK file %s: %s", path,
                         gnutls_strerror(r));
    }
    gnutls_datum_t key = find_key(&file, user);
    r = key.data
            ? check_allocated(
                  gnutls_psk_allocate_client_credentials(&k->cred.psk_client),
                  errp)
            : error_set(errp, ENOENT, "Username %s not found in PSK file %s",
                        user, path);
    if (r == 0) {
        r = gnutls_psk_set_client_credentials(k->cred.psk_client, user, &key,
                                              GNUTLS_PSK_KEY_HEX);
        r = r < 0 ? error_set(errp, EINVAL, "Cannot read PSK file %s: %s", path,
                              gnutls_strerror(r))
                  : 0;
    }
    gnutls_memset(file.data, 0, file.size);
    gnutls_free(file.data);
    return r;
}

static int load_psk(struct tls_keys *k, const struct tls_creds *c,
                    struct error **errp)
{
    CLEANUP_FREE char *path = NULL;
    int r = find_file(c, "keys.psk", true, &path, errp);

    return r < 0       ? r
           : c->server ? load_psk_server(k, path, errp)
                       : load_psk_client(k, path, c->username, errp);
}

/* --- Anonymous. --- */

static int load_anon(struct tls_keys *k, struct error **errp)
{
    int r;

    if (!k->server) {
        r = gnutls_anon_allocate_client_credentials(&k->cred.anon_client);
        return check_allocated(r, errp);
    }
    r = gnutls_anon_allocate_server_credentials(&k->cred.anon_server);
    if (r == 0) {
        r = gnutls_anon_set_server_known_dh_params(k->cred.anon_server,
                                                   GNUTLS_SEC_PARAM_MEDIUM);
    }
    return check_allocated(r, errp);
}

/* --- All. --- */

static struct tls_keys *keys_new(enum tls_kind kind, bool server,
                                 struct error **errp)
{
    struct tls_keys *k = calloc(1, sizeof(*k));

    if (!k) {
        (void)error_nomem(errp);
        return NULL;
    }
    k->kind = kind;
    k->server = server;
    atomic_init(&k->users, 1);
    return k;
}

static int keys_load(const struct tls_creds *c, const char *password,
                     struct tls_keys **kp, struct error **errp)
{
    struct tls_keys *k = keys_new(c->kind, c->server, errp);

    if (!k) {
        return -ENOMEM;
    }
    k->verify_peer = c->verify_peer;
    int r = set_priority(k, c->priority, errp);
    if (r == 0) {
        r = c->kind == TLS_X509  ? load_x509(k, c, password, errp)
            : c->kind == TLS_PSK ? load_psk(k, c, errp)
                                 : load_anon(k, errp);
    }
    if (r < 0) {
        tls_keys_unref(k);
        return r;
    }
    *kp = k;
    return 0;
}

int tls_keys_load_psk(const char *path, struct tls_keys **kp,
                      struct error **errp)
{
    struct tls_keys *k = keys_new(TLS_PSK, true, errp);

    if (!k) {
        return -ENOMEM;
    }
    int r = set_priority(k, NULL, errp);
    if (r == 0) {
        r = load_psk_server(k, path, errp);
    }
    if (r < 0) {
        tls_keys_unref(k);
        return r;
    }
    *kp = k;
    return 0;
}

/* --- Renewal: certificates expire, and are revoked. --- */

struct renewal {
    /* Set at creation; strings are our own. */
    struct tls_creds creds;
    char *password;

    mutex_t lock;
    /* Guarded by lock. */
    struct stamp stamps[4]; /* of the files, before they were loaded */
    struct tls_keys *newer; /* from files that have changed; or NULL */
};

static void stamp_files(const struct tls_creds *c, struct stamp *stamps)
{
    const char *const names[] = {
        "ca-cert.pem",
        "ca-crl.pem",
        c->server ? "server-cert.pem" : "client-cert.pem",
        c->server ? "server-key.pem" : "client-key.pem",
    };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char path[PATH_MAX];

        (void)snprintf(path, sizeof(path), "%s/%s", c->dir, names[i]);
        stamps[i] = stamp_of(path);
    }
}

static void renewal_free(struct renewal *n)
{
    if (n) {
        tls_keys_unref(n->newer);
        if (n->password) {
            explicit_bzero(n->password, strlen(n->password));
        }
        free(n->password);
        free((void *)(uintptr_t)n->creds.dir);
        free((void *)(uintptr_t)n->creds.priority);
        mutex_destroy(&n->lock);
        free(n);
    }
}

static int renewal_new(const struct tls_creds *c, const char *password,
                       struct renewal **np, struct error **errp)
{
    struct renewal *n = calloc(1, sizeof(*n));

    if (!n) {
        return error_nomem(errp);
    }
    mutex_init(&n->lock, LOCK_TLS_KEYS, NULL);
    n->creds = *c;
    n->creds.id = n->creds.username = n->creds.passwordid = NULL;
    n->creds.dir = strdup(c->dir);
    n->creds.priority = c->priority ? strdup(c->priority) : NULL;
    n->password = password ? strdup(password) : NULL;
    stamp_files(c, n->stamps);
    if (!n->creds.dir || !n->creds.priority != !c->priority ||
        !n->password != !password) {
        renewal_free(n);
        return error_nomem(errp);
    }
    *np = n;
    return 0;
}

/* Load the files again if they have changed.  A certificate and its key may
 * change one after the other: files that do not fit together are left alone
 * until the next change. */
static void renew_locked(struct renewal *n) REQUIRES(n->lock)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct stamp now[ARRAY_SIZE(n->stamps)];
    struct tls_keys *k;
    bool same = true;

    stamp_files(&n->creds, now);
    for (size_t i = 0; i < ARRAY_SIZE(now); i++) {
        same &= stamp_same(&now[i], &n->stamps[i]);
    }
    if (same) {
        return;
    }
    memcpy(n->stamps, now, sizeof(now));
    if (keys_load(&n->creds, n->password, &k, &err) < 0) {
        static struct log_limit limit = {.every_s = 1};

        log_seldom(&limit, TELL_WARNING,
                   "TLS goes on with the files that it had: %s",
                   error_message(err));
        return;
    }
    tls_keys_unref(n->newer);
    n->newer = k;
}

struct tls_keys *tls_keys_now(struct tls_keys *k)
{
    struct renewal *n = k->renewal;

    if (!n) {
        return tls_keys_ref(k);
    }
    mutex_lock(&n->lock);
    renew_locked(n);
    struct tls_keys *now = tls_keys_ref(n->newer ? n->newer : k);
    mutex_unlock(&n->lock);
    return now;
}

int tls_keys_load(const struct tls_creds *c, const char *password,
                  struct tls_keys **kp, struct error **errp)
{
    struct renewal *n = NULL;
    int r = c->kind == TLS_X509 ? renewal_new(c, password, &n, errp) : 0;

    if (r < 0 || (r = keys_load(c, password, kp, errp)) < 0) {
        renewal_free(n);
        return r;
    }
    (*kp)->renewal = n;
    return 0;
}

struct tls_keys *tls_keys_ref(struct tls_keys *k)
{
    atomic_fetch_add(&k->users, 1);
    return k;
}

static void free_cred(struct tls_keys *k)
{
    if (!k->cred.any) {
        return;
    }
    if (k->kind == TLS_X509) {
        gnutls_certificate_free_credentials(k->cred.x509);
    } else if (k->kind == TLS_PSK && k->server) {
        gnutls_psk_free_server_credentials(k->cred.psk_server);
    } else if (k->kind == TLS_PSK) {
        gnutls_psk_free_client_credentials(k->cred.psk_client);
    } else if (k->server) {
        gnutls_anon_free_server_credentials(k->cred.anon_server);
    } else {
        gnutls_anon_free_client_credentials(k->cred.anon_client);
    }
}

void tls_keys_unref(struct tls_keys *k)
{
    if (k && atomic_fetch_sub(&k->users, 1) == 1) {
        free_cred(k);
        renewal_free(k->renewal);
        if (k->priority) {
            gnutls_priority_deinit(k->priority);
        }
        free(k);
    }
}

bool tls_keys_identify(const struct tls_keys *k)
{
    return k->kind == TLS_PSK || (k->kind == TLS_X509 && k->verify_peer);
}
