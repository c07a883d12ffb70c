/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Two bitmaps: merging, copying, comparing.  Where granules are alike this goes
 * word by word, and only where there are bits; else run by run.
 */
#include <assert.h>
#include <stdlib.h>

#include "core/hbitmap-priv.h"
#include "nbdelta/bytes.h"

/* Words of level 0 that have bits, from the left to the right. */
struct scan {
    const struct hbitmap *h;
    uint64_t block; /* of 64 words */
    uint64_t there; /* its words that may have some, and were not looked at */
};

/* The first block from s->block on that may have bits. */
static bool scan_block(struct scan *s)
{
    const struct hbitmap *h = s->h;
    uint64_t at = hbitmap_next_set(h, s->block * WORD_BITS * WORD_BITS,
                                   h->granules);

    if (at == NONE) {
        return false;
    }
    uint64_t found = UINT64_C(1) << at / WORD_BITS % WORD_BITS;

    s->block = at / WORD_BITS / WORD_BITS;
    s->there = h->top == 0 ? 1 : atomic_load(&h->level[1][s->block]) | found;
    return true;
}

/* Go on at word @i, the first one of a block. */
static void scan_behind(struct scan *s, uint64_t i)
{
    s->block = i / WORD_BITS;
    s->there = 0;
}

static bool scan_next(struct scan *s, uint64_t *i, uint64_t *word)
{
    do {
        if (s->there == 0 && !scan_block(s)) {
            return false;
        }
        *i = s->block * WORD_BITS + (uint64_t)__builtin_ctzll(s->there);
        *word = atomic_load(word_of(s->h, *i));
        s->there &= s->there - 1;
        s->block += s->there == 0;
    } while (*word == 0);
    return true;
}

/* Equal granularity: word by word, where @src has something. */
static void merge_words(struct hbitmap *dst, const struct hbitmap *src)
{
    struct scan scan = {.h = src};
    uint64_t word;

    for (uint64_t i; scan_next(&scan, &i, &word);) {
        hbitmap_add_word(dst, i, word);
    }
}

void hbitmap_merge(struct hbitmap *dst, const struct hbitmap *src)
{
    uint64_t start;
    uint64_t bytes;

    assert(dst->size == src->size);
    if (dst->shift == src->shift) {
        merge_words(dst, src);
        return;
    }
    for (uint64_t at = 0;
         at < src->size &&
         hbitmap_next_dirty(src, at, src->size, &start, &bytes);) {
        hbitmap_set(dst, start, bytes);
        /* The rest of the last granule of @dst is dirty already. */
        uint64_t end = start + bytes;
        at = hbitmap_run_end(dst, ((end - 1) >> dst->shift) + 1, src->size);
    }
}

/* Equal granularity, word by word.  What the two share need not be read. */
static bool covers_words(const struct hbitmap *outer,
                         const struct hbitmap *inner)
{
    struct scan scan = {.h = inner};
    uint64_t word;

    for (uint64_t i; scan_next(&scan, &i, &word);) {
        if (word_of(outer, i) == word_of(inner, i)) {
            scan_behind(&scan, align_up(i + 1, LEAF_WORDS));
        } else if (word & ~atomic_load(word_of(outer, i))) {
            return false;
        }
    }
    return true;
}

bool hbitmap_covers(const struct hbitmap *outer, const struct hbitmap *inner)
{
    uint64_t had = atomic_load(&outer->set_bits);
    uint64_t asked = atomic_load(&inner->set_bits);
    uint64_t start;
    uint64_t bytes;

    if (outer->size != inner->size) {
        return false;
    }
    if (asked == 0 || had == outer->granules) {
        return true;
    }
    if (outer->shift == inner->shift) {
        return asked <= had && covers_words(outer, inner);
    }
    for (uint64_t at = 0;
         at < inner->size &&
         hbitmap_next_dirty(inner, at, inner->size, &start, &bytes);
         at = start + bytes) {
        if (!hbitmap_all_set(outer, start, bytes)) {
            return false;
        }
    }
    return true;
}

/* Add the words of a block at which @there has bits; returns how many bits are
 * new.  A block lies in one leaf, which is left alone if nothing is new. */
static uint64_t fill_block(struct hbitmap *dst, const struct hbitmap *src,
                           uint64_t block, uint64_t there)
{
    const word_t *from = word_of(src, block * WORD_BITS);
    const word_t *old = word_of(dst, block * WORD_BITS);
    uint64_t fresh[WORD_BITS];
    unsigned count = 0;
    uint64_t touched = 0;

    for (; there != 0; there &= there - 1) {
        unsigned k = (unsigned)__builtin_ctzll(there);
        uint64_t had = atomic_load_explicit(&old[k], memory_order_relaxed);
        uint64_t new = atomic_load(&from[k]) & ~had;

        if (new) {
            word_t *to = own_word(dst, block * WORD_BITS);
            atomic_store_explicit(&to[k], had | new, memory_order_relaxed);
            old = to;
            fresh[count++] = new;
            touched |= UINT64_C(1) << k;
        }
    }
    if (touched) {
        hbitmap_add_alone(dst, 1, block, touched);
    }
    return hbitmap_count_ones(fresh, count);
}

/* Equal granularity.  The upper levels are made anew, because those of @src may
 * change meanwhile.  What the two share need not be read. */
static void fill_words(struct hbitmap *dst, const struct hbitmap *src)
{
    struct scan scan = {.h = src};
    uint64_t count = 0;

    while (scan_block(&scan)) {
        uint64_t i = scan.block * WORD_BITS;

        if (word_of(dst, i) == word_of(src, i)) {
            scan_behind(&scan, align_up(i + 1, LEAF_WORDS));
        } else {
            count += fill_block(dst, src, scan.block, scan.there);
            scan_behind(&scan, i + WORD_BITS);
        }
    }
    atomic_fetch_add(&dst->set_bits, count);
}

void hbitmap_fill(struct hbitmap *dst, const struct hbitmap *src)
{
    assert(dst->size == src->size);
    if (dst->shift == src->shift && dst->top > 0) {
        fill_words(dst, src);
    } else {
        hbitmap_merge(dst, src);
    }
}

struct hbitmap *hbitmap_copy(const struct hbitmap *h)
{
    struct hbitmap *copy = hbitmap_new(h->size, hbitmap_granularity(h));

    if (copy) {
        hbitmap_fill(copy, h);
    }
    return copy;
}
