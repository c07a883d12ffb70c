/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_HBITMAP_PRIV_H
#define NBDELTA_CORE_HBITMAP_PRIV_H

/*
 * What a hierarchical bitmap consists of, for core/hbitmap*.c
 * ===========================================================
 *
 * hbitmap.c        life, setting, resetting, searching; the picture
 * hbitmap-merge.c  two bitmaps: merging, copying, comparing
 * hbitmap-runs.c   reading: many runs at once
 * hbitmap-share.c  copies that share their bits until one of them changes
 * hbitmap-bytes.c  bits as bytes, as files have them
 */
#include <stdatomic.h>

#include "core/hbitmap.h"
#include "nbdelta/thread.h"

#define WORD_SHIFT 6
#define WORD_BITS  (1U << WORD_SHIFT)
#define LEVELS_MAX 11 /* for 2^64 bits */
#define NONE       UINT64_MAX

/* What copies share: a page of words of level 0. */
#define LEAF_WORDS UINT64_C(512)
#define LEAF_BYTES (LEAF_WORDS * sizeof(word_t))

/* Memory of at least so many bytes comes straight from the kernel: zero and
 * untouched. */
#define MAP_MIN (64 * KiB)

typedef _Atomic uint64_t word_t;

/* Where a leaf is. */
typedef _Atomic(word_t *) leaf_t;

struct hbitmap_store;

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

    /*
     * Leaves of level 0 that are in memory shared with other bitmaps: they are
     * read there, and moved to level[0] before they change.  A leaf has NULL
     * here if it is in level[0]; else what level[0] has in its place means
     * nothing.  The table itself is NULL, or has an entry for each leaf.
     */
    leaf_t *shared;
    uint64_t shared_count;
    struct hbitmap_store *stores; /* this memory; a reference to each */
    unsigned store_count;
    _Atomic bool emptied; /* a leaf may have lost its last bit since then */
    mutex_t own_lock;     /* held while a leaf moves */

    _Atomic uint64_t set_bits;

    uint64_t serial; /* no other bitmap has or had it */
    _Atomic uint64_t resets;
};

/* Move a shared leaf to level[0].  Any number of threads may do so. */
void hbitmap_own_leaf(struct hbitmap *h, uint64_t leaf);

/* All leaves from @leaf on are in level[0] from now on, with any content.  No
 * other thread uses the bitmap. */
void hbitmap_disown(struct hbitmap *h, uint64_t leaf);

/* Words [@first, @last] are going to be overwritten, except for the first and
 * the last one: they are in level[0].  No other thread uses the bitmap. */
void hbitmap_overwrite(struct hbitmap *h, uint64_t first, uint64_t last);

/* Let go of all memory of others.  No leaf is there. */
void hbitmap_drop_stores(struct hbitmap *h);

/* The table gets entries for leaves of so many words.  -ENOMEM. */
int hbitmap_grow_shared(struct hbitmap *h, uint64_t words);

/* Word @i of level 0, to be read, and to be changed. */
static inline const word_t *word_of(const struct hbitmap *h, uint64_t i)
{
    const word_t *leaf = h->shared ? atomic_load(&h->shared[i / LEAF_WORDS])
                                   : NULL;

    return leaf ? &leaf[i % LEAF_WORDS] : &h->level[0][i];
}

static inline word_t *own_word(struct hbitmap *h, uint64_t i)
{
    if (h->shared && atomic_load(&h->shared[i / LEAF_WORDS])) {
        hbitmap_own_leaf(h, i / LEAF_WORDS);
    }
    return &h->level[0][i];
}

static inline uint64_t bits_in_word(uint64_t word)
{
    return (uint64_t)__builtin_popcountll(word);
}

/* The same of many words, in the way that is fastest here. */
uint64_t hbitmap_count_ones(const uint64_t *words, unsigned count);

/* Zeroed memory: straight from the kernel if it is large. */
void *hbitmap_memory(size_t bytes);
void hbitmap_release(void *p, size_t bytes); /* NULL is fine */

/* Where granule @i begins, or @end if that comes first. */
uint64_t hbitmap_run_end(const struct hbitmap *h, uint64_t i, uint64_t end);

/* The first set bit in [@from, @limit) of level 0, or NONE. */
uint64_t hbitmap_next_set(const struct hbitmap *h, uint64_t from,
                          uint64_t limit);

/* Add bits to word @i of @level, and the one above where the word had none,
 * and so on.  No other thread uses the bitmap; nothing is counted. */
void hbitmap_add_alone(struct hbitmap *h, unsigned level, uint64_t i,
                       uint64_t bits);

/* Add bits to word @i of level 0, beside other threads. */
void hbitmap_add_word(struct hbitmap *h, uint64_t i, uint64_t bits);

/* Have the kernel make all whole pages of memory that it gave: they will be
 * written. */
void hbitmap_populate(void *p, size_t bytes);

#endif /* NBDELTA_CORE_HBITMAP_PRIV_H */
