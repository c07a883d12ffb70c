/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reading a bitmap by runs, a word at a time.
 *
 *   word               0 0 1 1 1 0 1 0     from the left: the lowest bit first
 *   the bit before it  1 0 0 1 1 1 0 1     the last one of the word before
 *   they differ        1 0 1 0 0 1 1 1     a run ends before each of these
 *
 * So a run costs a few instructions, whatever its length.  A word is loaded
 * once: the ends that it gives are those of one moment.  Where a clean run
 * leaves a word, the upper levels tell which word has the next bit.
 */
#include <assert.h>

#include "core/hbitmap-priv.h"
#include "nbdelta/bytes.h"

static inline uint64_t load(const struct hbitmap *h, const struct hbitmap *more,
                            unsigned level, uint64_t i)
{
    uint64_t word = atomic_load(level == 0 ? word_of(h, i)
                                           : &h->level[level][i]);

    return more ? word | load(more, NULL, level, i) : word;
}

/* The first word from @i on that may have a bit before granule @limit; one
 * behind @limit if there is none.  As a rule it is under the same word of
 * level 1. */
static uint64_t next_word(const struct hbitmap *h, const struct hbitmap *more,
                          uint64_t i, uint64_t limit)
{
    if (i * WORD_BITS >= limit) {
        return i;
    }
    uint64_t there = h->top == 0 ? 0
                                 : load(h, more, 1, i / WORD_BITS) &
                                       UINT64_MAX << i % WORD_BITS;
    if (there != 0) {
        return align_down(i, WORD_BITS) + (uint64_t)__builtin_ctzll(there);
    }
    uint64_t at = hbitmap_next_set(h, i * WORD_BITS, limit);
    if (more) {
        at = min_u64(at, hbitmap_next_set(more, i * WORD_BITS, limit));
    }
    return at / WORD_BITS;
}

/* All runs that end in a word at @ends, where there is room for 64. */
static inline size_t put_runs(uint64_t ends, uint64_t at, unsigned shift,
                              uint64_t *from, uint64_t *lengths)
{
    uint64_t before = *from;
    size_t count = 0;

    for (; ends != 0; ends &= ends - 1) {
        uint64_t end = (at + (uint64_t)__builtin_ctzll(ends)) << shift;
        lengths[count++] = end - before;
        before = end;
    }
    *from = before;
    return count;
}

size_t hbitmap_runs(const struct hbitmap *h, const struct hbitmap *more,
                    uint64_t offset, uint64_t end, bool *dirty,
                    uint64_t *lengths, size_t max)
{
    assert(offset < end && end <= h->size && max > 0);
    assert(!more || (more->size == h->size && more->shift == h->shift));
    const uint64_t first = offset >> h->shift;
    const uint64_t limit = ((end - 1) >> h->shift) + 1;
    uint64_t i = first / WORD_BITS;
    uint64_t word = load(h, more, 0, i);
    uint64_t ends = (word ^ word << 1) & UINT64_MAX << first % WORD_BITS << 1;
    uint64_t from = offset;
    size_t count = 0;

    *dirty = word >> first % WORD_BITS & 1;
    while (i * WORD_BITS < limit) {
        if ((i + 1) * WORD_BITS <= limit && max - count > WORD_BITS) {
            count += put_runs(ends, i * WORD_BITS, h->shift, &from,
                              &lengths[count]);
            ends = 0;
        }
        for (; ends != 0; ends &= ends - 1) {
            uint64_t at = i * WORD_BITS + (uint64_t)__builtin_ctzll(ends);
            if (at >= limit) {
                break;
            }
            lengths[count++] = (at << h->shift) - from;
            from = at << h->shift;
            if (count == max) {
                return count;
            }
        }
        uint64_t last = word >> (WORD_BITS - 1);
        i = last ? i + 1 : next_word(h, more, i + 1, limit);
        if (i * WORD_BITS < limit) {
            word = load(h, more, 0, i);
            ends = word ^ (word << 1 | last);
        }
    }
    lengths[count++] = end - from;
    return count;
}
