/* SPDX-License-Identifier: BSD-3-Clause */
/* When a connection spins for its client, with a time of our own. */
#include <check.h>
#include <stdlib.h>

#include "nbd/spin.h"

#define US    UINT64_C(1000)
#define LIMIT (100 * US)

static struct spin s;
static uint64_t now;

static void setup(void)
{
    s = (struct spin){.began = 0};
    now = 1000 * US;
}

/* Wait for a request that comes after @took.  With @taken, somebody else wants
 * the processor meanwhile.  How long it has spun. */
static uint64_t wait_for_request(uint64_t took, bool taken)
{
    uint64_t began = now, spun = 0;
    bool on = spin_begin(&s, LIMIT, now);

    while (on && spun < took) {
        spun += US;
        on = spin_on(&s, taken, began + spun);
    }
    now = began + took;
    spin_end(&s, LIMIT, now);
    return spun;
}

static void sleep_through(unsigned count, uint64_t took)
{
    for (unsigned i = 0; i < count; i++) {
        ck_assert_int_eq(wait_for_request(took, false), 0);
    }
}

START_TEST(it_spins_when_requests_come_soon)
{
    sleep_through(SPIN_PRICE_MIN, 20 * US);
    for (int i = 0; i < 10; i++) {
        ck_assert_int_eq(wait_for_request(20 * US, false), 20 * US);
    }
    ck_assert_int_eq(s.spins, 10);
    ck_assert_int_eq(s.misses, 0);
}
END_TEST

START_TEST(it_never_spins_when_requests_come_late)
{
    sleep_through(1000, LIMIT);
}
END_TEST

START_TEST(a_client_that_stops_costs_one_spin)
{
    sleep_through(SPIN_PRICE_MIN, 20 * US);
    (void)wait_for_request(20 * US, false);
    uint64_t spun = wait_for_request(1000000 * US, false);
    ck_assert(spun > 0 && spun <= LIMIT);
    sleep_through(100, 1000000 * US);
    sleep_through(2 * SPIN_PRICE_MIN, 20 * US);
    ck_assert(wait_for_request(20 * US, false) > 0);
}
END_TEST

/* How long a spin is in vain after waits of @took. */
static uint64_t longest_after(uint64_t took)
{
    setup();
    for (int i = 0; i < 36; i++) {
        (void)wait_for_request(took, false);
    }
    return wait_for_request(2 * LIMIT, false);
}

START_TEST(a_spin_is_as_long_as_short_waits_were_lately)
{
    uint64_t spun = longest_after(10 * US);

    ck_assert(spun >= 36 * US && spun <= 40 * US);
    ck_assert_int_eq(longest_after(50 * US), LIMIT);
    ck_assert_int_eq(longest_after(1), SPIN_SHORTEST);
}
END_TEST

START_TEST(it_gives_way_where_others_want_the_processor)
{
    uint64_t slept = 0;

    /* However soon the requests come. */
    for (uint32_t price = SPIN_PRICE_MIN; price <= SPIN_PRICE_MAX; price *= 2) {
        sleep_through(price, 5 * US);
        slept += price;
        ck_assert_int_eq(wait_for_request(5 * US, true), US);
    }
    sleep_through(SPIN_PRICE_MAX, 5 * US);
    ck_assert(wait_for_request(5 * US, true) > 0);
    ck_assert(s.misses * 100 < slept);
}
END_TEST

START_TEST(hits_make_it_cheap_again)
{
    sleep_through(SPIN_PRICE_MIN, 5 * US);
    (void)wait_for_request(5 * US, true);
    sleep_through(2 * SPIN_PRICE_MIN, 5 * US);
    for (int i = 0; i < SPIN_PRICE_MIN; i++) {
        ck_assert(wait_for_request(5 * US, false) > 0);
    }
    (void)wait_for_request(5 * US, true);
    sleep_through(2 * SPIN_PRICE_MIN, 5 * US);
    ck_assert(wait_for_request(5 * US, false) > 0);
}
END_TEST

START_TEST(it_sleeps_now_and_then)
{
    uint64_t stretch = 0;

    sleep_through(SPIN_PRICE_MIN, 20 * US);
    for (int i = 0; i < 10000; i++) {
        uint64_t spun = wait_for_request(20 * US, false);

        stretch = spun > 0 ? stretch + spun : 0;
        ck_assert(stretch <= SPIN_STRETCH_NS + LIMIT);
    }
    ck_assert(s.spins > 9800);
}
END_TEST

START_TEST(without_a_limit_it_never_spins)
{
    for (int i = 0; i < 100; i++) {
        ck_assert(!spin_begin(&s, 0, now));
        spin_end(&s, 0, now += US);
    }
}
END_TEST

START_TEST(a_refused_spin_is_not_tried_each_time)
{
    unsigned tries = 0;

    for (int i = 0; i < 10000; i++) {
        if (spin_begin(&s, LIMIT, now)) {
            tries++;
            spin_refuse(&s);
        }
        spin_end(&s, LIMIT, now += US);
    }
    ck_assert(tries < 20);
    ck_assert_int_eq(s.spins + s.misses, 0);
}
END_TEST

/* Whatever a client does: each spin in vain has been paid for. */
START_TEST(short_batches_are_parted_while_spinning_pays)
{
    ck_assert_uint_eq(spin_part(&s, SPIN_PART_MIN), 0);
    sleep_through(SPIN_PRICE_MIN, 20 * US);
    (void)wait_for_request(20 * US, false);
    ck_assert_uint_eq(spin_part(&s, SPIN_PART_MIN - 1), 0);
    ck_assert_uint_eq(spin_part(&s, SPIN_PART_MIN), SPIN_PART);
    ck_assert_uint_eq(spin_part(&s, SPIN_PART_MAX), SPIN_PART);
    ck_assert_uint_eq(spin_part(&s, SPIN_PART_MAX + 1), 0);
    (void)wait_for_request(20 * US, true);
    ck_assert_uint_eq(spin_part(&s, SPIN_PART_MIN), 0);
}
END_TEST

START_TEST(misses_are_few)
{
    uint64_t paid = 0, in_vain = 0, worst = 1;

    srandom(1);
    for (int i = 0; i < 1000000; i++) {
        uint64_t took = US * (uint64_t)(random() % (int64_t)(worst + 1));
        uint64_t misses = s.misses;
        uint64_t spun = wait_for_request(took, random() % 8 == 0);

        paid += spun == 0 && took < LIMIT;
        in_vain += s.misses > misses ? spun : 0;
        worst = i % 1000 == 0 ? (uint64_t)random() % 1000 : worst;
    }
    ck_assert(s.misses > 0);
    ck_assert(s.misses * SPIN_PRICE_MIN <= paid);
    ck_assert(in_vain <= s.misses * LIMIT);
}
END_TEST

START_TEST(fewer_spin_than_there_are_processors)
{
    struct spinners all = {.limit = LIMIT};

    ck_assert(!spinners_enter(&all));
    atomic_store(&all.most, 2);
    ck_assert(spinners_enter(&all));
    ck_assert(spinners_enter(&all));
    ck_assert(!spinners_enter(&all));
    spinners_leave(&all);
    ck_assert(spinners_enter(&all));
    atomic_store(&all.most, 1);
    spinners_leave(&all);
    ck_assert(!spinners_enter(&all));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("spin");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_add_test(tc, it_spins_when_requests_come_soon);
    tcase_add_test(tc, it_never_spins_when_requests_come_late);
    tcase_add_test(tc, a_client_that_stops_costs_one_spin);
    tcase_add_test(tc, a_spin_is_as_long_as_short_waits_were_lately);
    tcase_add_test(tc, it_gives_way_where_others_want_the_processor);
    tcase_add_test(tc, hits_make_it_cheap_again);
    tcase_add_test(tc, it_sleeps_now_and_then);
    tcase_add_test(tc, without_a_limit_it_never_spins);
    tcase_add_test(tc, a_refused_spin_is_not_tried_each_time);
    tcase_add_test(tc, short_batches_are_parted_while_spinning_pays);
    tcase_add_test(tc, misses_are_few);
    tcase_add_test(tc, fewer_spin_than_there_are_processors);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
