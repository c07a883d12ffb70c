/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CRYPTO_LUKS_H
#define NBDELTA_CRYPTO_LUKS_H

/*
 * LUKS, version 1: a header, and eight slots for the master key
 * =============================================================
 *
 * Each slot in use has the master key, split, and encrypted with a key that one
 * passphrase makes.  The master key encrypts the disk.
 *
 * Header and slots come from an image, so every field is hostile.  A header
 * that was parsed or made has sane ones: its names are known, each active slot
 * lies in the room that there is, and all sizes are small.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/kdf.h"
#include "crypto/sectors.h"

struct error;

#define LUKS_HEADER_BYTES 592
#define LUKS_SLOTS        8
#define LUKS_SALT         32
#define LUKS_DIGEST       20
#define LUKS_STRIPES      4000
#define LUKS_NAME_MAX     32
#define LUKS_UUID_MAX     40

/* No slot has more bytes. */
#define LUKS_MATERIAL_MAX (SECTOR_KEY_MAX * LUKS_STRIPES)

struct luks_slot {
    bool active;
    uint32_t iterations;
    unsigned char salt[LUKS_SALT];
    uint32_t sector; /* of its material, from the header's first byte on */
    uint32_t stripes;
};

struct luks_header {
    char cipher[LUKS_NAME_MAX + 1]; /* "aes" */
    char mode[LUKS_NAME_MAX + 1];   /* "xts-plain64" */
    char hash_name[LUKS_NAME_MAX + 1];
    char uuid[LUKS_UUID_MAX + 1];
    uint32_t payload_sector;           /* header and slots end before it */
    unsigned char digest[LUKS_DIGEST]; /* of the master key */
    unsigned char digest_salt[LUKS_SALT];
    uint32_t digest_iterations;
    struct luks_slot slots[LUKS_SLOTS];

    /* What the names mean. */
    struct sector_spec spec; /* with the size of the master key */
    const struct kdf_hash *hash;
};

/*
 * Parse a header that @room bytes in all are there for.  -EINVAL: it is none,
 * or contradicts itself; -ENOTSUP: a cipher, mode or hash that we do not have,
 * which @errp names.
 */
int luks_parse(const unsigned char bytes[LUKS_HEADER_BYTES], uint64_t room,
               struct luks_header *h, struct error **errp);

/* Bytes of a slot's material: whole sectors. */
size_t luks_material_bytes(const struct luks_header *h);

/* What of the cipher's names is the size, the mode, the vector: "aes-256",
 * "xts", "plain64". */
struct luks_names {
    char cipher[16];
    const char *mode;
    const char *iv;
    const char *iv_hash; /* "sha256", or NULL */
};
void luks_name(const struct luks_header *h, struct luks_names *names);

/*
 * Find the master key.  @material[i] is that of slot i; NULL: it is not active.
 * @key has SECTOR_KEY_MAX bytes.  Takes seconds, by what the header says.
 * -EPERM: the passphrase opens no slot; -ETIMEDOUT, -ECANCELED: as @p says.
 */
int luks_unlock(const struct luks_header *h,
                const unsigned char *const material[LUKS_SLOTS],
                const void *passphrase, size_t bytes,
                const struct kdf_patience *p, unsigned char *key,
                struct error **errp);

/* What a user may choose for a new header; NULL and 0: the default, which is
 * aes-256, xts, plain64, sha256, 2000. */
struct luks_wish {
    const char *cipher;  /* "aes-256" */
    const char *mode;    /* "xts" */
    const char *iv;      /* "plain64" */
    const char *iv_hash; /* of "essiv": "sha256" */
    const char *hash;
    uint64_t iter_ms; /* how long a passphrase takes to be tried */
    bool has_iter;
};

/* A header that nothing but its slots is missing in.  Computes for a moment. */
int luks_plan(const struct luks_wish *w, struct luks_header *h,
              struct error **errp);

/* Bytes from the header to the end of the last slot. */
uint64_t luks_bytes(const struct luks_header *h);

/*
 * Make a master key, and put it into slot 0, for this passphrase.  @area has
 * luks_bytes() zeroes, and gets header and slots.  Takes as long as the wish
 * said.
 */
int luks_make(struct luks_header *h, const struct luks_wish *w,
              const void *passphrase, size_t bytes, unsigned char *area,
              unsigned char *key, struct error **errp);

#endif /* NBDELTA_CRYPTO_LUKS_H */
