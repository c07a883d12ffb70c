/* SPDX-License-Identifier: BSD-3-Clause */
/* The server's pool of threads: how many there are, and for what. */
#include <check.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "nbd/pool.h"
#include "nbdelta/bytes.h"
#include "nbdelta/thread.h"

#define MAX 2

static struct share *one;
static struct share *other;
static mutex_t lock;
static cond_t moved;
/* Guarded by lock. */
static bool open;
static int inside; /* works that are being done */
static int most;   /* of them at once */
static int done;

static void come(void)
{
    mutex_lock(&lock);
    inside++;
    most = inside > most ? inside : most;
    cond_broadcast(&moved);
    mutex_unlock(&lock);
}

static void go(void)
{
    mutex_lock(&lock);
    inside--;
    done++;
    cond_broadcast(&moved);
    mutex_unlock(&lock);
}

/* Until @count are inside. */
static void await_inside(int count)
{
    mutex_lock(&lock);
    while (inside < count) {
        cond_wait(&moved, &lock);
    }
    mutex_unlock(&lock);
}

static void await_done(int count)
{
    mutex_lock(&lock);
    while (done < count) {
        cond_wait(&moved, &lock);
    }
    mutex_unlock(&lock);
}

/* Stand until the gate is open.  @tells: tell the pool that this thread waits
 * for another one. */
static void stand(bool tells)
{
    come();
    if (tells) {
        thread_wait_begin();
    }
    mutex_lock(&lock);
    while (!open) {
        cond_wait(&moved, &lock);
    }
    mutex_unlock(&lock);
    if (tells) {
        thread_wait_end();
    }
    go();
}

static void wait_fn(struct work *w)
{
    (void)w;
    stand(true);
}

static void busy_fn(struct work *w)
{
    (void)w;
    stand(false);
}

static void open_fn(struct work *w)
{
    (void)w;
    mutex_lock(&lock);
    open = true;
    cond_broadcast(&moved);
    done++;
    mutex_unlock(&lock);
}

static struct pool *setup(void)
{
    mutex_init(&lock, LOCK_TEST, NULL);
    cond_init(&moved);
    open = false;
    inside = most = done = 0;
    struct pool *p = pool_new(MAX);
    one = share_new();
    other = share_new();
    ck_assert(p && one && other);
    return p;
}

static void teardown(struct pool *p)
{
    pool_free(p);
    share_unref(one);
    share_unref(other);
}

static void open_gate(void)
{
    mutex_lock(&lock);
    open = true;
    cond_broadcast(&moved);
    mutex_unlock(&lock);
}

static void pause_ms(long ms)
{
    struct timespec ts = {0, ms * 1000000};
    (void)nanosleep(&ts, NULL);
}

START_TEST(there_are_no_more_than_asked_for)
{
    struct pool *p = setup();
    struct work w[6];

    for (int i = 0; i < 6; i++) {
        w[i].fn = busy_fn;
        pool_submit(p, one, &w[i]);
    }
    await_inside(MAX);
    pause_ms(30);
    mutex_lock(&lock);
    ck_assert_int_eq(inside, MAX);
    mutex_unlock(&lock);
    open_gate();
    await_done(6);
    ck_assert_int_eq(most, MAX);
    teardown(p);
}
END_TEST

START_TEST(who_waits_for_other_work_does_not_hold_it_up)
{
    struct pool *p = setup();
    struct work w[20];
    struct work last = {.fn = open_fn};

    for (int i = 0; i < 20; i++) {
        w[i].fn = wait_fn;
        pool_submit(p, one, &w[i]);
    }
    await_inside(20);
    pool_submit(p, one, &last); /* which ends the waiting of all */
    await_done(21);
    teardown(p);
}
END_TEST

START_TEST(waits_may_be_nested_and_the_number_falls_again)
{
    struct pool *p = setup();
    struct work w[6];

    thread_wait_begin(); /* nobody asked to be told of this thread */
    thread_wait_begin();
    thread_wait_end();
    thread_wait_end();
    for (int i = 0; i < 6; i++) {
        w[i].fn = wait_fn;
        pool_submit(p, one, &w[i]);
    }
    await_inside(6);
    struct work last = {.fn = open_fn};
    pool_submit(p, one, &last);
    await_done(7);
    mutex_lock(&lock);
    open = false;
    most = 0;
    mutex_unlock(&lock);
    for (int i = 0; i < 6; i++) {
        w[i].fn = busy_fn;
        pool_submit(p, one, &w[i]);
    }
    await_inside(MAX);
    last.fn = busy_fn;
    pool_submit(p, one, &last);
    open_gate();
    await_done(14);
    ck_assert_int_eq(most, MAX);
    teardown(p);
}
END_TEST

/* Neither as work nor as what waits: all threads of one are stuck. */
START_TEST(one_share_holds_up_no_other)
{
    struct pool *p = setup();
    struct work w[40];
    struct work last = {.fn = open_fn};

    for (int i = 0; i < 40; i++) {
        w[i].fn = i % 2 ? busy_fn : wait_fn;
        pool_submit(p, one, &w[i]);
    }
    await_inside(MAX);
    pool_submit(p, other, &last); /* which ends it */
    await_done(41);
    teardown(p);
}
END_TEST

START_TEST(a_share_has_threads_of_its_own_up_to_a_number)
{
    struct pool *p = setup();
    struct work w[SHARE_MIN + 4];
    struct work stuck[MAX];

    for (int i = 0; i < MAX; i++) {
        stuck[i].fn = busy_fn;
        pool_submit(p, one, &stuck[i]);
    }
    for (int i = 0; i < SHARE_MIN + 4; i++) {
        w[i].fn = busy_fn;
        pool_submit(p, other, &w[i]);
    }
    int own = SHARE_MIN < MAX ? SHARE_MIN : MAX;
    await_inside(MAX + own);
    pause_ms(30);
    mutex_lock(&lock);
    ck_assert_int_eq(inside, MAX + own);
    mutex_unlock(&lock);
    open_gate();
    await_done(MAX + SHARE_MIN + 4);
    teardown(p);
}
END_TEST

START_TEST(those_that_wait_have_a_bound)
{
    struct pool *p = setup();
    enum { COUNT = SHARE_WAITING + 20 };
    struct work w[COUNT];

    for (int i = 0; i < COUNT; i++) {
        w[i].fn = wait_fn;
        pool_submit(p, one, &w[i]);
    }
    await_inside(SHARE_WAITING + MAX);
    pause_ms(30);
    mutex_lock(&lock);
    ck_assert_int_eq(inside, SHARE_WAITING + MAX);
    mutex_unlock(&lock);
    open_gate();
    await_done(COUNT);
    teardown(p);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pool");
    TCase *tc = tcase_create("pool");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, there_are_no_more_than_asked_for);
    tcase_add_test(tc, who_waits_for_other_work_does_not_hold_it_up);
    tcase_add_test(tc, waits_may_be_nested_and_the_number_falls_again);
    tcase_add_test(tc, one_share_holds_up_no_other);
    tcase_add_test(tc, a_share_has_threads_of_its_own_up_to_a_number);
    tcase_add_test(tc, those_that_wait_have_a_bound);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
