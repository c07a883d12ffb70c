/* SPDX-License-Identifier: BSD-3-Clause */
/* The parser of QMP: where a value ends, bad input, and limits. */
#include <check.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "qmp/parse.h"
#include "wide.h"

/* What the parser has delivered: values as JSON, errors as text after '!',
 * separated by newlines. */
struct seen {
    char text[8192];
    size_t values;
    size_t errors;
};

static void add_line(struct seen *s, const char *prefix, const char *line)
{
    if (strlen(s->text) + strlen(line) + 3 < sizeof(s->text)) {
        strcat(s->text, s->text[0] ? "\n" : "");
        strcat(s->text, prefix);
        strcat(s->text, line);
    }
}

static void on_value(json_t *value, const char *why, void *opaque)
{
    struct seen *s = opaque;
    CLEANUP_JSON json_t *copy = wide_copy(value);
    CLEANUP_FREE char *text = NULL;

    if (!value) {
        s->errors++;
        add_line(s, "!", why);
        return;
    }
    s->values++;
    text = json_dumps(copy, JSON_ENCODE_ANY | JSON_COMPACT);
    ck_assert_ptr_nonnull(text);
    text[wide_write(text, strlen(text))] = '\0';
    add_line(s, "", text);
}

/* Feed @len bytes in portions of @step. */
static void feed(struct seen *s, const char *data, size_t len, size_t step)
{
    struct qmp_parser *p = qmp_parser_new(&qmp_limits_stranger, on_value, s);

    ck_assert_ptr_nonnull(p);
    memset(s, 0, sizeof(*s));
    for (size_t i = 0; i < len; i += step) {
        qmp_parser_feed(p, data + i, len - i < step ? len - i : step);
    }
    qmp_parser_free(p);
}

/* @input gives @expected, however it is cut. */
static void gives(const char *input, const char *expected)
{
    struct seen s;

    for (size_t step = 1; step <= strlen(input); step++) {
        feed(&s, input, strlen(input), step);
        ck_assert_msg(strcmp(s.text, expected) == 0,
                      "%s\nin portions of %zu gives\n%s\nnot\n%s", input, step,
                      s.text, expected);
    }
}

START_TEST(values_need_no_newline)
{
    gives("{\"execute\":\"quit\"}", "{\"execute\":\"quit\"}");
    gives("{\"a\":1}{\"b\":[1,{}]}[]", "{\"a\":1}\n{\"b\":[1,{}]}\n[]");
    gives(" \r\n\t{ \"a\" :\n1 }\n\n[ 1 , 2 ]", "{\"a\":1}\n[1,2]");
}
END_TEST

START_TEST(scalars_end_at_the_next_byte)
{
    gives("1 2", "1");
    gives("true\nnull\n-1.5e3 \"x\"", "true\nnull\n-1500.0\n\"x\"");
    gives("1\"x\"", "1\n\"x\"");
}
END_TEST

START_TEST(quotes_of_either_kind)
{
    gives("{'a':'b'}", "{\"a\":\"b\"}");
    gives("{'a':\"it's\"}", "{\"a\":\"it's\"}");
    gives("['say \"x\"', 'it\\'s', \"it\\'s\", '\\\"', '\\\\']",
          "[\"say \\\"x\\\"\",\"it's\",\"it's\",\"\\\"\",\"\\\\\"]");
    gives("['\\u00e9\\n']", "[\"\u00e9\\n\"]");
}
END_TEST

START_TEST(brackets_in_strings_do_not_count)
{
    gives("{'}':']{['}{}", "{\"}\":\"]{[\"}\n{}");
}
END_TEST

START_TEST(integers_that_do_not_fit_are_real)
{
    gives("[9223372036854775807,-9223372036854775808]",
          "[9223372036854775807,-9223372036854775808]");
    gives("[18446744073709551616]", "[1.8446744073709552e19]");
    gives("[-9223372036854775809]", "[-9.2233720368547758e18]");
    gives("[1234567890123456789012]", "[1.2345678901234568e21]");
}
END_TEST

/* jansson has none of these. */
START_TEST(wide_integers_stay_what_they_are)
{
    gives("9223372036854775808 ", "9223372036854775808");
    gives("[9223372036854775807,9223372036854775808,18446744073709551615]",
          "[9223372036854775807,9223372036854775808,18446744073709551615]");
    gives("[18446744073709551614,1.8446744073709552e19,18446744073709551614]",
          "[18446744073709551614,1.8446744073709552e19,18446744073709551614]");
    gives("{'b':1.5,'a':[{'x':9223372036854775809,'d':[2.5]},'9'],"
          "'c':9223372036854775810,'0':-1}{'a':1e19}",
          "{\"b\":1.5,\"a\":[{\"x\":9223372036854775809,\"d\":[2.5]},\"9\"],"
          "\"c\":9223372036854775810,\"0\":-1}\n{\"a\":1e19}");
    /* What another message has had is forgotten, also when that was wrong. */
    gives("[18446744073709551615,}{'a':1e19}",
          "!JSON parse error, unexpected token near '}'\n{\"a\":1e19}");
    gives("[18446744073709551615,@ [1e19]",
          "!JSON parse error, stray '@'\n[1e19]");
    /* Strings are not taken for what marks them. */
    gives("[18446744073709551615,'\\\\u00001','\\\"\\\\u00001']",
          "[18446744073709551615,\"\\\\u00001\",\"\\\"\\\\u00001\"]");
}
END_TEST

START_TEST(wide_integers_become_bits_where_they_are_wanted)
{
    json_t *o;
    struct wide_list l = {NULL, 0, 0};

    ck_assert(wide_add(&l, 1, UINT64_MAX));
    o = json_pack("{s:f, s:f}", "a", 1.8446744073709552e19, "b",
                  1.8446744073709552e19);
    ck_assert_ptr_nonnull(o);
    wide_bind(&l, o);
    wide_use(&l);
    ck_assert(json_is_real(wide_to_bits(o, "a")));
    ck_assert_int_eq(json_integer_value(wide_to_bits(o, "b")), -1);
    ck_assert_int_eq(json_integer_value(json_object_get(o, "b")), -1);
    ck_assert_ptr_null(wide_to_bits(o, "c"));
    wide_use(NULL);
    wide_clear(&l);
    json_decref(o);
}
END_TEST

START_TEST(after_a_bad_message_comes_the_next)
{
    gives("{'a' 'b'}{}", "!JSON parse error, ':' expected near '\"b\"'\n{}");
    gives("[1 2]{}", "!JSON parse error, ']' expected near '2'\n{}");
    gives("}{}", "!JSON parse error, unexpected token near '}'\n{}");
    gives("{'a':1,'a':2}{}", "!JSON parse error, duplicate key\n{}");
    gives("{'a':foo}{}", "!JSON parse error, invalid keyword 'foo'\n{}");
    gives("foo {}", "!JSON parse error, invalid keyword 'foo'\n{}");
}
END_TEST

START_TEST(after_a_stray_byte_structure_is_looked_for)
{
    gives("@ {}", "!JSON parse error, stray '@'\n{}");
    gives("01 {}", "!JSON parse error, stray '01'\n{}");
    gives("-x{}", "!JSON parse error, stray '-x'\n{}");
    gives("\x01{}", "!JSON parse error, stray '?'\n{}");
    gives("'x\n{}", "!JSON parse error, stray '\"x?'\n{}");
    /* The way of a client to begin anew. */
    gives("{'a':[{'b\xff{}", "!JSON parse error, stray '\"b?'\n{}");
    gives("{'a':[1,\xff\n{}", "!JSON parse error, stray '?'\n{}");
}
END_TEST

START_TEST(bad_utf8_is_refused)
{
    struct seen s;

    feed(&s, "['\x80']{}", 7, 7);
    ck_assert_uint_eq(s.errors, 1);
    ck_assert_uint_eq(s.values, 1);
    feed(&s, "['\\ud800']{}", 12, 12);
    ck_assert_uint_eq(s.errors, 1);
    ck_assert_uint_eq(s.values, 1);
    feed(&s, "['\\u0000']{}", 12, 12);
    ck_assert_uint_eq(s.errors, 1);
    ck_assert_uint_eq(s.values, 1);
}
END_TEST

static void first_error(const char *data, size_t len, const char *why)
{
    struct seen s;

    feed(&s, data, len, 4096);
    ck_assert_uint_ge(s.errors, 1);
    ck_assert_msg(strncmp(s.text + 1, why, strlen(why)) == 0, "%.80s", s.text);
}

START_TEST(nesting_is_bounded)
{
    CLEANUP_FREE char *deep = malloc(2 * QMP_NESTING_MAX + 2);
    struct seen s;

    ck_assert_ptr_nonnull(deep);
    memset(deep, '[', QMP_NESTING_MAX);
    memset(deep + QMP_NESTING_MAX, ']', QMP_NESTING_MAX);
    feed(&s, deep, (size_t)2 * QMP_NESTING_MAX, 100);
    ck_assert_uint_eq(s.values, 1);
    ck_assert_uint_eq(s.errors, 0);
    memset(deep, '[', QMP_NESTING_MAX + 1);
    first_error(deep, QMP_NESTING_MAX + 1, "JSON nesting depth limit exceeded");
}
END_TEST

START_TEST(size_is_bounded)
{
    size_t len = qmp_limits_stranger.size + 10;
    CLEANUP_FREE char *big = malloc(len);
    struct seen s;

    ck_assert_ptr_nonnull(big);
    memset(big, 'x', len);
    big[0] = '"';
    big[qmp_limits_stranger.size - 10] = '"';
    feed(&s, big, qmp_limits_stranger.size - 9, 65536);
    ck_assert_uint_eq(s.values, 1);
    big[qmp_limits_stranger.size - 10] = 'x';
    memcpy(big + len - 4, "\"\n[]", 4);
    feed(&s, big, len, 65536);
    ck_assert_str_eq(s.text, "!JSON token size limit exceeded\n[]");
}
END_TEST

START_TEST(tokens_are_bounded)
{
    size_t len = qmp_limits_stranger.tokens + 10;
    CLEANUP_FREE char *many = malloc(len);

    ck_assert_ptr_nonnull(many);
    memset(many, ',', len);
    many[0] = '[';
    first_error(many, len, "JSON token count limit exceeded");
}
END_TEST

/* What strangers have sent by halves counts together, until it is whole. */
START_TEST(strangers_share_a_budget)
{
    size_t len = qmp_limits_stranger.size / 2 + 10;
    CLEANUP_FREE char *big = malloc(len);
    struct qmp_parser *p[16];
    struct seen s = {"", 0, 0};
    struct seen known = {"", 0, 0};
    size_t full = 0;

    ck_assert_ptr_nonnull(big);
    memset(big, 'x', len);
    big[0] = '"';
    for (size_t i = 0; i < 16; i++) {
        p[i] = qmp_parser_new(&qmp_limits_stranger, on_value, &s);
        qmp_parser_feed(p[i], big, len);
        full += s.errors == 0;
    }
    ck_assert_uint_eq(full, 4); /* of 16 MiB each, by the doubling */
    ck_assert_uint_eq(s.errors, 12);
    ck_assert_ptr_nonnull(strstr(s.text, "JSON token size limit exceeded"));

    /* Clients that are known have limits of their own. */
    struct qmp_parser *k = qmp_parser_new(&qmp_limits_known, on_value, &known);
    qmp_parser_feed(k, big, len);
    qmp_parser_feed(k, "\"", 1);
    ck_assert_uint_eq(known.values, 1);
    qmp_parser_free(k);

    for (size_t i = 0; i < 4; i++) {
        qmp_parser_feed(p[i], "\"", 1);
    }
    ck_assert_uint_eq(s.values, 4);
    ck_assert_uint_eq(atomic_load(&qmp_limits_stranger.budget->used), 0);
    for (size_t i = 0; i < 16; i++) {
        qmp_parser_free(p[i]);
    }
}
END_TEST

/* As QEMU: a list of 10^6 names is a command as others are. */
START_TEST(long_lists_of_those_who_are_known)
{
    struct seen s = {"", 0, 0};
    struct qmp_parser *k = qmp_parser_new(&qmp_limits_known, on_value, &s);

    qmp_parser_feed(k, "[0", 2);
    for (int i = 0; i < 1000000; i++) {
        qmp_parser_feed(k, ",'a'", 4);
    }
    qmp_parser_feed(k, "]", 1);
    ck_assert_uint_eq(s.values, 1);
    ck_assert_uint_eq(s.errors, 0);
    qmp_parser_free(k);
}
END_TEST

START_TEST(feed_one_stops_between_values)
{
    const char *input = "{}[1]7 ";
    struct seen s = {"", 0, 0};
    struct qmp_parser *p = qmp_parser_new(&qmp_limits_stranger, on_value, &s);

    ck_assert_uint_eq(qmp_parser_feed_one(p, input, 7), 2);
    ck_assert_uint_eq(s.values, 1);
    ck_assert_uint_eq(qmp_parser_feed_one(p, input + 2, 5), 3);
    ck_assert_uint_eq(s.values, 2);
    /* Behind the 7: what ends it is still to come. */
    ck_assert_uint_eq(qmp_parser_feed_one(p, input + 5, 2), 1);
    ck_assert_uint_eq(s.values, 3);
    qmp_parser_free(p);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qmp-parse");
    TCase *tc = tcase_create("qmp-parse");
    tcase_add_test(tc, values_need_no_newline);
    tcase_add_test(tc, scalars_end_at_the_next_byte);
    tcase_add_test(tc, quotes_of_either_kind);
    tcase_add_test(tc, brackets_in_strings_do_not_count);
    tcase_add_test(tc, integers_that_do_not_fit_are_real);
    tcase_add_test(tc, wide_integers_stay_what_they_are);
    tcase_add_test(tc, wide_integers_become_bits_where_they_are_wanted);
    tcase_add_test(tc, after_a_bad_message_comes_the_next);
    tcase_add_test(tc, after_a_stray_byte_structure_is_looked_for);
    tcase_add_test(tc, bad_utf8_is_refused);
    tcase_add_test(tc, nesting_is_bounded);
    tcase_add_test(tc, size_is_bounded);
    tcase_add_test(tc, strangers_share_a_budget);
    tcase_add_test(tc, long_lists_of_those_who_are_known);
    tcase_add_test(tc, tokens_are_bounded);
    tcase_add_test(tc, feed_one_stops_between_values);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
