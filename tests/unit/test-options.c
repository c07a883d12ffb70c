/* SPDX-License-Identifier: BSD-3-Clause */
/* KEY=VALUE,... and file names as JSON options. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"

/* --- Spellings --- */

static void same(const json_t *got, const char *want)
{
    CLEANUP_FREE char *text = json_dumps(got, JSON_COMPACT | JSON_SORT_KEYS);

    ck_assert_ptr_nonnull(text);
    ck_assert_str_eq(text, want);
}

static void parses(const char *text, const char *implied, const char *want)
{
    CLEANUP_JSON json_t *got = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int r = options_parse(text, implied, &got, &err);

    ck_assert_msg(r == 0, "'%s': %s", text, error_message(err));
    same(got, want);
}

/* @part is in the error's text. */
static void refuses(const char *text, const char *implied, const char *part)
{
    json_t *got = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int r = options_parse(text, implied, &got, &err);

    ck_assert_msg(r == -EINVAL, "'%s' gives %d", text, r);
    ck_assert_ptr_null(got);
    ck_assert_msg(strstr(error_message(err), part), "'%s': %s", text,
                  error_message(err));
}

static void image(const char *text, const char *format, const char *want)
{
    CLEANUP_JSON json_t *got = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int r = options_from_image(text, format, &got, &err);

    ck_assert_msg(r == 0, "'%s': %s", text, error_message(err));
    same(got, want);
}

START_TEST(dots_nest)
{
    parses("driver=qcow2,file.driver=file,file.filename=a", NULL,
           "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
           "\"filename\":\"a\"}}");
    parses("a.b.c.d=1,a.b.x=2", NULL,
           "{\"a\":{\"b\":{\"c\":{\"d\":\"1\"},\"x\":\"2\"}}}");
    parses("", NULL, "{}");
    parses("a=", NULL, "{\"a\":\"\"}");
    parses("a=1,", NULL, "{\"a\":\"1\"}");
    parses("a=b=c", NULL, "{\"a\":\"b=c\"}");
}
END_TEST

START_TEST(doubled_commas_are_commas)
{
    parses("a=1,,2,b=,,", NULL, "{\"a\":\"1,2\",\"b\":\",\"}");
    parses("a=,,,,b", NULL, "{\"a\":\",,b\"}");
    parses("a=1,,,b=2", NULL, "{\"a\":\"1,\",\"b\":\"2\"}");
    parses("x,,y,b=2", "id", "{\"b\":\"2\",\"id\":\"x,y\"}");
}
END_TEST

START_TEST(implied_key_is_for_the_first_value_only)
{
    parses("qcow2,a=b", "driver", "{\"a\":\"b\",\"driver\":\"qcow2\"}");
    parses("a=b", "driver", "{\"a\":\"b\"}");
    refuses("qcow2,raw", "driver", "'raw'");
    refuses("a=b,raw", "driver", "'raw'");
    refuses("qcow2", NULL, "'qcow2'");
}
END_TEST

START_TEST(last_of_equal_keys_wins)
{
    parses("a=1,a=2", NULL, "{\"a\":\"2\"}");
    parses("a.b=1,c=3,a.b=2", NULL, "{\"a\":{\"b\":\"2\"},\"c\":\"3\"}");
}
END_TEST

START_TEST(numbers_make_arrays)
{
    parses("a.0=x,a.1=y", NULL, "{\"a\":[\"x\",\"y\"]}");
    parses("a.1=y,a.0=x", NULL, "{\"a\":[\"x\",\"y\"]}");
    parses("a.0.b=x,a.1.0.c=y", NULL,
           "{\"a\":[{\"b\":\"x\"},[{\"c\":\"y\"}]]}");
    parses("a.0=0,a.1=1,a.2=2,a.3=3,a.4=4,a.5=5,a.6=6,a.7=7,a.8=8,a.9=9,"
           "a.10=10",
           NULL,
           "{\"a\":[\"0\",\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\","
           "\"9\",\"10\"]}");
    parses("a.4k=1", NULL, "{\"a\":{\"4k\":\"1\"}}");
}
END_TEST

START_TEST(incomplete_arrays_are_refused)
{
    refuses("a.1=x", NULL, "'a.0'");
    refuses("a.b.0=x,a.b.2=z", NULL, "'a.b.1'");
    refuses("a.99999999999999999999=x", NULL, "'a.0'");
    refuses("a.b.0=x,a.b.c=z", NULL, "'a.b'");
    refuses("a.00=x", NULL, "'a.00'");
    refuses("0=x", NULL, "'0'");
    refuses("0.a=x", NULL, "'0.a'");
}
END_TEST

START_TEST(conflicts_name_the_key)
{
    refuses("a=1,a.b=2", NULL, "'a.b'");
    refuses("a.b=2,a=1", NULL, "'a'");
    refuses("x.a=1,x.a.b.c=2", NULL, "'x.a'");
    refuses("x.a.b.c=2,x.a.b=1", NULL, "'x.a.b'");
}
END_TEST

START_TEST(empty_and_odd_keys_are_refused)
{
    refuses("=1", NULL, "without a name");
    refuses(",a=1", NULL, "without a name");
    refuses(",a=1", "driver", "without a name");
    refuses(".=1", NULL, "'.'");
    refuses(".a=1", NULL, "'.a'");
    refuses("a.=1", NULL, "'a.'");
    refuses("a..b=1", NULL, "'a..b'");
    refuses("a b=1", NULL, "'a b'");
    refuses("a\xc3\xa4=1", NULL, "is not an option's name");
    refuses("a=\xff", NULL, "UTF-8");
}
END_TEST

/* "a.a.a=1" with @depth parts. */
static char *nested(unsigned depth)
{
    char *text = malloc(2 * (size_t)depth + 2);

    ck_assert_ptr_nonnull(text);
    for (unsigned i = 0; i < depth; i++) {
        memcpy(text + 2 * (size_t)i, "a.", 2);
    }
    memcpy(text + 2 * (size_t)depth - 1, "=1", 3);
    return text;
}

START_TEST(depth_and_length_are_bounded)
{
    CLEANUP_FREE char *deep = nested(64);
    CLEANUP_FREE char *deeper = nested(65);
    CLEANUP_FREE char *text = malloc(64 * KiB + 2);
    CLEANUP_JSON json_t *got = NULL;

    ck_assert_int_eq(options_parse(deep, NULL, &got, NULL), 0);
    refuses(deeper, NULL, "64 deep");

    ck_assert_ptr_nonnull(text);
    memset(text, 'x', 64 * KiB + 1);
    text[64 * KiB + 1] = '\0';
    memcpy(text, "a=", 2);
    refuses(text, NULL, "65536");
    text[64 * KiB] = '\0';
    json_decref(got);
    got = NULL;
    ck_assert_int_eq(options_parse(text, NULL, &got, NULL), 0);

    memset(text, 'x', 1100);
    memcpy(text + 1100, "=1", 3);
    refuses(text, NULL, "too long");
    memcpy(text + 128, "=1", 3);
    refuses(text, NULL, "is not an option's name");

    /* A value alone may be long. */
    memset(text, 'x', 1100);
    text[1100] = '\0';
    CLEANUP_JSON json_t *file = NULL;
    ck_assert_int_eq(options_parse(text, "file", &file, NULL), 0);
    ck_assert_uint_eq(json_string_length(json_object_get(file, "file")), 1100);
}
END_TEST

START_TEST(json_with_and_without_prefix)
{
    parses("{\"a\": [1, null, true]}", NULL, "{\"a\":[1,null,true]}");
    parses("json:{\"a\": {}}", "driver", "{\"a\":{}}");
    refuses("json:[1]", NULL, "object");
    refuses("json:1", NULL, "JSON, line 1");
    refuses("json:", NULL, "JSON, line 1");
    refuses("{\"a\":1,\n \"a\":2}", NULL, "JSON, line 2, column");
    refuses("{\"a\":1} x", NULL, "JSON, line 1, column");
    refuses("{\"a\":\"\\u0000\"}", NULL, "JSON, line 1");
}
END_TEST

START_TEST(json_depth_is_bounded)
{
    char text[400] = "{\"a\":";
    size_t len = strlen(text);

    memset(text + len, '[', 63);
    memset(text + len + 63, ']', 63);
    memcpy(text + len + 126, "}", 2);
    CLEANUP_JSON json_t *got = NULL;
    ck_assert_int_eq(options_parse(text, NULL, &got, NULL), 0);

    memset(text + len, '[', 64);
    memset(text + len + 64, ']', 64);
    memcpy(text + len + 128, "}", 2);
    refuses(text, NULL, "64 deep");
}
END_TEST

START_TEST(file_name_becomes_a_format_over_a_file)
{
    image("a,b=c.img", "qcow2",
          "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
          "\"filename\":\"a,b=c.img\"}}");
    image("a", NULL, "{\"file\":{\"driver\":\"file\",\"filename\":\"a\"}}");
    image("{a", NULL, "{\"file\":{\"driver\":\"file\",\"filename\":\"{a\"}}");
    ck_assert_int_eq(options_from_image("", NULL, NULL, NULL), -EINVAL);
    ck_assert_int_eq(options_from_image("\xff", NULL, NULL, NULL), -EINVAL);
}
END_TEST

START_TEST(image_may_be_spelled_out)
{
    json_t *got = NULL;

    image("driver=raw,offset=1", NULL, "{\"driver\":\"raw\",\"offset\":\"1\"}");
    image("driver=raw", "raw", "{\"driver\":\"raw\"}");
    image("json:{\"file\":\"n\"}", "raw",
          "{\"driver\":\"raw\",\"file\":\"n\"}");
    image("json:{\"file\":\"n\"}", NULL, "{\"file\":\"n\"}");
    ck_assert_int_eq(options_from_image("driver=raw", "qcow2", &got, NULL),
                     -EINVAL);
    ck_assert_int_eq(options_from_image("json:{", NULL, &got, NULL), -EINVAL);
    ck_assert_ptr_null(got);
}
END_TEST

/* --- Consumption --- */

static struct opts *opts_of(const char *text)
{
    CLEANUP_JSON json_t *object = json_loads(text, 0, NULL);
    struct opts *o = opts_new(object);

    ck_assert_ptr_nonnull(o);
    return o;
}

START_TEST(absent_options_leave_the_value_alone)
{
    static const char *const words[] = {"a", "b", NULL};
    struct opts *o = opts_of("{}");
    const char *s = "default";
    bool b = true;
    uint64_t n = 7;
    unsigned w = 1;

    ck_assert_int_eq(opts_str(o, "x", &s, NULL), 0);
    ck_assert_int_eq(opts_bool(o, "x", &b, NULL), 0);
    ck_assert_int_eq(opts_uint(o, "x.y", 9, &n, NULL), 0);
    ck_assert_int_eq(opts_enum(o, "x", words, &w, NULL), 0);
    ck_assert_str_eq(s, "default");
    ck_assert(b);
    ck_assert_uint_eq(n, 7);
    ck_assert_uint_eq(w, 1);
    ck_assert_ptr_null(opts_take(o, "x"));
    ck_assert_int_eq(opts_end(o, "x", NULL), 0);
    opts_free(o);
    opts_free(NULL);
}
END_TEST

START_TEST(values_in_both_spellings)
{
    static const char *const words[] = {"ignore", "unmap", NULL};
    struct opts *o = opts_of(
        "{\"s\":\"text\",\"b1\":false,\"b2\":\"off\",\"b3\":\"on\",\"b4\":true,"
        "\"n1\":65536,\"n2\":\"64k\",\"e\":\"unmap\"}");
    const char *s = NULL;
    bool b = true;
    uint64_t n = 0;
    unsigned w = 0;

    ck_assert_int_eq(opts_str(o, "s", &s, NULL), 0);
    ck_assert_int_eq(opts_bool(o, "b1", &b, NULL), 0);
    ck_assert(!b);
    b = true;
    ck_assert_int_eq(opts_bool(o, "b2", &b, NULL), 0);
    ck_assert(!b);
    ck_assert_int_eq(opts_bool(o, "b3", &b, NULL), 0);
    ck_assert(b);
    b = false;
    ck_assert_int_eq(opts_bool(o, "b4", &b, NULL), 0);
    ck_assert(b);
    ck_assert_int_eq(opts_uint(o, "n1", 65536, &n, NULL), 0);
    ck_assert_uint_eq(n, 65536);
    n = 0;
    ck_assert_int_eq(opts_uint(o, "n2", 65536, &n, NULL), 0);
    ck_assert_uint_eq(n, 65536);
    ck_assert_int_eq(opts_enum(o, "e", words, &w, NULL), 0);
    ck_assert_uint_eq(w, 1);
    ck_assert_int_eq(opts_end(o, "x", NULL), 0);
    ck_assert_str_eq(s, "text"); /* lives as long as o */
    opts_free(o);
}
END_TEST

START_TEST(wrong_forms_name_the_key)
{
    static const char *const bad[] = {
        "\"x\"", "-1", "1.5", "[]", "{\"z\":1}", "null", "17", "\"17\"",
    };
    static const char *const words[] = {"a", "b", "c", NULL};

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char text[64];
        uint64_t n = 3;
        bool b = true;
        unsigned w = 2;

        (void)snprintf(text, sizeof(text), "{\"k\":{\"y\":%s}}", bad[i]);
        for (int getter = 0; getter < 4; getter++) {
            struct opts *o = opts_of(text);
            CLEANUP_ERROR struct error *err = NULL;
            const char *s = NULL;
            int r = getter == 0   ? opts_uint(o, "k.y", 16, &n, &err)
                    : getter == 1 ? opts_bool(o, "k.y", &b, &err)
                    : getter == 2 ? opts_enum(o, "k.y", words, &w, &err)
                                  : opts_str(o, "k.y", &s, &err);

            if (getter == 3 && bad[i][0] == '"') {
                ck_assert_int_eq(r, 0);
            } else {
                ck_assert_int_eq(r, -EINVAL);
                ck_assert_ptr_nonnull(strstr(error_message(err), "'k.y'"));
                ck_assert_ptr_null(s);
            }
            opts_free(o);
        }
        ck_assert_uint_eq(n, 3);
        ck_assert(b);
        ck_assert_uint_eq(w, 2);
    }
}
END_TEST

START_TEST(enum_error_lists_the_words)
{
    static const char *const words[] = {"a", "b", "c", NULL};
    struct opts *o = opts_of("{\"k\":\"x\"}");
    CLEANUP_ERROR struct error *err = NULL;
    unsigned w;

    ck_assert_int_eq(opts_enum(o, "k", words, &w, &err), -EINVAL);
    ck_assert_str_eq(error_message(err), "option 'k' must be 'a', 'b' or 'c'");
    opts_free(o);
}
END_TEST

START_TEST(dotted_keys_look_inside_and_leave_nothing)
{
    struct opts *o = opts_of("{\"cache\":{\"direct\":true,\"no-flush\":\"on\"},"
                             "\"other\":{}}");
    bool direct = false;
    bool no_flush = false;

    ck_assert(opts_has(o, "cache"));
    ck_assert(opts_has(o, "cache.direct"));
    ck_assert(!opts_has(o, "cache.x"));
    ck_assert(!opts_has(o, "cache.direct.x"));
    ck_assert_int_eq(opts_bool(o, "cache.direct", &direct, NULL), 0);
    ck_assert(!opts_has(o, "cache.direct"));
    ck_assert(opts_has(o, "cache"));
    ck_assert_int_eq(opts_bool(o, "cache.no-flush", &no_flush, NULL), 0);
    ck_assert(!opts_has(o, "cache"));
    ck_assert(direct && no_flush);
    ck_assert_int_eq(opts_bool(o, "other.x", &direct, NULL), 0);
    ck_assert_int_eq(opts_end(o, "x", NULL), 0);
    opts_free(o);
}
END_TEST

START_TEST(what_is_left_is_refused_by_name)
{
    struct opts *o = opts_of("{\"a\":1,\"cache\":{\"dirct\":true}}");
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *a = opts_take(o, "a");

    ck_assert(json_is_integer(a));
    ck_assert_int_eq(opts_end(o, "driver 'raw'", &err), -EINVAL);
    ck_assert_str_eq(error_message(err),
                     "driver 'raw' does not take the option 'cache.dirct'");
    opts_free(o);
}
END_TEST

START_TEST(callers_object_is_not_changed)
{
    CLEANUP_JSON json_t *object = json_pack("{s:{s:s}}", "a", "b", "c");
    struct opts *o = opts_new(object);
    const char *s = NULL;

    ck_assert_int_eq(opts_str(o, "a.b", &s, NULL), 0);
    same(object, "{\"a\":{\"b\":\"c\"}}");
    opts_free(o);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("options");
    TCase *tc = tcase_create("options");
    tcase_add_test(tc, dots_nest);
    tcase_add_test(tc, doubled_commas_are_commas);
    tcase_add_test(tc, implied_key_is_for_the_first_value_only);
    tcase_add_test(tc, last_of_equal_keys_wins);
    tcase_add_test(tc, numbers_make_arrays);
    tcase_add_test(tc, incomplete_arrays_are_refused);
    tcase_add_test(tc, conflicts_name_the_key);
    tcase_add_test(tc, empty_and_odd_keys_are_refused);
    tcase_add_test(tc, depth_and_length_are_bounded);
    tcase_add_test(tc, json_with_and_without_prefix);
    tcase_add_test(tc, json_depth_is_bounded);
    tcase_add_test(tc, file_name_becomes_a_format_over_a_file);
    tcase_add_test(tc, image_may_be_spelled_out);
    tcase_add_test(tc, absent_options_leave_the_value_alone);
    tcase_add_test(tc, values_in_both_spellings);
    tcase_add_test(tc, wrong_forms_name_the_key);
    tcase_add_test(tc, enum_error_lists_the_words);
    tcase_add_test(tc, dotted_keys_look_inside_and_leave_nothing);
    tcase_add_test(tc, what_is_left_is_refused_by_name);
    tcase_add_test(tc, callers_object_is_not_changed);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
