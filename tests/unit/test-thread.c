/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads and locks: signals, readers and writers, timed waits. */
#include <check.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "nbdelta/thread.h"

struct seen {
    sigset_t mask;
};

static void *look(void *arg)
{
    struct seen *seen = arg;

    (void)pthread_sigmask(SIG_SETMASK, NULL, &seen->mask);
    return NULL;
}

START_TEST(new_thread_blocks_signals_and_the_caller_does_not)
{
    struct seen seen;
    sigset_t mine;
    pthread_t t;

    ck_assert_int_eq(thread_start(&t, "a name of many bytes", look, &seen), 0);
    thread_join(t);
    ck_assert_int_eq(sigismember(&seen.mask, SIGTERM), 1);
    ck_assert_int_eq(sigismember(&seen.mask, SIGINT), 1);
    ck_assert_int_eq(sigismember(&seen.mask, SIGCHLD), 1);
    ck_assert_int_eq(sigismember(&seen.mask, SIGSEGV), 0);
    ck_assert_int_eq(pthread_sigmask(SIG_SETMASK, NULL, &mine), 0);
    ck_assert_int_eq(sigismember(&mine, SIGTERM), 0);
}
END_TEST

static void *write_lock(void *arg)
{
    rwlock_t *l = arg;

    rwlock_wrlock(l);
    rwlock_unlock(l);
    return NULL;
}

/* Reads twice at once, which the analysis does not like. */
static void race_a_writer(void) NO_LOCK_ANALYSIS
{
    rwlock_t l;
    pthread_t t;

    rwlock_init(&l, LOCK_TEST, NULL);
    rwlock_rdlock(&l);
    ck_assert(rwlock_tryrdlock(&l));
    rwlock_unlock(&l);
    ck_assert_int_eq(thread_start(&t, "writer", write_lock, &l), 0);
    /* For ever, and so a time-out, when readers are preferred. */
    while (rwlock_tryrdlock(&l)) {
        rwlock_unlock(&l);
        (void)sched_yield();
    }
    rwlock_unlock(&l);
    thread_join(t);
    ck_assert(rwlock_tryrdlock(&l));
    rwlock_unlock(&l);
    rwlock_destroy(&l);
}

START_TEST(waiting_writer_holds_new_readers_back)
{
    race_a_writer();
}
END_TEST

START_TEST(timed_wait_takes_its_time)
{
    mutex_t m;
    cond_t c;
    uint64_t start = now_ns();
    unsigned wakes = 0;

    mutex_init(&m, LOCK_TEST, NULL);
    cond_init(&c);
    mutex_lock(&m);
    while (cond_wait_ms(&c, &m, 20)) {
        wakes++; /* spurious */
    }
    mutex_unlock(&m);
    ck_assert_uint_ge(now_ns() - start, 20 * UINT64_C(1000000));
    ck_assert_uint_lt(wakes, 1000);
    cond_destroy(&c);
    mutex_destroy(&m);
}
END_TEST

struct flag {
    mutex_t m;
    cond_t c;
    bool set;
};

static void *set_flag(void *arg)
{
    struct flag *f = arg;

    /* The waiter waits whenever this gets the mutex: time for it to return
     * too early. */
    for (unsigned i = 0; i < 1000; i++) {
        mutex_lock(&f->m);
        mutex_unlock(&f->m);
        (void)sched_yield();
    }
    mutex_lock(&f->m);
    f->set = true;
    cond_signal(&f->c);
    mutex_unlock(&f->m);
    return NULL;
}

START_TEST(endless_timed_wait_is_woken)
{
    struct flag f = {.set = false};
    pthread_t t;

    mutex_init(&f.m, LOCK_TEST, NULL);
    cond_init(&f.c);
    mutex_lock(&f.m);
    ck_assert_int_eq(thread_start(&t, "setter", set_flag, &f), 0);
    while (!f.set) {
        ck_assert(cond_wait_ms(&f.c, &f.m, UINT64_MAX));
    }
    mutex_unlock(&f.m);
    thread_join(t);
    cond_destroy(&f.c);
    mutex_destroy(&f.m);
}
END_TEST

#ifdef LOCKCHECK

/* Each of these ends the process. */

static void check_order(enum lock_rank first, enum lock_rank second)
    NO_LOCK_ANALYSIS
{
    mutex_t a;
    mutex_t b;

    mutex_init(&a, first, NULL);
    mutex_init(&b, second, NULL);
    mutex_lock(&a);
    mutex_lock(&b);
    mutex_unlock(&b);
    mutex_unlock(&a);
}

START_TEST(locks_are_taken_in_the_order_of_their_ranks)
{
    check_order(LOCK_MONITOR, LOCK_CONTROL);
    check_order(LOCK_CONTROL, LOCK_MONITOR);
}
END_TEST

START_TEST(no_lock_of_the_server_is_held_on_entry_to_blocklib)
{
    check_order(LOCK_CONTROL, LOCK_EXPORTS);
    check_order(LOCK_EXPORTS, LOCK_CONTROL);
}
END_TEST

START_TEST(what_is_said_to_be_held_is_held)
{
    mutex_t m;

    mutex_init(&m, LOCK_TEST, NULL);
    mutex_lock(&m);
    mutex_is_held(&m);
    mutex_unlock(&m);
    mutex_is_held(&m);
}
END_TEST

static void wait_with_another(void) NO_LOCK_ANALYSIS
{
    mutex_t outer;
    mutex_t inner;
    cond_t c;

    mutex_init(&outer, LOCK_EXPORTS, NULL);
    mutex_init(&inner, LOCK_POOL, NULL);
    cond_init(&c);
    mutex_lock(&outer);
    mutex_lock(&inner);
    (void)cond_wait_ms(&c, &inner, 1);
    (void)cond_wait_ms(&c, &outer, 1);
}

START_TEST(nobody_waits_with_a_lock_of_later_rank)
{
    wait_with_another();
}
END_TEST

START_TEST(a_node_above_another_has_its_locks_first)
{
    mutex_t upper;
    mutex_t lower;
    int a;
    int b;

    mutex_init(&upper, LOCK_QCOW2_META, &a);
    mutex_init(&lower, LOCK_QCOW2_ARM, &b);
    mutex_lock(&upper);
    mutex_lock(&lower);
    mutex_unlock(&lower);
    mutex_unlock(&upper);
}
END_TEST
#endif

int main(void)
{
    Suite *s = suite_create("thread");
    TCase *tc = tcase_create("thread");
    tcase_add_test(tc, new_thread_blocks_signals_and_the_caller_does_not);
    tcase_add_test(tc, waiting_writer_holds_new_readers_back);
    tcase_add_test(tc, timed_wait_takes_its_time);
    tcase_add_test(tc, endless_timed_wait_is_woken);
#ifdef LOCKCHECK
    tcase_add_test_raise_signal(tc, locks_are_taken_in_the_order_of_their_ranks,
                                SIGABRT);
    tcase_add_test_raise_signal(
        tc, no_lock_of_the_server_is_held_on_entry_to_blocklib, SIGABRT);
    tcase_add_test_raise_signal(tc, what_is_said_to_be_held_is_held, SIGABRT);
    tcase_add_test_raise_signal(tc, nobody_waits_with_a_lock_of_later_rank,
                                SIGABRT);
    tcase_add_test(tc, a_node_above_another_has_its_locks_first);
#endif
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
