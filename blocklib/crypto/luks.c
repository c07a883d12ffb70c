/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The LUKS header (big-endian), and what is in its slots: see luks.h.
 *
 *   0     "LUKS" ba be, version
 *   8     cipher, mode, hash: 32 bytes each
 *   104   payload (sector), size of the master key
 *   112   digest of the master key: 20 bytes, salt, iterations
 *   168   UUID
 *   208   8 slots of 48 bytes: active, iterations, salt, sector, stripes
 *   592
 *
 *   passphrase --PBKDF2, slot's salt--> key of the slot
 *   material --decrypt--> stripes --merge--> master key
 *   master key --PBKDF2, header's salt--> digest, which tells if it is right
 */
#include "crypto/luks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define AT_VERSION     6
#define AT_CIPHER      8
#define AT_MODE        40
#define AT_HASH        72
#define AT_PAYLOAD     104
#define AT_KEY_BYTES   108
#define AT_DIGEST      112
#define AT_DIGEST_SALT 132
#define AT_DIGEST_ITER 164
#define AT_UUID        168
#define AT_SLOTS       208
#define SLOT_BYTES     48

#define SLOT_ACTIVE UINT32_C(0x00ac71f3)
#define SLOT_UNUSED UINT32_C(0x0000dead)

/* Slots begin at such sectors, the first one at this. */
#define SLOT_ALIGN 8

#define ITER_MS      2000
#define ITER_MS_MAX  30000
#define DIGEST_SHARE 8 /* of the time of a slot */

static const unsigned char magic[6] = {'L', 'U', 'K', 'S', 0xba, 0xbe};

static const char *const modes[] = {[SECTOR_XTS] = "xts", [SECTOR_CBC] = "cbc"};
static const char *const vectors[] = {[SECTOR_PLAIN] = "plain",
                                      [SECTOR_PLAIN64] = "plain64",
                                      [SECTOR_ESSIV] = "essiv"};

/* --- Names --- */

static bool find_word(const char *word, const char *const *words, size_t count,
                      unsigned *index)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(word, words[i]) == 0) {
            *index = (unsigned)i;
            return true;
        }
    }
    return false;
}

/* "xts-plain64", "cbc-essiv:sha256". */
static int parse_mode(const char *text, struct sector_spec *spec,
                      struct error **errp)
{
    char copy[LUKS_NAME_MAX + 1];
    unsigned mode;
    unsigned vector;

    (void)snprintf(copy, sizeof(copy), "%s", text);
    char *iv = strchr(copy, '-');
    if (iv) {
        *iv++ = '\0';
    }
    char *iv_hash = iv ? strchr(iv, ':') : NULL;
    if (iv_hash) {
        *iv_hash++ = '\0';
    }
    if (!iv || !find_word(copy, modes, ARRAY_SIZE(modes), &mode)) {
        return error_set(errp, ENOTSUP,
                         "the LUKS cipher mode '%s' is not supported", text);
    }
    if (!find_word(iv, vectors, ARRAY_SIZE(vectors), &vector) ||
        (vector == SECTOR_ESSIV) != (iv_hash != NULL)) {
        return error_set(errp, ENOTSUP,
                         "the LUKS cipher mode '%s' makes vectors in a way "
                         "that is not supported",
                         text);
    }
    if (iv_hash && strcmp(iv_hash, "sha256") != 0) {
        return error_set(errp, ENOTSUP,
                         "the LUKS cipher mode '%s' is not supported: with "
                         "AES, essiv takes sha256",
                         text);
    }
    spec->mode = (enum sector_mode)mode;
    spec->iv = (enum sector_iv)vector;
    return 0;
}

static int take_names(struct luks_header *h, struct error **errp)
{
    if (strcmp(h->cipher, "aes") != 0) {
        return error_set(errp, ENOTSUP, "the LUKS cipher '%s' is not supported",
                         h->cipher);
    }
    h->hash = kdf_hash_find(h->hash_name);
    if (!h->hash) {
        return error_set(errp, ENOTSUP, "the LUKS hash '%s' is not supported",
                         h->hash_name);
    }
    int r = parse_mode(h->mode, &h->spec, errp);
    if (r == 0) {
        r = sector_spec_check(&h->spec, errp);
    }
    /* QEMU ends with an assertion on it. */
    if (r == 0 && h->spec.key_bytes * LUKS_STRIPES % SECTOR_BYTES != 0) {
        r = error_set(errp, ENOTSUP,
                      "LUKS with aes-192 in mode '%s' is not supported: key "
                      "slots do not end with a sector",
                      h->mode);
    }
    return r;
}

void luks_name(const struct luks_header *h, struct luks_names *names)
{
    unsigned halves = h->spec.mode == SECTOR_XTS ? 2 : 1;

    (void)snprintf(names->cipher, sizeof(names->cipher), "aes-%u",
                   h->spec.key_bytes / halves * 8);
    names->mode = modes[h->spec.mode];
    names->iv = vectors[h->spec.iv];
    names->iv_hash = h->spec.iv == SECTOR_ESSIV ? "sha256" : NULL;
}

/* --- Sizes --- */

size_t luks_material_bytes(const struct luks_header *h)
{
    return (size_t)h->spec.key_bytes * LUKS_STRIPES;
}

static uint32_t material_sectors(const struct luks_header *h)
{
    return (uint32_t)(luks_material_bytes(h) / SECTOR_BYTES);
}

uint64_t luks_bytes(const struct luks_header *h)
{
    return (uint64_t)h->payload_sector * SECTOR_BYTES;
}

/* --- Parsing --- */

/* A name in @room bytes; its NUL may be missing. */
static void copy_name(char *to, const unsigned char *from, size_t room)
{
    memcpy(to, from, room);
    to[room] = '\0';
}

static int parse_slot(const struct luks_header *h, unsigned number,
                      const unsigned char *at, uint64_t room,
                      struct luks_slot *s, struct error **errp)
{
    uint32_t state = load_be32(at);

    s->active = state == SLOT_ACTIVE;
    s->iterations = load_be32(at + 4);
    memcpy(s->salt, at + 8, LUKS_SALT);
    s->sector = load_be32(at + 8 + LUKS_SALT);
    s->stripes = load_be32(at + 12 + LUKS_SALT);
    if (state != SLOT_ACTIVE && state != SLOT_UNUSED) {
        return error_set(errp, EINVAL,
                         "LUKS key slot %u is neither active nor unused",
                         number);
    }
    if (!s->active) {
        return 0;
    }
    if (s->stripes != LUKS_STRIPES || s->iterations == 0) {
        return error_set(errp, EINVAL,
                         "LUKS key slot %u is broken: %" PRIu32
                         " stripes, %" PRIu32 " iterations",
                         number, s->stripes, s->iterations);
    }
    uint64_t from = (uint64_t)s->sector * SECTOR_BYTES;
    uint64_t end = from + luks_material_bytes(h);
    if (from < LUKS_HEADER_BYTES || end > room || end > luks_bytes(h)) {
        return error_set(errp, EINVAL,
                         "LUKS key slot %u lies where none can be", number);
    }
    return 0;
}

static int check_overlaps(const struct luks_header *h, struct error **errp)
{
    uint32_t sectors = material_sectors(h);

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        for (unsigned j = i + 1; j < LUKS_SLOTS; j++) {
            uint64_t a = h->slots[i].sector;
            uint64_t b = h->slots[j].sector;

            if (h->slots[i].active && h->slots[j].active && a < b + sectors &&
                b < a + sectors) {
                return error_set(errp, EINVAL,
                                 "LUKS key slots %u and %u overlap", i, j);
            }
        }
    }
    return 0;
}

int luks_parse(const unsigned char bytes[LUKS_HEADER_BYTES], uint64_t room,
               struct luks_header *h, struct error **errp)
{
    *h = (struct luks_header){.payload_sector = load_be32(bytes + AT_PAYLOAD)};
    if (memcmp(bytes, magic, sizeof(magic)) != 0) {
        return error_set(errp, EINVAL, "there is no LUKS header");
    }
    if (load_be16(bytes + AT_VERSION) != 1) {
        return error_set(errp, ENOTSUP, "LUKS version %u is not supported",
                         load_be16(bytes + AT_VERSION));
    }
    copy_name(h->cipher, bytes + AT_CIPHER, LUKS_NAME_MAX);
    copy_name(h->mode, bytes + AT_MODE, LUKS_NAME_MAX);
    copy_name(h->hash_name, bytes + AT_HASH, LUKS_NAME_MAX);
    copy_name(h->uuid, bytes + AT_UUID, LUKS_UUID_MAX);
    for (char *c = h->uuid; *c; c++) { /* it is shown */
        if (*c < 0x20 || *c > 0x7e) {
            *c = '?';
        }
    }
    h->spec.key_bytes = load_be32(bytes + AT_KEY_BYTES);
    memcpy(h->digest, bytes + AT_DIGEST, LUKS_DIGEST);
    memcpy(h->digest_salt, bytes + AT_DIGEST_SALT, LUKS_SALT);
    h->digest_iterations = load_be32(bytes + AT_DIGEST_ITER);
    int r = take_names(h, errp);
    if (r == 0 && h->digest_iterations == 0) {
        r = error_set(errp, EINVAL,
                      "the LUKS header has a digest of no iterations");
    }
    for (unsigned i = 0; i < LUKS_SLOTS && r == 0; i++) {
        r = parse_slot(h, i, bytes + AT_SLOTS + (size_t)i * SLOT_BYTES, room,
                       &h->slots[i], errp);
    }
    return r < 0 ? r : check_overlaps(h, errp);
}

/* --- Unlocking --- */

static int digest_of(const struct luks_header *h, const unsigned char *key,
                     unsigned char digest[LUKS_DIGEST],
                     const struct kdf_patience *p)
{
    return kdf_pbkdf2(h->hash, key, h->spec.key_bytes, h->digest_salt,
                      LUKS_SALT, h->digest_iterations, digest, LUKS_DIGEST, p);
}

/* The cipher of a slot, for a passphrase. */
static int slot_cipher(const struct luks_header *h, const struct luks_slot *s,
                       const void *passphrase, size_t bytes,
                       const struct kdf_patience *p, struct sector_cipher **cp)
{
    unsigned char key[SECTOR_KEY_MAX];
    int r = kdf_pbkdf2(h->hash, passphrase, bytes, s->salt, LUKS_SALT,
                       s->iterations, key, h->spec.key_bytes, p);

    if (r == 0) {
        r = sector_cipher_new(&h->spec, key, cp, NULL);
    }
    explicit_bzero(key, sizeof(key));
    return r;
}

/* Does the passphrase open this slot?  1, 0 or an error. */
static int try_slot(const struct luks_header *h, const struct luks_slot *s,
                    const unsigned char *material, const void *passphrase,
                    size_t bytes, const struct kdf_patience *p,
                    unsigned char *key)
{
    unsigned char digest[LUKS_DIGEST];
    size_t len = luks_material_bytes(h);
    struct sector_cipher *c = NULL;
    unsigned char *split = malloc(len);

    if (!split) {
        return -ENOMEM;
    }
    memcpy(split, material, len);
    int r = slot_cipher(h, s, passphrase, bytes, p, &c);
    if (r == 0) {
        r = sector_decrypt(c, 0, split, len);
    }
    if (r == 0) {
        r = kdf_merge(h->hash, split, h->spec.key_bytes, LUKS_STRIPES, key);
    }
    if (r == 0) {
        r = digest_of(h, key, digest, p);
    }
    if (r == 0) {
        r = memcmp(digest, h->digest, LUKS_DIGEST) == 0;
    }
    sector_cipher_free(c);
    explicit_bzero(split, len);
    free(split);
    return r;
}

int luks_unlock(const struct luks_header *h,
                const unsigned char *const material[LUKS_SLOTS],
                const void *passphrase, size_t bytes,
                const struct kdf_patience *p, unsigned char *key,
                struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; i < LUKS_SLOTS && r == 0; i++) {
        if (h->slots[i].active) {
            r = try_slot(h, &h->slots[i], material[i], passphrase, bytes, p,
                         key);
        }
    }
    if (r > 0) {
        return 0;
    }
    explicit_bzero(key, SECTOR_KEY_MAX);
    switch (r) {
    case 0:
        return error_set(errp, EPERM,
                         "Invalid password, cannot unlock any keyslot");
    case -ETIMEDOUT:
        return error_set(errp, ETIMEDOUT,
                         "the LUKS header asks for more computing than is done "
                         "for an image");
    default:
        return error_set(errp, -r, "cannot unlock the LUKS key slots: %s",
                         strerror(-r));
    }
}

/* --- Making --- */

static int plan_cipher(const struct luks_wish *w, struct luks_header *h,
                       struct error **errp)
{
    static const char *const ciphers[] = {"aes-128", "aes-192", "aes-256"};
    const char *cipher = w->cipher ? w->cipher : "aes-256";
    const char *mode = w->mode ? w->mode : "xts";
    bool cbc = strcmp(mode, "cbc") == 0;
    const char *iv = w->iv ? w->iv : "plain64";
    bool essiv = strcmp(iv, "essiv") == 0;
    const char *iv_hash = essiv ? (w->iv_hash ? w->iv_hash : "sha256") : NULL;
    unsigned size;

    if (!find_word(cipher, ciphers, ARRAY_SIZE(ciphers), &size)) {
        return error_set(errp, ENOTSUP,
                         "the cipher '%s' is not supported: aes-128, aes-192 "
                         "and aes-256 are",
                         cipher);
    }
    if (w->iv_hash && !essiv) {
        return error_set(errp, EINVAL,
                         "ivgen-hash-alg is for ivgen-alg=essiv alone");
    }
    (void)snprintf(h->cipher, sizeof(h->cipher), "aes");
    if (snprintf(h->mode, sizeof(h->mode), "%s-%s%s%s", mode, iv,
                 iv_hash ? ":" : "",
                 iv_hash ? iv_hash : "") >= (int)sizeof(h->mode) ||
        snprintf(h->hash_name, sizeof(h->hash_name), "%s",
                 w->hash ? w->hash : "sha256") >= (int)sizeof(h->hash_name)) {
        return error_set(errp, EINVAL, "the name of a LUKS cipher is too long");
    }
    h->spec.key_bytes = (16 + 8 * size) * (cbc ? 1 : 2);
    return take_names(h, errp);
}

int luks_plan(const struct luks_wish *w, struct luks_header *h,
              struct error **errp)
{
    *h = (struct luks_header){0};
    int r = plan_cipher(w, h, errp);

    if (r < 0) {
        return r;
    }
    if (w->has_iter && (w->iter_ms == 0 || w->iter_ms > ITER_MS_MAX)) {
        return error_set(errp, EINVAL,
                         "iter-time must be between 1 and %d milliseconds",
                         ITER_MS_MAX);
    }
    uint32_t each = (uint32_t)align_up(material_sectors(h), SLOT_ALIGN);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        h->slots[i].sector = SLOT_ALIGN + i * each;
        h->slots[i].stripes = LUKS_STRIPES;
    }
    h->payload_sector = SLOT_ALIGN + LUKS_SLOTS * each;
    return 0;
}

static void format_header(const struct luks_header *h, unsigned char *to)
{
    memcpy(to, magic, sizeof(magic));
    store_be16(to + AT_VERSION, 1);
    memcpy(to + AT_CIPHER, h->cipher, LUKS_NAME_MAX);
    memcpy(to + AT_MODE, h->mode, LUKS_NAME_MAX);
    memcpy(to + AT_HASH, h->hash_name, LUKS_NAME_MAX);
    store_be32(to + AT_PAYLOAD, h->payload_sector);
    store_be32(to + AT_KEY_BYTES, h->spec.key_bytes);
    memcpy(to + AT_DIGEST, h->digest, LUKS_DIGEST);
    memcpy(to + AT_DIGEST_SALT, h->digest_salt, LUKS_SALT);
    store_be32(to + AT_DIGEST_ITER, h->digest_iterations);
    memcpy(to + AT_UUID, h->uuid, LUKS_UUID_MAX);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *s = &h->slots[i];
        unsigned char *at = to + AT_SLOTS + (size_t)i * SLOT_BYTES;

        store_be32(at, s->active ? SLOT_ACTIVE : SLOT_UNUSED);
        store_be32(at + 4, s->iterations);
        memcpy(at + 8, s->salt, LUKS_SALT);
        store_be32(at + 8 + LUKS_SALT, s->sector);
        store_be32(at + 12 + LUKS_SALT, s->stripes);
    }
}

static void make_uuid(char uuid[LUKS_UUID_MAX + 1], unsigned char b[16])
{
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    for (unsigned i = 0, at = 0; i < 16; i++) {
        at += (unsigned)snprintf(
            uuid + at, LUKS_UUID_MAX + 1 - at, "%s%02x",
            i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
    }
}

/* Salts, the master key and its digest. */
static int make_key(struct luks_header *h, uint64_t ms, unsigned char *key)
{
    unsigned char id[16];
    int r = kdf_random(key, h->spec.key_bytes);

    r = r < 0 ? r : kdf_random(id, sizeof(id));
    r = r < 0 ? r : kdf_random(h->digest_salt, LUKS_SALT);
    r = r < 0 ? r : kdf_random(h->slots[0].salt, LUKS_SALT);
    if (r < 0) {
        return r;
    }
    make_uuid(h->uuid, id);
    h->digest_iterations = kdf_iterations(h->hash, LUKS_DIGEST,
                                          ms / DIGEST_SHARE);
    return digest_of(h, key, h->digest, NULL);
}

/* Put the master key into slot 0. */
static int fill_slot(struct luks_header *h, uint64_t ms, const void *passphrase,
                     size_t bytes, const unsigned char *key,
                     unsigned char *material)
{
    struct luks_slot *s = &h->slots[0];
    size_t len = luks_material_bytes(h);
    struct sector_cipher *c = NULL;

    s->active = true;
    s->iterations = kdf_iterations(h->hash, h->spec.key_bytes, ms);
    int r = slot_cipher(h, s, passphrase, bytes, NULL, &c);
    if (r == 0) {
        r = kdf_split(h->hash, key, h->spec.key_bytes, LUKS_STRIPES, material);
    }
    if (r == 0) {
        r = sector_encrypt(c, 0, material, material, len);
    }
    sector_cipher_free(c);
    return r;
}

int luks_make(struct luks_header *h, const struct luks_wish *w,
              const void *passphrase, size_t bytes, unsigned char *area,
              unsigned char *key, struct error **errp)
{
    uint64_t ms = w->has_iter ? w->iter_ms : ITER_MS;
    int r = make_key(h, ms, key);

    if (r == 0) {
        r = fill_slot(h, ms, passphrase, bytes, key,
                      area + (size_t)h->slots[0].sector * SECTOR_BYTES);
    }
    if (r < 0) {
        return error_set(errp, -r, "cannot make a LUKS key: %s", strerror(-r));
    }
    format_header(h, area);
    return 0;
}
