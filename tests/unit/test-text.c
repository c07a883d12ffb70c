/* SPDX-License-Identifier: BSD-3-Clause */
/* Foreign text made printable, and identifiers. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/text.h"

static const char *printable(const char *s)
{
    static char buf[128];

    strcpy(buf, s);
    text_make_printable(buf);
    return buf;
}

START_TEST(what_is_only_to_be_read_stays)
{
    static const char *const plain[] = {
        "",
        "a b~",
        "\xc3\xa4",
        "\xc2\xa0",
        "\xe2\x82\xac",
        "\xe6\x97\xa5\xe6\x9c\xac",
        "\xf0\x9f\x92\xbe",
        "\xe2\x80\x8d", /* a joiner: part of emoji */
    };

    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
        ck_assert_str_eq(printable(plain[i]), plain[i]);
    }
}
END_TEST

START_TEST(controls_are_replaced)
{
    ck_assert_str_eq(printable("a\nb\x1b[1m\x7f"), "a?b?[1m?");
    ck_assert_str_eq(printable("\xc2\x80\xc2\x9b"
                               "31m"),
                     "??31m");
    ck_assert_str_eq(printable("x\xe2\x80\xae"
                               "gpj"),
                     "x?gpj");
    ck_assert_str_eq(printable("\xe2\x81\xa6\xe2\x80\xa8\xd8\x9c"), "???");
    ck_assert_str_eq(printable("\xf3\xa0\x81\x81\xef\xbb\xbf"), "??");
}
END_TEST

/* Each byte that begins no character is one '?': nothing behind it is lost. */
START_TEST(what_is_not_utf8_is_replaced)
{
    ck_assert_str_eq(printable("\x9b"
                               "31m"),
                     "?31m");
    ck_assert_str_eq(printable("a\xc3"), "a?");
    ck_assert_str_eq(printable("\xe2\x82"), "??");
    ck_assert_str_eq(printable("\xc3\xff"), "??");
    ck_assert_str_eq(printable("\xc0\x8a"), "??");      /* long form of \n */
    ck_assert_str_eq(printable("\xe0\x82\x9b"), "???"); /* of U+009B */
    ck_assert_str_eq(printable("\xf0\x80\x82\x9b"), "????");
    ck_assert_str_eq(printable("\xed\xa0\x80"), "???");      /* a surrogate */
    ck_assert_str_eq(printable("\xf4\x90\x80\x80"), "????"); /* no such */
    ck_assert_str_eq(printable("\xf8\x88\x80\x80\x80"), "?????");
}
END_TEST

START_TEST(bytes_that_are_no_text_become_a_character)
{
    static const char *const cases[][2] = {
        {"", ""},
        {"a\xc3\xa4\n", "a\xc3\xa4\n"},
        {"\xff", "\xef\xbf\xbd"},
        {"a\xe2\x82z", "a\xef\xbf\xbd\xef\xbf\xbdz"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *text = text_as_utf8(cases[i][0]);

        ck_assert_str_eq(text, cases[i][1]);
        free(text);
    }
}
END_TEST

START_TEST(identifiers_begin_with_a_letter)
{
    ck_assert(text_is_id("a"));
    ck_assert(text_is_id("Z0-9._"));
    ck_assert(!text_is_id(""));
    ck_assert(!text_is_id("0a"));
    ck_assert(!text_is_id("-a"));
    ck_assert(!text_is_id("a b"));
    ck_assert(!text_is_id("\xc3\xa4"));
    ck_assert(!text_is_id("a\xc3\xa4"));
    ck_assert_uint_eq(text_id_length("disk-0=x"), 6);
    ck_assert_uint_eq(text_id_length("=x"), 0);
    ck_assert_uint_eq(text_id_length("1=x"), 0);
}
END_TEST

/* Whatever the bytes are, what comes out has nothing to be replaced in it. */
START_TEST(twice_is_once)
{
    char buf[9];
    char again[9];

    srand(1);
    for (int n = 0; n < 200000; n++) {
        for (size_t i = 0; i < sizeof(buf) - 1; i++) {
            buf[i] = (char)rand();
        }
        buf[sizeof(buf) - 1] = '\0';
        text_make_printable(buf);
        strcpy(again, buf);
        text_make_printable(again);
        ck_assert_str_eq(again, buf);
        for (const char *p = buf; *p;) {
            uint32_t code = 0;
            size_t len = text_char(p, &code);
            ck_assert_uint_gt(len, 0);
            ck_assert(text_is_plain(code));
            p += len;
        }
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("text");
    TCase *tc = tcase_create("text");
    tcase_add_test(tc, what_is_only_to_be_read_stays);
    tcase_add_test(tc, controls_are_replaced);
    tcase_add_test(tc, what_is_not_utf8_is_replaced);
    tcase_add_test(tc, bytes_that_are_no_text_become_a_character);
    tcase_add_test(tc, identifiers_begin_with_a_letter);
    tcase_add_test(tc, twice_is_once);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
