/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of points: an instant each, in order whatever the clock does, and what
 * users type for them; names that a disk can have in a backup directory. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/name.h"

START_TEST(test_make)
{
    char name[POINT_NAME_MAX];

    ck_assert_int_eq(point_name_make(1795919400, NULL, name), 0);
    ck_assert_str_eq(name, "20261129T023000Z");
    ck_assert_int_eq(point_name_time(name), 1795919400);
    ck_assert(point_name_valid(name));

    char shown[POINT_SHOWN_MAX];
    point_name_show(name, shown);
    ck_assert_str_eq(shown, "2026-11-29T02:30:00Z");
    ck_assert_int_eq(point_name_make(-1, NULL, name), -ERANGE);
    ck_assert_int_eq(point_name_make(INT64_MAX, NULL, name), -ERANGE);
    ck_assert_int_eq(point_name_make(253402300799, NULL, name), 0);
    ck_assert_str_eq(name, "99991231T235959Z");
    ck_assert_int_eq(point_name_make(0, "99991231T235959Z", name), -ERANGE);
}
END_TEST

/* Set back by a year, by nothing, and over the end of a leap year's month. */
START_TEST(test_clock_set_back)
{
    char name[POINT_NAME_MAX];

    ck_assert_int_eq(point_name_make(1795919400, "20271129T023000Z", name), 0);
    ck_assert_str_eq(name, "20271129T023001Z");
    ck_assert_int_eq(point_name_make(1795919400, "20261129T023000Z", name), 0);
    ck_assert_str_eq(name, "20261129T023001Z");
    ck_assert_int_eq(point_name_make(0, "20280228T235959Z", name), 0);
    ck_assert_str_eq(name, "20280229T000000Z");
    ck_assert_int_eq(point_name_make(1795919400, "20261129T022959Z", name), 0);
    ck_assert_str_eq(name, "20261129T023000Z");
}
END_TEST

START_TEST(test_valid)
{
    static const char *const bad[] = {
        "",
        "2026",
        "20261129T023000",
        "20261129T023000z",
        "20261129t023000Z",
        "20261129T023000ZZ",
        "20261129T0230000",
        "2026-1129T0230Z",
        "20261329T023000Z",
        "20260229T023000Z",
        "20261129T243000Z",
        "20261129T026000Z",
        "20261231T235960Z",
        "20261129T02300+Z",
        "../../../etc/pwd",
        "19690101T000000Z",
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        ck_assert_msg(!point_name_valid(bad[i]), "%s", bad[i]);
    }
    ck_assert(point_name_valid("20280229T000000Z"));
}
END_TEST

static const char *const points[] = {
    "20251231T023000Z", "20261128T023000Z", "20261129T023000Z",
    "20261129T143000Z", "20261130T023000Z",
};

START_TEST(test_find)
{
    static const struct {
        const char *word;
        int found; /* or -errno */
    } cases[] = {
        {"2026-11-29T023000Z", 2},
        {"20261129T023000Z", 2},
        {"2026-11-29T02:30:00Z", 2},
        {"2026-11-29T02", 2},
        {"20261129T14", 3},
        {"2025", 0},
        {"2025-", 0},
        {"2026-11-28", 1},
        {"2026-11-30T", 4},
        {"latest", 4},
        {"latest~0", 4},
        {"latest~1", 3},
        {"latest~4", 0},
        {"latest~5", -ENOENT},
        {"latest~99999999999", -EINVAL},
        {"latest~", -EINVAL},
        {"latest~-1", -EINVAL},
        {"latest~1x", -EINVAL},
        {"late", -EINVAL},
        {"2026-11-29", -EINVAL}, /* two of them */
        {"2026", -EINVAL},
        {"", -EINVAL},
        {"2027", -ENOENT},
        {"2026-12", -ENOENT},
        {"2026--11", -EINVAL},
        {"20-26", -EINVAL},
        {"20261129T023000ZZ", -EINVAL},
        {"2026-11-29 02", -EINVAL},
        {"../etc", -EINVAL},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP_ERROR struct error *err = NULL;
        unsigned found = 99;
        int r = point_name_find(points, ARRAY_SIZE(points), cases[i].word,
                                &found, &err);

        ck_assert_msg((r < 0 ? r : (int)found) == cases[i].found,
                      "'%s': %d, %u", cases[i].word, r, found);
        ck_assert(r == 0 || error_code(err) == -r);
    }
}
END_TEST

START_TEST(test_find_in_none)
{
    unsigned found;

    ck_assert_int_eq(point_name_find(NULL, 0, "latest", &found, NULL), -ENOENT);
    ck_assert_int_eq(point_name_find(NULL, 0, "2026", &found, NULL), -ENOENT);
}
END_TEST

static void check_split(const char *arg, const char *dir, const char *word)
{
    CLEANUP_FREE char *d = NULL;
    const char *w = "";

    ck_assert_int_eq(point_name_split(arg, &d, &w, NULL), 0);
    ck_assert_str_eq(d, dir);
    ck_assert_pstr_eq(w, word);
}

START_TEST(test_split)
{
    char *d = NULL;
    const char *w;
    char made[] = "test-store-name.XXXXXX@latest";

    check_split("/b", "/b", NULL);
    check_split("/b@latest", "/b", "latest");
    check_split("/b@2026-11", "/b", "2026-11");
    check_split("/me@home/b", "/me@home/b", NULL);
    check_split("/me@home/b@latest~1", "/me@home/b", "latest~1");
    check_split("/b@typo", "/b", "typo");
    ck_assert_int_eq(point_name_split("/b@", &d, &w, NULL), -EINVAL);
    ck_assert_int_eq(point_name_split("@latest", &d, &w, NULL), -EINVAL);

    /* A directory that has such a name is that. */
    int fd = mkstemps(made, 7);
    ck_assert_int_ge(fd, 0);
    close(fd);
    check_split(made, made, NULL);
    ck_assert_int_eq(unlink(made), 0);
}
END_TEST

START_TEST(test_disks)
{
    static const char *const bad[] = {
        "",      ".",       "..",        ".hidden", "a/b",          "a:b",
        "a\nb",  "\x1b[2J", "a\xff",     "lock",    "x.json",       "-rf",
        "a\x7f", "tmp.1.2", "x.pending", "x.xml",   "\xe2\x80\xae",
    };
    char longest[DISK_NAME_MAX + 2];

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        CLEANUP_ERROR struct error *err = NULL;

        ck_assert_msg(disk_name_check(bad[i], &err) == -EINVAL, "%s", bad[i]);
        ck_assert_int_eq(error_code(err), EINVAL);
    }
    memset(longest, 'x', sizeof(longest));
    longest[DISK_NAME_MAX + 1] = '\0';
    ck_assert_int_eq(disk_name_check(longest, NULL), -EINVAL);
    longest[DISK_NAME_MAX] = '\0';
    ck_assert_int_eq(disk_name_check(longest, NULL), 0);
    ck_assert_int_eq(disk_name_check("vda", NULL), 0);
    ck_assert_int_eq(disk_name_check("#block123", NULL), 0);
    ck_assert_int_eq(disk_name_check("Platte \xc3\xa4", NULL), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("store-name");
    TCase *tc = tcase_create("all");

    tcase_add_test(tc, test_make);
    tcase_add_test(tc, test_clock_set_back);
    tcase_add_test(tc, test_valid);
    tcase_add_test(tc, test_find);
    tcase_add_test(tc, test_find_in_none);
    tcase_add_test(tc, test_split);
    tcase_add_test(tc, test_disks);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
