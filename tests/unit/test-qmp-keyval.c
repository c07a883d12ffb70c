/* SPDX-License-Identifier: BSD-3-Clause */
/* Options of the command line as arguments; lists of arguments that depend on
 * one of them. */
#include <check.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>

#include "keyval.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qmp/dispatch.h"

static const char *const kinds[] = {"one", "two", "bare", NULL};

static const char *const *colours(void)
{
    static const char *const words[] = {"red", "blue", NULL};

    return words;
}

static const struct qmp_arg inner_args[] = {
    QMP_ARG("n", INT),
    QMP_OPT("on", BOOL),
    QMP_LAST,
};

static const struct qmp_arg one_args[] = {
    QMP_ARG("size", SIZE),
    QMP_OPT("inner", OBJECT, .members = inner_args),
    QMP_LAST,
};

static const struct qmp_arg two_args[] = {
    QMP_OPT("names", STRS),
    QMP_OPT("list", STR_OR_OBJECT_ARRAY, .members = inner_args,
            .type_name = "InnerOrStr"),
    QMP_OPT("any", ANY),
    QMP_LAST,
};

static const struct qmp_variant variants[] = {
    {"one", one_args},
    {"two", two_args},
    {"bare", NULL},
    {NULL, NULL},
};

static const struct qmp_arg spec[] = {
    QMP_ARG("kind", ENUM, .words = kinds),
    QMP_OPT("count", UINT32),
    QMP_OPT("colour", ENUM, .words_of = colours),
    QMP_VARIANTS("kind", variants),
};

static const struct qmp_arg open_spec[] = {
    QMP_ARG("name", STR),
    QMP_OPT("flag", BOOL),
    QMP_OTHERS,
};

static void gives(const char *text, const struct qmp_arg *s,
                  const char *expected)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *args = NULL;
    CLEANUP_JSON json_t *want = json_loads(expected, 0, NULL);
    int r = keyval_parse(text, s[0].name, s, &args, &err);

    ck_assert_msg(r == 0, "'%s': %s", text, r < 0 ? error_message(err) : "");
    ck_assert_ptr_nonnull(want);
    if (!json_equal(args, want)) {
        CLEANUP_FREE char *got = json_dumps(args, 0);

        ck_abort_msg("'%s' gives %s, not %s", text, got, expected);
    }
}

static void fails(const char *text, const struct qmp_arg *s, const char *why)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *args = NULL;

    ck_assert_int_eq(keyval_parse(text, s[0].name, s, &args, &err), -EINVAL);
    ck_assert_str_eq(error_message(err), why);
    ck_assert_ptr_null(args);
}

START_TEST(strings_become_values)
{
    gives("one,size=64k", spec, "{\"kind\": \"one\", \"size\": 65536}");
    gives("kind=one,size=0x10,count=4294967295", spec,
          "{\"kind\": \"one\", \"size\": 16, \"count\": 4294967295}");
    gives("one,size=1,inner.n=-7,inner.on=off", spec,
          "{\"kind\": \"one\", \"size\": 1, \"inner\": {\"n\": -7, \"on\": "
          "false}}");
    gives("two,names.0=7,names.1=on,any=5", spec,
          "{\"kind\": \"two\", \"names\": [\"7\", \"on\"], \"any\": \"5\"}");
    gives("two,list.0=12,list.1.n=12,list.1.on=yes", spec,
          "{\"kind\": \"two\", \"list\": [\"12\", {\"n\": 12, \"on\": true}]}");
    gives("bare,colour=blue", spec,
          "{\"kind\": \"bare\", \"colour\": \"blue\"}");
    /* A value whose type it does not know stays text. */
    gives("a,flag=on,n=1", open_spec,
          "{\"name\": \"a\", \"flag\": true, \"n\": \"1\"}");
}
END_TEST

START_TEST(json_has_its_types)
{
    gives("{\"kind\": \"two\", \"any\": {\"x\": [1]}}", spec,
          "{\"kind\": \"two\", \"any\": {\"x\": [1]}}");
    fails("{\"kind\": \"one\", \"size\": \"64k\"}", spec,
          "Parameter 'size' expects uint64");
    fails("{\"name\": \"a\", \"flag\": \"on\"}", open_spec,
          "Invalid parameter type for 'flag', expected: boolean");
}
END_TEST

START_TEST(what_is_wrong_is_named)
{
    fails("one", spec, "Parameter 'size' is missing");
    fails("count=1", spec, "Parameter 'kind' is missing");
    fails("three", spec, "Parameter 'kind' does not accept value 'three'");
    fails("bare,colour=pink", spec,
          "Parameter 'colour' does not accept value 'pink'");
    fails("bare,count=-1", spec, "Parameter 'count' expects uint32_t");
    fails("bare,count=many", spec, "Parameter 'count' expects uint32_t");
    fails("bare,count= 1", spec, "Parameter 'count' expects uint32_t");
    fails("one,size=big", spec, "Parameter 'size' expects a size");
    fails("one,size=1,inner.n=x", spec, "Parameter 'n' expects integer");
    fails("one,size=1,inner.n=1,inner.on=1", spec,
          "Parameter 'on' expects 'on' or 'off'");
    fails("one,size=1,inner.n=1,inner.x=1", spec,
          "Parameter 'inner.x' is unexpected");
    fails("one,size=1,inner.on=on", spec, "Parameter 'inner.n' is missing");
    fails("one,sice=1", spec, "Parameter 'size' is missing");
    fails("one,size=1,sice=1", spec, "Parameter 'sice' is unexpected");
    fails("two,list.0.n=1,list.0.x=2", spec,
          "Parameter 'list[0].x' is unexpected");
    /* What another variant has. */
    fails("two,size=1", spec, "Parameter 'size' is unexpected");
    fails("bare,names.0=a", spec, "Parameter 'names' is unexpected");
    fails("{\"kind\": \"two\", \"names\": [1]}", spec,
          "Invalid parameter type for 'names[0]', expected: string");
    fails("{\"kind\": \"two\", \"list\": [1]}", spec,
          "Invalid parameter type for 'list[0]', expected: InnerOrStr");
}
END_TEST

START_TEST(rows_are_found)
{
    CLEANUP_JSON json_t *one = json_pack("{s:s}", "kind", "one");
    CLEANUP_JSON json_t *bare = json_pack("{s:s}", "kind", "bare");
    CLEANUP_JSON json_t *none = json_object();

    ck_assert_ptr_eq(qmp_find_arg(spec, one, "count"), &spec[1]);
    ck_assert_ptr_eq(qmp_find_arg(spec, one, "size"), &one_args[0]);
    ck_assert_ptr_null(qmp_find_arg(spec, bare, "size"));
    ck_assert_ptr_null(qmp_find_arg(spec, none, "size"));
    ck_assert_ptr_null(qmp_find_arg(NULL, one, "size"));
    ck_assert_ptr_null(qmp_find_arg(open_spec, none, "other"));
}
END_TEST

START_TEST(short_booleans_are_spelled_out)
{
    static const struct qmp_arg bools[] = {
        QMP_OPT("server", BOOL),
        QMP_OPT("wait", BOOL),
        QMP_OPT("nodelay", BOOL),
        QMP_OPT("path", STR),
        QMP_LAST,
    };
    static const struct {
        const char *text;
        const char *full;
    } words[] = {
        {"socket,id=m,path=q,server,nowait",
         "socket,id=m,path=q,server=on,wait=off"},
        {"socket,server=on,wait=off", "socket,server=on,wait=off"},
        {"socket,nodelay,noserver", "socket,nodelay=on,server=off"},
        {"server,wait", "server,wait=on"}, /* the first is a value */
        {"socket,path=a,,server,nopath,no,n", "socket,path=a,,server,nopath,no,"
                                              "n"},
        {"socket,path=a,,nowait,nowait", "socket,path=a,,nowait,wait=off"},
        {"{\"backend\": \"null\"}", "{\"backend\": \"null\"}"},
        {"", ""},
        {"socket,", "socket,"},
    };

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        CLEANUP_FREE char *full = keyval_spell_out(words[i].text, "backend",
                                                   bools);
        ck_assert_str_eq(full, words[i].full);
    }
    CLEANUP_FREE char *one = keyval_spell_out("server", NULL, bools);
    ck_assert_str_eq(one, "server=on");
    CLEANUP_FREE char *inner = keyval_spell_out("one,noflag", "name",
                                                open_spec);
    ck_assert_str_eq(inner, "one,flag=off");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("qmp-keyval");
    TCase *tc = tcase_create("all");

    tcase_add_test(tc, strings_become_values);
    tcase_add_test(tc, json_has_its_types);
    tcase_add_test(tc, what_is_wrong_is_named);
    tcase_add_test(tc, rows_are_found);
    tcase_add_test(tc, short_booleans_are_spelled_out);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
