/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_SUMS_PRIV_H
#define NBDELTA_SERVER_STORE_SUMS_PRIV_H

/* Shared by sums.c (the list of hashes, and its file), sums-gather.c (what a
 * transfer tells) and sums-hash.c (what a unit's hash is). */
#include "nbdelta/thread.h"
#include "store/sums.h"

#define CHUNKS (SUMS_UNIT / SUMS_CHUNK) /* of a unit */

enum chunk_kind {
    CHUNK_NONE, /* the file does not decide it */
    CHUNK_DATA,
    CHUNK_ZERO,
};

/* What is known of one chunk. */
struct chunk {
    enum chunk_kind kind;
    uint8_t hash[HASH_BYTES]; /* of CHUNK_DATA */
};

struct sums_entry {
    uint64_t unit;
    uint8_t hash[HASH_BYTES];
};

struct gather;

struct sums {
    uint64_t size;
    bool base;
    uint64_t count;
    uint64_t room;
    struct sums_entry *entries;
    struct gather *gather; /* until sums_finish; NULL: nothing was told */
};

/* The units of a disk, and the bytes of one of them. */
static inline uint64_t sums_units(uint64_t size)
{
    return div_up(size, SUMS_UNIT);
}
static inline uint64_t sums_unit_bytes(uint64_t size, uint64_t unit)
{
    return min_u64(size - unit * SUMS_UNIT, SUMS_UNIT);
}
static inline unsigned sums_chunks(uint64_t bytes)
{
    return (unsigned)div_up(bytes, SUMS_CHUNK);
}

/* Look at a whole chunk.  @buf NULL: zeroes. */
int chunk_look(const void *buf, uint64_t bytes, struct chunk *c);

/* The hash of a unit of @count chunks.  False: it has none: nothing is decided,
 * or, in a @base, all is zero. */
bool chunks_hash(const struct chunk *chunks, unsigned count, bool base,
                 uint8_t *hash);

/* -ENOMEM.  Entries come in any order until sums_sort. */
int sums_add(struct sums *s, uint64_t unit, const uint8_t *hash);
void sums_sort(struct sums *s);

/* NULL: no memory. */
struct gather *gather_new(uint64_t size);
void gather_free(struct gather *g);

#endif /* NBDELTA_SERVER_STORE_SUMS_PRIV_H */
