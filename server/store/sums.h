/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_SUMS_H
#define NBDELTA_SERVER_STORE_SUMS_H

/*
 * Hashes of what one file of a backup decides
 * ===========================================
 *
 * A disk is divided into units of 1 MiB, and these into chunks of 64 KiB.  The
 * file of a point decides some chunks, and its parents the others.  (A file
 * without a parent decides all.)  The hash of a unit is the SHA-256 over a
 * record of 40 bytes for each chunk that the file decides, in order:
 *
 *     be32 number of the chunk in its unit
 *     be32 kind: 1 data, 2 all bytes are zero
 *     32 bytes: data: the SHA-256 of its bytes; else zero
 *
 * How the file stores zeroes makes no difference, so a unit of which all is
 * decided has one hash for one content.  A unit of which nothing is decided has
 * none, and neither has one of a file without a parent that is all zeroes.
 *
 * The .sums file: "nbdelta-sums 1\n", be64 size of the disk, be64 number of
 * entries, then entries of be64 unit and its hash, in order of units.
 *
 * Memory: 40 bytes for each unit that has a hash (40 MiB for 1 TiB); while they
 * are gathered, at most 24 MiB and a byte for each unit of the disk more.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbdelta/bytes.h"
#include "store/manifest.h"

struct blk;
struct error;
struct sums;

#define SUMS_UNIT  MiB
#define SUMS_CHUNK (64 * KiB)

/* A disk of @size bytes.  @base: the file has no parent.  NULL: no memory. */
struct sums *sums_new(uint64_t size, bool base);
void sums_free(struct sums *s);
static inline void sums_cleanup(struct sums **s)
{
    sums_free(*s);
}
#define CLEANUP_SUMS __attribute__((cleanup(sums_cleanup)))

/*
 * These bytes are being written (@buf NULL: zeroes).  Of any thread, in any
 * order and in any pieces; hashes without a lock.  As the `tap` of a transfer:
 * @opaque is the struct sums.  -ENOMEM, -EINVAL: not inside of the disk.
 */
int sums_tap(void *opaque, uint64_t offset, uint64_t bytes, const void *buf);

/* These bytes are in the file already: their units are read from it at the
 * end. */
void sums_again(struct sums *s, uint64_t offset, uint64_t bytes);

/*
 * The copy is done.  What pieces did not tell (a chunk of which only a part was
 * written, a unit that came again) is read from the file itself: @file is that,
 * without its parents.  In the base's file what is not allocated is zero.
 * Nothing can be told afterwards.  -EINVAL: its clusters are not of 64 KiB, or
 * its size is another.
 */
int sums_finish(struct sums *s, struct blk *file, struct error **errp);

/* How many units have a hash; the unit and the hash of the i-th. */
uint64_t sums_count(const struct sums *s);
uint64_t sums_unit(const struct sums *s, uint64_t i);
const uint8_t *sums_hash(const struct sums *s, uint64_t i);
uint64_t sums_size(const struct sums *s);
/* The hash of a unit, or NULL: it has none. */
const uint8_t *sums_find(const struct sums *s, uint64_t unit);

/* Write the file, which is empty, and flush it.  @hash (HASH_TEXT_MAX bytes):
 * that of its bytes. */
int sums_write(const struct sums *s, int fd, char *hash, struct error **errp);

/*
 * Read the file.  @size: of the disk, by the manifest; @hash: of the file, by
 * the manifest, or NULL.  -EUCLEAN: it is damaged, or of another disk.
 * Memory: as the file is long.
 */
int sums_read(int fd, uint64_t size, const char *hash, struct sums **sp,
              struct error **errp);

/*
 * The hash of a unit by what the file @file has (without its parents) now.
 * @buf: SUMS_UNIT bytes.  *any false: it has none (see above).  @only NULL, or
 * a place for which chunks the file decides (bit 0: the first).  Of any thread.
 * -EINVAL: the file has smaller clusters than ours; -EIO and the like.
 */
int sums_compute(struct blk *file, uint64_t unit, bool base, void *buf,
                 uint8_t *hash, bool *any, uint32_t *only);

/* The same of bytes in memory that decide the whole unit: @bytes is SUMS_UNIT,
 * or less at the end of the disk. */
int sums_of_unit(const void *buf, uint64_t bytes, uint8_t *hash);
/* ... and of some chunks of it (bits of @only). */
int sums_of_chunks(const void *buf, uint64_t bytes, uint32_t only,
                   uint8_t *hash);

#endif /* NBDELTA_SERVER_STORE_SUMS_H */
