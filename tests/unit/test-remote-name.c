/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of remote exports: what they stand for, and which are none. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/opts.h"
#include "core/remote-name.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define INET(host, port) \
    "\"server\":{\"type\":\"inet\",\"host\":\"" host "\",\"port\":\"" port "\"}"
#define UNIX(path) "\"server\":{\"type\":\"unix\",\"path\":\"" path "\"}"

static const struct {
    const char *name;
    const char *options;
} good[] = {
    {"nbd://localhost", "{" INET("localhost", "10809") "}"},
    {"nbd://localhost/", "{" INET("localhost", "10809") "}"},
    {"nbd+tcp://h:1/x/y", "{" INET("h", "1") ",\"export\":\"x/y\"}"},
    {"nbd://[::1]:10/", "{" INET("::1", "10") "}"},
    {"nbd://[::1]/e%20%2F", "{" INET("::1", "10809") ",\"export\":\"e /\"}"},
    {"nbd+unix://?socket=/a", "{" UNIX("/a") "}"},
    {"nbd+unix:///?socket=/a", "{" UNIX("/a") "}"},
    {"nbd+unix:///v%C3%A9?socket=s%26", "{" UNIX("s&") ",\"export\":\"vé\"}"},
    {"nbds+unix://me@/e?tls-psk-file=k&socket=/a",
     "{" UNIX("/a") ",\"export\":\"e\",\"tls\":true,\"tls-username\":\"me\","
                    "\"tls-psk-file\":\"k\"}"},
    {"nbds://h/?tls-certificates=/d",
     "{" INET("h", "10809") ",\"tls\":true,\"tls-certificates\":\"/d\"}"},
    {"nbd+vsock://2:99/e",
     "{\"server\":{\"type\":\"vsock\",\"cid\":\"2\",\"port\":\"99\"},"
     "\"export\":\"e\"}"},
    {"nbd:unix:/a", "{" UNIX("/a") "}"},
    {"nbd:unix:/a:exportname=x:y", "{" UNIX("/a") ",\"export\":\"x:y\"}"},
    {"nbd:h:9", "{" INET("h", "9") "}"},
    {"nbd:[::1]:9:exportname=e", "{" INET("::1", "9") ",\"export\":\"e\"}"},
};

START_TEST(names_stand_for_options)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *got = NULL;
    json_t *want = json_loads(good[_i].options, 0, NULL);

    ck_assert_ptr_nonnull(want);
    ck_assert(remote_is_name(good[_i].name));
    ck_assert_int_eq(remote_name_parse(good[_i].name, &got, &err), 0);
    ck_assert_msg(json_equal(got, want), "%s", good[_i].name);
    json_decref(want);
}
END_TEST

static const char *const bad[] = {
    "nbd:unix:exportname=x",
    "nbd://",
    "nbd:///x",
    "nbd://h:1/x?socket=/a",
    "nbd://me@h/",
    "nbd://[::1/",
    "nbd://[::1]x/",
    "nbd://h/%zz",
    "nbd://h/%0",
    "nbd://h/%00",
    "nbd://h/%ff",
    "nbd+unix:///x",
    "nbd+unix://h/x?socket=/a",
    "nbd+unix:///x?sock=/a",
    "nbd+unix:///x?socket=/a&more=1",
    "nbd+unix:///x?socket=/a&tls-psk-file=k",
    "nbd:",
    "nbd:host",
    "nbd:host:",
    "nbd:[::1:9",
    "http://h/",
    "",
};

START_TEST(what_is_no_name_is_refused)
{
    CLEANUP_ERROR struct error *err = NULL;
    json_t *got = NULL;

    ck_assert_msg(remote_name_parse(bad[_i], &got, &err) == -EINVAL, "%s",
                  bad[_i]);
    ck_assert_ptr_null(got);
    ck_assert_ptr_nonnull(err);
}
END_TEST

START_TEST(other_files_are_left_alone)
{
    static const char *const names[] = {"disk.raw", "/nbd://x",    "nbd",
                                        "nbdx:",    "nbd+ssh://h", "./nbd:h:1"};

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        ck_assert_msg(!remote_is_name(names[i]), "%s", names[i]);
    }
}
END_TEST

static int expand(const char *text, json_t **full)
{
    CLEANUP_JSON json_t *options = json_loads(text, 0, NULL);

    ck_assert_ptr_nonnull(options);
    return options_expand(options, full, NULL);
}

START_TEST(a_file_name_becomes_a_node)
{
    CLEANUP_JSON json_t *a = NULL;
    CLEANUP_JSON json_t *b = NULL;
    CLEANUP_JSON json_t *c = NULL;
    json_t *d = NULL;

    ck_assert_int_eq(expand("{\"filename\": \"nbd:h:1\", \"x\": 1}", &a), 0);
    ck_assert_str_eq(json_string_value(json_object_get(a, "driver")), "nbd");
    ck_assert_ptr_null(json_object_get(a, "filename"));
    ck_assert_ptr_nonnull(json_object_get(a, "x"));
    ck_assert_int_eq(expand("{\"driver\": \"nbd\", \"uri\": \"nbd://h/\"}", &b),
                     0);
    ck_assert_ptr_null(json_object_get(b, "uri"));
    ck_assert_ptr_nonnull(json_object_get(b, "server"));
    /* Another driver has been named: it is a file's name. */
    ck_assert_int_eq(
        expand("{\"driver\": \"file\", \"filename\": \"nbd:h:1\"}", &c), 0);
    ck_assert_ptr_nonnull(json_object_get(c, "filename"));
    ck_assert_int_eq(
        expand("{\"filename\": \"nbd://h/\", \"export\": \"x\"}", &d), -EINVAL);
    ck_assert_int_eq(expand("{\"driver\": \"nbd\", \"filename\": \"x\"}", &d),
                     -EINVAL);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("remote-name");
    TCase *tc = tcase_create("remote-name");
    SRunner *sr = srunner_create(s);

    tcase_add_loop_test(tc, names_stand_for_options, 0, ARRAY_SIZE(good));
    tcase_add_loop_test(tc, what_is_no_name_is_refused, 0, ARRAY_SIZE(bad));
    tcase_add_test(tc, other_files_are_left_alone);
    tcase_add_test(tc, a_file_name_becomes_a_node);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
