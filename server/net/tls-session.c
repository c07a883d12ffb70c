/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS sessions: buffers between gnutls and a socket (tls.h has the picture). */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/thread.h"
#include "net/pages.h"
#include "net/tls-priv.h"

/* Bytes of ciphertext of one recv, and of one send.  Records are made while
 * there are fewer than OUT_FULL bytes: so there is room for one more record,
 * and for messages of TLS itself that have to go before it. */
#define IN_SIZE    ((size_t)64 << 10)
#define OUT_FULL   ((size_t)132 << 10)
#define OUT_SIZE   (OUT_FULL + ((size_t)32 << 10))
#define RECORD_MAX ((size_t)16 << 10)

struct tls {
    /* Set at creation. */
    struct tls_keys *keys;
    int fd;
    char *host;

    /* The receiving thread's. */
    char *in; /* IN_SIZE, or NULL */
    size_t in_at;
    size_t in_end;
    bool in_over; /* the socket has no more */
    char *identity;
    const char *why; /* the other side's certificate is not good */

    mutex_t lock;
    /* Guarded by lock. */
    gnutls_session_t session;
    bool open; /* after the handshake, until tls_end() */
    char *out; /* OUT_SIZE, then room to gather a record in; or NULL */
    size_t out_at;
    size_t out_end;

    _Atomic bool unsent; /* there is something in out */
};

/* --- Between gnutls and the buffers. --- */

static ssize_t pull_ciphertext(gnutls_transport_ptr_t ptr, void *data,
                               size_t size)
{
    struct tls *t = ptr;
    size_t n = min_u64(size, t->in_end - t->in_at);

    mutex_is_held(&t->lock);
    if (n == 0 && !t->in_over) {
        gnutls_transport_set_errno(t->session, EAGAIN);
        return -1;
    }
    if (n > 0) {
        memcpy(data, t->in + t->in_at, n);
        t->in_at += n;
    }
    return (ssize_t)n;
}

static ssize_t push_ciphertext(gnutls_transport_ptr_t ptr, const void *data,
                               size_t size)
{
    struct tls *t = ptr;

    mutex_is_held(&t->lock);
    if (!t->out && !(t->out = pages_new(OUT_SIZE + RECORD_MAX))) {
        gnutls_transport_set_errno(t->session, ENOMEM);
        return -1;
    }
    size_t n = min_u64(size, OUT_SIZE - t->out_end);
    if (n == 0) {
        gnutls_transport_set_errno(t->session, EAGAIN);
        return -1;
    }
    memcpy(t->out + t->out_end, data, n);
    t->out_end += n;
    return (ssize_t)n;
}

/* --- Between the buffers and the socket. --- */

/* 0: at the end. */
static ssize_t receive_ciphertext(struct tls *t, bool wait)
{
    if (!t->in && !(t->in = pages_new(IN_SIZE))) {
        return -ENOMEM;
    }
    if (t->in_at == t->in_end) {
        t->in_at = t->in_end = 0;
    }
    if (t->in_end == IN_SIZE) {
        return -EMSGSIZE; /* gnutls takes it all before it wants more */
    }
    ssize_t n = recv(t->fd, t->in + t->in_end, IN_SIZE - t->in_end,
                     wait ? 0 : MSG_DONTWAIT);
    if (n < 0) {
        return -errno;
    }
    t->in_end += (size_t)n;
    t->in_over = n == 0;
    return n;
}

static int flush_locked(struct tls *t) REQUIRES(t->lock)
{
    int r = 0;

    while (r == 0 && t->out_at < t->out_end) {
        ssize_t n = send(t->fd, t->out + t->out_at, t->out_end - t->out_at,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0) {
            t->out_at += (size_t)n;
        } else if (errno != EINTR) {
            r = -errno;
        }
    }
    if (r == 0) {
        t->out_at = t->out_end = 0;
    }
    atomic_store(&t->unsent, r < 0);
    return r;
}

/* --- Life. --- */

/* Called in the handshake: is the other side's certificate good? */
static int verify_certificate(gnutls_session_t session)
{
    struct tls *t = gnutls_session_get_ptr(session);
    unsigned status = 0;

    if (!t->keys->server && !t->host) {
        t->why = "No hostname for certificate validation";
    } else if (gnutls_certificate_verify_peers3(session, t->host, &status) <
               0) {
        t->why = "there is no certificate that could be verified";
    } else if (status != 0) {
        t->why = tls_reason(status);
    }
    return t->why ? GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR : 0;
}

static int set_keys(struct tls *t, const struct tls_keys *k)
{
    static const gnutls_credentials_type_t types[] = {
        [TLS_ANON] = GNUTLS_CRD_ANON,
        [TLS_PSK] = GNUTLS_CRD_PSK,
        [TLS_X509] = GNUTLS_CRD_CERTIFICATE,
    };
    int r = gnutls_priority_set(t->session, k->priority);

    if (r == 0) {
        r = gnutls_credentials_set(t->session, types[k->kind], k->cred.any);
    }
    if (k->kind == TLS_X509 && k->server) {
        gnutls_certificate_server_set_request(
            t->session,
            k->verify_peer ? GNUTLS_CERT_REQUIRE : GNUTLS_CERT_IGNORE);
    }
    if (k->kind == TLS_X509 && k->verify_peer) {
        gnutls_session_set_verify_function(t->session, verify_certificate);
    }
    return r;
}

/* Tell the server the host name that we want to talk to, unless it is an IP
 * address. */
static int set_server_name(struct tls *t)
{
    struct in6_addr addr;

    return !t->host || inet_pton(AF_INET, t->host, &addr) == 1 ||
                   inet_pton(AF_INET6, t->host, &addr) == 1
               ? 0
               : gnutls_server_name_set(t->session, GNUTLS_NAME_DNS, t->host,
                                        strlen(t->host));
}

static int start_session(struct tls *t)
{
    unsigned end = t->keys->server ? GNUTLS_SERVER : GNUTLS_CLIENT;
    int r = gnutls_init(&t->session, end | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS);

    if (r == 0) {
        r = set_keys(t, t->keys);
    }
    if (r < 0 || set_server_name(t) < 0) {
        return -ENOMEM;
    }
    gnutls_session_set_ptr(t->session, t);
    gnutls_transport_set_ptr(t->session, t);
    gnutls_transport_set_pull_function(t->session, pull_ciphertext);
    gnutls_transport_set_push_function(t->session, push_ciphertext);
    gnutls_handshake_set_timeout(t->session, 0); /* our users have their own */
    return 0;
}

struct tls *tls_new(struct tls_keys *k, int fd, const char *host)
{
    struct tls *t = calloc(1, sizeof(*t));

    if (!t) {
        return NULL;
    }
    t->keys = tls_keys_now(k);
    t->fd = fd;
    t->host = host ? strdup(host) : NULL;
    mutex_init(&t->lock, LOCK_TLS_SESSION, NULL);
    if ((host && !t->host) || start_session(t) < 0) {
        tls_free(t);
        return NULL;
    }
    return t;
}

void tls_free(struct tls *t)
{
    if (t) {
        if (t->session) {
            gnutls_deinit(t->session);
        }
        tls_keys_unref(t->keys);
        pages_free(t->in, IN_SIZE);
        pages_free(t->out, OUT_SIZE + RECORD_MAX);
        mutex_destroy(&t->lock);
        free(t->identity);
        free(t->host);
        free(t);
    }
}

void tls_trim(struct tls *t)
{
    if (t->in_at == t->in_end) {
        pages_free(t->in, IN_SIZE);
        t->in = NULL;
    }
    mutex_lock(&t->lock);
    if (t->out_at == t->out_end) {
        pages_free(t->out, OUT_SIZE + RECORD_MAX);
        t->out = NULL;
    }
    mutex_unlock(&t->lock);
}

/* --- Handshake. --- */

/* The name in the client's certificate, malloc()ed.  NULL: no memory, or no
 * name that can be told. */
static char *certificate_name(gnutls_session_t session)
{
    unsigned count = 0;
    const gnutls_datum_t *certs = gnutls_certificate_get_peers(session, &count);
    gnutls_x509_crt_t crt;
    size_t size = 0;
    char *name = NULL;

    if (count == 0 || gnutls_x509_crt_init(&crt) < 0) {
        return NULL;
    }
    if (gnutls_x509_crt_import(crt, &certs[0], GNUTLS_X509_FMT_DER) == 0 &&
        gnutls_x509_crt_get_dn(crt, NULL, &size) ==
            GNUTLS_E_SHORT_MEMORY_BUFFER &&
        (name = calloc(1, size + 1)) &&
        gnutls_x509_crt_get_dn(crt, name, &size) < 0) {
        free(name);
        name = NULL;
    }
    gnutls_x509_crt_deinit(crt);
    return name;
}

static char *identity_of_peer(struct tls *t) REQUIRES(t->lock)
{
    const char *user;

    if (!t->keys->server || !tls_keys_identify(t->keys)) {
        return NULL;
    }
    if (t->keys->kind == TLS_X509) {
        return certificate_name(t->session);
    }
    user = gnutls_psk_server_get_username(t->session);
    return user ? strdup(user) : NULL;
}

/* Go on until the handshake is done, needs more input, or has failed. */
static int handshake_step(struct tls *t)
{
    int r;

    mutex_lock(&t->lock);
    do {
        r = gnutls_handshake(t->session);
    } while (r < 0 && r != GNUTLS_E_AGAIN && !gnutls_error_is_fatal(r));
    if (r < 0 && r != GNUTLS_E_AGAIN) {
        (void)gnutls_alert_send_appropriate(t->session, r);
    } else if (r == 0) {
        t->open = true;
        t->identity = identity_of_peer(t);
    }
    int sent = flush_locked(t);
    mutex_unlock(&t->lock);
    return sent < 0 && sent != -EAGAIN ? GNUTLS_E_PUSH_ERROR : r;
}

static const char *handshake_failure(struct tls *t, int r)
{
    const char *text;

    if (t->why) {
        return t->why;
    }
    if (r == GNUTLS_E_UNEXPECTED_PACKET ||
        r == GNUTLS_E_UNEXPECTED_PACKET_LENGTH ||
        r == GNUTLS_E_UNSUPPORTED_VERSION_PACKET) {
        return "what the other side sends is not TLS";
    }
    mutex_lock(&t->lock);
    text = r == GNUTLS_E_FATAL_ALERT_RECEIVED
               ? gnutls_alert_get_name(gnutls_alert_get(t->session))
               : gnutls_strerror(r);
    mutex_unlock(&t->lock);
    return text ? text : "unknown error";
}

int tls_handshake(struct tls *t, struct error **errp)
{
    int r;

    while ((r = handshake_step(t)) == GNUTLS_E_AGAIN) {
        ssize_t n = receive_ciphertext(t, false);
        if (n == -EAGAIN) {
            return -EAGAIN;
        }
        if (n < 0 && n != -EINTR) {
            return error_set(errp, (int)-n, "TLS handshake failed: %s",
                             strerror((int)-n));
        }
    }
    return r < 0 ? error_set(errp, EPROTO, "TLS handshake failed: %s",
                             handshake_failure(t, r))
                 : 0;
}

const char *tls_identity(const struct tls *t)
{
    return t->identity;
}

/* --- Records. --- */

/* Decrypt from the input buffer into @data.  0: the end of the stream; -EAGAIN:
 * there is no whole record. */
static ssize_t decrypt_record(struct tls *t, void *data, size_t size)
{
    ssize_t r;

    /* gnutls says "again" also after a message of TLS itself (new keys). */
    mutex_lock(&t->lock);
    do {
        r = gnutls_record_recv(t->session, data, size);
    } while (r == GNUTLS_E_INTERRUPTED ||
             r == GNUTLS_E_WARNING_ALERT_RECEIVED ||
             (r == GNUTLS_E_AGAIN && t->in_at < t->in_end));
    mutex_unlock(&t->lock);
    return r >= 0                                ? r
           : r == GNUTLS_E_AGAIN                 ? -EAGAIN
           : r == GNUTLS_E_PREMATURE_TERMINATION ? 0
                                                 : -EPROTO;
}

/* Decrypt all whole records that fit into @iov.  When one fails behind others
 * that did not, the next call tells. */
static ssize_t decrypt(struct tls *t, const struct iovec *iov, int cnt)
{
    size_t got = 0;

    for (int i = 0; i < cnt; i++) {
        for (size_t at = 0; at < iov[i].iov_len;) {
            ssize_t r = decrypt_record(t, (char *)iov[i].iov_base + at,
                                       iov[i].iov_len - at);
            if (r <= 0) {
                return got > 0 ? (ssize_t)got : r;
            }
            at += (size_t)r;
            got += (size_t)r;
        }
    }
    return (ssize_t)got;
}

ssize_t tls_receive(struct tls *t, const struct iovec *iov, int cnt, bool wait)
{
    ssize_t n;

    while ((n = decrypt(t, iov, cnt)) == -EAGAIN) {
        ssize_t r = receive_ciphertext(t, wait);
        if (r < 0) {
            return r;
        }
    }
    return n;
}

struct cursor {
    const struct iovec *iov;
    int cnt;
    size_t at; /* in the first part */
};

static void cursor_skip(struct cursor *c, size_t n)
{
    c->at += n;
    while (c->cnt > 0 && c->at >= c->iov->iov_len) {
        c->at -= c->iov->iov_len;
        c->iov++;
        c->cnt--;
    }
}

/* The next @max bytes, or all that are left.  They are gathered in @room unless
 * they are in one piece. */
static const char *next_piece(struct cursor c, size_t max, char *room,
                              size_t *n)
{
    const char *p = (const char *)c.iov->iov_base + c.at;

    *n = min_u64(c.iov->iov_len - c.at, max);
    if (*n == max || c.cnt == 1) {
        return p;
    }
    for (*n = 0; *n < max && c.cnt > 0;) {
        size_t part = min_u64(c.iov->iov_len - c.at, max - *n);

        memcpy(room + *n, (const char *)c.iov->iov_base + c.at, part);
        *n += part;
        cursor_skip(&c, part);
    }
    return room;
}

/* Encrypt into the output buffer, which is empty. */
static ssize_t encrypt_locked(struct tls *t, const struct iovec *iov, int cnt)
    REQUIRES(t->lock)
{
    struct cursor c = {iov, cnt, 0};
    size_t max = min_u64(gnutls_record_get_max_size(t->session), RECORD_MAX);
    size_t done = 0;

    if (!t->out && !(t->out = pages_new(OUT_SIZE + RECORD_MAX))) {
        return -ENOMEM;
    }
    cursor_skip(&c, 0);
    while (c.cnt > 0 && t->out_end < OUT_FULL) {
        size_t n;
        const char *p = next_piece(c, max, t->out + OUT_SIZE, &n);
        ssize_t r = gnutls_record_send(t->session, p, n);

        if (r <= 0) {
            return -EPROTO;
        }
        cursor_skip(&c, (size_t)r);
        done += (size_t)r;
    }
    return (ssize_t)done;
}

static ssize_t send_locked(struct tls *t, const struct iovec *iov, int cnt)
    REQUIRES(t->lock)
{
    int r = flush_locked(t);

    if (r < 0 || cnt == 0) {
        return r;
    }
    if (!t->open) {
        return -EPIPE;
    }
    ssize_t n = encrypt_locked(t, iov, cnt);
    if (n < 0) {
        return n;
    }
    r = flush_locked(t);
    return r < 0 && r != -EAGAIN ? r : n;
}

ssize_t tls_send(struct tls *t, const struct iovec *iov, int cnt)
{
    mutex_lock(&t->lock);
    ssize_t n = send_locked(t, iov, cnt);
    mutex_unlock(&t->lock);
    return n;
}

bool tls_unsent(const struct tls *t)
{
    return atomic_load(&t->unsent);
}

void tls_end(struct tls *t, bool denied)
{
    mutex_lock(&t->lock);
    if (t->open) {
        if (denied) {
            (void)gnutls_alert_send(t->session, GNUTLS_AL_FATAL,
                                    GNUTLS_A_ACCESS_DENIED);
        } else {
            (void)gnutls_bye(t->session, GNUTLS_SHUT_WR);
        }
        (void)flush_locked(t);
        t->open = false;
    }
    mutex_unlock(&t->lock);
}
