/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bitmaps that share their bits: a family of them, each beside a naive one that
 * has a byte for each granule.
 */
#include <check.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/hbitmap.h"
#include "nbdelta/bytes.h"
#include "nbdelta/thread.h"

#define UNIT     UINT64_C(512)
#define LEAF     UINT64_C(32768)       /* granules */
#define GRANULES (17 * LEAF + 4711)    /* the last leaf is not whole */
#define ROOM     (GRANULES + 2 * LEAF) /* when it has grown */
#define FAMILY   6

static uint64_t seed;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

struct member {
    struct hbitmap *h;
    uint64_t granules;
    unsigned char bits[ROOM];
};

static struct member family[FAMILY];

static uint64_t model_count(const struct member *m)
{
    uint64_t n = 0;

    for (uint64_t i = 0; i < m->granules; i++) {
        n += m->bits[i];
    }
    return n;
}

static void same(const struct member *m)
{
    uint64_t end = m->granules * UNIT;
    uint64_t lengths[64];

    ck_assert_uint_eq(hbitmap_count(m->h), model_count(m) * UNIT);
    for (uint64_t at = 0; at < end;) {
        bool dirty;
        size_t count = hbitmap_runs(m->h, NULL, at, end, &dirty, lengths, 64);

        for (size_t i = 0; i < count; i++, dirty = !dirty) {
            ck_assert_ptr_null(
                memchr(&m->bits[at / UNIT], dirty ? 0 : 1, lengths[i] / UNIT));
            at += lengths[i];
        }
    }
    /* The upper levels lead to the same bits. */
    uint64_t start;
    uint64_t bytes;
    uint64_t sum = 0;
    for (uint64_t at = 0;
         at < end && hbitmap_next_dirty(m->h, at, end, &start, &bytes);
         at = start + bytes) {
        sum += bytes;
    }
    ck_assert_uint_eq(sum, hbitmap_count(m->h));
}

/* Mostly near the ends of leaves. */
static uint64_t some_granule(const struct member *m)
{
    uint64_t at = rnd() % m->granules;

    if (rnd() % 2) {
        at = align_down(at, LEAF) + rnd() % 3;
        at -= min_u64(at, rnd() % 3);
    }
    return min_u64(at, m->granules - 1);
}

static void change(struct member *m, unsigned how)
{
    uint64_t at = some_granule(m);
    uint64_t most = UINT64_C(1) << rnd() % 18;
    uint64_t count = min_u64(rnd() % most + 1, m->granules - at);

    if (how == 0) {
        hbitmap_set_alone(m->h, at * UNIT, count * UNIT);
    } else if (how == 1) {
        hbitmap_reset(m->h, at * UNIT, count * UNIT);
    } else {
        hbitmap_set(m->h, at * UNIT, count * UNIT);
    }
    memset(&m->bits[at], how != 1, count);
}

static void resize(struct member *m)
{
    uint64_t to = rnd() % 2 ? GRANULES : GRANULES - 3 * LEAF + rnd() % 5 * LEAF;

    ck_assert_int_eq(hbitmap_resize(m->h, to * UNIT), 0);
    if (to > m->granules) {
        memset(&m->bits[m->granules], 0, to - m->granules);
    }
    m->granules = to;
}

static void take_in(struct member *m)
{
    unsigned char bytes[2 * 4096];
    uint64_t count = min_u64(sizeof(bytes) * 8, m->granules);
    uint64_t first = align_down(rnd() % (m->granules - count + 1), 64);

    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = rnd() % 8 ? 0 : (unsigned char)rnd();
    }
    hbitmap_import(m->h, first, count, bytes);
    for (uint64_t i = 0; i < count; i++) {
        m->bits[first + i] |= bytes[i / 8] >> i % 8 & 1;
    }
}

static void replace(struct member *to, struct hbitmap *h,
                    const struct member *from)
{
    ck_assert_ptr_nonnull(h);
    hbitmap_free(to->h);
    to->h = h;
    to->granules = from->granules;
    memcpy(to->bits, from->bits, sizeof(to->bits));
}

static void merge(struct member *to, const struct member *from, bool alone)
{
    if (to->granules != from->granules) {
        return;
    }
    bool covers = true;
    for (uint64_t i = 0; i < to->granules; i++) {
        covers &= to->bits[i] || !from->bits[i];
    }
    ck_assert_int_eq(hbitmap_covers(to->h, from->h), covers);
    if (alone) {
        hbitmap_fill(to->h, from->h);
    } else {
        hbitmap_merge(to->h, from->h);
    }
    for (uint64_t i = 0; i < to->granules; i++) {
        to->bits[i] |= from->bits[i];
    }
}

static void do_something(void)
{
    struct member *m = &family[rnd() % FAMILY];
    struct member *other = &family[rnd() % FAMILY];
    unsigned what = rnd() % 40;

    if (what < 28) {
        change(m, what % 7);
    } else if (what == 28) {
        resize(m);
    } else if (what == 29) {
        take_in(m);
    } else if (what == 30 && rnd() % 4 == 0) {
        hbitmap_reset_all(m->h);
        memset(m->bits, 0, sizeof(m->bits));
    } else if (m == other) {
        return;
    } else if (what < 33) {
        merge(m, other, what == 31);
    } else if (what == 33) {
        replace(m, hbitmap_copy(other->h), other);
    } else if (what > 33) {
        replace(m, hbitmap_share(other->h), other);
        same(other);
        same(m);
    }
}

START_TEST(a_family_agrees_with_its_models)
{
    seed = 4711 + (uint64_t)_i * 12345;
    for (unsigned i = 0; i < FAMILY; i++) {
        family[i].h = hbitmap_new(GRANULES * UNIT, UNIT);
        family[i].granules = GRANULES;
        memset(family[i].bits, 0, sizeof(family[i].bits));
    }
    for (unsigned round = 0; round < 60; round++) {
        for (unsigned i = 0; i < 10; i++) {
            do_something();
        }
        for (unsigned i = 0; i < FAMILY; i++) {
            same(&family[i]);
        }
    }
    for (unsigned i = 0; i < FAMILY; i++) {
        hbitmap_free(family[i].h);
    }
}
END_TEST

/* --- Memory --- */

/* The thread sanitizer's own memory is several times what it watches. */
#ifdef __SANITIZE_THREAD__
#define SHADOW 16
#else
#define SHADOW 1
#endif

static uint64_t resident(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    char text[128];
    char *second;

    ck_assert_ptr_nonnull(f);
    ck_assert_ptr_nonnull(fgets(text, sizeof(text), f));
    (void)fclose(f);
    (void)strtoul(text, &second, 10);
    return strtoul(second, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Each night a backup shares the bits for a while, and guests write. */
START_TEST(sharing_takes_no_memory_that_stays)
{
    const uint64_t leaves = 4096; /* 16 MiB of bits */
    const uint64_t size = leaves * LEAF * UNIT;
    struct hbitmap *h = hbitmap_new(size, UNIT);

    hbitmap_set_alone(h, 0, size - UNIT);
    uint64_t before = resident();
    for (uint64_t night = 0; night < 30; night++) {
        uint64_t begin = resident();
        struct hbitmap *copy = hbitmap_share(h);
        struct hbitmap *again = hbitmap_share(copy);
        ck_assert_uint_lt(resident(), begin + 1 * MiB * SHADOW);
        for (uint64_t i = night % 5; i < leaves; i += 5) {
            hbitmap_reset(h, i * LEAF * UNIT, UNIT);
            hbitmap_set(h, i * LEAF * UNIT, UNIT);
        }
        ck_assert_uint_lt(resident(), begin + 5 * MiB * SHADOW);
        ck_assert_uint_eq(hbitmap_count(copy), size - UNIT);
        ck_assert_uint_eq(hbitmap_count(again), size - UNIT);
        hbitmap_free(copy);
        hbitmap_free(again);
    }
    hbitmap_free(hbitmap_share(h));
    ck_assert_uint_lt(resident(), before + 6 * MiB * SHADOW);
    ck_assert(hbitmap_all_set(h, 0, size - UNIT));
    hbitmap_free(h);
}
END_TEST

/* --- Threads --- */

#define THREADS 3
#define STEP    (UINT64_C(31) * THREADS)

static struct hbitmap *live;
static struct hbitmap *frozen;
static _Atomic bool stop;

struct setter {
    pthread_t thread;
    uint64_t index;
};

/* All threads come to a leaf at about the same time. */
static void *set_own(void *arg)
{
    const struct setter *s = arg;

    for (uint64_t i = s->index; i < GRANULES; i += STEP) {
        hbitmap_set(live, i * UNIT, UNIT);
        ck_assert(hbitmap_get(live, i * UNIT));
    }
    return NULL;
}

static void *look(void *arg)
{
    const struct hbitmap *h = arg;
    uint64_t count = hbitmap_count(frozen);

    while (!atomic_load(&stop)) {
        uint64_t start;
        uint64_t bytes;
        uint64_t sum = 0;

        for (uint64_t at = 0;
             hbitmap_next_dirty(h, at, GRANULES * UNIT, &start, &bytes);
             at = start + bytes) {
            sum += bytes;
        }
        ck_assert_uint_ge(sum, count);
        ck_assert(h == live || sum == count);
    }
    return NULL;
}

START_TEST(bits_set_after_the_copy_are_not_in_it_and_none_is_lost)
{
    struct setter setters[THREADS];
    pthread_t readers[2];

    live = hbitmap_new(GRANULES * UNIT, UNIT);
    for (uint64_t i = 30; i < GRANULES - 1; i += STEP) {
        hbitmap_set(live, i * UNIT, UNIT);
    }
    uint64_t before = hbitmap_count(live) / UNIT;
    frozen = hbitmap_share(live);
    atomic_store(&stop, false);
    ck_assert_int_eq(thread_start(&readers[0], "look", look, live), 0);
    ck_assert_int_eq(thread_start(&readers[1], "look", look, frozen), 0);
    uint64_t expected = before;
    for (unsigned i = 0; i < THREADS; i++) {
        setters[i].index = i;
        expected += div_up(GRANULES - i, STEP);
        ck_assert_int_eq(
            thread_start(&setters[i].thread, "set", set_own, &setters[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        thread_join(setters[i].thread);
    }
    atomic_store(&stop, true);
    thread_join(readers[0]);
    thread_join(readers[1]);
    ck_assert_uint_eq(hbitmap_count(live), expected * UNIT);
    ck_assert_uint_eq(hbitmap_count(frozen), before * UNIT);
    for (uint64_t i = 0; i < GRANULES; i++) {
        uint64_t which = i % STEP;
        bool old = which == 30 && i < GRANULES - 1;
        ck_assert_int_eq(hbitmap_get(live, i * UNIT), old || which < THREADS);
        ck_assert_int_eq(hbitmap_get(frozen, i * UNIT), old);
    }
    hbitmap_free(live);
    hbitmap_free(frozen);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("hbitmap-share");
    TCase *t = tcase_create("all");
    SRunner *r = srunner_create(s);

    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, a_family_agrees_with_its_models, 0, 4);
    tcase_add_test(t, sharing_takes_no_memory_that_stays);
    tcase_add_test(t, bits_set_after_the_copy_are_not_in_it_and_none_is_lost);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
