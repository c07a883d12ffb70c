/* SPDX-License-Identifier: BSD-3-Clause */
/* Which points rules keep: periods of local time, ISO's weeks, both changes of
 * summer time, and 400 points against a table that was made by hand. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nbdelta/bytes.h"
#include "store/name.h"
#include "store/rules.h"

#define MANY 400
/* The rules that hold since 1996, without a file of zones. */
#define BERLIN "CET-1CEST,M3.5.0,M10.5.0/3"

static void set_zone(const char *zone)
{
    ck_assert_int_eq(setenv("TZ", zone, 1), 0);
    tzset();
}

/* Are just these of @count points kept?  @want: names, NULL-terminated. */
static void check_kept(const struct keep_rules *r, const int64_t *times,
                       unsigned count, const char *const *want)
{
    unsigned kept[MANY];
    unsigned wanted = 0;

    rules_apply(r, times, count, kept);
    for (unsigned i = 0; i < count; i++) {
        char name[POINT_NAME_MAX];
        bool is_wanted = false;

        ck_assert_int_eq(point_name_make(times[i], NULL, name), 0);
        for (const char *const *w = want; *w; w++) {
            is_wanted = is_wanted || strcmp(name, *w) == 0;
        }
        wanted += is_wanted;
        ck_assert_msg((kept[i] != 0) == is_wanted, "%s is %s", name,
                      kept[i] ? "kept" : "not kept");
    }
    for (; *want; want++) {
        wanted--;
    }
    ck_assert_uint_eq(wanted, 0);
}

static unsigned take_times(const char *const *names, int64_t *times)
{
    unsigned n = 0;

    for (; names[n]; n++) {
        ck_assert(point_name_valid(names[n]));
        times[n] = point_name_time(names[n]);
    }
    return n;
}

/* One point each night at 22:30 UTC, from 26 October 2025 to 29 November 2026.
 * In Berlin that is 23:30 in winter, and 00:30 of the next day in summer.
 * 29 March has no point, 25 October has two. */
static void take_nights(int64_t *times)
{
    int64_t first = point_name_time("20251026T223000Z");

    for (int i = 0; i < MANY; i++) {
        times[i] = first + i * INT64_C(86400);
    }
    ck_assert_int_eq(times[MANY - 1], point_name_time("20261129T223000Z"));
}

START_TEST(test_400_points)
{
    static const char *const want[] = {
        /* days: 29 to 23 November */
        "20261129T223000Z", "20261128T223000Z", "20261127T223000Z",
        "20261126T223000Z", "20261125T223000Z", "20261124T223000Z",
        "20261123T223000Z",
        /* weeks: Sundays; the first one is the 29th */
        "20261122T223000Z", "20261115T223000Z", "20261108T223000Z",
        /* months: October in winter time, September to March in summer time:
         * there the last night of a month has the day before in its name */
        "20261031T223000Z", "20260929T223000Z", "20260830T223000Z",
        "20260730T223000Z", "20260629T223000Z", "20260530T223000Z",
        "20260429T223000Z", "20260330T223000Z", "20260228T223000Z",
        "20260131T223000Z", "20251231T223000Z",
        /* years: 2026 and 2025 have theirs, and then the oldest */
        "20251026T223000Z", NULL};
    struct keep_rules r = {.count = {[RULE_DAILY] = 7,
                                     [RULE_WEEKLY] = 4,
                                     [RULE_MONTHLY] = 12,
                                     [RULE_YEARLY] = 3}};
    int64_t times[MANY];

    set_zone(BERLIN);
    take_nights(times);
    check_kept(&r, times, MANY, want);
}
END_TEST

/* The same in UTC has other months. */
START_TEST(test_zone_counts)
{
    static const char *const want[] = {"20261129T223000Z", "20261031T223000Z",
                                       "20260930T223000Z", NULL};
    struct keep_rules r = {.count = {[RULE_MONTHLY] = 3}};
    int64_t times[MANY];

    set_zone("UTC");
    take_nights(times);
    check_kept(&r, times, MANY, want);
}
END_TEST

/* Around 29 March and 25 October. */
START_TEST(test_days_of_change)
{
    static const char *const spring[] = {"20260327T223000Z", "20260328T223000Z",
                                         "20260329T223000Z", "20260330T223000Z",
                                         NULL};
    static const char *const autumn[] = {"20261022T223000Z", "20261023T223000Z",
                                         "20261024T223000Z", "20261025T223000Z",
                                         "20261026T223000Z", NULL};
    static const char *const autumn_want[] = {
        "20261023T223000Z", "20261025T223000Z", "20261026T223000Z", NULL};
    struct keep_rules r = {.count = {[RULE_DAILY] = 4}};
    int64_t times[MANY];

    set_zone(BERLIN);
    unsigned n = take_times(spring, times);
    check_kept(&r, times, n, spring);

    r.count[RULE_DAILY] = 3;
    n = take_times(autumn, times);
    check_kept(&r, times, n, autumn_want);
}
END_TEST

/* 02:30 comes twice on 25 October; it is one hour. */
START_TEST(test_hour_that_is_repeated)
{
    static const char *const points[] = {"20261024T223000Z", "20261024T233000Z",
                                         "20261025T003000Z", "20261025T013000Z",
                                         NULL};
    static const char *const want[] = {"20261024T233000Z", "20261025T013000Z",
                                       NULL};
    struct keep_rules r = {.count = {[RULE_HOURLY] = 2}};
    int64_t times[MANY];

    set_zone(BERLIN);
    check_kept(&r, times, take_times(points, times), want);
}
END_TEST

/* 2026 has 53 weeks; the last one ends on 3 January.  The first week of 2025
 * began on 30 December. */
START_TEST(test_iso_weeks)
{
    static const char *const points[] = {"20261220T120000Z", "20261227T120000Z",
                                         "20261228T120000Z", "20270103T120000Z",
                                         "20270104T120000Z", NULL};
    static const char *const want[] = {"20261227T120000Z", "20270103T120000Z",
                                       "20270104T120000Z", NULL};
    static const char *const earlier[] = {
        "20241222T120000Z", "20241229T120000Z", "20241230T120000Z",
        "20250101T120000Z", "20250105T120000Z", NULL};
    static const char *const earlier_want[] = {"20241229T120000Z",
                                               "20250105T120000Z", NULL};
    struct keep_rules r = {.count = {[RULE_WEEKLY] = 3}};
    int64_t times[MANY];

    set_zone("UTC");
    check_kept(&r, times, take_times(points, times), want);
    r.count[RULE_WEEKLY] = 2;
    check_kept(&r, times, take_times(earlier, times), earlier_want);
}
END_TEST

/* Each rule counts for itself, and says that it was the one. */
START_TEST(test_reasons)
{
    static const char *const points[] = {"20261126T100000Z", "20261127T100000Z",
                                         "20261128T100000Z", "20261128T110000Z",
                                         NULL};
    struct keep_rules r = {.count = {[RULE_LAST] = 2, [RULE_DAILY] = 2}};
    int64_t times[MANY];
    unsigned kept[MANY];
    unsigned n = take_times(points, times);

    set_zone("UTC");
    rules_apply(&r, times, n, kept);
    ck_assert_uint_eq(kept[3], KEEP_BY(RULE_LAST) | KEEP_BY(RULE_DAILY));
    ck_assert_uint_eq(kept[2], KEEP_BY(RULE_LAST));
    ck_assert_uint_eq(kept[1], KEEP_BY(RULE_DAILY));
    ck_assert_uint_eq(kept[0], 0);
    ck_assert_str_eq(rules_word(KEEP_BY(RULE_DAILY)), "daily");

    /* What has some to keep keeps the oldest. */
    r = (struct keep_rules){.count = {[RULE_YEARLY] = 2}};
    rules_apply(&r, times, n, kept);
    ck_assert_uint_eq(kept[0], KEEP_BY(RULE_YEARLY));
    ck_assert_uint_eq(kept[1] | kept[2], 0);

    r = (struct keep_rules){.count = {[RULE_LAST] = KEEP_UNLIMITED}};
    rules_apply(&r, times, n, kept);
    ck_assert(kept[0] && kept[1] && kept[2] && kept[3]);
}
END_TEST

/* A month before 23:30 on 29 November is 23:30 on 29 October, which is winter
 * time already; that point is not within. */
START_TEST(test_within)
{
    static const struct {
        const char *span;
        unsigned kept;
    } rows[] = {{"1m", 31},  {"1d", 1},       {"1d1h", 2},       {"24h", 1},
                {"25h", 2},  {"1y", 365},     {"2y", MANY},      {"1m1d", 32},
                {"6m", 185}, {"1y1m3d", 399}, {"1y1m3d1h", MANY}};
    int64_t times[MANY];
    unsigned kept[MANY];

    set_zone(BERLIN);
    take_nights(times);
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct keep_rules r = {.has_within = true};
        unsigned n = 0;

        ck_assert_int_eq(rules_parse_span(rows[i].span, &r.within, NULL), 0);
        rules_apply(&r, times, MANY, kept);
        for (unsigned k = 0; k < MANY; k++) {
            n += kept[k] == KEEP_WITHIN;
            ck_assert(kept[k] == 0 || k >= MANY - rows[i].kept);
        }
        ck_assert_msg(n == rows[i].kept, "%s keeps %u", rows[i].span, n);
    }
}
END_TEST

START_TEST(test_newest_stays)
{
    struct keep_rules r = {.has_within = false};
    int64_t times[] = {1000, 2000};
    unsigned kept[2];

    ck_assert(!rules_any(&r));
    rules_apply(&r, times, 2, kept);
    ck_assert_uint_eq(kept[0], 0);
    ck_assert_uint_eq(kept[1], KEEP_NEWEST);
    rules_apply(&r, times, 0, kept);
    r.has_within = true;
    ck_assert(rules_any(&r));
}
END_TEST

START_TEST(test_words_of_users)
{
    static const char *const bad_counts[] = {
        "", "0", "-1", "1x", " 1", "1 ", "1000001", "99999999999", "Unlimited"};
    static const char *const bad_spans[] = {
        "",     "1",   "y",     "1y1y", "1d1m",    "0d",  "1w",
        "1.5d", "-1d", "1y 1m", "1yy",  "100001y", "1d\n"};
    struct span span;
    uint32_t n = 0;

    ck_assert_int_eq(rules_parse_count("7", &n, NULL), 0);
    ck_assert_uint_eq(n, 7);
    ck_assert_int_eq(rules_parse_count("unlimited", &n, NULL), 0);
    ck_assert_uint_eq(n, KEEP_UNLIMITED);
    for (size_t i = 0; i < ARRAY_SIZE(bad_counts); i++) {
        ck_assert_int_eq(rules_parse_count(bad_counts[i], &n, NULL), -EINVAL);
    }
    ck_assert_int_eq(rules_parse_span("2y5m7d3h", &span, NULL), 0);
    ck_assert(span.years == 2 && span.months == 5 && span.days == 7 &&
              span.hours == 3);
    ck_assert_int_eq(rules_parse_span("1m3h", &span, NULL), 0);
    ck_assert(span.years == 0 && span.months == 1 && span.days == 0 &&
              span.hours == 3);
    for (size_t i = 0; i < ARRAY_SIZE(bad_spans); i++) {
        ck_assert_msg(rules_parse_span(bad_spans[i], &span, NULL) == -EINVAL,
                      "'%s'", bad_spans[i]);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("store-rules");
    TCase *t = tcase_create("rules");

    tcase_add_test(t, test_400_points);
    tcase_add_test(t, test_zone_counts);
    tcase_add_test(t, test_days_of_change);
    tcase_add_test(t, test_hour_that_is_repeated);
    tcase_add_test(t, test_iso_weeks);
    tcase_add_test(t, test_reasons);
    tcase_add_test(t, test_within);
    tcase_add_test(t, test_newest_stays);
    tcase_add_test(t, test_words_of_users);
    suite_add_tcase(s, t);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
