/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The hierarchical bitmap against a naive one: a sorted list of dirty areas,
 * in granules, which costs the same whatever the size.
 */
#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "core/hbitmap.h"
#include "nbdelta/bytes.h"
#include "nbdelta/thread.h"

/* --- The model --- */

#define AREAS 4096

struct area {
    uint64_t from;
    uint64_t to; /* exclusive */
};

struct model {
    uint64_t granularity;
    uint64_t size;
    struct area areas[AREAS]; /* sorted, not touching one another */
    unsigned count;
};

static struct model model;
static struct model other;

static void model_init(struct model *m, uint64_t size, uint64_t granularity)
{
    m->granularity = granularity;
    m->size = size;
    m->count = 0;
}

static void model_put(struct model *m, uint64_t from, uint64_t to, bool set)
{
    static struct area old[AREAS];
    unsigned count = m->count;
    bool placed = false;

    memcpy(old, m->areas, count * sizeof(old[0]));
    m->count = 0;
    for (unsigned i = 0; i < count; i++) {
        struct area a = old[i];
        ck_assert_uint_lt(m->count + 3, AREAS);
        if (set && a.from <= to && from <= a.to) {
            from = min_u64(from, a.from);
            to = max_u64(to, a.to);
            continue;
        }
        if (set && !placed && to < a.from) {
            m->areas[m->count++] = (struct area){from, to};
            placed = true;
        }
        if (set || a.to <= from || to <= a.from) {
            m->areas[m->count++] = a;
            continue;
        }
        if (a.from < from) {
            m->areas[m->count++] = (struct area){a.from, from};
        }
        if (to < a.to) {
            m->areas[m->count++] = (struct area){to, a.to};
        }
    }
    if (set && !placed) {
        m->areas[m->count++] = (struct area){from, to};
    }
}

static void model_put_bytes(struct model *m, uint64_t offset, uint64_t bytes,
                            bool set)
{
    if (bytes > 0) {
        model_put(m, offset / m->granularity,
                  (offset + bytes - 1) / m->granularity + 1, set);
    }
}

static uint64_t model_count(const struct model *m)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < m->count; i++) {
        n += m->areas[i].to - m->areas[i].from;
    }
    return n * m->granularity;
}

static uint64_t model_run(const struct model *m, uint64_t offset, uint64_t end,
                          bool *dirty)
{
    uint64_t at = offset / m->granularity;
    *dirty = false;
    for (unsigned i = 0; i < m->count; i++) {
        struct area a = m->areas[i];
        if (at < a.to) {
            *dirty = at >= a.from;
            uint64_t change = *dirty ? a.to : a.from;
            /* The last granule may end past the disk. */
            uint64_t stop = change > (end - 1) / m->granularity
                                ? end
                                : change * m->granularity;
            return stop - offset;
        }
    }
    return end - offset;
}

/* --- Comparing --- */

/* Look at @most runs from @offset on; returns where they end. */
static uint64_t same_some_runs(const struct hbitmap *h,
                               const struct hbitmap *more,
                               const struct model *m, uint64_t offset,
                               uint64_t end, size_t most)
{
    uint64_t lengths[70];
    bool is;
    bool shall;

    ck_assert_uint_lt(most, ARRAY_SIZE(lengths));
    lengths[most] = 4711;
    size_t count = hbitmap_runs(h, more, offset, end, &is, lengths, most);
    ck_assert_uint_ge(count, 1);
    ck_assert_uint_le(count, most);
    ck_assert_uint_eq(lengths[most], 4711);
    for (size_t i = 0; i < count; i++, is = !is) {
        ck_assert_uint_eq(lengths[i], model_run(m, offset, end, &shall));
        ck_assert_int_eq(is, shall);
        offset += lengths[i];
    }
    ck_assert(count == most || offset == end);
    return offset;
}

static void same_runs(const struct hbitmap *h, const struct hbitmap *more,
                      const struct model *m, size_t most)
{
    uint64_t at = 0;

    while (at < m->size) {
        at = same_some_runs(h, more, m, at, m->size, most);
    }
    ck_assert_uint_eq(at, m->size);
}

static void same_around(const struct hbitmap *h, const struct model *m,
                        uint64_t offset, uint64_t end)
{
    bool is;
    bool shall;

    if (offset >= end) {
        return;
    }
    uint64_t want = model_run(m, offset, end, &shall);
    uint64_t got = hbitmap_run(h, offset, end, &is);
    ck_assert_int_eq(is, shall);
    ck_assert_uint_eq(got, want);
    ck_assert_int_eq(hbitmap_get(h, offset), shall);

    (void)same_some_runs(h, NULL, m, offset, end, 3);

    uint64_t start = 0;
    uint64_t bytes = 0;
    bool found = hbitmap_next_dirty(h, offset, end, &start, &bytes);
    if (shall) {
        ck_assert(found);
        ck_assert_uint_eq(start, offset);
        ck_assert_uint_eq(bytes, want);
    } else {
        ck_assert_int_eq(found, want < end - offset);
        if (found) {
            ck_assert_uint_eq(start, offset + want);
            ck_assert_uint_eq(bytes, model_run(m, start, end, &shall));
        }
    }
}

/* Every area and every gap, by all ways of walking. */
static void same(const struct hbitmap *h, const struct model *m)
{
    uint64_t at = 0;

    same_runs(h, NULL, m, 1);
    same_runs(h, NULL, m, 64);
    ck_assert_uint_eq(hbitmap_size(h), m->size);
    ck_assert_uint_eq(hbitmap_granularity(h), m->granularity);
    ck_assert_uint_eq(hbitmap_count(h), model_count(m));
    while (at < m->size) {
        bool is;
        bool shall;
        uint64_t want = model_run(m, at, m->size, &shall);
        ck_assert_uint_eq(hbitmap_run(h, at, m->size, &is), want);
        ck_assert_int_eq(is, shall);
        at += want;
    }
    ck_assert_uint_eq(at, m->size);

    unsigned i = 0;
    uint64_t start;
    uint64_t bytes;
    for (at = 0;
         at < m->size && hbitmap_next_dirty(h, at, m->size, &start, &bytes);
         at = start + bytes) {
        ck_assert_uint_lt(i, m->count);
        ck_assert_uint_eq(start, m->areas[i].from * m->granularity);
        i++;
    }
    ck_assert_uint_eq(i, m->count);
}

/* --- Random operations --- */

static uint64_t seed;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* Mostly near places where words and levels end. */
static uint64_t some_offset(const struct model *m)
{
    uint64_t granules = div_up(m->size, m->granularity);
    uint64_t unit = UINT64_C(1) << 6 * (rnd() % 5);
    uint64_t at = rnd() % granules;

    if (rnd() % 4) {
        at = align_down(at, unit);
        at = rnd() % 2 ? at + rnd() % 3 : max_u64(at, 2) - rnd() % 3;
    }
    uint64_t offset = min_u64(at, granules - 1) * m->granularity;
    return min_u64(offset + (rnd() % 2 ? rnd() % m->granularity : 0),
                   m->size - 1);
}

/* At most 2^18 granules, so that little memory is used. */
static uint64_t some_length(const struct model *m, uint64_t offset)
{
    uint64_t granules = UINT64_C(1) << rnd() % 19;
    uint64_t bytes = granules * m->granularity;

    if (rnd() % 2) {
        bytes = rnd() % bytes + 1;
    }
    return min_u64(bytes, m->size - offset);
}

static void churn(struct hbitmap *h, struct model *m, unsigned rounds)
{
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t offset = some_offset(m);
        uint64_t bytes = some_length(m, offset);
        bool set = rnd() % 5 < 3;

        if (set) {
            hbitmap_set(h, offset, bytes);
        } else {
            hbitmap_reset(h, offset, bytes);
        }
        model_put_bytes(m, offset, bytes, set);
        ck_assert_uint_eq(hbitmap_count(h), model_count(m));
        same_around(h, m, offset, offset + bytes);
        same_around(h, m, offset, m->size);
        offset = some_offset(m);
        same_around(h, m, offset, m->size);
        same_around(h, m, offset, offset + some_length(m, offset));
    }
    same(h, m);
}

static const uint64_t sizes[] = {
    1,
    511,
    512,
    513,
    64 * KiB,
    32 * KiB * 64 - 1,
    1 * MiB + 1,
    100 * MiB + 12345,
    8 * GiB,
    UINT64_C(64) * 64 * 64 * 64 * 512,
    UINT64_C(64) * 64 * 64 * 64 * 512 + 1,
    3 * TiB - 3,
    16 * TiB,
};

START_TEST(random_operations_agree_with_the_model)
{
    uint64_t granularity = UINT64_C(512) << _i;

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        seed = 88172645463325252 + (uint64_t)_i * 1000 + i;
        struct hbitmap *h = hbitmap_new(sizes[i], granularity);
        ck_assert_ptr_nonnull(h);
        model_init(&model, sizes[i], granularity);
        same(h, &model);
        churn(h, &model, 80);
        hbitmap_reset_all(h);
        model_init(&model, sizes[i], granularity);
        same(h, &model);
        churn(h, &model, 10);
        hbitmap_free(h);
    }
}
END_TEST

START_TEST(nothing_is_dirty_in_an_empty_disk)
{
    struct hbitmap *h = hbitmap_new(0, 512);
    ck_assert_ptr_nonnull(h);
    hbitmap_set(h, 0, 0);
    hbitmap_reset(h, 0, 0);
    hbitmap_reset_all(h);
    ck_assert_uint_eq(hbitmap_count(h), 0);
    ck_assert_uint_eq(hbitmap_size(h), 0);
    struct hbitmap *copy = hbitmap_copy(h);
    ck_assert_ptr_nonnull(copy);
    hbitmap_merge(copy, h);
    hbitmap_free(copy);
    ck_assert_int_eq(hbitmap_resize(h, 1025), 0);
    hbitmap_set(h, 1024, 1);
    ck_assert_uint_eq(hbitmap_count(h), 512);
    ck_assert_int_eq(hbitmap_resize(h, 0), 0);
    ck_assert_uint_eq(hbitmap_count(h), 0);
    hbitmap_free(h);
    hbitmap_free(NULL);
}
END_TEST

START_TEST(an_empty_range_sets_nothing)
{
    struct hbitmap *h = hbitmap_new(1 * MiB, 512);
    hbitmap_set(h, 0, 0);
    hbitmap_set(h, 1 * MiB, 0);
    ck_assert_uint_eq(hbitmap_count(h), 0);
    hbitmap_set(h, 0, 1 * MiB);
    hbitmap_reset(h, 512, 0);
    ck_assert_uint_eq(hbitmap_count(h), 1 * MiB);
    hbitmap_free(h);
}
END_TEST

/* A single bit beside each boundary of words and levels is found from afar,
 * and only there. */
START_TEST(search_crosses_levels)
{
    const uint64_t granules = UINT64_C(1) << 30;
    struct hbitmap *h = hbitmap_new(granules * 4096, 4096);

    for (unsigned level = 1; level <= 4; level++) {
        for (uint64_t k = 1; k <= 3; k++) {
            for (uint64_t delta = 0; delta < 3; delta++) {
                uint64_t bit = (k << 6 * level) + delta - 1;
                uint64_t start;
                uint64_t bytes;
                bool dirty;
                hbitmap_set(h, bit * 4096 + 17, 1);
                ck_assert_uint_eq(hbitmap_run(h, 0, granules * 4096, &dirty),
                                  bit * 4096);
                ck_assert(!dirty);
                ck_assert(
                    hbitmap_next_dirty(h, 0, granules * 4096, &start, &bytes));
                ck_assert_uint_eq(start, bit * 4096);
                ck_assert_uint_eq(bytes, 4096);
                ck_assert(!hbitmap_next_dirty(h, 0, start, &start, &bytes));
                ck_assert(!hbitmap_next_dirty(h, (bit + 1) * 4096,
                                              granules * 4096, &start, &bytes));
                hbitmap_reset(h, bit * 4096, 1);
                ck_assert_uint_eq(hbitmap_run(h, 0, granules * 4096, &dirty),
                                  granules * 4096);
            }
        }
    }
    hbitmap_free(h);
}
END_TEST

static void merge_model(struct model *dst, const struct model *src)
{
    for (unsigned i = 0; i < src->count; i++) {
        uint64_t from = src->areas[i].from * src->granularity;
        uint64_t to = min_u64(src->areas[i].to * src->granularity, src->size);
        model_put_bytes(dst, from, to - from, true);
    }
}

START_TEST(merge_is_a_union_across_granularities)
{
    static const uint64_t some[] = {513, 3 * MiB + 1, 8 * GiB, 16 * TiB - 5};
    static const unsigned shifts[] = {9, 10, 12, 15, 16, 17, 22, 31};
    unsigned dst_shift = shifts[(unsigned)_i % ARRAY_SIZE(shifts)];
    unsigned src_shift = shifts[(unsigned)_i / ARRAY_SIZE(shifts)];

    for (unsigned i = 0; i < ARRAY_SIZE(some); i++) {
        seed = 1234567 + (uint64_t)_i * 100 + i;
        model_init(&model, some[i], UINT64_C(1) << dst_shift);
        model_init(&other, some[i], UINT64_C(1) << src_shift);
        struct hbitmap *dst = hbitmap_new(some[i], model.granularity);
        struct hbitmap *src = hbitmap_new(some[i], other.granularity);
        for (unsigned k = 0; k < 20; k++) {
            /* The same for both, so that they overlap; small in bytes, so
             * that the finer one stays small. */
            uint64_t a = some_offset(&model);
            uint64_t b = rnd() % 3 ? some_offset(&other) : a;
            uint64_t la = min_u64(rnd() % (4 * MiB) + 1, some[i] - a);
            uint64_t lb = min_u64(rnd() % (4 * MiB) + 1, some[i] - b);
            hbitmap_set(dst, a, la);
            model_put_bytes(&model, a, la, true);
            hbitmap_set(src, b, lb);
            model_put_bytes(&other, b, lb, true);
        }
        struct hbitmap *copy = hbitmap_copy(src);
        same(copy, &other);
        ck_assert(hbitmap_covers(copy, src));
        ck_assert(hbitmap_covers(src, copy));
        if (hbitmap_count(src) > 0) {
            uint64_t at;
            uint64_t len;
            ck_assert(hbitmap_next_dirty(src, 0, some[i], &at, &len));
            hbitmap_reset(copy, at, 1);
            ck_assert(!hbitmap_covers(copy, src));
            ck_assert(hbitmap_covers(src, copy));
        }
        struct hbitmap *before = hbitmap_copy(dst);
        hbitmap_merge(dst, src);
        merge_model(&model, &other);
        same(dst, &model);
        if (dst_shift == src_shift) {
            same_runs(before, src, &model, 1);
            same_runs(before, src, &model, 64);
            same_runs(src, before, &model, 64);
        }
        hbitmap_free(before);
        same(src, &other);
        hbitmap_merge(dst, copy);
        same(dst, &model);
        hbitmap_free(copy);
        hbitmap_free(dst);
        hbitmap_free(src);
    }
}
END_TEST

START_TEST(resize_keeps_what_stays_and_adds_clean_space)
{
    static const uint64_t steps[] = {
        1 * MiB, 1 * MiB + 1, 5 * GiB, 64 * KiB, 70 * KiB, 16 * TiB, 3 * GiB,
        100,     200 * GiB,   0,       7 * MiB,  511,      64 * MiB,
    };
    uint64_t granularity = UINT64_C(512) << (_i * 4);
    struct hbitmap *h = hbitmap_new(0, granularity);

    seed = 42 + (uint64_t)_i;
    model_init(&model, 0, granularity);
    for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
        uint64_t granules = div_up(steps[i], granularity);
        ck_assert_int_eq(hbitmap_resize(h, steps[i]), 0);
        model.size = steps[i];
        model_put(&model, granules, UINT64_MAX, false);
        same(h, &model);
        if (steps[i] > 0) {
            churn(h, &model, 15);
            uint64_t last = align_down(steps[i] - 1, granularity);
            hbitmap_set(h, last, steps[i] - last);
            model_put_bytes(&model, last, steps[i] - last, true);
        }
    }
    hbitmap_free(h);
}
END_TEST

static uint64_t page_faults(void)
{
    struct rusage u;

    ck_assert_int_eq(getrusage(RUSAGE_SELF, &u), 0);
    return (uint64_t)u.ru_minflt;
}

/* A bit in each of 8192 pages.  Growing copies none of them; what is cut off,
 * and is clean, is not touched either. */
START_TEST(resize_touches_no_page_that_stays)
{
    const uint64_t size = 16 * TiB;
    const uint64_t step = 2 * GiB; /* a page of bits */
    struct hbitmap *h = hbitmap_new(size, 64 * KiB);
    uint64_t at;
    uint64_t bytes;

    for (uint64_t i = 0; i < size / 2; i += step) {
        hbitmap_set(h, i, 1);
    }
    uint64_t before = page_faults();
    ck_assert_int_eq(hbitmap_resize(h, size + GiB), 0);
    ck_assert_int_eq(hbitmap_resize(h, 4 * size), 0);
    ck_assert_int_eq(hbitmap_resize(h, size / 2 + 1), 0);
    ck_assert_int_eq(hbitmap_resize(h, 4 * size), 0);
    ck_assert_uint_lt(page_faults() - before, size / 2 / step / 8);
    ck_assert_uint_eq(hbitmap_count(h), size / 2 / step * 64 * KiB);
    for (uint64_t i = 0; i < size / 2; i += step) {
        ck_assert(hbitmap_next_dirty(h, i ? i - 1 : 0, 4 * size, &at, &bytes));
        ck_assert_uint_eq(at, i);
        ck_assert_uint_eq(bytes, 64 * KiB);
    }
    ck_assert(!hbitmap_next_dirty(h, size / 2, 4 * size, &at, &bytes));
    hbitmap_free(h);
}
END_TEST

/* Ranges that begin and end inside of words, over what is set already. */
START_TEST(setting_alone_is_setting)
{
    const uint64_t size = 512 * 300000;
    struct hbitmap *a = hbitmap_new(size, 512);
    struct hbitmap *b = hbitmap_new(size, 512);

    seed = 7;
    for (unsigned i = 0; i < 200; i++) {
        uint64_t at = rnd() % size;
        uint64_t most = i % 20 ? 100000 : size;
        uint64_t bytes = rnd() % min_u64(most, size - at + 1);

        hbitmap_set(a, at, bytes);
        hbitmap_set_alone(b, at, bytes);
        ck_assert_uint_eq(hbitmap_count(a), hbitmap_count(b));
        ck_assert(hbitmap_covers(a, b) && hbitmap_covers(b, a));
        if (i % 20 == 19) {
            uint64_t cut = rnd() % size;
            ck_assert_int_eq(hbitmap_resize(a, cut) | hbitmap_resize(b, cut),
                             0);
            ck_assert_int_eq(hbitmap_resize(a, size) | hbitmap_resize(b, size),
                             0);
            ck_assert_uint_eq(hbitmap_count(a), hbitmap_count(b));
            ck_assert(hbitmap_covers(a, b) && hbitmap_covers(b, a));
        }
    }
    hbitmap_free(a);
    hbitmap_free(b);
}
END_TEST

/* Random bytes: pages without a bit, with some, and full ones; in pieces, into
 * a bitmap that is empty or has bits, which are taken out again. */
START_TEST(bytes_are_taken_in_and_given_out)
{
    static const uint64_t counts[] = {
        1, 63, 65, 4096, 70001, 1 << 20, (4 * MiB + 32 * KiB) * 8 + 77};
    uint64_t granules = counts[_i % 7];
    uint64_t piece = _i % 3 == 0   ? 64
                     : _i % 3 == 1 ? 64 * KiB * 8
                                   : 2 * MiB * 8;
    bool had = _i / 7;
    size_t len = (size_t)div_up(granules, 8);
    unsigned char *bytes = calloc(1, len);
    unsigned char *back = calloc(1, len);
    struct hbitmap *h = hbitmap_new(granules * 512, 512);
    struct hbitmap *want = hbitmap_new(granules * 512, 512);

    seed = 99 + (uint64_t)_i;
    ck_assert(bytes && back && h && want);
    for (size_t at = 0; at < len; at += 4096) {
        uint64_t kind = at < 3 * MiB ? 1 : rnd() % 3; /* huge pages' too */
        for (size_t k = 0; k < (kind == 1 ? 3 : kind * 2048); k++) {
            size_t to = at + (kind == 1 ? rnd() % 4096 : k * 2);
            bytes[min_u64(to, len - 1)] = (unsigned char)rnd();
        }
    }
    for (uint64_t i = 0; i < granules; i++) {
        if (bytes[i / 8] >> i % 8 & 1) {
            hbitmap_set(want, i * 512, 512);
        }
    }
    for (unsigned k = 0; had && k < 50; k++) {
        uint64_t i = rnd() % granules;
        hbitmap_set(h, i * 512, 512);
        hbitmap_set(want, i * 512, 512);
    }
    if (granules % 8) { /* what is behind the end is not taken in */
        bytes[len - 1] |= (unsigned char)(0xff << granules % 8);
    }
    for (uint64_t at = 0; at < granules; at += piece) {
        hbitmap_import(h, at, min_u64(piece, granules - at), bytes + at / 8);
    }
    ck_assert_uint_eq(hbitmap_count(h), hbitmap_count(want));
    ck_assert(hbitmap_covers(h, want));
    ck_assert(hbitmap_covers(want, h));
    hbitmap_or_in(h, 0, granules, back);
    for (uint64_t i = 0; i < granules; i++) {
        ck_assert_int_eq(back[i / 8] >> i % 8 & 1, hbitmap_get(want, i * 512));
    }
    hbitmap_reset(h, 0, granules * 512); /* by search: all levels are there */
    ck_assert_uint_eq(hbitmap_count(h), 0);
    hbitmap_free(h);
    hbitmap_free(want);
    free(bytes);
    free(back);
}
END_TEST

START_TEST(pages_without_bits_are_not_touched_by_taking_in)
{
    static unsigned char bytes[4 * MiB];
    uint64_t granules = sizeof(bytes) * UINT64_C(8);
    struct hbitmap *h = hbitmap_new(granules * 512, 512);

    for (size_t at = 0; at < sizeof(bytes); at += 256 * KiB) {
        bytes[at] = 1;
    }
    hbitmap_import(h, 0, granules, bytes); /* all other pages are there now */
    ck_assert_uint_eq(hbitmap_count(h), 16 * 512);
    hbitmap_free(h);
    h = hbitmap_new(granules * 512, 512);
    uint64_t before = page_faults();
    hbitmap_import(h, 0, granules, bytes);
    /* Sanitizers touch memory of their own; all of it would be 1024 pages. */
    ck_assert_uint_lt(page_faults() - before, 400);
    ck_assert_uint_eq(hbitmap_count(h), 16 * 512);
    hbitmap_free(h);
}
END_TEST

START_TEST(too_large_is_no_memory)
{
    ck_assert_ptr_null(hbitmap_new(UINT64_MAX, 512));
    struct hbitmap *h = hbitmap_new(1 * MiB, 512);
    hbitmap_set(h, 0, 1024);
    ck_assert_int_lt(hbitmap_resize(h, (uint64_t)INT64_MAX), 0);
    ck_assert_uint_eq(hbitmap_size(h), 1 * MiB);
    ck_assert_uint_eq(hbitmap_count(h), 1024);
    hbitmap_free(h);
}
END_TEST

/* --- Threads --- */

#define SETTERS 3
#define ROUNDS  40000

static struct hbitmap *shared;
static _Atomic bool stop;

struct setter {
    pthread_t thread;
    unsigned index;
};

/*
 * Granules are dealt out so that the setters and the resetter are always in
 * the same words and never have the same granule: granule % 4 tells whose it
 * is.  A setter's granules stay; the resetter's come and go, and make words
 * empty all the time.
 */
static void *set_own(void *arg)
{
    const struct setter *s = arg;
    uint64_t granules = hbitmap_size(shared) / 512;

    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t granule = i * 4 * 67 % granules / 4 * 4 + s->index;
        hbitmap_set(shared, granule * 512, 512);
    }
    return NULL;
}

static void *come_and_go(void *arg)
{
    uint64_t granules = hbitmap_size(shared) / 512;
    uint64_t i = 0;

    (void)arg;
    while (!atomic_load(&stop)) {
        uint64_t granule = i * 4 * 67 % granules / 4 * 4 + 3;
        hbitmap_set(shared, granule * 512, 512);
        hbitmap_reset(shared, granule * 512, 512);
        i++;
    }
    return NULL;
}

START_TEST(no_set_bit_is_lost_to_a_resetter)
{
    static const uint64_t counts[] = {64, 8192, 64 * 64 * 64};
    uint64_t granules = counts[_i];
    struct setter setters[SETTERS];
    pthread_t resetters[2];

    shared = hbitmap_new(granules * 512, 512);
    atomic_store(&stop, false);
    /* Two of them would share granules, which the counter does not forgive
     * them for the moment; in the end it must be right all the same. */
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(
            thread_start(&resetters[i], "reset", come_and_go, NULL), 0);
    }
    for (unsigned i = 0; i < SETTERS; i++) {
        setters[i].index = i;
        ck_assert_int_eq(
            thread_start(&setters[i].thread, "set", set_own, &setters[i]), 0);
    }
    for (unsigned i = 0; i < SETTERS; i++) {
        thread_join(setters[i].thread);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < 2; i++) {
        thread_join(resetters[i]);
    }

    model_init(&model, granules * 512, 512);
    struct hbitmap *want = hbitmap_new(granules * 512, 512);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        hbitmap_set(want, i * 4 * 67 % granules / 4 * 4 * 512, SETTERS * 512);
    }
    for (uint64_t i = 0; i < granules; i++) {
        if (i % 4 == 3) {
            hbitmap_reset(shared, i * 512, 512);
        }
    }
    ck_assert_uint_eq(hbitmap_count(shared), hbitmap_count(want));
    /* By search, not by bit: that is where a lost upper bit shows. */
    for (uint64_t at = 0; at < granules * 512;) {
        bool is;
        bool shall;
        uint64_t run = hbitmap_run(want, at, granules * 512, &shall);
        ck_assert_uint_eq(hbitmap_run(shared, at, granules * 512, &is), run);
        ck_assert_int_eq(is, shall);
        at += run;
    }
    hbitmap_free(want);
    hbitmap_free(shared);
}
END_TEST

/*
 * Two threads at the same word at the same time, again and again: the words
 * are empty at first, so that it is always a first bit, with all that this
 * means for the levels above.
 */
#define STEPS 30000
#define WORD  (UINT64_C(64) * 512) /* bytes of a word */

static _Atomic uint64_t step_of[2];

static void in_step(unsigned me, uint64_t i)
{
    atomic_store(&step_of[me], i);
    for (unsigned spins = 0; atomic_load(&step_of[1 - me]) < i; spins++) {
        if (spins > 200) {
            (void)sched_yield();
        }
    }
    /* Not always at exactly the same time. */
    for (volatile uint64_t k = 0; k < i * 7 % (me ? 30 : 40); k++) {
    }
}

static void both(void *(*first)(void *), void *(*second)(void *))
{
    pthread_t threads[2];

    atomic_store(&step_of[0], 0);
    atomic_store(&step_of[1], 0);
    shared = hbitmap_new(2 * (STEPS + 1) * WORD, 512);
    ck_assert_int_eq(thread_start(&threads[0], "first", first, NULL), 0);
    ck_assert_int_eq(thread_start(&threads[1], "second", second, NULL), 0);
    thread_join(threads[0]);
    thread_join(threads[1]);
}

static void *set_first_bits(void *arg)
{
    for (uint64_t i = 1; i <= STEPS; i++) {
        in_step(0, i);
        hbitmap_set(shared, i * WORD, 512);
    }
    return arg;
}

static void *empty_the_words(void *arg)
{
    for (uint64_t i = 1; i <= STEPS; i++) {
        hbitmap_set(shared, i * WORD + WORD - 512, 512);
        in_step(1, i);
        hbitmap_reset(shared, i * WORD + WORD - 512, 512);
    }
    return arg;
}

START_TEST(words_that_empty_and_fill_at_once_are_found)
{
    uint64_t start = 0;
    uint64_t bytes = 0;

    both(set_first_bits, empty_the_words);
    for (uint64_t i = 1; i <= STEPS; i++) {
        ck_assert(hbitmap_next_dirty(shared, start + bytes,
                                     hbitmap_size(shared), &start, &bytes));
        ck_assert_uint_eq(start, i * WORD);
    }
    ck_assert_uint_eq(hbitmap_count(shared), STEPS * 512);
    hbitmap_free(shared);
}
END_TEST

/* One of the two finds the bit set and returns at once. */
static void *set_and_search(unsigned me)
{
    for (uint64_t i = 1; i <= STEPS; i++) {
        uint64_t offset = 2 * i * WORD + 7 * 512;
        uint64_t start = 0;
        uint64_t bytes;
        in_step(me, i);
        hbitmap_set(shared, offset, 512);
        ck_assert(hbitmap_next_dirty(shared, offset - WORD, offset + 512,
                                     &start, &bytes));
        ck_assert_uint_eq(start, offset);
        ck_assert_uint_ge(hbitmap_count(shared), i * 512);
    }
    return NULL;
}

static void *set_and_search_0(void *arg)
{
    (void)arg;
    return set_and_search(0);
}

static void *set_and_search_1(void *arg)
{
    (void)arg;
    return set_and_search(1);
}

START_TEST(a_set_that_has_returned_is_found)
{
    both(set_and_search_0, set_and_search_1);
    ck_assert_uint_eq(hbitmap_count(shared), STEPS * 512);
    hbitmap_free(shared);
}
END_TEST

/* The same with ranges of many words, which take their time. */
#define ROUNDS_OF_RANGES 60
#define RANGE            (4096 * WORD)

static void *set_the_range(void *arg)
{
    in_step(0, 1);
    while (hbitmap_get(shared, WORD + RANGE / 8)) { /* a head start */
    }
    hbitmap_set(shared, WORD, RANGE);
    return arg;
}

static void *reset_the_range(void *arg)
{
    hbitmap_set(shared, WORD, RANGE);
    in_step(1, 1);
    hbitmap_reset(shared, WORD, RANGE);
    return arg;
}

START_TEST(search_finds_what_is_left_of_a_range)
{
    for (unsigned i = 0; i < ROUNDS_OF_RANGES; i++) {
        uint64_t bits = 0;
        uint64_t found = 0;
        uint64_t start;
        uint64_t bytes;
        both(set_the_range, reset_the_range);
        /* Neighbours go, so that no word is found by way of the last one. */
        for (uint64_t at = WORD; at < WORD + RANGE; at += 2 * WORD) {
            hbitmap_reset(shared, at, WORD);
        }
        for (uint64_t at = WORD; at < WORD + RANGE; at += 512) {
            bits += hbitmap_get(shared, at) ? 512 : 0;
        }
        for (uint64_t at = 0; hbitmap_next_dirty(
                 shared, at, hbitmap_size(shared), &start, &bytes);
             at = start + bytes) {
            found += bytes;
        }
        ck_assert_uint_eq(found, bits);
        ck_assert_uint_eq(hbitmap_count(shared), bits);
        hbitmap_free(shared);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("hbitmap");
    TCase *tc = tcase_create("alone");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, random_operations_agree_with_the_model, 0, 23);
    tcase_add_test(tc, nothing_is_dirty_in_an_empty_disk);
    tcase_add_test(tc, an_empty_range_sets_nothing);
    tcase_add_test(tc, search_crosses_levels);
    tcase_add_loop_test(tc, merge_is_a_union_across_granularities, 0, 64);
    tcase_add_loop_test(tc, resize_keeps_what_stays_and_adds_clean_space, 0, 6);
    tcase_add_test(tc, resize_touches_no_page_that_stays);
    tcase_add_test(tc, setting_alone_is_setting);
    tcase_add_loop_test(tc, bytes_are_taken_in_and_given_out, 0, 14);
    tcase_add_test(tc, pages_without_bits_are_not_touched_by_taking_in);
    tcase_add_test(tc, too_large_is_no_memory);
    suite_add_tcase(s, tc);
    tc = tcase_create("threads");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, no_set_bit_is_lost_to_a_resetter, 0, 3);
    tcase_add_test(tc, words_that_empty_and_fill_at_once_are_found);
    tcase_add_test(tc, a_set_that_has_returned_is_found);
    tcase_add_test(tc, search_finds_what_is_left_of_a_range);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
