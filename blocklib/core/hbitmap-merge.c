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
    uint64_t block; /* of 64 words: the next one */
    uint64_t there; /* words of the last one that may have some */
};

static bool scan_next(struct scan *s, uint64_t *i, uint64_t *word)
{
    const struct hbitmap *h = s->h;

    do {
        if (s->there == 0) {
            uint64_t at = hbitmap_next_set(h, s->block * WORD_BITS * WORD_BITS,
                                           h->granules);
            if (at == NONE) {
                return false;
            }
            s->block = at / WORD_BITS / WORD_BITS;
            s->there = h->top == 0 ? 1 : atomic_load(&h->level[1][s->block]);
            s->block++;
        }
        *i = (s->block - 1) * WORD_BITS + (uint64_t)__builtin_ctzll(s->there);
        *word = atomic_load(word_of(h, *i));
        s->there &= s->there - 1;
    } while (*word == 0);
    return true;
}

/* Go on at word @i, the first one of a block. */
static void scan_behind(struct scan *s, uint64_t i)
{
    s->block = i / WORD_BITS;
    s->there = 0;
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

/* As hbitmap_add_word(), alone; returns how many bits are new. */
static uint64_t put_word(struct hbitmap *h, uint64_t i, uint64_t bits)
{
    uint64_t fresh = bits &
                     ~atomic_load_explicit(word_of(h, i), memory_order_relaxed);

    if (fresh) {
        hbitmap_add_alone(h, 0, i, fresh);
    }
    return bits_in_word(fresh);
}

/* Add words.  The upper levels are made anew, because those of @src may change
 * meanwhile. */
static void fill_words(struct hbitmap *dst, const struct hbitmap *src)
{
    struct scan scan = {.h = src};
    uint64_t count = 0;
    uint64_t word;

    for (uint64_t i; scan_next(&scan, &i, &word);) {
        if (word_of(dst, i) == word_of(src, i)) {
            scan_behind(&scan, align_up(i + 1, LEAF_WORDS));
        } else {
            count += put_word(dst, i, word);
        }
    }
    atomic_fetch_add(&dst->set_bits, count);
}

void hbitmap_fill(struct hbitmap *dst, const struct hbitmap *src)
{
    assert(dst->size == src->size);
    if (dst->shift == src->shift) {
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
