/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CRYPTO_KDF_H
#define NBDELTA_CRYPTO_KDF_H

/*
 * From a passphrase to a key, as LUKS has it: PBKDF2 makes a key slow to guess,
 * and the anti-forensic splitter makes it large enough to be overwritten for
 * sure.
 *
 * These functions only compute.  Any thread may call them at any time.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* No hash has more bytes. */
#define KDF_HASH_MAX 64

struct kdf_hash {
    const char *name; /* in a LUKS header: "sha256" */
    int mac;          /* gnutls' numbers */
    int digest;
    unsigned bytes;
};

/* A hash by its name, or NULL. */
const struct kdf_hash *kdf_hash_find(const char *name);

/* When to give up. */
struct kdf_patience {
    uint64_t until_ns;          /* CLOCK_MONOTONIC; 0: never */
    bool (*stop)(void *opaque); /* asked now and then; NULL: never */
    void *opaque;
};

/* PBKDF2 with HMAC.  -ETIMEDOUT, -ECANCELED: as @p (or NULL) says; -ENOMEM,
 * -EIO: gnutls.  @out is undefined after a failure. */
int kdf_pbkdf2(const struct kdf_hash *h, const void *password,
               size_t password_bytes, const unsigned char *salt,
               size_t salt_bytes, uint32_t iterations, unsigned char *out,
               size_t bytes, const struct kdf_patience *p);

/* So many iterations for a key of @bytes take about @ms of this CPU; never less
 * than 1000. */
uint32_t kdf_iterations(const struct kdf_hash *h, size_t bytes, uint64_t ms);

/* Split a key into @stripes times its size at @out, or put it together again.
 * -EIO, -ENOMEM. */
int kdf_split(const struct kdf_hash *h, const unsigned char *key, size_t bytes,
              uint32_t stripes, unsigned char *out);
int kdf_merge(const struct kdf_hash *h, const unsigned char *split,
              size_t bytes, uint32_t stripes, unsigned char *key);

/* Random bytes for keys.  -EIO. */
int kdf_random(void *buf, size_t bytes);

#endif /* NBDELTA_CRYPTO_KDF_H */
