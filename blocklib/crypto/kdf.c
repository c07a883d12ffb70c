/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * PBKDF2 and the anti-forensic splitter: see kdf.h.
 *
 *   PBKDF2   each block of the key is U1 ^ U2 ^ ... ^ Un,
 *            U1 = HMAC(password, salt | number of the block)
 *            Ui = HMAC(password, Ui-1)
 *
 *   split    S1 ... Sn-1 are random
 *            D0 = 0, Di = diffuse(Di-1 ^ Si)
 *            Sn = Dn-1 ^ key
 *
 * diffuse() hashes each piece of the length of a hash, with its number.
 *
 * gnutls has PBKDF2, too, in one call that nothing can end before its time.
 */
#include "crypto/kdf.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>
#include <time.h>

#include "nbdelta/bytes.h"

/* Iterations between two looks at the clock: about a millisecond. */
#define LOOK_EVERY 4096

#define NS             UINT64_C(1000000000)
#define MEASURE_NS     (NS / 50) /* of computing are enough to know its speed */
#define ITERATIONS_MIN 1000

static const struct kdf_hash hashes[] = {
    {"sha1", GNUTLS_MAC_SHA1, GNUTLS_DIG_SHA1, 20},
    {"sha224", GNUTLS_MAC_SHA224, GNUTLS_DIG_SHA224, 28},
    {"sha256", GNUTLS_MAC_SHA256, GNUTLS_DIG_SHA256, 32},
    {"sha384", GNUTLS_MAC_SHA384, GNUTLS_DIG_SHA384, 48},
    {"sha512", GNUTLS_MAC_SHA512, GNUTLS_DIG_SHA512, 64},
};

const struct kdf_hash *kdf_hash_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(hashes); i++) {
        if (strcmp(hashes[i].name, name) == 0) {
            return &hashes[i];
        }
    }
    return NULL;
}

int kdf_random(void *buf, size_t bytes)
{
    return gnutls_rnd(GNUTLS_RND_KEY, buf, bytes) < 0 ? -EIO : 0;
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec ts;

    (void)clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * NS + (uint64_t)ts.tv_nsec;
}

static int ask_patience(const struct kdf_patience *p)
{
    if (!p) {
        return 0;
    }
    if (p->stop && p->stop(p->opaque)) {
        return -ECANCELED;
    }
    return p->until_ns != 0 && clock_ns(CLOCK_MONOTONIC) > p->until_ns
               ? -ETIMEDOUT
               : 0;
}

static void xor_bytes(unsigned char *to, const unsigned char *from,
                      size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        to[i] ^= from[i];
    }
}

/* One block of the key; @first is what U1 is the HMAC of. */
static int pbkdf2_block(gnutls_hmac_hd_t mac, const struct kdf_hash *h,
                        uint32_t iterations, unsigned char *sum,
                        const struct kdf_patience *p)
{
    unsigned char u[KDF_HASH_MAX];
    int r = 0;

    memcpy(u, sum, h->bytes);
    for (uint32_t i = 1; i < iterations && r == 0; i++) {
        if (gnutls_hmac(mac, u, h->bytes) < 0) {
            r = -EIO;
        } else {
            gnutls_hmac_output(mac, u);
            xor_bytes(sum, u, h->bytes);
            r = i % LOOK_EVERY == 0 ? ask_patience(p) : 0;
        }
    }
    explicit_bzero(u, sizeof(u));
    return r;
}

int kdf_pbkdf2(const struct kdf_hash *h, const void *password,
               size_t password_bytes, const unsigned char *salt,
               size_t salt_bytes, uint32_t iterations, unsigned char *out,
               size_t bytes, const struct kdf_patience *p)
{
    unsigned char sum[KDF_HASH_MAX];
    gnutls_hmac_hd_t mac;
    int r = ask_patience(p);

    if (r < 0) {
        return r;
    }
    if (gnutls_hmac_init(&mac, (gnutls_mac_algorithm_t)h->mac, password,
                         password_bytes) < 0) {
        return -ENOMEM;
    }
    for (uint32_t block = 1; bytes > 0 && r == 0; block++) {
        unsigned char number[4];
        size_t len = min_u64(bytes, h->bytes);

        store_be32(number, block);
        if (gnutls_hmac(mac, salt, salt_bytes) < 0 ||
            gnutls_hmac(mac, number, sizeof(number)) < 0) {
            r = -EIO;
            break;
        }
        gnutls_hmac_output(mac, sum);
        r = pbkdf2_block(mac, h, iterations, sum, p);
        memcpy(out, sum, len);
        out += len;
        bytes -= len;
    }
    gnutls_hmac_deinit(mac, NULL);
    explicit_bzero(sum, sizeof(sum));
    return r;
}

uint32_t kdf_iterations(const struct kdf_hash *h, size_t bytes, uint64_t ms)
{
    const unsigned char salt[32] = {0};
    unsigned char out[KDF_HASH_MAX * 2];
    uint64_t count = ITERATIONS_MIN;
    uint64_t took;

    bytes = min_u64(bytes, sizeof(out));
    for (;;) {
        uint64_t start = clock_ns(CLOCK_THREAD_CPUTIME_ID);
        if (kdf_pbkdf2(h, "measure", 7, salt, sizeof(salt), (uint32_t)count,
                       out, bytes, NULL) < 0) {
            return ITERATIONS_MIN;
        }
        took = clock_ns(CLOCK_THREAD_CPUTIME_ID) - start;
        if (took >= MEASURE_NS || count > UINT32_MAX / 4) {
            break;
        }
        count *= 2;
    }
    double wanted = (double)count * (double)ms * 1e6 /
                    (double)(took ? took : 1);

    return wanted < ITERATIONS_MIN ? ITERATIONS_MIN
           : wanted > UINT32_MAX   ? UINT32_MAX
                                   : (uint32_t)wanted;
}

/* --- The splitter --- */

static int diffuse(const struct kdf_hash *h, unsigned char *block, size_t bytes)
{
    unsigned char out[KDF_HASH_MAX];
    gnutls_hash_hd_t hash;
    uint32_t number = 0;
    int r = 0;

    if (gnutls_hash_init(&hash, (gnutls_digest_algorithm_t)h->digest) < 0) {
        return -ENOMEM;
    }
    for (size_t at = 0; at < bytes && r == 0; at += h->bytes) {
        size_t len = min_u64(bytes - at, h->bytes);
        unsigned char be[4];

        store_be32(be, number++);
        if (gnutls_hash(hash, be, sizeof(be)) < 0 ||
            gnutls_hash(hash, block + at, len) < 0) {
            r = -EIO;
        }
        gnutls_hash_output(hash, out); /* and begin again */
        memcpy(block + at, out, len);
    }
    gnutls_hash_deinit(hash, NULL);
    explicit_bzero(out, sizeof(out));
    return r;
}

/* What the stripes before the last one come to, in @block, zeroes at first. */
static int mix_stripes(const struct kdf_hash *h, const unsigned char *split,
                       size_t bytes, uint32_t stripes, unsigned char *block)
{
    int r = 0;

    for (uint32_t i = 0; i + 1 < stripes && r == 0; i++) {
        xor_bytes(block, split + i * bytes, bytes);
        r = diffuse(h, block, bytes);
    }
    return r;
}

int kdf_split(const struct kdf_hash *h, const unsigned char *key, size_t bytes,
              uint32_t stripes, unsigned char *out)
{
    unsigned char *last = out + (stripes - 1) * bytes;
    int r = kdf_random(out, (stripes - 1) * bytes);

    memset(last, 0, bytes);
    if (r == 0) {
        r = mix_stripes(h, out, bytes, stripes, last);
    }
    xor_bytes(last, key, bytes);
    return r;
}

int kdf_merge(const struct kdf_hash *h, const unsigned char *split,
              size_t bytes, uint32_t stripes, unsigned char *key)
{
    memset(key, 0, bytes);
    int r = mix_stripes(h, split, bytes, stripes, key);

    xor_bytes(key, split + (stripes - 1) * bytes, bytes);
    return r;
}
