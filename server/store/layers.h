/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_LAYERS_H
#define NBDELTA_SERVER_STORE_LAYERS_H

/*
 * A disk of a point, read unit by unit
 * ====================================
 *
 * Its files are layers, the newest first.  Each file that decides a part of a
 * unit (sums.h) is read and held against its hash, until all of the unit is
 * known.  Only what is needed is read.
 *
 * Memory: the sums of all files of the disk, and what blocklib has for so many
 * images.
 */
#include <stdbool.h>
#include <stdint.h>

#include "nbdelta/bytes.h"
#include "store/name.h"
#include "store/store.h"
#include "store/sums.h"

struct blk;
struct error;
struct graph;

/* One file of the disk. */
struct layer {
    char point[POINT_NAME_MAX];
    bool base;
    int held; /* see store_hold; -1: not */
    struct node *node;
    struct blk *file; /* NULL: it cannot be used, for the reason */
    struct sums *sums;
    char *why;
};

struct layers {
    /* Set by the caller. */
    struct store *store;
    struct graph *graph;
    const char *disk;

    uint64_t size;       /* of the disk, bytes */
    struct layer *layer; /* the newest first */
    unsigned count;
};

/*
 * Open all files of the disk as it was at @point, and hold their points.  A
 * file that cannot be read is damage, and no error: its layer has a reason.
 * -ENOENT: the point has no such disk; -EBUSY: a prune works on a point;
 * -ENOMEM, -EMFILE...  Call layers_close after an error, too.
 */
int layers_open(struct layers *s, const char *point, struct error **errp);
void layers_close(struct layers *s);

/* Bytes of a unit, and a bit for each of its chunks. */
static inline uint64_t layers_unit_bytes(const struct layers *s, uint64_t unit)
{
    return min_u64(s->size - unit * SUMS_UNIT, SUMS_UNIT);
}
static inline uint16_t layers_all_chunks(uint64_t bytes)
{
    return (uint16_t)((UINT32_C(1) << div_up(bytes, SUMS_CHUNK)) - 1);
}

/*
 * The unit in @out.  Returns its chunks that nobody knows, because a file is
 * damaged: these are zeroes, and *by is that layer.  @out and @buf have
 * SUMS_UNIT bytes.  Of any thread.
 */
uint16_t layers_read_unit(const struct layers *s, uint64_t unit, uint8_t *out,
                          uint8_t *buf, unsigned *by);

/*
 * The hash of the whole unit, if one layer alone decides all of it: *hash is
 * what its sums have, NULL: all is zero.  False: more than one layer may have a
 * part of it, or one is damaged.  *hash may be of a part of the unit, too: a
 * hash of all chunks that is equal says that it is not.  Reads nothing.
 */
bool layers_find_hash(const struct layers *s, uint64_t unit,
                      const uint8_t **hash);

#endif /* NBDELTA_SERVER_STORE_LAYERS_H */
