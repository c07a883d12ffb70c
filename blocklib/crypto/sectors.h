/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CRYPTO_SECTORS_H
#define NBDELTA_CRYPTO_SECTORS_H

/*
 * Encryption of sectors, as disks have it: each sector of 512 bytes is
 * encrypted on its own, with an initialisation vector that its number makes.
 *
 * Encrypting and decrypting may be done by any number of threads at once; they
 * do not wait for each other.
 */
#include <stddef.h>
#include <stdint.h>

struct error;

#define SECTOR_BYTES 512

/* The longest key: two of AES-256. */
#define SECTOR_KEY_MAX 64

enum sector_mode { SECTOR_XTS, SECTOR_CBC };

enum sector_iv {
    SECTOR_PLAIN,   /* the low 32 bits of the number */
    SECTOR_PLAIN64, /* the number */
    SECTOR_ESSIV,   /* the number, encrypted with the key's SHA-256 */
};

/* AES, in one of its variants. */
struct sector_spec {
    enum sector_mode mode;
    enum sector_iv iv;
    unsigned key_bytes; /* 16, 24, 32; twice as many with SECTOR_XTS */
};

/* Is there a cipher with such a key? */
int sector_spec_check(const struct sector_spec *spec, struct error **errp);

struct sector_cipher;

/* -ENOMEM; -EINVAL: the key is one that XTS does not take. */
int sector_cipher_new(const struct sector_spec *spec, const unsigned char *key,
                      struct sector_cipher **cp, struct error **errp);
void sector_cipher_free(struct sector_cipher *c); /* NULL is fine */

/* @bytes is a multiple of a sector; the first one has the number @sector.
 * Encrypting may be done in place.  -ENOMEM, -EIO. */
int sector_encrypt(struct sector_cipher *c, uint64_t sector, const void *from,
                   void *to, size_t bytes);
int sector_decrypt(struct sector_cipher *c, uint64_t sector, void *buf,
                   size_t bytes);

#endif /* NBDELTA_CRYPTO_SECTORS_H */
