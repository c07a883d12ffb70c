/* SPDX-License-Identifier: BSD-3-Clause */
/* Room for what clients send: shares, clients that go beyond theirs, and
 * clients that are cut off. */
#include <check.h>
#include <stdlib.h>

#include "nbd/room.h"

#define MiB    ((size_t)1 << 20)
#define SECOND UINT64_C(1000000000)
#define LIMIT  (10 * MiB)

static struct room *r;
static struct room_user u[4];
static int cuts;

static void cut(struct room_user *user)
{
    (void)user;
    cuts++;
}

static void setup(void)
{
    r = room_new(LIMIT);
    cuts = 0;
    for (int i = 0; i < 4; i++) {
        u[i] = (struct room_user){.cut = cut};
    }
}

static void teardown(void)
{
    for (int i = 0; i < 4; i++) {
        room_hold(r, &u[i], 0, false, false, 0);
    }
    room_free(r);
}

/* @i asks for, and takes, @bytes in all. */
static bool take(int i, size_t bytes, uint64_t now)
{
    size_t had = u[i].listed ? u[i].bytes : 0;

    if (!room_ask(r, &u[i], had, bytes - had, now)) {
        return false;
    }
    room_hold(r, &u[i], bytes, true, true, now);
    return true;
}

START_TEST(a_little_is_always_there)
{
    ck_assert(take(0, LIMIT, 0));
    ck_assert(take(1, 2 * MiB, 0)); /* goes beyond */
    ck_assert(!take(2, 2 * MiB, 0));
    ck_assert(take(2, ROOM_FREE, 0));
    ck_assert(take(3, ROOM_FREE, 0));
    ck_assert(room_ask(r, &u[0], LIMIT, 0, 0));
}
END_TEST

START_TEST(one_goes_beyond_until_it_is_through)
{
    ck_assert(take(0, 5 * MiB, 0));
    ck_assert(take(1, 5 * MiB, 0));
    ck_assert(take(0, 6 * MiB, 0));
    ck_assert(!take(1, 6 * MiB, 0));
    ck_assert(take(0, 20 * MiB, 0));
    room_hold(r, &u[0], 0, false, false, 0);
    ck_assert(take(1, 6 * MiB, 0));
    ck_assert(take(2, 4 * MiB, 0));
    ck_assert(take(2, 5 * MiB, 0));
    ck_assert(!take(1, 7 * MiB, 0));
}
END_TEST

START_TEST(what_was_given_is_not_given_again)
{
    ck_assert(room_ask(r, &u[0], 0, 6 * MiB, 0));
    ck_assert(room_ask(r, &u[1], 0, 4 * MiB, 0));
    ck_assert(room_ask(r, &u[2], 0, 2 * MiB, 0)); /* goes beyond */
    ck_assert(!room_ask(r, &u[3], 0, 2 * MiB, 0));
}
END_TEST

START_TEST(who_hangs_beyond_leaves_the_turn_to_others)
{
    uint64_t late = (ROOM_STALL_S + 1) * SECOND;

    ck_assert(take(0, LIMIT, 0));
    room_hold(r, &u[0], LIMIT, false, false, 0); /* waits for its disk */
    ck_assert(take(1, 2 * MiB, 0));
    room_hold(r, &u[1], 2 * MiB, false, false, SECOND); /* so does this */
    ck_assert(!take(2, 2 * MiB, late - 1));
    ck_assert(take(2, 2 * MiB, late));
    ck_assert_int_eq(cuts, 0);
    ck_assert(!take(3, 2 * MiB, late)); /* one at a time */
}
END_TEST

START_TEST(who_does_nothing_is_cut_off_where_others_ask)
{
    ck_assert(take(0, 5 * MiB, 0));
    ck_assert(take(1, 5 * MiB, 0));
    ck_assert(take(2, 2 * MiB, 0));
    uint64_t late = (ROOM_STALL_S + 1) * SECOND;
    room_hold(r, &u[1], 5 * MiB, true, true, late - SECOND); /* has moved */
    room_hold(r, &u[2], 2 * MiB, false, false, late); /* waits for its disk */
    ck_assert_int_eq(cuts, 0);
    ck_assert(!take(3, 2 * MiB, late - 2 * SECOND));
    ck_assert_int_eq(cuts, 0);
    ck_assert(!take(3, 2 * MiB, late));
    ck_assert_int_eq(cuts, 1);
    ck_assert(u[0].is_cut);
    ck_assert(!take(3, 2 * MiB, late)); /* once */
    ck_assert_int_eq(cuts, 1);
    room_hold(r, &u[0], 0, false, false, late);
    ck_assert(take(3, 2 * MiB, late));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("room");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_little_is_always_there);
    tcase_add_test(tc, one_goes_beyond_until_it_is_through);
    tcase_add_test(tc, what_was_given_is_not_given_again);
    tcase_add_test(tc, who_hangs_beyond_leaves_the_turn_to_others);
    tcase_add_test(tc, who_does_nothing_is_cut_off_where_others_ask);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
