/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hashes of a file, gathered while it is written.
 *
 * A transfer tells what it writes in pieces, of many threads and in any order:
 *
 *     piece --+-- whole chunks ---------------- look (hash) --+
 *             |                                               v
 *             +-- a part of a chunk --> copied --> whole? -> record in its unit
 *                                                             |
 *              all records are there, or too many units are open
 *                                                             v
 *                                                       hash of the unit
 *
 * A unit is open while some of its chunks are there and others may come.  With
 * OPEN_MAX of them the one that was opened first is closed as it is.  Whatever
 * does not fit (a piece for a closed unit, a chunk that came twice, parts that
 * never became a chunk, more than PARTS_MAX parts at once) only marks the unit:
 * sums_finish reads it from the file.  So the bounds never cost correctness.
 *
 * Chunks are hashed without the lock; what is copied under it are parts.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/list.h"
#include "store/sums-priv.h"

#define OPEN_MAX  4096 /* 3 MiB */
#define PARTS_MAX 256  /* 16 MiB */
#define BUCKETS   4096
#define SECTOR    512
#define SECTORS   (SUMS_CHUNK / SECTOR)

enum unit_state {
    UNIT_NONE,
    UNIT_OPEN,
    UNIT_CLOSED,
    UNIT_AGAIN, /* read it from the file at the end */
};

/* Of a chunk, what has come so far. */
struct part {
    unsigned filled; /* sectors */
    bool has[SECTORS];
    uint8_t bytes[SUMS_CHUNK];
};

struct unit {
    struct list bucket;
    struct list order;
    uint64_t number;
    unsigned claimed; /* bits: chunks that have come whole */
    unsigned ready;   /* ... and are looked at */
    struct chunk chunks[CHUNKS];
    struct part *parts[CHUNKS];
};

struct gather {
    mutex_t lock;
    unsigned open;
    unsigned parts;
    struct list order; /* of open units: the oldest first */
    struct list buckets[BUCKETS];
    uint8_t state[]; /* of each unit: enum unit_state */
};

static struct unit *unit_of_order(struct list *at)
{
    return list_entry(at, struct unit, order);
}

struct gather *gather_new(uint64_t size)
{
    uint64_t units = sums_units(size);
    struct gather *g = units < SIZE_MAX / 2
                           ? calloc(1, sizeof(*g) + (size_t)units)
                           : NULL;

    if (g) {
        mutex_init(&g->lock, LOCK_SUMS, NULL);
        list_init(&g->order);
        for (int i = 0; i < BUCKETS; i++) {
            list_init(&g->buckets[i]);
        }
    }
    return g;
}

/* Takes it out of the gather.  Its state is the caller's to set. */
static void drop_unit(struct gather *g, struct unit *u)
{
    for (unsigned i = 0; i < CHUNKS; i++) {
        if (u->parts[i]) {
            free(u->parts[i]);
            g->parts--;
        }
    }
    list_remove(&u->bucket);
    list_remove(&u->order);
    free(u);
    g->open--;
}

void gather_free(struct gather *g)
{
    if (!g) {
        return;
    }
    while (!list_empty(&g->order)) {
        drop_unit(g, unit_of_order(g->order.next));
    }
    mutex_destroy(&g->lock);
    free(g);
}

static struct unit *find_open(struct gather *g, uint64_t number)
{
    list_for_each (at, &g->buckets[number % BUCKETS]) {
        struct unit *u = list_entry(at, struct unit, bucket);
        if (u->number == number) {
            return u;
        }
    }
    return NULL;
}

/* Read it again, whatever else comes. */
static void give_up_unit(struct gather *g, uint64_t number)
{
    struct unit *u = find_open(g, number);

    if (u) {
        drop_unit(g, u);
    }
    g->state[number] = UNIT_AGAIN;
}

/* What is there of the unit is all there is. */
static int close_unit(struct sums *s, struct gather *g, struct unit *u)
{
    uint8_t hash[HASH_BYTES];
    uint64_t number = u->number;
    bool whole = u->claimed == u->ready;
    int r = 0;

    for (unsigned i = 0; i < CHUNKS; i++) {
        whole = whole && !u->parts[i];
    }
    if (whole &&
        chunks_hash(u->chunks, sums_chunks(sums_unit_bytes(s->size, number)),
                    s->base, hash)) {
        r = sums_add(s, number, hash);
    }
    g->state[number] = whole ? UNIT_CLOSED : UNIT_AGAIN;
    drop_unit(g, u);
    return r;
}

static struct unit *open_unit(struct gather *g, uint64_t number)
{
    struct unit *u = calloc(1, sizeof(*u));

    if (u) {
        u->number = number;
        list_append(&g->buckets[number % BUCKETS], &u->bucket);
        list_append(&g->order, &u->order);
        g->open++;
        g->state[number] = UNIT_OPEN;
    }
    return u;
}

/* The unit for a piece of it: *up NULL: it is to be read again.  -ENOMEM. */
static int get_unit(struct sums *s, struct gather *g, uint64_t number,
                    struct unit **up)
{
    int r = 0;

    *up = NULL;
    switch ((enum unit_state)g->state[number]) {
    case UNIT_NONE:
        if (g->open == OPEN_MAX) {
            r = close_unit(s, g, unit_of_order(g->order.next));
        }
        *up = r < 0 ? NULL : open_unit(g, number);
        return r < 0 || *up ? r : -ENOMEM;
    case UNIT_OPEN:
        *up = find_open(g, number);
        break;
    case UNIT_CLOSED:
    case UNIT_AGAIN:
        /* What was added for it when it was closed is replaced at the end. */
        g->state[number] = UNIT_AGAIN;
        break;
    }
    return 0;
}

/* A chunk that was looked at. */
static int put_chunk(struct sums *s, struct gather *g, uint64_t number,
                     unsigned index, const struct chunk *c)
{
    unsigned all = (1U << sums_chunks(sums_unit_bytes(s->size, number))) - 1;
    struct unit *u = NULL;
    int r = get_unit(s, g, number, &u);

    if (!u) {
        return r;
    }
    if (u->ready & (1U << index) || u->parts[index]) {
        give_up_unit(g, number);
        return 0;
    }
    u->claimed |= 1U << index;
    u->ready |= 1U << index;
    u->chunks[index] = *c;
    return u->ready == all ? close_unit(s, g, u) : 0;
}

/* --- Parts of chunks --- */

/* Copy a piece into its chunk's part.  False: it does not fit. */
static bool fill_part(struct part *p, uint64_t at, uint64_t bytes,
                      const void *buf)
{
    for (uint64_t i = at / SECTOR; i < div_up(at + bytes, SECTOR); i++) {
        if (p->has[i]) {
            return false;
        }
        p->has[i] = true;
        p->filled++;
    }
    if (buf) {
        memcpy(p->bytes + at, buf, (size_t)bytes);
    } else {
        memset(p->bytes + at, 0, (size_t)bytes);
    }
    return true;
}

struct piece {
    uint64_t unit;
    unsigned index; /* of the chunk in it */
    uint64_t chunk; /* where that begins on the disk */
    uint64_t whole; /* its bytes */
    uint64_t at;    /* the piece in the chunk */
    uint64_t bytes;
    const void *buf;
};

/* Is the piece made of sectors?  The last one of the disk may be shorter. */
static bool has_sectors(const struct piece *p)
{
    return is_aligned(p->at, SECTOR) &&
           (is_aligned(p->bytes, SECTOR) || p->at + p->bytes == p->whole);
}

/* *done: the part is whole now, and the caller's. */
static int put_part(struct sums *s, struct gather *g, const struct piece *p,
                    struct part **done)
{
    struct unit *u = NULL;
    int r = get_unit(s, g, p->unit, &u);

    if (!u) {
        return r;
    }
    struct part **pp = &u->parts[p->index];
    if (!*pp && !(u->claimed & (1U << p->index)) && g->parts < PARTS_MAX &&
        has_sectors(p)) {
        *pp = malloc(sizeof(**pp));
        if (!*pp) {
            return -ENOMEM;
        }
        memset(*pp, 0, offsetof(struct part, bytes));
        g->parts++;
    }
    if (!*pp || !has_sectors(p) || !fill_part(*pp, p->at, p->bytes, p->buf)) {
        give_up_unit(g, p->unit);
        return 0;
    }
    if ((*pp)->filled == div_up(p->whole, SECTOR)) {
        *done = *pp;
        *pp = NULL;
        g->parts--;
        u->claimed |= 1U << p->index;
    }
    return 0;
}

static int tap_piece(struct sums *s, struct gather *g, const struct piece *p)
{
    struct part *done = NULL;
    struct chunk c = {.kind = CHUNK_NONE};
    bool whole = p->bytes == p->whole;
    int r = 0;

    if (!whole) {
        mutex_lock(&g->lock);
        r = put_part(s, g, p, &done);
        mutex_unlock(&g->lock);
    }
    if (r < 0 || !(whole || done)) {
        return r;
    }
    r = chunk_look(done ? done->bytes : p->buf, p->whole, &c);
    free(done);
    if (r == 0) {
        mutex_lock(&g->lock);
        r = put_chunk(s, g, p->unit, p->index, &c);
        mutex_unlock(&g->lock);
    }
    return r;
}

int sums_tap(void *opaque, uint64_t offset, uint64_t bytes, const void *buf)
{
    struct sums *s = opaque;
    const uint8_t *from = buf;
    int r = 0;

    if (!s->gather || !range_inside(offset, bytes, s->size)) {
        return -EINVAL;
    }
    while (r == 0 && bytes > 0) {
        struct piece p = {
            .unit = offset / SUMS_UNIT,
            .index = (unsigned)(offset % SUMS_UNIT / SUMS_CHUNK),
            .chunk = align_down(offset, SUMS_CHUNK),
            .at = offset % SUMS_CHUNK,
            .buf = from,
        };
        p.whole = min_u64(s->size - p.chunk, SUMS_CHUNK);
        p.bytes = min_u64(bytes, p.whole - p.at);
        r = tap_piece(s, s->gather, &p);
        offset += p.bytes;
        bytes -= p.bytes;
        from = from ? from + p.bytes : NULL;
    }
    return r;
}

void sums_again(struct sums *s, uint64_t offset, uint64_t bytes)
{
    mutex_lock(&s->gather->lock);
    for (uint64_t u = offset / SUMS_UNIT; u < div_up(offset + bytes, SUMS_UNIT);
         u++) {
        give_up_unit(s->gather, u);
    }
    mutex_unlock(&s->gather->lock);
}

/* --- The end --- */

/* Entries of units that are read again go. */
static void remove_again(struct sums *s, const struct gather *g)
{
    uint64_t kept = 0;

    for (uint64_t i = 0; i < s->count; i++) {
        if (g->state[s->entries[i].unit] != UNIT_AGAIN) {
            s->entries[kept++] = s->entries[i];
        }
    }
    s->count = kept;
}

static int read_again(struct sums *s, const struct gather *g, struct blk *file,
                      void *buf, struct error **errp)
{
    for (uint64_t unit = 0; unit < sums_units(s->size); unit++) {
        uint8_t hash[HASH_BYTES];
        bool any = false;

        if (g->state[unit] != UNIT_AGAIN) {
            continue;
        }
        int r = sums_compute(file, unit, s->base, buf, hash, &any, NULL);
        r = r == 0 && any ? sums_add(s, unit, hash) : r;
        if (r < 0) {
            return error_set(errp, -r, "cannot hash what was written: %s",
                             strerror(-r));
        }
    }
    return 0;
}

static int close_all(struct sums *s, struct gather *g)
{
    int r = 0;

    mutex_lock(&g->lock);
    while (r == 0 && !list_empty(&g->order)) {
        r = close_unit(s, g, unit_of_order(g->order.next));
    }
    mutex_unlock(&g->lock);
    return r;
}

int sums_finish(struct sums *s, struct blk *file, struct error **errp)
{
    CLEANUP_FREE void *buf = malloc(SUMS_UNIT);
    uint32_t clusters = node_cluster_size(blk_node(file));

    if (!s->gather || blk_size(file) != s->size) {
        return error_set(errp, EINVAL, "hashes are of another disk");
    }
    if (clusters != SUMS_CHUNK) {
        return error_set(errp, EINVAL,
                         "the file has clusters of %u bytes, and those of a "
                         "backup have %u",
                         clusters, (unsigned)SUMS_CHUNK);
    }
    if (!buf || close_all(s, s->gather) < 0) {
        return error_nomem(errp);
    }
    remove_again(s, s->gather);
    int r = read_again(s, s->gather, file, buf, errp);
    if (r == 0) {
        sums_sort(s);
        gather_free(s->gather);
        s->gather = NULL;
    }
    return r;
}
