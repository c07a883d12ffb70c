/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_HBITMAP_PRIV_H
#define NBDELTA_CORE_HBITMAP_PRIV_H

/*
 * What a hierarchical bitmap consists of, for core/hbitmap*.c
 * ===========================================================
 *
 * hbitmap.c        life, setting, resetting, searching, merging; the picture
 * hbitmap-runs.c   reading: many runs at once
 * hbitmap-bytes.c  bits as bytes, as files have them
 */
#include <stdatomic.h>

#include "core/hbitmap.h"

#define WORD_SHIFT 6
#define WORD_BITS  (1U << WORD_SHIFT)
#define LEVELS_MAX 11 /* for 2^64 bits */
#define NONE       UINT64_MAX

/* Memory of at least so many bytes comes straight from the kernel: zero and
 * untouched. */
#define MAP_MIN (64 * KiB)

typedef _Atomic uint64_t word_t;

struct hbitmap {
    uint64_t size;
    uint64_t granules; /* bits of level 0 in use; all others are 0 */
    unsigned shift;    /* log2 of the granularity */

    unsigned top;               /* the highest level, of one word */
    uint64_t words[LEVELS_MAX]; /* in each level */
    word_t *level[LEVELS_MAX];  /* each in memory of its own, which moves when
                                   it grows, and is not copied */
    size_t bytes[LEVELS_MAX];   /* of this memory; what no word of the level is
                                   in is zero */

    _Atomic uint64_t set_bits;

    uint64_t serial; /* no other bitmap has or had it */
    _Atomic uint64_t resets;
};

/* The first set bit in [@from, @limit) of level 0, or NONE. */
uint64_t hbitmap_next_set(const struct hbitmap *h, uint64_t from,
                          uint64_t limit);

/* Add bits to word @i of @level, and the one above where the word had none,
 * and so on.  No other thread uses the bitmap; nothing is counted. */
void hbitmap_add_alone(struct hbitmap *h, unsigned level, uint64_t i,
                       uint64_t bits);

/* Have the kernel make all whole pages of memory that it gave: they will be
 * written. */
void hbitmap_populate(void *p, size_t bytes);

#endif /* NBDELTA_CORE_HBITMAP_PRIV_H */
