/* SPDX-License-Identifier: BSD-3-Clause */
/* The log: its lines, its limits, and a reader that does not read. */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log/log.h"

static int out; /* where standard error can be read */
static char said[1 << 20];

static void redirect(void)
{
    int fds[2];

    ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
    ck_assert_int_ge(dup2(fds[1], STDERR_FILENO), 0);
    (void)close(fds[1]);
    ck_assert_int_eq(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
    out = fds[0];
    log_init("nbdelta");
}

/* What has come; and how many lines that are. */
static unsigned lines(void)
{
    size_t len = 0;
    ssize_t n;
    unsigned count = 0;

    while ((n = read(out, said + len, sizeof(said) - 1 - len)) > 0) {
        len += (size_t)n;
    }
    said[len] = '\0';
    for (const char *p = said; (p = strchr(p, '\n')); p++) {
        count++;
    }
    return count;
}

START_TEST(an_event_is_a_line_with_its_time)
{
    redirect();
    log_line(TELL_ERROR, "job '%s' failed", "a\nb\x1b[1m\xe2\x80\xae");
    ck_assert_uint_eq(lines(), 1);
    ck_assert_msg(strncmp(said, "nbdelta: 20", 11) == 0, "%s", said);
    ck_assert_msg(strstr(said, "Z job 'a?b?[1m?' failed\n") != NULL, "%s",
                  said);
}
END_TEST

START_TEST(the_library_is_heard)
{
    redirect();
    tell_event(TELL_WARNING, "bitmap '%s'", "b0");
    ck_assert_uint_eq(lines(), 1);
    ck_assert_ptr_nonnull(strstr(said, "Z bitmap 'b0'\n"));
}
END_TEST

START_TEST(the_journal_has_levels_and_times_of_its_own)
{
    struct stat st;
    char stream[64];

    redirect();
    ck_assert_int_eq(fstat(STDERR_FILENO, &st), 0);
    (void)snprintf(stream, sizeof(stream), "%ju:%ju", (uintmax_t)st.st_dev,
                   (uintmax_t)st.st_ino);
    ck_assert_int_eq(setenv("JOURNAL_STREAM", stream, 1), 0);
    log_init("nbdelta");
    log_line(TELL_ERROR, "an error");
    log_line(TELL_INFO, "a note");
    (void)lines();
    ck_assert_str_eq(said, "<3>an error\n<6>a note\n");

    /* That was somebody else's. */
    ck_assert_int_eq(setenv("JOURNAL_STREAM", "1:1", 1), 0);
    log_init("nbdelta");
    log_line(TELL_ERROR, "an error");
    (void)lines();
    ck_assert_ptr_null(strstr(said, "<3>"));
}
END_TEST

START_TEST(what_is_often_is_told_once_and_counted)
{
    struct log_limit a = {.every_s = 3600};
    struct log_limit b = {.every_s = 3600};

    redirect();
    for (int i = 0; i < 5; i++) {
        log_seldom(&a, TELL_ERROR, "a failed");
    }
    log_seldom(&b, TELL_ERROR, "b failed");
    ck_assert_uint_eq(lines(), 2);
    ck_assert_ptr_nonnull(strstr(said, "Z a failed\n"));
    ck_assert_ptr_nonnull(strstr(said, "Z b failed\n"));

    a.next_ns = 0; /* an hour has gone */
    log_seldom(&a, TELL_ERROR, "a failed");
    ck_assert_uint_eq(lines(), 1);
    ck_assert_ptr_nonnull(strstr(said, "a failed (and 4 like it before)\n"));
}
END_TEST

START_TEST(a_flood_is_cut_off_and_counted)
{
    redirect();
    for (int i = 0; i < 5000; i++) {
        log_line(TELL_ERROR, "line %d", i);
    }
    unsigned n = lines();
    ck_assert_uint_ge(n, 100);
    ck_assert_uint_lt(n, 1000);
    (void)sleep(1);
    log_line(TELL_ERROR, "later");
    ck_assert_uint_eq(lines(), 2);
    ck_assert_ptr_nonnull(strstr(said, "lines were left out here\n"));
    ck_assert_ptr_nonnull(strstr(said, "later\n"));
}
END_TEST

START_TEST(what_is_in_order_cannot_hide_an_error)
{
    redirect();
    for (int i = 0; i < 500; i++) {
        log_line(TELL_INFO, "a client comes");
    }
    log_line(TELL_ERROR, "a disk is full");
    ck_assert_uint_lt(lines(), 100);
    ck_assert_ptr_nonnull(strstr(said, "Z a disk is full\n"));
}
END_TEST

START_TEST(levels_above_the_limit_are_left_out)
{
    redirect();
    log_line(TELL_DEBUG, "not by default");
    log_up_to(TELL_WARNING);
    log_line(TELL_INFO, "not asked for");
    log_line(TELL_WARNING, "told");
    log_up_to(TELL_INFO);
    ck_assert_uint_eq(lines(), 1);
    ck_assert_ptr_nonnull(strstr(said, "Z told\n"));
}
END_TEST

/* Nobody reads the log, and yet its writer does not wait. */
START_TEST(a_full_pipe_holds_nobody_up)
{
    char filler[4096] = "";

    redirect();
    int flags = fcntl(STDERR_FILENO, F_GETFL);
    ck_assert_int_eq(fcntl(STDERR_FILENO, F_SETFL, flags | O_NONBLOCK), 0);
    while (write(STDERR_FILENO, filler, sizeof(filler)) > 0) {
    }
    ck_assert_int_eq(fcntl(STDERR_FILENO, F_SETFL, flags), 0);
    log_line(TELL_ERROR, "lost");
    log_line(TELL_ERROR, "lost");
    (void)lines();
    log_line(TELL_ERROR, "there");
    ck_assert_uint_eq(lines(), 2);
    ck_assert_ptr_nonnull(strstr(said, "Z 2 lines were left out here\n"));
    ck_assert_ptr_nonnull(strstr(said, "Z there\n"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("log");
    TCase *tc = tcase_create("log");
    tcase_add_test(tc, an_event_is_a_line_with_its_time);
    tcase_add_test(tc, the_library_is_heard);
    tcase_add_test(tc, the_journal_has_levels_and_times_of_its_own);
    tcase_add_test(tc, what_is_often_is_told_once_and_counted);
    tcase_add_test(tc, a_flood_is_cut_off_and_counted);
    tcase_add_test(tc, what_is_in_order_cannot_hide_an_error);
    tcase_add_test(tc, levels_above_the_limit_are_left_out);
    tcase_add_test(tc, a_full_pipe_holds_nobody_up);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
