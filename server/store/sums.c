/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The list of the hashes of one file, and the .sums file: see sums.h.
 *
 * A process that may write to the directory may write such a file.  What is
 * kept in memory grows with what has been read and found right, never with a
 * number in the file.
 */
#include "store/sums.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/store-priv.h"
#include "store/sums-priv.h"

#define MAGIC       "nbdelta-sums 1\n"
#define MAGIC_BYTES 15
#define HEADER      (MAGIC_BYTES + 16)
#define ENTRY       (8 + HASH_BYTES)
#define AT_ONCE     1600 /* entries */

struct sums *sums_new(uint64_t size, bool base)
{
    struct sums *s = calloc(1, sizeof(*s));

    if (!s) {
        return NULL;
    }
    s->size = size;
    s->base = base;
    s->gather = gather_new(size);
    if (!s->gather) {
        free(s);
        return NULL;
    }
    return s;
}

void sums_free(struct sums *s)
{
    if (s) {
        gather_free(s->gather);
        free(s->entries);
        free(s);
    }
}

int sums_add(struct sums *s, uint64_t unit, const uint8_t *hash)
{
    if (s->count == s->room) {
        uint64_t room = s->room ? s->room + s->room / 2 : 64;
        struct sums_entry *all = reallocarray(s->entries, room, sizeof(*all));
        if (!all) {
            return -ENOMEM;
        }
        s->entries = all;
        s->room = room;
    }
    struct sums_entry *e = &s->entries[s->count++];
    e->unit = unit;
    memcpy(e->hash, hash, HASH_BYTES);
    return 0;
}

static int compare_entries(const void *a, const void *b)
{
    uint64_t x = ((const struct sums_entry *)a)->unit;
    uint64_t y = ((const struct sums_entry *)b)->unit;

    return (x > y) - (x < y);
}

void sums_sort(struct sums *s)
{
    if (s->count > 0) {
        qsort(s->entries, s->count, sizeof(s->entries[0]), compare_entries);
    }
}

uint64_t sums_count(const struct sums *s)
{
    return s->count;
}

uint64_t sums_unit(const struct sums *s, uint64_t i)
{
    return s->entries[i].unit;
}

const uint8_t *sums_hash(const struct sums *s, uint64_t i)
{
    return s->entries[i].hash;
}

uint64_t sums_size(const struct sums *s)
{
    return s->size;
}

const uint8_t *sums_find(const struct sums *s, uint64_t unit)
{
    struct sums_entry key = {.unit = unit};
    const struct sums_entry *e = s->count > 0
                                     ? bsearch(&key, s->entries, s->count,
                                               sizeof(key), compare_entries)
                                     : NULL;

    return e ? e->hash : NULL;
}

/* --- Writing --- */

static int hash_error(struct error **errp)
{
    return error_set(errp, ENOTSUP, "cannot compute a SHA-256");
}

static int write_part(int fd, gnutls_hash_hd_t h, const void *bytes,
                      size_t length, struct error **errp)
{
    int r = write_all(fd, bytes, length);

    if (r < 0) {
        return error_set(errp, -r, "cannot write hashes: %s", strerror(-r));
    }
    return gnutls_hash(h, bytes, length) < 0 ? hash_error(errp) : 0;
}

static int write_entries(const struct sums *s, int fd, gnutls_hash_hd_t h,
                         uint8_t *buf, struct error **errp)
{
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < s->count;) {
        size_t n = 0;

        for (; n < AT_ONCE && i < s->count; n++, i++) {
            store_be64(buf + n * ENTRY, s->entries[i].unit);
            memcpy(buf + n * ENTRY + 8, s->entries[i].hash, HASH_BYTES);
        }
        r = write_part(fd, h, buf, n * ENTRY, errp);
    }
    return r;
}

int sums_write(const struct sums *s, int fd, char *hash, struct error **errp)
{
    uint8_t header[HEADER];
    uint8_t digest[HASH_BYTES];
    gnutls_hash_hd_t h;
    CLEANUP_FREE uint8_t *buf = malloc((size_t)AT_ONCE * ENTRY);

    if (!buf) {
        return error_nomem(errp);
    }
    if (gnutls_hash_init(&h, GNUTLS_DIG_SHA256) < 0) {
        return hash_error(errp);
    }
    memcpy(header, MAGIC, MAGIC_BYTES);
    store_be64(header + MAGIC_BYTES, s->size);
    store_be64(header + MAGIC_BYTES + 8, s->count);
    int r = write_part(fd, h, header, sizeof(header), errp);
    r = r < 0 ? r : write_entries(s, fd, h, buf, errp);
    gnutls_hash_deinit(h, digest);
    if (r == 0 && fsync(fd) < 0) {
        r = error_set(errp, errno, "cannot flush hashes: %s", strerror(errno));
    }
    hash_to_text(digest, hash);
    return r;
}

/* --- Reading --- */

static int damaged(const char *why, struct error **errp)
{
    return error_set(errp, EUCLEAN, "the file of hashes is damaged: %s", why);
}

/* All of @length bytes, or fewer where the file ends; or -errno. */
static ssize_t read_up_to(int fd, uint8_t *buf, size_t length)
{
    size_t done = 0;

    while (done < length) {
        ssize_t n = read(fd, buf + done, length - done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0) {
            break;
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

static int read_part(int fd, gnutls_hash_hd_t h, uint8_t *buf, size_t length,
                     struct error **errp)
{
    ssize_t n = read_up_to(fd, buf, length);

    if (n < 0) {
        return error_set(errp, (int)-n, "cannot read hashes: %s",
                         strerror((int)-n));
    }
    if ((size_t)n < length) {
        return damaged("it is too short", errp);
    }
    return gnutls_hash(h, buf, length) < 0 ? hash_error(errp) : 0;
}

static int read_header(int fd, gnutls_hash_hd_t h, uint64_t size,
                       uint64_t *count, struct error **errp)
{
    uint8_t header[HEADER];
    int r = read_part(fd, h, header, sizeof(header), errp);

    if (r < 0) {
        return r;
    }
    if (memcmp(header, MAGIC, MAGIC_BYTES) != 0) {
        return damaged("it begins with something else", errp);
    }
    if (load_be64(header + MAGIC_BYTES) != size) {
        return damaged("it is of a disk of another size", errp);
    }
    *count = load_be64(header + MAGIC_BYTES + 8);
    return *count > sums_units(size)
               ? damaged("it has more entries than the disk has units", errp)
               : 0;
}

static int read_entries(struct sums *s, int fd, gnutls_hash_hd_t h,
                        uint64_t count, uint8_t *buf, struct error **errp)
{
    uint64_t least = 0;

    while (count > 0) {
        size_t n = (size_t)min_u64(count, AT_ONCE);
        int r = read_part(fd, h, buf, n * ENTRY, errp);

        for (size_t i = 0; r == 0 && i < n; i++) {
            uint64_t unit = load_be64(buf + i * ENTRY);

            if (unit < least || unit >= sums_units(s->size)) {
                return damaged("its entries are not in order", errp);
            }
            least = unit + 1;
            r = sums_add(s, unit, buf + i * ENTRY + 8) < 0 ? error_nomem(errp)
                                                           : 0;
        }
        if (r < 0) {
            return r;
        }
        count -= n;
    }
    ssize_t more = read_up_to(fd, buf, 1);
    return more == 0 ? 0 : damaged("something follows the entries", errp);
}

int sums_read(int fd, uint64_t size, const char *hash, struct sums **sp,
              struct error **errp)
{
    CLEANUP_SUMS struct sums *s = calloc(1, sizeof(*s));
    CLEANUP_FREE uint8_t *buf = malloc((size_t)AT_ONCE * ENTRY);
    uint8_t digest[HASH_BYTES];
    char text[HASH_TEXT_MAX];
    gnutls_hash_hd_t h;
    uint64_t count = 0;

    if (!s || !buf) {
        return error_nomem(errp);
    }
    s->size = size;
    if (gnutls_hash_init(&h, GNUTLS_DIG_SHA256) < 0) {
        return hash_error(errp);
    }
    int r = read_header(fd, h, size, &count, errp);
    r = r < 0 ? r : read_entries(s, fd, h, count, buf, errp);
    gnutls_hash_deinit(h, digest);
    if (r < 0) {
        return r;
    }
    hash_to_text(digest, text);
    if (hash && strcmp(hash, text) != 0) {
        return damaged("its hash is not the one in the manifest", errp);
    }
    *sp = s;
    s = NULL;
    return 0;
}
