/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bits as bytes: how files have them, and taking them in from there.
 *
 *   bytes     [ 64 words ][ 64 words ][ ...
 *                  |           |
 *   level 0   [ a block  ][ a block  ]            one word of level 1 each
 *
 * What is taken in is new as a rule: where a word of level 1 is zero, its block
 * is stored without being read.  So a page costs one fault, not two, and the
 * levels above are touched once a block.  Pages that will all be written are
 * asked for together, as a huge page where they are as many; a page that no bit
 * is in is never touched.
 */
#include <assert.h>
#include <endian.h>
#include <string.h>
#include <sys/mman.h>

#include "core/hbitmap-priv.h"
#include "nbdelta/bytes.h"

/* No page of memory is smaller. */
#define PAGE ((size_t)4096)

/* Memory is asked for in pieces of these sizes. */
#define HUGE ((size_t)2 << 20)
#define SOME (16 * PAGE)

void hbitmap_or_in(const struct hbitmap *h, uint64_t first, uint64_t count,
                   void *buf)
{
    unsigned char *to = buf;
    uint64_t end = first + count;

    assert(first % 8 == 0 && end <= h->granules);
    for (uint64_t at = hbitmap_next_set(h, first, end); at != NONE;
         at = hbitmap_next_set(h, align_up(at + 1, 8), end)) {
        uint64_t byte = at / 8;
        uint64_t word = atomic_load(word_of(h, at / WORD_BITS));
        unsigned bits = (unsigned)(word >> byte % 8 * 8) & 0xff;
        if (end < (byte + 1) * 8) {
            bits &= (1U << (end - byte * 8)) - 1;
        }
        to[byte - first / 8] |= (unsigned char)bits;
    }
}

/* --- Taking in --- */

static uint64_t count_words(const uint64_t *words, unsigned count)
{
    uint64_t n = 0;

    for (unsigned k = 0; k < count; k++) {
        n += (uint64_t)__builtin_popcountll(words[k]);
    }
    return n;
}

#ifdef __x86_64__
/* The same with an instruction that not all processors have. */
__attribute__((target("popcnt"))) static uint64_t count_by_popcnt(
    const uint64_t *words, unsigned count)
{
    uint64_t n = 0;

    for (unsigned k = 0; k < count; k++) {
        n += (uint64_t)__builtin_popcountll(words[k]);
    }
    return n;
}
#endif

uint64_t hbitmap_count_ones(const uint64_t *words, unsigned count)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("popcnt")) {
        return count_by_popcnt(words, count);
    }
#endif
    return count_words(words, count);
}

/* Load words of @bits bits; what is left of the last one is zero. */
static void load_words(uint64_t *words, const unsigned char *from,
                       uint64_t bits)
{
    size_t bytes = (size_t)div_up(bits, 8);
    uint64_t count = div_up(bits, WORD_BITS);

    words[count - 1] = 0;
    memcpy(words, from, bytes);
    for (uint64_t k = 0; k < count; k++) {
        words[k] = le64toh(words[k]);
    }
    if (bits % WORD_BITS) {
        words[count - 1] &= UINT64_MAX >> (WORD_BITS - bits % WORD_BITS);
    }
}

/* Add words to level 0 from word @i on; returns how many bits are new. */
static uint64_t add_words(struct hbitmap *h, uint64_t i, const uint64_t *words,
                          unsigned count)
{
    uint64_t fresh = 0;

    for (unsigned k = 0; k < count; k++) {
        uint64_t new = words[k] & ~atomic_load_explicit(word_of(h, i + k),
                                                        memory_order_relaxed);
        if (new) {
            fresh += hbitmap_count_ones(&new, 1);
            hbitmap_add_alone(h, 0, i + k, new);
        }
    }
    return fresh;
}

/* The same within a block that has no bits. */
static uint64_t store_words(struct hbitmap *h, uint64_t i,
                            const uint64_t *words, unsigned count)
{
    uint64_t there = 0;

    for (unsigned k = 0; k < count; k++) {
        if (words[k]) {
            atomic_store_explicit(own_word(h, i + k), words[k],
                                  memory_order_relaxed);
            there |= UINT64_C(1) << (i + k) % WORD_BITS;
        }
    }
    if (there == 0) {
        return 0;
    }
    hbitmap_add_alone(h, 1, i / WORD_BITS, there);
    return hbitmap_count_ones(words, count);
}

static bool has_bits(const unsigned char *from, size_t bytes)
{
    return from[0] != 0 || memcmp(from, from + 1, bytes - 1) != 0;
}

static bool all_have_bits(const unsigned char *from, size_t bytes)
{
    bool all = true;

    for (size_t at = 0; all && at < bytes; at += PAGE) {
        all = has_bits(from + at, PAGE);
    }
    return all;
}

/* Ask for the memory from word @i on, as far as each page of it gets bits: a
 * huge page at once, or some pages. */
static void make_pages(struct hbitmap *h, uint64_t i, const unsigned char *from,
                       size_t bytes)
{
    size_t unit;

    if (h->bytes[0] < MAP_MIN || i * sizeof(word_t) % PAGE != 0) {
        return;
    }
    for (size_t at = 0; at < bytes; at += unit) {
        char *to = (char *)(uintptr_t)&h->level[0][i] + at;
        bool huge = (uintptr_t)to % HUGE == 0 && bytes - at >= HUGE &&
                    all_have_bits(from + at, HUGE);

        unit = huge ? HUGE : SOME;
        if (huge) {
            (void)madvise(to, unit, MADV_HUGEPAGE);
        }
        if (huge || (bytes - at >= SOME && all_have_bits(from + at, SOME))) {
            hbitmap_populate(to, unit);
        }
    }
}

void hbitmap_import(struct hbitmap *h, uint64_t first, uint64_t count,
                    const void *buf)
{
    const unsigned char *from = buf;
    uint64_t i = first / WORD_BITS;
    uint64_t fresh = 0;

    assert(first % WORD_BITS == 0 && first + count <= h->granules);
    make_pages(h, i, from, (size_t)div_up(count, 8));
    while (count > 0) {
        uint64_t words[WORD_BITS];
        uint64_t here = min_u64(count, (WORD_BITS - i % WORD_BITS) * WORD_BITS);
        unsigned n = (unsigned)div_up(here, WORD_BITS);

        load_words(words, from, here);
        bool empty = h->top > 0 &&
                     atomic_load_explicit(&h->level[1][i / WORD_BITS],
                                          memory_order_relaxed) == 0;
        fresh += empty ? store_words(h, i, words, n)
                       : add_words(h, i, words, n);
        i += n;
        from += n * sizeof(*words);
        count -= here;
    }
    atomic_fetch_add(&h->set_bits, fresh);
}
