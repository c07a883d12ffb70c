/* SPDX-License-Identifier: BSD-3-Clause */
/* Range locks: conflicts, turns, and waiting. */
#include <check.h>
#include <sched.h>
#include <stdlib.h>

#include "core/rangelock.h"
#include "nbdelta/bytes.h"

static struct range_lock lock;

/* Would a request for the range have to wait now? */
static bool busy(uint64_t offset, uint64_t bytes, bool exclusive)
{
    struct range_req r;

    if (!range_trylock(&lock, &r, offset, bytes, exclusive)) {
        return true;
    }
    range_unlock(&lock, &r);
    return false;
}

/* Wait until @n requests hold or wait: proof that a thread is in the queue. */
static void await_requests(unsigned n)
{
    for (unsigned found = 0; found != n; (void)sched_yield()) {
        found = 0;
        mutex_lock(&lock.lock);
        list_for_each (e, &lock.requests) {
            found++;
        }
        mutex_unlock(&lock.lock);
    }
}

START_TEST(only_overlap_with_an_exclusive_one_conflicts)
{
    struct range_req r;

    range_lock_init(&lock);
    range_lock(&lock, &r, 100, 100, true);
    ck_assert(busy(100, 100, true));
    ck_assert(busy(199, 1, false));
    ck_assert(busy(0, 101, false));
    ck_assert(busy(0, UINT64_MAX, true));
    ck_assert(!busy(0, 100, true));
    ck_assert(!busy(200, 1, true));
    range_unlock(&lock, &r);
    ck_assert(!busy(100, 100, true));

    range_lock(&lock, &r, 100, 100, false);
    ck_assert(!busy(100, 100, false));
    ck_assert(busy(150, 1, true));
    range_unlock(&lock, &r);
    range_lock_destroy(&lock);
}
END_TEST

START_TEST(empty_ranges_overlap_nothing)
{
    struct range_req r;
    struct range_req empty;

    range_lock_init(&lock);
    range_lock(&lock, &r, 100, 100, true);
    ck_assert(!busy(150, 0, true));
    range_lock(&lock, &empty, 150, 0, true);
    range_unlock(&lock, &r);
    ck_assert(!busy(100, 100, true));
    range_unlock(&lock, &empty);
    range_lock_destroy(&lock);
}
END_TEST

START_TEST(range_past_the_last_offset_ends_there)
{
    struct range_req r;

    range_lock_init(&lock);
    range_lock(&lock, &r, UINT64_MAX - 10, 100, true);
    ck_assert(busy(UINT64_MAX - 1, 1, true));
    ck_assert(!busy(0, 90, true));
    range_unlock(&lock, &r);
    range_lock_destroy(&lock);
}
END_TEST

/* A thread that takes a range once, notes its turn and lets go. */
struct visitor {
    pthread_t thread;
    uint64_t offset;
    uint64_t bytes;
    bool exclusive;
    unsigned *turns; /* guarded by the range */
    unsigned turn;
    pthread_barrier_t *meet; /* all that share it are inside at once */
};

static void *visit(void *arg)
{
    struct visitor *v = arg;
    struct range_req r;

    range_lock(&lock, &r, v->offset, v->bytes, v->exclusive);
    if (v->turns) {
        v->turn = (*v->turns)++;
    }
    if (v->meet) {
        (void)pthread_barrier_wait(v->meet);
    }
    range_unlock(&lock, &r);
    return NULL;
}

START_TEST(turns_are_taken_in_the_order_of_arrival)
{
    struct visitor v[8] = {0};
    struct range_req r;
    unsigned turns = 0;

    range_lock_init(&lock);
    range_lock(&lock, &r, 0, 100, true);
    for (unsigned i = 0; i < ARRAY_SIZE(v); i++) {
        v[i].offset = i;
        v[i].bytes = 50;
        v[i].exclusive = true;
        v[i].turns = &turns;
        ck_assert_int_eq(thread_start(&v[i].thread, "visitor", visit, &v[i]),
                         0);
        await_requests(i + 2);
    }
    range_unlock(&lock, &r);
    for (unsigned i = 0; i < ARRAY_SIZE(v); i++) {
        thread_join(v[i].thread);
        ck_assert_uint_eq(v[i].turn, i);
    }
    range_lock_destroy(&lock);
}
END_TEST

START_TEST(nobody_overtakes_one_who_waits)
{
    struct visitor writer = {.offset = 50, .bytes = 100, .exclusive = true};
    struct range_req r;

    range_lock_init(&lock);
    range_lock(&lock, &r, 0, 100, false);
    ck_assert(!busy(50, 10, false));
    ck_assert_int_eq(thread_start(&writer.thread, "writer", visit, &writer), 0);
    await_requests(2);
    ck_assert(busy(50, 10, false));
    ck_assert(busy(140, 10, false));
    ck_assert(!busy(0, 50, false));
    range_unlock(&lock, &r);
    thread_join(writer.thread);
    ck_assert(!busy(0, 200, true));
    range_lock_destroy(&lock);
}
END_TEST

START_TEST(sharers_are_inside_together_after_an_exclusive_one)
{
    struct visitor v[3] = {0};
    struct range_req r;
    pthread_barrier_t meet;

    range_lock_init(&lock);
    ck_assert_int_eq(pthread_barrier_init(&meet, NULL, ARRAY_SIZE(v)), 0);
    range_lock(&lock, &r, 0, 100, true);
    for (unsigned i = 0; i < ARRAY_SIZE(v); i++) {
        v[i].bytes = 100;
        v[i].meet = &meet;
        ck_assert_int_eq(thread_start(&v[i].thread, "sharer", visit, &v[i]), 0);
    }
    await_requests(1 + ARRAY_SIZE(v));
    range_unlock(&lock, &r);
    for (unsigned i = 0; i < ARRAY_SIZE(v); i++) {
        thread_join(v[i].thread);
    }
    ck_assert_int_eq(pthread_barrier_destroy(&meet), 0);
    range_lock_destroy(&lock);
}
END_TEST

START_TEST(one_waits_for_all_in_its_way)
{
    struct visitor v = {.bytes = 100, .exclusive = true};
    struct range_req left;
    struct range_req right;
    unsigned turns = 0;

    range_lock_init(&lock);
    range_lock(&lock, &left, 0, 10, false);
    range_lock(&lock, &right, 90, 10, true);
    v.turns = &turns;
    ck_assert_int_eq(thread_start(&v.thread, "visitor", visit, &v), 0);
    await_requests(3);
    range_unlock(&lock, &left);
    /* It still stands in the way of others, and has not had its turn. */
    await_requests(2);
    ck_assert(busy(50, 1, false));
    ck_assert_uint_eq(turns, 0);
    range_unlock(&lock, &right);
    thread_join(v.thread);
    ck_assert_uint_eq(turns, 1);
    range_lock_destroy(&lock);
}
END_TEST

/* Plain memory under the lock: a hole in it shows in the sums, and to TSan. */
#define CELLS  32
#define ROUNDS 3000

static unsigned cells[CELLS];

struct worker {
    pthread_t thread;
    unsigned seed;
    unsigned added;
    unsigned torn;
};

static void *work(void *arg)
{
    struct worker *w = arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned random = (unsigned)rand_r(&w->seed);
        unsigned from = random % CELLS;
        unsigned n = 1 + random / CELLS % (CELLS - from);
        bool write = random / CELLS / CELLS % 2 != 0;
        struct range_req r;
        unsigned sum = 0;

        range_lock(&lock, &r, from, n, write);
        for (unsigned c = from; c < from + n; c++) {
            if (write) { /* sharers may not even store what is there */
                cells[c]++;
                w->added++;
            }
            sum += cells[c];
        }
        for (unsigned c = from; c < from + n; c++) {
            sum -= cells[c];
        }
        w->torn += sum != 0;
        range_unlock(&lock, &r);
    }
    return NULL;
}

START_TEST(ranges_keep_threads_apart)
{
    struct worker w[4] = {0};
    unsigned added = 0;
    unsigned found = 0;

    range_lock_init(&lock);
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
        w[i].seed = i + 1;
        ck_assert_int_eq(thread_start(&w[i].thread, "worker", work, &w[i]), 0);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
        thread_join(w[i].thread);
        ck_assert_uint_eq(w[i].torn, 0);
        added += w[i].added;
    }
    for (unsigned i = 0; i < CELLS; i++) {
        found += cells[i];
    }
    ck_assert_uint_eq(found, added);
    ck_assert(list_empty(&lock.requests));
    range_lock_destroy(&lock);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("rangelock");
    TCase *tc = tcase_create("rangelock");
    tcase_add_test(tc, only_overlap_with_an_exclusive_one_conflicts);
    tcase_add_test(tc, empty_ranges_overlap_nothing);
    tcase_add_test(tc, range_past_the_last_offset_ends_there);
    tcase_add_test(tc, turns_are_taken_in_the_order_of_arrival);
    tcase_add_test(tc, nobody_overtakes_one_who_waits);
    tcase_add_test(tc, sharers_are_inside_together_after_an_exclusive_one);
    tcase_add_test(tc, one_waits_for_all_in_its_way);
    tcase_add_test(tc, ranges_keep_threads_apart);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
