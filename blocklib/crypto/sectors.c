/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sectors through AES: see sectors.h.
 *
 * A handle of gnutls has the vector in it, so one thread uses it at a time.
 * Idle handles wait in slots; a thread that finds none makes one.
 *
 *   thread --- exchange ---> slot[i]   has a handle: it is the thread's now
 *          <-- put back ---            no slot is empty: it is freed
 *
 * AES-192 with XTS is nettle's, and so is AES of one block, for ESSIV: gnutls
 * has none.
 */
#include "crypto/sectors.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <nettle/aes.h>
#include <nettle/nettle-meta.h>
#include <nettle/xts.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

#define VECTOR     16
#define IDLE_MAX   16
#define AES192_KEY 24

/* A key that is ready for use, by one thread. */
struct handle {
    gnutls_cipher_hd_t cipher;
};

/* AES-192 with XTS; nothing in it changes. */
struct xts192 {
    struct aes192_ctx encrypt;
    struct aes192_ctx decrypt;
    struct aes192_ctx tweak;
};

struct sector_cipher {
    struct sector_spec spec;
    gnutls_cipher_algorithm_t algorithm; /* 0: that of `xts192` */
    unsigned char key[SECTOR_KEY_MAX];
    struct aes256_ctx essiv;
    struct xts192 xts192;
    struct handle *_Atomic idle[IDLE_MAX];
};

static bool is_xts192(const struct sector_spec *s)
{
    return s->mode == SECTOR_XTS && s->key_bytes == 2 * AES192_KEY;
}

static gnutls_cipher_algorithm_t algorithm_of(const struct sector_spec *s)
{
    static const struct {
        enum sector_mode mode;
        unsigned key_bytes;
        gnutls_cipher_algorithm_t algorithm;
    } known[] = {
        {SECTOR_XTS, 32, GNUTLS_CIPHER_AES_128_XTS},
        {SECTOR_XTS, 64, GNUTLS_CIPHER_AES_256_XTS},
        {SECTOR_CBC, 16, GNUTLS_CIPHER_AES_128_CBC},
        {SECTOR_CBC, 24, GNUTLS_CIPHER_AES_192_CBC},
        {SECTOR_CBC, 32, GNUTLS_CIPHER_AES_256_CBC},
    };

    for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
        if (known[i].mode == s->mode && known[i].key_bytes == s->key_bytes) {
            return known[i].algorithm;
        }
    }
    return GNUTLS_CIPHER_UNKNOWN;
}

int sector_spec_check(const struct sector_spec *spec, struct error **errp)
{
    return is_xts192(spec) || algorithm_of(spec) != GNUTLS_CIPHER_UNKNOWN
               ? 0
               : error_set(errp, ENOTSUP,
                           "there is no cipher 'aes' in mode '%s' with a key "
                           "of %u bytes",
                           spec->mode == SECTOR_XTS ? "xts" : "cbc",
                           spec->key_bytes);
}

/* --- Handles --- */

static void free_handle(struct handle *h)
{
    if (h) {
        gnutls_cipher_deinit(h->cipher);
        free(h);
    }
}

static int new_handle(const struct sector_cipher *c, struct handle **hp)
{
    unsigned char zeroes[VECTOR] = {0};
    gnutls_datum_t iv = {zeroes, VECTOR};
    gnutls_datum_t key = {(unsigned char *)(uintptr_t)c->key,
                          c->spec.key_bytes};
    struct handle *h = calloc(1, sizeof(*h));

    if (!h) {
        return -ENOMEM;
    }
    int r = gnutls_cipher_init(&h->cipher, c->algorithm, &key, &iv);
    if (r < 0) {
        free(h);
        return r == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL;
    }
    *hp = h;
    return 0;
}

static int take_handle(struct sector_cipher *c, struct handle **hp)
{
    for (size_t i = 0; i < IDLE_MAX; i++) {
        if (atomic_load_explicit(&c->idle[i], memory_order_relaxed) &&
            (*hp = atomic_exchange(&c->idle[i], NULL))) {
            return 0;
        }
    }
    return new_handle(c, hp);
}

static void put_handle(struct sector_cipher *c, struct handle *h)
{
    for (size_t i = 0; i < IDLE_MAX; i++) {
        struct handle *none = NULL;

        if (atomic_compare_exchange_strong(&c->idle[i], &none, h)) {
            return;
        }
    }
    free_handle(h);
}

/* --- A cipher --- */

static int prepare_essiv(struct sector_cipher *c)
{
    unsigned char hash[AES256_KEY_SIZE];

    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, c->key, c->spec.key_bytes, hash) <
        0) {
        return -EIO;
    }
    aes256_set_encrypt_key(&c->essiv, hash);
    explicit_bzero(hash, sizeof(hash));
    return 0;
}

static void prepare_xts192(struct sector_cipher *c)
{
    aes192_set_encrypt_key(&c->xts192.encrypt, c->key);
    aes192_set_decrypt_key(&c->xts192.decrypt, c->key);
    aes192_set_encrypt_key(&c->xts192.tweak, c->key + AES192_KEY);
}

int sector_cipher_new(const struct sector_spec *spec, const unsigned char *key,
                      struct sector_cipher **cp, struct error **errp)
{
    struct handle *h = NULL;
    int r = sector_spec_check(spec, errp);

    if (r < 0) {
        return r;
    }
    struct sector_cipher *c = calloc(1, sizeof(*c));
    if (!c) {
        return error_nomem(errp);
    }
    c->spec = *spec;
    c->algorithm = algorithm_of(spec);
    memcpy(c->key, key, spec->key_bytes);
    r = spec->iv == SECTOR_ESSIV ? prepare_essiv(c) : 0;
    if (is_xts192(spec)) {
        prepare_xts192(c);
    } else if (r == 0) {
        r = new_handle(c, &h);
    }
    if (r < 0) {
        sector_cipher_free(c);
        return error_set(errp, -r, "the key is not one for this cipher: %s",
                         strerror(-r));
    }
    if (h) {
        put_handle(c, h);
    }
    *cp = c;
    return 0;
}

void sector_cipher_free(struct sector_cipher *c)
{
    if (c) {
        for (size_t i = 0; i < IDLE_MAX; i++) {
            free_handle(atomic_load(&c->idle[i]));
        }
        explicit_bzero(c, sizeof(*c));
        free(c);
    }
}

/* --- Sectors --- */

/* The number of a sector as a vector. */
static void make_vector(const struct sector_cipher *c, uint64_t sector,
                        unsigned char iv[VECTOR])
{
    uint64_t le = htole64(c->spec.iv == SECTOR_PLAIN ? (uint32_t)sector
                                                     : sector);

    memset(iv, 0, VECTOR);
    memcpy(iv, &le, sizeof(le));
    if (c->spec.iv == SECTOR_ESSIV) {
        aes256_encrypt(&c->essiv, VECTOR, iv, iv);
    }
}

static void run_xts192(const struct sector_cipher *c, uint64_t sector,
                       const unsigned char *from, unsigned char *to,
                       size_t bytes, bool encrypt)
{
    const struct xts192 *x = &c->xts192;

    for (size_t at = 0; at < bytes; at += SECTOR_BYTES) {
        unsigned char iv[VECTOR];

        make_vector(c, sector++, iv);
        if (encrypt) {
            xts_encrypt_message(&x->encrypt, &x->tweak, nettle_aes192.encrypt,
                                iv, SECTOR_BYTES, to + at, from + at);
        } else {
            xts_decrypt_message(&x->decrypt, &x->tweak, nettle_aes192.decrypt,
                                nettle_aes192.encrypt, iv, SECTOR_BYTES,
                                to + at, from + at);
        }
    }
}

static int run_sectors(const struct sector_cipher *c, const struct handle *h,
                       uint64_t sector, const unsigned char *from,
                       unsigned char *to, size_t bytes, bool encrypt)
{
    int r = 0;

    for (size_t at = 0; at < bytes && r >= 0; at += SECTOR_BYTES) {
        unsigned char iv[VECTOR];

        make_vector(c, sector++, iv);
        gnutls_cipher_set_iv(h->cipher, iv, VECTOR);
        r = encrypt ? gnutls_cipher_encrypt2(h->cipher, from + at, SECTOR_BYTES,
                                             to + at, SECTOR_BYTES)
                    : gnutls_cipher_decrypt2(h->cipher, from + at, SECTOR_BYTES,
                                             to + at, SECTOR_BYTES);
    }
    return r < 0 ? -EIO : 0;
}

static int run(struct sector_cipher *c, uint64_t sector,
               const unsigned char *from, unsigned char *to, size_t bytes,
               bool encrypt)
{
    struct handle *h;

    if (is_xts192(&c->spec)) {
        run_xts192(c, sector, from, to, bytes, encrypt);
        return 0;
    }
    int r = take_handle(c, &h);
    if (r < 0) {
        return r;
    }
    r = run_sectors(c, h, sector, from, to, bytes, encrypt);
    put_handle(c, h);
    return r;
}

int sector_encrypt(struct sector_cipher *c, uint64_t sector, const void *from,
                   void *to, size_t bytes)
{
    return run(c, sector, from, to, bytes, true);
}

int sector_decrypt(struct sector_cipher *c, uint64_t sector, void *buf,
                   size_t bytes)
{
    return run(c, sector, buf, buf, bytes, false);
}
