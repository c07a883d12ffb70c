/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hierarchical bitmap.
 *
 *   level 2   [ 0 0 0 ... 1 ]                    one word: the top
 *                         |
 *   level 1   [ ... ][ 0 1 0 ... 0 ]             bit i: word i of level 0
 *                        |
 *   level 0   [ ... ][ 0 0 1 1 0 ... ][ ... ]    bit i: granule i
 *
 * An upper bit may be set over a word of zeroes, because that costs a search
 * only one step.  It must not stay clear over a word that has a bit:
 *
 *   set:    A  upper bits, top first (so that no search that begins after
 *              a set has returned can miss the bit)
 *           B  the bits of level 0
 *           C  look again at the upper bits; set what was cleared meanwhile
 *   reset:  D  clear the bits of a word
 *           E  if it is zero now: clear the bit above
 *           F  look again at the word; if it is not zero, set the bit above
 *              as in C; otherwise the same for the next level
 *
 * Of a set and a reset that meet, one repairs: if F comes before B then C
 * comes after E.  That is an argument over one order of all accesses, so
 * everything here is sequentially consistent (on x86 the loads, which are
 * what the usual case consists of, are plain ones).  It also gives what
 * dirty bitmaps need: the bit comes before the data that is written next,
 * whether this call has set it or has found it set.
 *
 * The counter is raised before bits are set and lowered after they are reset,
 * so that it never says less than there is.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/hbitmap-priv.h"
#include "nbdelta/bytes.h"

/* Pages of at least so many bytes that will be written are asked for at once.
 */
#define POPULATE_MIN (256 * KiB)

/* --- Memory --- */

static uint64_t load_word(const struct hbitmap *h, unsigned level, uint64_t i)
{
    return atomic_load(level == 0 ? word_of(h, i) : &h->level[level][i]);
}

void *hbitmap_memory(size_t bytes)
{
    if (bytes < MAP_MIN) {
        return calloc(1, bytes);
    }
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void hbitmap_release(void *p, size_t bytes)
{
    if (!p || bytes < MAP_MIN) {
        free(p);
    } else {
        (void)munmap(p, bytes);
    }
}

/* Zeroed memory of @to bytes with the @from bytes of @p in front, which is not
 * there any more then.  NULL: there is none, and @p is as it was.  Pages of a
 * mapping change their address, which costs nothing for those that were never
 * touched. */
static void *grown_memory(void *p, size_t from, size_t to)
{
    if (from >= MAP_MIN) {
        void *moved = mremap(p, from, to, MREMAP_MAYMOVE);
        return moved == MAP_FAILED ? NULL : moved;
    }
    void *fresh = hbitmap_memory(to);
    if (fresh && p) {
        memcpy(fresh, p, from);
        hbitmap_release(p, from);
    }
    return fresh;
}

/* Give each level memory for so many granules.  -ENOMEM: some levels may have
 * more memory than before, and that is all. */
static int reserve(struct hbitmap *h, uint64_t granules)
{
    uint64_t words = granules;
    unsigned level = 0;

    do {
        words = max_u64(div_up(words, WORD_BITS), 1);
        if (words > SIZE_MAX / 2 / sizeof(word_t)) {
            return -ENOMEM;
        }
        size_t bytes = (size_t)words * sizeof(word_t);
        if (bytes > h->bytes[level]) {
            void *p = grown_memory(h->level[level], h->bytes[level], bytes);
            if (!p) {
                return -ENOMEM;
            }
            h->level[level] = p;
            h->bytes[level] = bytes;
        }
        level++;
    } while (words > 1);
    return h->shared ? hbitmap_grow_shared(h, div_up(granules, WORD_BITS)) : 0;
}

/* Use the memory for so many granules that reserve() gave. */
static void extend(struct hbitmap *h, uint64_t granules)
{
    unsigned had = h->top;
    uint64_t words = max_u64(div_up(granules, WORD_BITS), 1);

    h->words[0] = words;
    h->top = 0;
    while (words > 1) {
        words = div_up(words, WORD_BITS);
        h->words[++h->top] = words;
    }
    for (unsigned i = had; i < h->top; i++) {
        if (load_word(h, i, 0) != 0) {
            atomic_store(&h->level[i + 1][0], 1);
        }
    }
}

struct hbitmap *hbitmap_new(uint64_t size, uint64_t granularity)
{
    static _Atomic uint64_t serials;
    struct hbitmap *h = calloc(1, sizeof(*h));

    assert(is_pow2(granularity));
    if (!h) {
        return NULL;
    }
    mutex_init(&h->own_lock, LOCK_HBITMAP, NULL);
    h->serial = atomic_fetch_add(&serials, 1);
    h->size = size;
    h->shift = (unsigned)__builtin_ctzll(granularity);
    h->granules = div_up(size, granularity);
    if (reserve(h, h->granules) < 0) {
        hbitmap_free(h);
        return NULL;
    }
    extend(h, h->granules);
    return h;
}

void hbitmap_free(struct hbitmap *h)
{
    if (!h) {
        return;
    }
    for (unsigned i = 0; i < LEVELS_MAX; i++) {
        hbitmap_release(h->level[i], h->bytes[i]);
    }
    hbitmap_drop_stores(h);
    mutex_destroy(&h->own_lock);
    free(h);
}

uint64_t hbitmap_size(const struct hbitmap *h)
{
    return h->size;
}

uint64_t hbitmap_granularity(const struct hbitmap *h)
{
    return UINT64_C(1) << h->shift;
}

struct hbitmap_stamp hbitmap_stamp(const struct hbitmap *h)
{
    return (struct hbitmap_stamp){h->serial, atomic_load(&h->resets)};
}

size_t hbitmap_bytes(const struct hbitmap *h)
{
    size_t sum = 0;

    for (unsigned i = 0; i < LEVELS_MAX; i++) {
        sum += h->bytes[i];
    }
    return sum;
}

/* --- Words --- */

/* The bits of word @word that lie in [@first, @last]. */
static uint64_t mask_of(uint64_t word, uint64_t first, uint64_t last)
{
    uint64_t mask = UINT64_MAX;

    if (word == first / WORD_BITS) {
        mask &= UINT64_MAX << first % WORD_BITS;
    }
    if (word == last / WORD_BITS) {
        mask &= UINT64_MAX >> (WORD_BITS - 1 - last % WORD_BITS);
    }
    return mask;
}

/* Bits of [@first, @last] of level 0 that are clear. */
static uint64_t clear_bits(const struct hbitmap *h, uint64_t first,
                           uint64_t last)
{
    uint64_t n = 0;

    for (uint64_t i = first / WORD_BITS; i <= last / WORD_BITS; i++) {
        uint64_t missing = mask_of(i, first, last) &
                           ~atomic_load(word_of(h, i));
        if (missing) {
            n += bits_in_word(missing);
        }
    }
    return n;
}

/* Set [@first, @last] of a level; returns how many were clear. */
static uint64_t set_range(struct hbitmap *h, unsigned level, uint64_t first,
                          uint64_t last)
{
    uint64_t n = 0;

    for (uint64_t i = first / WORD_BITS; i <= last / WORD_BITS; i++) {
        uint64_t mask = mask_of(i, first, last);
        if (mask & ~load_word(h, level, i)) {
            word_t *word = level == 0 ? own_word(h, i) : &h->level[level][i];
            n += bits_in_word(mask & ~atomic_fetch_or(word, mask));
        }
    }
    return n;
}

/* Bits above [@first, @last] of @level: C and F. */
static void raise_above(struct hbitmap *h, unsigned level, uint64_t first,
                        uint64_t last)
{
    while (level < h->top) {
        first /= WORD_BITS;
        last /= WORD_BITS;
        level++;
        (void)set_range(h, level, first, last);
    }
}

/* Bits above [@first, @last] of level 0, top first: A. */
static void raise_ahead(struct hbitmap *h, uint64_t first, uint64_t last)
{
    for (unsigned level = h->top; level > 0; level--) {
        (void)set_range(h, level, first >> WORD_SHIFT * level,
                        last >> WORD_SHIFT * level);
    }
}

/* Word @i of level 0 has become zero: E and F. */
static void lower_above(struct hbitmap *h, uint64_t i)
{
    for (unsigned level = 0; level < h->top; level++) {
        uint64_t bit = UINT64_C(1) << i % WORD_BITS;
        uint64_t left =
            atomic_fetch_and(&h->level[level + 1][i / WORD_BITS], ~bit) & ~bit;

        if (load_word(h, level, i) != 0) {
            raise_above(h, level, i * WORD_BITS, i * WORD_BITS);
            return;
        }
        if (left != 0) {
            return;
        }
        i /= WORD_BITS;
    }
}

/* --- Searching --- */

/* To the right in a word, up when it has no more, down where there may be
 * something. */
uint64_t hbitmap_next_set(const struct hbitmap *h, uint64_t from,
                          uint64_t limit)
{
    unsigned level = 0;
    uint64_t at = from;

    for (;;) {
        if (at / WORD_BITS >= h->words[level] ||
            at << WORD_SHIFT * level >= limit) {
            return NONE;
        }
        uint64_t word = load_word(h, level, at / WORD_BITS) &
                        UINT64_MAX << at % WORD_BITS;
        if (word == 0 && level == h->top) {
            return NONE;
        }
        if (word == 0) {
            at = at / WORD_BITS + 1;
            level++;
            continue;
        }
        at = align_down(at, WORD_BITS) + (uint64_t)__builtin_ctzll(word);
        if (level == 0) {
            return at < limit ? at : NONE;
        }
        at *= WORD_BITS;
        level--;
    }
}

/* The first clear bit in [@from, @limit) of level 0, or @limit. */
static uint64_t next_clear(const struct hbitmap *h, uint64_t from,
                           uint64_t limit)
{
    uint64_t at = from;

    while (at < limit) {
        uint64_t word = ~atomic_load(word_of(h, at / WORD_BITS)) &
                        UINT64_MAX << at % WORD_BITS;
        at = align_down(at, WORD_BITS);
        if (word != 0) {
            return min_u64(at + (uint64_t)__builtin_ctzll(word), limit);
        }
        at += WORD_BITS;
    }
    return limit;
}

static bool get_bit(const struct hbitmap *h, uint64_t i)
{
    return atomic_load(word_of(h, i / WORD_BITS)) >> i % WORD_BITS & 1;
}

bool hbitmap_get(const struct hbitmap *h, uint64_t offset)
{
    assert(offset < h->size);
    return get_bit(h, offset >> h->shift);
}

bool hbitmap_all_set(const struct hbitmap *h, uint64_t offset, uint64_t bytes)
{
    assert(range_inside(offset, bytes, h->size));
    return bytes == 0 || clear_bits(h, offset >> h->shift,
                                    (offset + bytes - 1) >> h->shift) == 0;
}

uint64_t hbitmap_count(const struct hbitmap *h)
{
    return atomic_load(&h->set_bits) << h->shift;
}

uint64_t hbitmap_run_end(const struct hbitmap *h, uint64_t i, uint64_t end)
{
    return i > (end - 1) >> h->shift ? end : i << h->shift;
}

uint64_t hbitmap_run(const struct hbitmap *h, uint64_t offset, uint64_t end,
                     bool *dirty)
{
    assert(offset < end && end <= h->size);
    uint64_t first = offset >> h->shift;
    uint64_t limit = ((end - 1) >> h->shift) + 1;

    *dirty = get_bit(h, first);
    uint64_t change = *dirty ? next_clear(h, first + 1, limit)
                             : hbitmap_next_set(h, first + 1, limit);
    return hbitmap_run_end(h, change, end) - offset;
}

bool hbitmap_next_dirty(const struct hbitmap *h, uint64_t offset, uint64_t end,
                        uint64_t *start, uint64_t *bytes)
{
    assert(offset < end && end <= h->size);
    uint64_t limit = ((end - 1) >> h->shift) + 1;
    uint64_t first = hbitmap_next_set(h, offset >> h->shift, limit);

    if (first == NONE) {
        return false;
    }
    *start = max_u64(first << h->shift, offset);
    *bytes = hbitmap_run_end(h, next_clear(h, first + 1, limit), end) - *start;
    return true;
}

/* --- Changing --- */

static void set_granules(struct hbitmap *h, uint64_t first, uint64_t last)
{
    uint64_t expected = clear_bits(h, first, last);

    if (expected == 0) {
        return;
    }
    atomic_fetch_add(&h->set_bits, expected);
    raise_ahead(h, first, last);
    uint64_t got = set_range(h, 0, first, last);
    raise_above(h, 0, first, last);
    if (got != expected) { /* other threads were here */
        atomic_fetch_add(&h->set_bits, got - expected);
    }
}

static void reset_granules(struct hbitmap *h, uint64_t first, uint64_t last)
{
    uint64_t n = 0;

    for (uint64_t at = hbitmap_next_set(h, first, last + 1); at != NONE;) {
        uint64_t i = at / WORD_BITS;
        uint64_t mask = mask_of(i, first, last);
        uint64_t old = atomic_fetch_and(own_word(h, i), ~mask);

        n += bits_in_word(old & mask);
        if ((old & ~mask) == 0) {
            atomic_store(&h->emptied, true);
            lower_above(h, i);
        }
        at = hbitmap_next_set(h, (i + 1) * WORD_BITS, last + 1);
    }
    if (n > 0) {
        atomic_fetch_sub(&h->set_bits, n);
        atomic_fetch_add(&h->resets, 1);
    }
}

void hbitmap_add_word(struct hbitmap *h, uint64_t i, uint64_t bits)
{
    uint64_t expected = bits_in_word(bits & ~atomic_load(word_of(h, i)));
    uint64_t at = i * WORD_BITS;

    if (expected > 0) {
        atomic_fetch_add(&h->set_bits, expected);
        raise_ahead(h, at, at);
        uint64_t old = atomic_fetch_or(own_word(h, i), bits);
        raise_above(h, 0, at, at);
        uint64_t got = bits_in_word(bits & ~old);
        if (got != expected) {
            atomic_fetch_add(&h->set_bits, got - expected);
        }
    }
}

void hbitmap_set(struct hbitmap *h, uint64_t offset, uint64_t bytes)
{
    assert(range_inside(offset, bytes, h->size));
    if (bytes > 0) {
        set_granules(h, offset >> h->shift, (offset + bytes - 1) >> h->shift);
    }
}

void hbitmap_reset(struct hbitmap *h, uint64_t offset, uint64_t bytes)
{
    assert(range_inside(offset, bytes, h->size));
    if (bytes > 0) {
        reset_granules(h, offset >> h->shift, (offset + bytes - 1) >> h->shift);
    }
}

/* --- Where no other thread uses the bitmap --- */

/* Zero the words [@from, the end of the memory) of a level.  Pages of a mapping
 * are given back. */
static void zero_words(struct hbitmap *h, unsigned level, uint64_t from)
{
    char *p = (char *)(uintptr_t)h->level[level];
    size_t begin = (size_t)from * sizeof(word_t);
    size_t end = h->bytes[level];

    if (end >= MAP_MIN && begin < end) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        size_t whole = min_u64(align_up(begin, page), end);

        if (whole < end &&
            madvise(p + whole, end - whole, MADV_DONTNEED) == 0) {
            end = whole;
        }
    }
    if (begin < end) {
        memset(p + begin, 0, end - begin);
    }
}

void hbitmap_reset_all(struct hbitmap *h)
{
    hbitmap_disown(h, 0);
    hbitmap_drop_stores(h);
    for (unsigned i = 0; i <= h->top; i++) {
        zero_words(h, i, 0);
    }
    atomic_store(&h->set_bits, 0);
    atomic_fetch_add(&h->resets, 1);
}

/* Set bits from @first on, in words that have some. */
static uint64_t count_from(const struct hbitmap *h, uint64_t first)
{
    uint64_t n = 0;

    for (uint64_t at = hbitmap_next_set(h, first, h->granules); at != NONE;) {
        uint64_t i = at / WORD_BITS;
        uint64_t word;

        while (i < h->words[0] &&
               (word = atomic_load_explicit(word_of(h, i),
                                            memory_order_relaxed)) != 0) {
            if (i == first / WORD_BITS) {
                word &= UINT64_MAX << first % WORD_BITS;
            }
            n += word == UINT64_MAX ? WORD_BITS : bits_in_word(word);
            i++;
        }
        at = hbitmap_next_set(h, i * WORD_BITS, h->granules);
    }
    return n;
}

/* Reset all granules from @first on.  What is set there is counted; nothing
 * else costs time. */
static void cut_off(struct hbitmap *h, uint64_t first)
{
    uint64_t n = count_from(h, first);

    if (n == 0) {
        return;
    }
    if (first % (LEAF_WORDS * WORD_BITS)) {
        (void)own_word(h, first / WORD_BITS);
    }
    hbitmap_disown(h, div_up(first, LEAF_WORDS * WORD_BITS));
    atomic_store(&h->emptied, true);
    uint64_t keep = first; /* bits of the level */
    for (unsigned level = 0; level <= h->top; level++) {
        word_t *word = &h->level[level][keep / WORD_BITS];

        if (keep % WORD_BITS) {
            *word &= ~(UINT64_MAX << keep % WORD_BITS);
        }
        zero_words(h, level, div_up(keep, WORD_BITS));
        keep = div_up(keep, WORD_BITS);
    }
    if (first % WORD_BITS && h->level[0][first / WORD_BITS] == 0) {
        lower_above(h, first / WORD_BITS);
    }
    atomic_fetch_sub(&h->set_bits, n);
    atomic_fetch_add(&h->resets, 1);
}

/* One fault after the other takes several times as long. */
void hbitmap_populate(void *p, size_t bytes)
{
#ifdef MADV_POPULATE_WRITE
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = align_up((uintptr_t)p, page);
    uintptr_t end = align_down((uintptr_t)p + bytes, page);

    if (from < end) {
        (void)madvise((void *)from, end - from, MADV_POPULATE_WRITE);
    }
#else
    (void)p;
    (void)bytes;
#endif
}

/* Set [@first, @last] of a level. */
static void set_words(struct hbitmap *h, unsigned level, uint64_t first,
                      uint64_t last)
{
    word_t *words = h->level[level];
    uint64_t from = first / WORD_BITS;
    uint64_t to = last / WORD_BITS;

    if (level == 0) {
        hbitmap_overwrite(h, from, to);
    }
    words[from] |= mask_of(from, first, last);
    if (from < to) {
        words[to] |= mask_of(to, first, last);
    }
    if (from + 1 < to) {
        size_t bytes = (size_t)(to - from - 1) * sizeof(word_t);
        if (bytes >= POPULATE_MIN) {
            hbitmap_populate((void *)(uintptr_t)&words[from + 1], bytes);
        }
        memset(&words[from + 1], 0xff, bytes);
    }
}

void hbitmap_set_alone(struct hbitmap *h, uint64_t offset, uint64_t bytes)
{
    assert(range_inside(offset, bytes, h->size));
    if (bytes == 0) {
        return;
    }
    uint64_t first = offset >> h->shift;
    uint64_t last = (offset + bytes - 1) >> h->shift;
    uint64_t fresh = hbitmap_next_set(h, first, last + 1) == NONE
                         ? last - first + 1
                         : clear_bits(h, first, last);

    atomic_fetch_add(&h->set_bits, fresh);
    for (unsigned level = 0; level <= h->top; level++) {
        set_words(h, level, first >> WORD_SHIFT * level,
                  last >> WORD_SHIFT * level);
    }
}

void hbitmap_add_alone(struct hbitmap *h, unsigned level, uint64_t i,
                       uint64_t bits)
{
    bool had = false;

    for (; !had && level <= h->top; level++) {
        word_t *word = level == 0 ? own_word(h, i) : &h->level[level][i];
        uint64_t old = atomic_load_explicit(word, memory_order_relaxed);

        atomic_store_explicit(word, old | bits, memory_order_relaxed);
        had = old != 0;
        bits = UINT64_C(1) << i % WORD_BITS;
        i /= WORD_BITS;
    }
}

/* --- Size --- */

uint64_t hbitmap_granules(const struct hbitmap *h)
{
    return h->granules;
}

int hbitmap_resize(struct hbitmap *h, uint64_t size)
{
    uint64_t granules = div_up(size, hbitmap_granularity(h));

    if (granules < h->granules) {
        cut_off(h, granules);
    }
    if (div_up(granules, WORD_BITS) > h->words[0]) {
        if (reserve(h, granules) < 0) {
            return -ENOMEM;
        }
        extend(h, granules);
    }
    h->size = size;
    h->granules = granules;
    return 0;
}
