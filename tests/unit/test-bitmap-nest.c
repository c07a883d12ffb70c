/* SPDX-License-Identifier: BSD-3-Clause */
/* Nests of recording bitmaps: a write looks at one of many checkpoints, and
 * none of them loses a bit by that. */
#include <check.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap-util.h"
#include "core/graph.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"

#define SIZE     (8 * MiB)
#define G        (64 * KiB)
#define GRANULES (SIZE / G)
#define BITMAPS  8
#define STEPS    6000

static struct graph *g;
static struct node *n;
static struct blk *b;

static void setup(void)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:I}", "driver", "mem",
                                       "node-name", "disk", "size",
                                       (json_int_t)SIZE);

    g = graph_new();
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
}

static void teardown(void)
{
    blk_free(b);
    graph_free(g);
}

static void put(uint64_t offset, uint64_t bytes)
{
    static const char data[SIZE];

    ck_assert_int_eq(blk_pwrite(b, data, bytes, offset, 0), 0);
}

static const char *name_of(unsigned i)
{
    static char names[64][8];

    (void)snprintf(names[i], sizeof(names[i]), "c%u", i);
    return names[i];
}

static void add(unsigned i, uint64_t granularity)
{
    ck_assert_int_eq(
        bitmap_add(g, n, name_of(i), granularity, false, false, NULL), 0);
}

static struct bitmap *get(unsigned i)
{
    struct bitmap *bm = bitmap_find(n, name_of(i));

    bitmap_unref(bm);
    return bm;
}

/* Recording bitmaps that a write looks at when all have its bits. */
static unsigned nests(void)
{
    unsigned count = 0;

    for (struct bitmap *bm = n->recording; bm; bm = bm->rest) {
        count++;
    }
    return count;
}

START_TEST(thirty_checkpoints_are_one_nest)
{
    for (unsigned i = 0; i < 30; i++) {
        add(i, G);
        ck_assert_uint_eq(nests(), 1);
        put(i * G, 2 * G);
        ck_assert_ptr_eq(n->recording, get(i));
    }
    for (unsigned i = 0; i < 30; i++) {
        ck_assert_uint_eq(bitmap_count(get(i)), (31 - i) * G);
    }
}
END_TEST

START_TEST(one_in_the_middle_may_go)
{
    add(0, G);
    put(0, G);
    add(1, G);
    put(G, G);
    add(2, G);
    ck_assert_int_eq(bitmap_remove(g, n, "c1", NULL), 0);
    ck_assert_uint_eq(nests(), 1);
    put(2 * G, G);
    ck_assert_uint_eq(bitmap_count(get(0)), 3 * G);
    ck_assert_uint_eq(bitmap_count(get(2)), G);
}
END_TEST

START_TEST(an_older_one_that_was_cleared_becomes_the_innermost)
{
    add(0, G);
    add(1, G);
    put(0, G);
    ck_assert_int_eq(bitmap_clear(g, n, "c0", NULL), 0);
    ck_assert_ptr_eq(n->recording, get(0));
    ck_assert_uint_eq(nests(), 1);
    put(0, G);
    ck_assert_uint_eq(bitmap_count(get(0)), G);
}
END_TEST

START_TEST(bits_that_an_older_one_lacks_part_the_two)
{
    add(0, G);
    put(0, G);
    ck_assert_int_eq(bitmap_enable(g, n, "c0", false, NULL), 0);
    add(1, G);
    put(G, G);
    ck_assert_int_eq(bitmap_enable(g, n, "c0", true, NULL), 0);
    ck_assert_uint_eq(nests(), 2);
    put(G, G);
    ck_assert_uint_eq(bitmap_count(get(0)), 2 * G);
}
END_TEST

START_TEST(a_finer_one_is_not_the_outer_one)
{
    add(0, G / 2);
    put(0, G / 2);
    add(1, G);
    put(0, G / 2); /* and of c1 the whole granule */
    put(G / 2, G / 2);
    ck_assert_uint_eq(bitmap_count(get(0)), G);
    ck_assert_uint_eq(nests(), 2);

    add(2, G / 4);
    ck_assert_ptr_eq(n->recording, get(2));
    ck_assert_uint_eq(nests(), 2);
    put(G, G / 4);
    ck_assert_uint_eq(bitmap_count(get(0)), G + G / 2);
    ck_assert_uint_eq(bitmap_count(get(1)), 2 * G);
    ck_assert_uint_eq(bitmap_count(get(2)), G / 4);
}
END_TEST

/* --- Against a model that marks each bitmap on its own --- */

struct model {
    bool there;
    bool enabled;
    bool frozen;
    bool bits[GRANULES];
    bool successor[GRANULES];
};
static struct model model[BITMAPS];

static void freeze(unsigned i)
{
    struct bitmap *bm = get(i);

    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(bitmap_freeze(bm, NULL), 0);
    graph_unlock(g);
    model[i].frozen = true;
    for (unsigned k = 0; k < GRANULES; k++) {
        model[i].successor[k] = false;
    }
}

static void thaw(unsigned i, bool success)
{
    struct bitmap *bm = get(i);

    graph_lock(g);
    graph_drain(g, n);
    if (success) {
        bitmap_abdicate(bm);
    } else {
        bitmap_reclaim(bm);
    }
    graph_unlock(g);
    model[i].frozen = false;
    for (unsigned k = 0; k < GRANULES; k++) {
        model[i].bits[k] = model[i].successor[k] ||
                           (!success && model[i].bits[k]);
    }
}

static void write_some(void)
{
    unsigned first = (unsigned)rand() % GRANULES;
    unsigned last = first + (unsigned)rand() % 6;

    last = last < GRANULES ? last : GRANULES - 1;
    put(first * G, (last - first + 1) * G);
    for (unsigned i = 0; i < BITMAPS; i++) {
        struct model *m = &model[i];
        for (unsigned k = first; m->there && m->enabled && k <= last; k++) {
            *(m->frozen ? &m->successor[k] : &m->bits[k]) = true;
        }
    }
}

static void change_one(unsigned i, unsigned how)
{
    struct model *m = &model[i];
    unsigned from = (unsigned)rand() % BITMAPS;

    if (!m->there) {
        add(i, G);
        *m = (struct model){.there = true, .enabled = true};
    } else if (m->frozen) {
        thaw(i, how % 2 != 0);
    } else if (how == 0) {
        ck_assert_int_eq(bitmap_remove(g, n, name_of(i), NULL), 0);
        m->there = false;
    } else if (how == 1) {
        ck_assert_int_eq(bitmap_clear(g, n, name_of(i), NULL), 0);
        *m = (struct model){.there = true, .enabled = m->enabled};
    } else if (how < 4) {
        m->enabled = !m->enabled;
        ck_assert_int_eq(bitmap_enable(g, n, name_of(i), m->enabled, NULL), 0);
    } else if (how == 4 && model[from].there && !model[from].frozen) {
        ck_assert_int_eq(bitmap_merge(g, n, name_of(i), get(from), NULL), 0);
        for (unsigned k = 0; k < GRANULES; k++) {
            m->bits[k] = m->bits[k] || model[from].bits[k];
        }
    } else {
        freeze(i);
    }
}

static void compare_one(unsigned i)
{
    const struct model *m = &model[i];

    for (unsigned k = 0; m->there && k < GRANULES; k++) {
        bool dirty;
        (void)bitmap_run(get(i), k * G, (k + 1) * G, &dirty);
        ck_assert_msg(dirty == (m->bits[k] || (m->frozen && m->successor[k])),
                      "bitmap %u, granule %u: %d", i, k, dirty);
    }
}

START_TEST(whatever_changes_each_has_what_it_would_have_alone)
{
    memset(model, 0, sizeof(model));
    srand((unsigned)_i + 1);
    for (unsigned step = 0; step < STEPS; step++) {
        if (rand() % 4 > 0) {
            write_some();
        } else {
            change_one((unsigned)rand() % BITMAPS, (unsigned)rand() % 6);
        }
        compare_one(step % BITMAPS);
    }
}
END_TEST

/* --- Writers at once --- */

#define WRITERS 3

static struct bitmap *shared[4];

static void *writer(void *arg)
{
    const unsigned *seed = arg;
    unsigned state = *seed;
    static const char data[512];

    for (unsigned i = 0; i < 3000; i++) {
        const struct bitmap *bm = shared[i % 4];
        uint64_t at = (uint64_t)rand_r(&state) % GRANULES * G;
        bool dirty;

        ck_assert_int_eq(blk_pwrite(b, data, sizeof(data), at, 0), 0);
        (void)bitmap_run(bm, at, at + 1, &dirty);
        ck_assert(dirty);
    }
    return NULL;
}

START_TEST(who_has_written_finds_its_bit_in_all)
{
    pthread_t threads[WRITERS];
    unsigned seeds[WRITERS];

    for (unsigned i = 0; i < 4; i++) {
        add(i, G);
        shared[i] = get(i);
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        seeds[i] = i;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, writer, &seeds[i]),
                         0);
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bitmap-nest");
    TCase *tc = tcase_create("nests");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, thirty_checkpoints_are_one_nest);
    tcase_add_test(tc, one_in_the_middle_may_go);
    tcase_add_test(tc, an_older_one_that_was_cleared_becomes_the_innermost);
    tcase_add_test(tc, bits_that_an_older_one_lacks_part_the_two);
    tcase_add_test(tc, a_finer_one_is_not_the_outer_one);
    tcase_add_loop_test(tc, whatever_changes_each_has_what_it_would_have_alone,
                        0, 4);
    tcase_add_test(tc, who_has_written_finds_its_bit_in_all);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
