/* SPDX-License-Identifier: BSD-3-Clause */
/* Error objects: codes, messages of any length, prefixes, foreign text. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/error.h"

START_TEST(set_returns_negative_errno)
{
    ck_assert_int_eq(error_set(NULL, ENOSPC, "x"), -ENOSPC);
}
END_TEST

START_TEST(message_and_code_are_kept)
{
    CLEANUP_ERROR struct error *err = NULL;

    ck_assert_int_eq(error_set(&err, ENOENT, "node '%s'", "a"), -ENOENT);
    ck_assert_str_eq(error_message(err), "node 'a'");
    ck_assert_int_eq(error_code(err), ENOENT);
}
END_TEST

START_TEST(long_message_is_complete)
{
    CLEANUP_ERROR struct error *err = NULL;
    char name[5000];

    memset(name, 'n', sizeof(name));
    name[sizeof(name) - 1] = '\0';
    (void)error_set(&err, EIO, "%s", name);
    ck_assert_str_eq(error_message(err), name);
}
END_TEST

START_TEST(control_characters_do_not_pass)
{
    CLEANUP_ERROR struct error *err = NULL;

    (void)error_set(&err, EIO, "'%s'", "a\nb\033[1m\x7f\xc3\xa4");
    ck_assert_str_eq(error_message(err), "'a?b?[1m?\xc3\xa4'");
}
END_TEST

START_TEST(second_error_replaces_the_first)
{
    CLEANUP_ERROR struct error *err = NULL;

    (void)error_set(&err, EIO, "first");
    (void)error_set(&err, EPERM, "second after %s", error_message(err));
    ck_assert_str_eq(error_message(err), "second after first");
    ck_assert_int_eq(error_code(err), EPERM);
}
END_TEST

START_TEST(prefix_goes_in_front_and_keeps_the_code)
{
    CLEANUP_ERROR struct error *err = NULL;

    (void)error_set(&err, EACCES, "why 100%%");
    error_prefix(&err, "cannot open '%s': ", "a");
    ck_assert_str_eq(error_message(err), "cannot open 'a': why 100%");
    ck_assert_int_eq(error_code(err), EACCES);
}
END_TEST

START_TEST(prefix_without_an_error_does_nothing)
{
    struct error *err = NULL;

    error_prefix(NULL, "x");
    error_prefix(&err, "x");
    ck_assert_ptr_null(err);
}
END_TEST

START_TEST(null_error_has_a_text)
{
    ck_assert_int_eq(error_code(NULL), EIO);
    ck_assert_uint_gt(strlen(error_message(NULL)), 0);
    error_free(NULL);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("error");
    TCase *tc = tcase_create("error");
    tcase_add_test(tc, set_returns_negative_errno);
    tcase_add_test(tc, message_and_code_are_kept);
    tcase_add_test(tc, long_message_is_complete);
    tcase_add_test(tc, control_characters_do_not_pass);
    tcase_add_test(tc, second_error_replaces_the_first);
    tcase_add_test(tc, prefix_goes_in_front_and_keeps_the_code);
    tcase_add_test(tc, prefix_without_an_error_does_nothing);
    tcase_add_test(tc, null_error_has_a_text);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
