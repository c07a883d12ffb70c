/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Damage is healed from the disk as it is now: see heal.h.
 *
 *     for each unit that has a hash:
 *        the file gives that hash             --> its chunks
 *        some chunks of the disk give it      --> these
 *        neither                              --> what the file has; lost
 *                          |
 *                          v
 *     POINT.qcow2.part --fsync, rename--> POINT.qcow2
 *
 * Which chunks of a unit a file decides is part of its hash.  So the file's map
 * need not be readable: all choices are tried, the likely ones first.  A wrong
 * one cannot have that hash.
 */
#include "store/heal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "store/part.h"
#include "store/store.h"
#include "store/sums-priv.h"
#include "store/verified.h"
#include "store/verify.h"

/* Units of a file for which all choices are tried: each takes up to half a
 * second. */
#define SEARCHES_MAX 200

struct healing {
    struct store *store;
    const char *disk;
    struct blk *source;
    int (*tick)(void *opaque, struct error **errp);
    void *opaque;

    /* Of one file. */
    const char *point;
    const struct manifest_disk *d;
    bool base;
    struct sums *sums;
    struct graph *graph;
    struct blk *old; /* NULL: it cannot be opened */
    struct node *node;
    struct blk *now;
    json_t *lost;
    uint64_t missing; /* units */
    unsigned searches;
    uint8_t *buf;
};

/* --- What the disk has --- */

/* Of @chunks those of @only, as a file has them that decides no others. */
static bool gives_hash(const struct healing *h, const struct chunk *chunks,
                       unsigned count, uint32_t only, const uint8_t *want)
{
    struct chunk some[CHUNKS];
    uint8_t hash[HASH_BYTES];

    for (unsigned i = 0; i < count; i++) {
        some[i] = chunks[i];
        some[i].kind = only & (1U << i) ? chunks[i].kind : CHUNK_NONE;
    }
    return chunks_hash(some, count, h->base, hash) &&
           memcmp(hash, want, HASH_BYTES) == 0;
}

/* Which chunks of the disk's unit have the hash?  0: none do.  @likely: what
 * the file's map says, or 0. */
static uint32_t find_chunks(struct healing *h, const struct chunk *chunks,
                            unsigned count, uint32_t likely,
                            const uint8_t *want)
{
    uint32_t all = (1U << count) - 1;

    if (gives_hash(h, chunks, count, all, want)) {
        return all;
    }
    if (h->base) {
        return 0;
    }
    if (likely && gives_hash(h, chunks, count, likely, want)) {
        return likely;
    }
    if (h->searches >= SEARCHES_MAX) {
        return 0;
    }
    h->searches++;
    for (uint32_t only = 1; only < all; only++) {
        if (gives_hash(h, chunks, count, only, want)) {
            return only;
        }
    }
    return 0;
}

/* The unit from the disk in h->buf.  *only 0: it is not there any more. */
static int take_from_disk(struct healing *h, uint64_t unit, uint32_t likely,
                          const uint8_t *want, uint32_t *only)
{
    uint64_t at = unit * SUMS_UNIT;
    uint64_t bytes = sums_unit_bytes(image_bytes(h->d->size), unit);
    struct chunk chunks[CHUNKS];

    *only = 0;
    if (at >= blk_size(h->source)) {
        return 0;
    }
    memset(h->buf, 0, SUMS_UNIT);
    int r = blk_pread(h->source, h->buf,
                      min_u64(bytes, blk_size(h->source) - at), at, 0);
    for (unsigned i = 0; r == 0 && i < sums_chunks(bytes); i++) {
        r = chunk_look(h->buf + i * SUMS_CHUNK,
                       min_u64(bytes - i * SUMS_CHUNK, SUMS_CHUNK), &chunks[i]);
    }
    if (r == 0) {
        *only = find_chunks(h, chunks, sums_chunks(bytes), likely, want);
    }
    return r;
}

/* --- One file --- */

/* In a file without a parent, what is not there is zero. */
static int put_chunks(struct healing *h, uint64_t unit, uint32_t only)
{
    uint64_t bytes = sums_unit_bytes(image_bytes(h->d->size), unit);
    int r = 0;

    for (unsigned i = 0; r == 0 && i < sums_chunks(bytes); i++) {
        uint64_t at = i * SUMS_CHUNK;
        uint64_t len = min_u64(bytes - at, SUMS_CHUNK);

        if (!(only & (1U << i))) {
            continue;
        }
        if (!bytes_are_zero(h->buf + at, len)) {
            r = blk_pwrite(h->now, h->buf + at, len, unit * SUMS_UNIT + at, 0);
        } else if (!h->base) {
            r = blk_zero(h->now, unit * SUMS_UNIT + at, len, 0);
        }
    }
    return r;
}

/* *right: the new file has what the old one had. */
static int heal_unit(struct healing *h, uint64_t unit, const uint8_t *want,
                     bool *right, struct error **errp)
{
    uint8_t hash[HASH_BYTES];
    uint32_t only = 0;
    uint32_t found = 0;
    bool any = false;

    memset(h->buf, 0, SUMS_UNIT);
    int old = h->old ? sums_compute(h->old, unit, h->base, h->buf, hash, &any,
                                    &only)
                     : -EIO;
    *right = old == 0 && any && memcmp(hash, want, HASH_BYTES) == 0;
    if (!*right) {
        int r = take_from_disk(h, unit, old == 0 ? only : 0, want, &found);
        if (r < 0) {
            return error_set(errp, -r, "cannot read the disk: %s",
                             strerror(-r));
        }
        *right = found != 0;
        if (*right) {
            only = found;
        } else if (old < 0) {
            return 0; /* nobody has anything */
        } else {
            memset(h->buf, 0, SUMS_UNIT);
            (void)sums_compute(h->old, unit, h->base, h->buf, hash, &any,
                               &only);
        }
    }
    int r = put_chunks(h, unit, only);
    return r < 0 ? error_set(errp, -r, "cannot write the healed file: %s",
                             strerror(-r))
                 : 0;
}

static int note_lost(struct healing *h, uint64_t unit)
{
    uint64_t at = unit * SUMS_UNIT;

    h->missing++;
    return verified_add(h->lost, h->disk, at,
                        min_u64(h->d->size - at, SUMS_UNIT));
}

static int heal_units(struct healing *h, struct error **errp)
{
    for (uint64_t i = 0; i < sums_count(h->sums); i++) {
        bool right = false;
        int r = h->tick ? h->tick(h->opaque, errp) : 0;

        r = r < 0 ? r
                  : heal_unit(h, sums_unit(h->sums, i), sums_hash(h->sums, i),
                              &right, errp);
        if (r < 0) {
            return r;
        }
        if (!right && note_lost(h, sums_unit(h->sums, i)) < 0) {
            return error_nomem(errp);
        }
    }
    int r = blk_flush(h->now);
    return r < 0 ? error_set(errp, -r, "cannot flush the healed file: %s",
                             strerror(-r))
                 : 0;
}

static void close_files(struct healing *h)
{
    blk_free(h->old);
    blk_free(h->now);
    h->old = h->now = NULL;
    if (h->graph) {
        graph_close_all(h->graph);
        graph_free(h->graph);
    }
    h->graph = NULL;
    h->node = NULL;
}

/* One that cannot be opened has nothing. */
static int open_old(struct healing *h, struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    struct node *n = NULL;

    h->graph = graph_new();
    if (!h->graph) {
        return error_nomem(errp);
    }
    graph_follow(h->graph, FOLLOW_NONE);
    graph_without_data(h->graph);
    graph_without_bitmaps(h->graph);
    if (store_layer_options(h->store, h->disk, h->point, &options, NULL) < 0 ||
        graph_open(h->graph, options, &n, NULL) < 0 ||
        blk_new(h->graph, n, PERM_READ, PERM_ALL, "heal", &h->old, NULL) < 0 ||
        blk_size(h->old) != image_bytes(h->d->size)) {
        blk_free(h->old);
        h->old = NULL;
    }
    return 0;
}

/* Are the hashes of the image as it is the ones that the manifest names? */
static int heal_sums(struct healing *h, struct error **errp)
{
    CLEANUP_SUMS struct sums *s = sums_new(image_bytes(h->d->size), h->base);
    CLEANUP_CLOSE int fd = -1;
    char text[HASH_TEXT_MAX];
    int r = s ? 0 : error_nomem(errp);

    for (uint64_t u = 0; r == 0 && u < sums_units(image_bytes(h->d->size));
         u++) {
        uint8_t hash[HASH_BYTES];
        bool any = false;

        r = h->tick ? h->tick(h->opaque, errp) : 0;
        if (r == 0 &&
            sums_compute(h->old, u, h->base, h->buf, hash, &any, NULL) < 0) {
            return 0; /* it cannot be what it was */
        }
        r = r == 0 && any && sums_add(s, u, hash) < 0 ? error_nomem(errp) : r;
    }
    if (r < 0 ||
        (r = part_drop(h->store, h->disk, h->point, "sums", errp)) < 0 ||
        (r = store_create_file(h->store, h->disk, h->point, "sums.part", &fd,
                               errp)) < 0 ||
        (r = sums_write(s, fd, text, errp)) < 0) {
        return r;
    }
    if (strcmp(text, h->d->sums_hash) != 0) {
        return part_drop(h->store, h->disk, h->point, "sums", errp);
    }
    r = part_replace(h->store, h->disk, h->point, "sums", errp);
    if (r == 0) {
        h->sums = s;
        s = NULL;
    }
    return r;
}

/* h->sums stays NULL if they are damaged for good. */
static int get_sums(struct healing *h, struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;

    return store_open_file(h->store, h->disk, h->point, "sums", &fd, NULL,
                           NULL) == 0 &&
                   sums_read(fd, image_bytes(h->d->size), h->d->sums_hash,
                             &h->sums, NULL) == 0
               ? 0
           : h->old ? heal_sums(h, errp)
                    : 0;
}

static int make_file(struct healing *h, struct error **errp)
{
    int r = part_drop(h->store, h->disk, h->point, "qcow2", errp);

    r = r < 0 ? r
              : part_create(h->store, h->disk, h->point, h->d->size,
                            h->d->parent, NULL, errp);
    r = r < 0 ? r
              : part_open(h->store, h->graph, h->disk, h->point,
                          PERM_READ | PERM_WRITE, &h->node, &h->now, errp);
    return r < 0 ? r : heal_units(h, errp);
}

/* A file that could not be opened stays, if nothing of it was found: somebody
 * may know more. */
static int heal_file(struct healing *h, struct error **errp)
{
    int r = open_old(h, errp);

    r = r < 0 ? r : get_sums(h, errp);
    if (r < 0 || !h->sums) {
        h->missing = 1;
        return r < 0 || verified_add(h->lost, h->disk, 0, 0) == 0
                   ? r
                   : error_nomem(errp);
    }
    bool had = h->old != NULL;
    r = make_file(h, errp);
    close_files(h);
    bool useful = had || h->missing < sums_count(h->sums) || h->missing == 0;
    if (r == 0 && useful) {
        return part_replace(h->store, h->disk, h->point, "qcow2", errp);
    }
    (void)part_drop(h->store, h->disk, h->point, "qcow2", NULL);
    return r;
}

static int heal_point(struct healing *h, const struct store_point *p,
                      struct heal_result *result, struct error **errp)
{
    h->point = p->name;
    h->d = manifest_find(p->manifest, h->disk);
    h->base = h->d->kind == DISK_FULL;
    h->missing = 0;
    h->searches = 0;
    h->lost = json_array();
    int r = h->lost ? heal_file(h, errp) : error_nomem(errp);
    close_files(h);
    sums_free(h->sums);
    h->sums = NULL;
    if (r == 0) {
        result->files++;
        result->whole += h->missing == 0;
        r = verified_lost(h->store, h->point, h->disk, h->lost, errp);
    }
    if (r < 0) {
        error_prefix(errp, "point %s of disk '%s': ", h->point, h->disk);
    }
    json_decref(h->lost);
    return r;
}

bool heal_wanted(const struct store *s, const char *disk)
{
    for (unsigned i = 0; i < store_count(s); i++) {
        const struct store_point *p = store_point(s, i);

        if (p->manifest && manifest_find(p->manifest, disk) &&
            verified_hopes(s, p->name, disk)) {
            return true;
        }
    }
    return false;
}

int heal_disk(struct store *s, const char *disk, struct blk *source,
              int (*tick)(void *opaque, struct error **errp), void *opaque,
              struct heal_result *result, struct error **errp)
{
    CLEANUP_FREE uint8_t *buf = malloc(SUMS_UNIT);
    struct healing h = {
        .store = s,
        .disk = disk,
        .source = source,
        .tick = tick,
        .opaque = opaque,
        .buf = buf,
    };
    int r = buf ? 0 : error_nomem(errp);

    for (unsigned i = 0; r == 0 && i < store_count(s); i++) {
        const struct store_point *p = store_point(s, i);

        if (p->manifest && manifest_find(p->manifest, disk) &&
            verified_hopes(s, p->name, disk)) {
            r = heal_point(&h, p, result, errp);
        }
    }
    return r;
}
