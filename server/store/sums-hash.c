/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The hash of a unit of a disk, of bytes in memory or in a file: see sums.h.
 *
 *     extents of the file alone:  |data|zero|  -  |data| ...     16 chunks
 *     read what is data           |d   |    |     |0000|
 *     look at it                   data zero none  zero
 *     hash the records of all that is not none
 */
#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>

#include "nbdelta/blk.h"
#include "nbdelta/graph.h"
#include "store/sums-priv.h"

#define RECORD (8 + HASH_BYTES)

int chunk_look(const void *buf, uint64_t bytes, struct chunk *c)
{
    if (!buf || bytes_are_zero(buf, bytes)) {
        c->kind = CHUNK_ZERO;
        memset(c->hash, 0, sizeof(c->hash));
        return 0;
    }
    c->kind = CHUNK_DATA;
    return gnutls_hash_fast(GNUTLS_DIG_SHA256, buf, (size_t)bytes, c->hash) < 0
               ? -ENOTSUP
               : 0;
}

bool chunks_hash(const struct chunk *chunks, unsigned count, bool base,
                 uint8_t *hash)
{
    uint8_t records[CHUNKS * RECORD];
    size_t length = 0;
    bool data = false;

    for (unsigned i = 0; i < count; i++) {
        uint8_t *at = records + length;

        if (chunks[i].kind == CHUNK_NONE && !base) {
            continue;
        }
        bool is_data = chunks[i].kind == CHUNK_DATA;
        store_be32(at, i);
        store_be32(at + 4, is_data ? CHUNK_DATA : CHUNK_ZERO);
        if (is_data) {
            memcpy(at + 8, chunks[i].hash, HASH_BYTES);
        } else {
            memset(at + 8, 0, HASH_BYTES);
        }
        data = data || is_data;
        length += RECORD;
    }
    return length > 0 && (data || !base) &&
           gnutls_hash_fast(GNUTLS_DIG_SHA256, records, length, hash) == 0;
}

int sums_of_chunks(const void *buf, uint64_t bytes, uint32_t only,
                   uint8_t *hash)
{
    struct chunk chunks[CHUNKS] = {{.kind = CHUNK_NONE}};
    unsigned count = sums_chunks(bytes);
    const uint8_t *p = buf;

    for (unsigned i = 0; i < count; i++) {
        uint64_t at = i * SUMS_CHUNK;
        int r = only & (1U << i)
                    ? chunk_look(p + at, min_u64(bytes - at, SUMS_CHUNK),
                                 &chunks[i])
                    : 0;
        if (r < 0) {
            return r;
        }
    }
    return chunks_hash(chunks, count, false, hash) ? 0 : -EINVAL;
}

int sums_of_unit(const void *buf, uint64_t bytes, uint8_t *hash)
{
    return sums_of_chunks(buf, bytes, UINT32_MAX, hash);
}

/* --- From a file --- */

struct unit_map {
    uint64_t start;
    uint64_t bytes;
    bool base;
    /* Of each chunk: what the file decides; in all, and as data. */
    uint64_t decided[CHUNKS];
    uint64_t data[CHUNKS];
};

/* For blk_extents. */
static int note_extent(const struct extent *e, void *opaque)
{
    struct unit_map *m = opaque;
    uint64_t at = e->offset > m->start ? e->offset - m->start : 0;
    uint64_t end = min_u64(e->offset + e->length - m->start, m->bytes);
    bool data = (e->flags & EXTENT_DATA) && !(e->flags & EXTENT_ZERO);

    if (!(e->flags & EXTENT_ALLOCATED) && !m->base) {
        return 0;
    }
    while (at < end) {
        uint64_t stop = min_u64(align_down(at, SUMS_CHUNK) + SUMS_CHUNK, end);

        m->decided[at / SUMS_CHUNK] += stop - at;
        m->data[at / SUMS_CHUNK] += data ? stop - at : 0;
        at = stop;
    }
    return 0;
}

/* Read the chunks that have data into their places, neighbours together. */
static int read_data(struct blk *file, const struct unit_map *m, uint8_t *buf)
{
    unsigned count = sums_chunks(m->bytes);

    for (unsigned i = 0; i < count;) {
        unsigned first = i;

        if (m->data[i] == 0) {
            i++;
            continue;
        }
        while (i < count && m->data[i] > 0) {
            i++;
        }
        uint64_t at = first * SUMS_CHUNK;
        int r = blk_pread(file, buf + at,
                          min_u64(i * SUMS_CHUNK, m->bytes) - at, m->start + at,
                          0);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int look_at_chunks(const struct unit_map *m, const uint8_t *buf,
                          struct chunk *chunks)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < sums_chunks(m->bytes); i++) {
        uint64_t at = i * SUMS_CHUNK;
        uint64_t bytes = min_u64(m->bytes - at, SUMS_CHUNK);

        if (m->decided[i] == 0) {
            chunks[i].kind = CHUNK_NONE;
        } else if (m->decided[i] != bytes) {
            r = -EINVAL;
        } else {
            r = chunk_look(m->data[i] > 0 ? buf + at : NULL, bytes, &chunks[i]);
        }
    }
    return r;
}

int sums_compute(struct blk *file, uint64_t unit, bool base, void *buf,
                 uint8_t *hash, bool *any, uint32_t *only)
{
    struct chunk chunks[CHUNKS] = {{.kind = CHUNK_NONE}};
    struct unit_map m = {.start = unit * SUMS_UNIT, .base = base};

    m.bytes = sums_unit_bytes(blk_size(file), unit);
    int r = blk_extents(file, m.start, m.bytes, 0, note_extent, &m);
    r = r < 0 ? r : read_data(file, &m, buf);
    r = r < 0 ? r : look_at_chunks(&m, buf, chunks);
    if (r < 0) {
        return r;
    }
    *any = chunks_hash(chunks, sums_chunks(m.bytes), base, hash);
    if (only) {
        *only = 0;
        for (unsigned i = 0; i < CHUNKS; i++) {
            *only |= chunks[i].kind != CHUNK_NONE ? 1U << i : 0;
        }
    }
    return 0;
}
