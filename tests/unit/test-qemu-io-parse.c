/* SPDX-License-Identifier: BSD-3-Clause */
/* Command lines of qemu-io, taken apart. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "vm/qemu-io-parse.h"

static struct io_args parsed(const char *command)
{
    struct io_args a;
    struct error *err = NULL;
    int r = io_parse(command, &a, &err);

    ck_assert_msg(r == 0, "'%s': %s", command, err ? error_message(err) : "?");
    return a;
}

static void refused(const char *command, const char *text)
{
    struct io_args a;
    struct error *err = NULL;

    ck_assert_int_eq(io_parse(command, &a, &err), -EINVAL);
    ck_assert_ptr_nonnull(err);
    ck_assert_msg(strstr(error_message(err), text), "'%s' gives '%s'", command,
                  error_message(err));
    error_free(err);
    io_args_clear(&a);
}

START_TEST(read_takes_options_before_its_range)
{
    struct io_args a = parsed("read -qP0x1f -s 512 -l 1k 64k 1.5M");

    ck_assert_int_eq(a.op, IO_READ);
    ck_assert(a.quiet && !a.dump && !a.terse && !a.aio);
    ck_assert_int_eq(a.pattern, 0x1f);
    ck_assert_uint_eq(a.check_from, 512);
    ck_assert_uint_eq(a.check_len, KiB);
    ck_assert_uint_eq(a.offset, 64 * KiB);
    ck_assert_uint_eq(a.bytes, MiB + 512 * KiB);
    io_args_clear(&a);
}
END_TEST

START_TEST(without_a_length_the_pattern_is_checked_to_the_end)
{
    struct io_args a = parsed("  r -P 7   -s 100 0 1k");

    ck_assert_str_eq(a.verb, "read");
    ck_assert_uint_eq(a.check_from, 100);
    ck_assert_uint_eq(a.check_len, KiB - 100);
    io_args_clear(&a);
}
END_TEST

START_TEST(write_options_become_flags)
{
    struct io_args a = parsed("write -fzun 0 4G");

    ck_assert_int_eq(a.op, IO_WRITE);
    ck_assert(a.zero);
    ck_assert_uint_eq(a.flags, REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK);
    ck_assert_uint_eq(a.bytes, 4 * GiB);
    ck_assert_int_eq(a.pattern, -1);
    io_args_clear(&a);

    a = parsed("write -s some/file 0 512");
    ck_assert_str_eq(a.file, "some/file");
    io_args_clear(&a);
}
END_TEST

START_TEST(vectors_are_one_range)
{
    struct io_args a = parsed("aio_write -P 3 1k 512 512 1k");

    ck_assert(a.aio);
    ck_assert_uint_eq(a.offset, KiB);
    ck_assert_uint_eq(a.bytes, 2 * KiB);
    io_args_clear(&a);
}
END_TEST

START_TEST(other_commands)
{
    struct io_args a = parsed("break write_aio A");

    ck_assert_int_eq(a.op, IO_BREAK);
    ck_assert_str_eq(a.event, "write_aio");
    ck_assert_str_eq(a.tag, "A");
    io_args_clear(&a);
    a = parsed("alloc 1M");
    ck_assert_int_eq(a.op, IO_ALLOC);
    ck_assert_uint_eq(a.offset, MiB);
    ck_assert_uint_eq(a.bytes, 512);
    io_args_clear(&a);
    a = parsed("sleep 250");
    ck_assert_int_eq(a.op, IO_SLEEP);
    ck_assert_uint_eq(a.bytes, 250);
    io_args_clear(&a);
    a = parsed(" \t ");
    ck_assert_int_eq(a.op, IO_NOTHING);
    io_args_clear(&a);
}
END_TEST

START_TEST(wrong_words_are_refused)
{
    refused("frob 0 1", "command \"frob\" not found");
    refused("read 0", "bad argument count 1 to read, expected at least 2");
    refused("read 0 1 2", "read: too many arguments");
    refused("readv 0", "expected at least 2 arguments");
    refused("alloc", "expected between 1 and 2 arguments");
    refused("flush now", "bad argument count 1 to flush");
    refused("read -x 0 1", "invalid option -- 'x'");
    refused("read -: 0 1", "invalid option -- ':'");
    refused("read -P", "option requires an argument -- 'P'");
    refused("read -P 256 0 1", "256 is not a valid pattern byte");
    refused("read -s 1 0 512", "require -P");
    refused("read -P 1 -l 513 0 512", "range exceeds end of read data");
    refused("read -P 1 -s 513 0 512", "range exceeds end of read data");
    refused("read -P 1 -s 1 -l 512 0 512", "range exceeds end of read data");
    refused("write -z -P 1 0 512", "Only one of -z, -P, and -s");
    refused("aio_write -z -P 1 0 512", "-z and -P");
    refused("aio_write -z 0 512 512", "only a single length");
    refused("write -u 0 512", "-u requires -z");
    refused("write -n 0 512", "-n requires -z");
    refused("write 0 2G", "length cannot exceed 2147483136 without -n");
    refused("writev 0 1G 1G", "length cannot exceed 2147483136, given 1G");
    refused("write zero 1", "non-numeric argument");
    refused("write 0 99E", "argument too large");
    refused("sleep 1s", "1s is not a valid number");
}
END_TEST

START_TEST(too_many_words)
{
    char text[200] = "readv 0";

    for (int i = 0; i < 40; i++) {
        (void)strcat(text, " 1");
    }
    refused(text, "more than 32 words");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qemu-io-parse");
    TCase *tc = tcase_create("qemu-io-parse");
    SRunner *sr;
    int failed;

    tcase_add_test(tc, read_takes_options_before_its_range);
    tcase_add_test(tc, without_a_length_the_pattern_is_checked_to_the_end);
    tcase_add_test(tc, write_options_become_flags);
    tcase_add_test(tc, vectors_are_one_range);
    tcase_add_test(tc, other_commands);
    tcase_add_test(tc, wrong_words_are_refused);
    tcase_add_test(tc, too_many_words);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
