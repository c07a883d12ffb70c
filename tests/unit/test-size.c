/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes as text: what is read, what is refused, what is printed. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "nbdelta/bytes.h"
#include "nbdelta/size.h"

static uint64_t parsed(const char *text)
{
    uint64_t bytes = 0;

    ck_assert_msg(size_parse(text, &bytes) == 0, "'%s' is refused", text);
    return bytes;
}

static void refused(const char *text, int code)
{
    uint64_t bytes = 12345;
    int r = size_parse(text, &bytes);

    ck_assert_msg(r == code, "'%s' gives %d", text, r);
    ck_assert_uint_eq(bytes, 12345);
}

START_TEST(decimal_with_suffixes)
{
    ck_assert_uint_eq(parsed("0"), 0);
    ck_assert_uint_eq(parsed("512"), 512);
    ck_assert_uint_eq(parsed("0512"), 512);
    ck_assert_uint_eq(parsed("7b"), 7);
    ck_assert_uint_eq(parsed("64k"), 64 * KiB);
    ck_assert_uint_eq(parsed("64K"), 64 * KiB);
    ck_assert_uint_eq(parsed("3m"), 3 * MiB);
    ck_assert_uint_eq(parsed("3M"), 3 * MiB);
    ck_assert_uint_eq(parsed("2G"), 2 * GiB);
    ck_assert_uint_eq(parsed("2T"), 2 * TiB);
    ck_assert_uint_eq(parsed("1P"), KiB * TiB);
    ck_assert_uint_eq(parsed("1e"), MiB * TiB);
    ck_assert_uint_eq(parsed("64KiB"), 64 * KiB);
    ck_assert_uint_eq(parsed("1.5GiB"), 1536 * MiB);
}
END_TEST

START_TEST(fractions_are_exact)
{
    ck_assert_uint_eq(parsed("1.5k"), 1536);
    ck_assert_uint_eq(parsed("1.0"), 1);
    ck_assert_uint_eq(parsed("1.k"), 1024);
    ck_assert_uint_eq(parsed(".5M"), 512 * KiB);
    ck_assert_uint_eq(parsed("0.0009765625k"), 1);
    ck_assert_uint_eq(parsed("1.999999999999999999999999k"), 2047);
    ck_assert_uint_eq(parsed("7.5E"), (7 * KiB + 512) * KiB * TiB);
}
END_TEST

START_TEST(hexadecimal)
{
    ck_assert_uint_eq(parsed("0x200"), 512);
    ck_assert_uint_eq(parsed("0XfFb"), 0xffb);
    ck_assert_uint_eq(parsed("0x7fffffffffffffff"), INT64_MAX);
}
END_TEST

START_TEST(limit_is_int64)
{
    ck_assert_uint_eq(parsed("9223372036854775807"), INT64_MAX);
    refused("9223372036854775808", -ERANGE);
    refused("99999999999999999999999999999", -ERANGE);
    refused("8E", -ERANGE);
    refused("99999999999999999999E", -ERANGE);
    refused("0x8000000000000000", -ERANGE);
    refused("0x10000000000000001", -ERANGE);
}
END_TEST

START_TEST(what_is_no_size)
{
    static const char *const bad[] = {
        "",    " 1",  "1 ", "-1",   "+1",    "k",    "x",  "1kk",
        "1kB", "1x",  ".",  "1..5", "1.5",   "1.5b", "0x", "0x1k",
        "0xg", "1e3", ".k", "1,5k", "0x1.8", "1.5x",
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        refused(bad[i], -EINVAL);
    }
}
END_TEST

static void human(uint64_t bytes, const char *text)
{
    char buf[32];

    ck_assert_str_eq(size_human(bytes, buf, sizeof(buf)), text);
}

START_TEST(human_has_three_digits)
{
    human(0, "0 B");
    human(512, "512 B");
    human(1023, "1023 B");
    human(1024, "1 KiB");
    human(1536, "1.5 KiB");
    human(64 * KiB, "64 KiB");
    human(1 * KiB + 52, "1.05 KiB");
    human(GiB + GiB / 2, "1.5 GiB");
    human(10 * GiB + GiB / 4, "10.3 GiB");
    human(MiB - 1, "1 MiB");
    human(1023 * KiB, "1023 KiB");
    human(UINT64_MAX, "16 EiB");
}
END_TEST

START_TEST(human_fits_a_small_buffer)
{
    char buf[4];

    ck_assert_str_eq(size_human(123 * MiB, buf, sizeof(buf)), "123");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("size");
    TCase *tc = tcase_create("size");
    tcase_add_test(tc, decimal_with_suffixes);
    tcase_add_test(tc, fractions_are_exact);
    tcase_add_test(tc, hexadecimal);
    tcase_add_test(tc, limit_is_int64);
    tcase_add_test(tc, what_is_no_size);
    tcase_add_test(tc, human_has_three_digits);
    tcase_add_test(tc, human_fits_a_small_buffer);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
