/* SPDX-License-Identifier: BSD-3-Clause */
/* Authorization objects: patterns, lists, and files that change. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "objects/authz.h"

static struct authz_set *set;

static void setup(void)
{
    set = authz_set_new();
    ck_assert_ptr_nonnull(set);
}

static void teardown(void)
{
    authz_set_free(set);
}

static const struct {
    const char *pattern;
    const char *text;
    bool match;
} globs[] = {
    {"", "", true},
    {"", "a", false},
    {"*", "", true},
    {"*", "anything", true},
    {"a", "a", true},
    {"a", "ab", false},
    {"ab", "a", false},
    {"?", "a", true},
    {"?", "", false},
    {"?", "\xc3\xa4", true}, /* one character, two bytes */
    {"?", "ab", false},
    {"a*c", "abc", true},
    {"a*c", "ac", true},
    {"a*c", "abcd", false},
    {"a*bc", "abbbc", true},
    {"*CN=bob", "O=x,CN=bob", true},
    {"*CN=bob", "CN=bobby", false},
    {"*a*b*c*", "xxaxxbxxcxx", true},
    {"*a*b*c*", "xxaxxcxxbxx", false},
    {"[a]", "a", false}, /* no sets, no escapes */
    {"[a]", "[a]", true},
    {"\\*", "*", false},
    {"***", "x", true},
};

static void add(json_t *props)
{
    ck_assert_int_eq(authz_add(set, props, NULL), 0);
    json_decref(props);
}

/* Is @text allowed by a list that allows @pattern, and nobody else? */
static bool matches(const char *pattern, const char *text)
{
    add(json_pack("{ss ss s[{ss ss ss}]}", "qom-type", "authz-list", "id", "p",
                  "rules", "match", pattern, "policy", "allow", "format",
                  "glob"));
    bool allowed = authz_allows(set, "p", text);
    authz_remove(set, "p");
    return allowed;
}

START_TEST(patterns_match)
{
    ck_assert_msg(matches(globs[_i].pattern, globs[_i].text) == globs[_i].match,
                  "'%s' '%s'", globs[_i].pattern, globs[_i].text);
}
END_TEST

/* Backtracking is bounded by the product of the lengths. */
START_TEST(a_hard_pattern_ends)
{
    char text[4096];

    memset(text, 'a', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    ck_assert(!matches("*a*a*a*a*a*a*a*a*a*a*a*a*b", text));
}
END_TEST

START_TEST(one_is_allowed)
{
    add(json_pack("{ss ss ss}", "qom-type", "authz-simple", "id", "z",
                  "identity", "CN=a"));
    ck_assert(authz_allows(set, "z", "CN=a"));
    ck_assert(!authz_allows(set, "z", "CN=A"));
    ck_assert(!authz_allows(set, "z", "CN=aa"));
    ck_assert(!authz_allows(set, "z", ""));
    ck_assert(!authz_allows(set, "z", NULL));
}
END_TEST

START_TEST(the_first_rule_that_matches_decides)
{
    add(json_pack("{ss ss ss s[{ss ss} {ss ss ss}]}", "qom-type", "authz-list",
                  "id", "z", "policy", "allow", "rules", "match", "bob",
                  "policy", "allow", "match", "b*", "policy", "deny", "format",
                  "glob"));
    ck_assert(authz_allows(set, "z", "bob"));
    ck_assert(!authz_allows(set, "z", "bobby"));
    ck_assert(authz_allows(set, "z", "alice"));
    ck_assert(!authz_allows(set, "z", NULL));
}
END_TEST

START_TEST(without_a_rule_nobody_is_allowed)
{
    add(json_pack("{ss ss}", "qom-type", "authz-list", "id", "z"));
    ck_assert(!authz_allows(set, "z", "bob"));
    ck_assert(authz_exists(set, "z"));
    authz_remove(set, "z");
    ck_assert(!authz_exists(set, "z"));
    ck_assert(!authz_allows(set, "z", "bob"));
}
END_TEST

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(text, f), 0);
    ck_assert_int_eq(fclose(f), 0);
}

#define ALLOW "{\"policy\": \"allow\"}"

START_TEST(a_file_counts_as_it_is_now)
{
    static const char path[] = "list.json";

    write_file(path, ALLOW);
    add(json_pack("{ss ss ss}", "qom-type", "authz-listfile", "id", "z",
                  "filename", path));
    add(json_pack("{ss ss ss sb}", "qom-type", "authz-listfile", "id", "once",
                  "filename", path, "refresh", 0));
    ck_assert(authz_allows(set, "z", "bob"));
    write_file(path, "{\"policy\": \"deny\"}");
    ck_assert(!authz_allows(set, "z", "bob"));
    write_file(path, "{");
    ck_assert(!authz_allows(set, "z", "bob"));
    write_file(path, ALLOW " ");
    ck_assert(authz_allows(set, "z", "bob"));
    ck_assert_int_eq(unlink(path), 0);
    ck_assert(!authz_allows(set, "z", "bob"));
    ck_assert(authz_allows(set, "once", "bob"));
}
END_TEST

static const struct {
    const char *content;
    int code;
} files[] = {
    {"", -EINVAL},
    {"[]", -EINVAL},
    {"{\"policy\": \"maybe\"}", -EINVAL},
    {"{\"rules\": {}}", -EINVAL},
    {"{\"rules\": [{\"match\": \"x\"}]}", -EINVAL},
    {"{\"more\": 1}", -EINVAL},
    {NULL, -ENOENT},
};

START_TEST(a_bad_file_is_told)
{
    CLEANUP_ERROR struct error *err = NULL;
    static const char path[] = "list.json";

    if (files[_i].content) {
        write_file(path, files[_i].content);
    }
    CLEANUP_JSON json_t *props = json_pack("{ss ss ss}", "qom-type",
                                           "authz-listfile", "id", "z",
                                           "filename", path);
    int r = authz_add(set, props, &err);
    (void)unlink(path);
    ck_assert_int_eq(r, files[_i].code);
    ck_assert_ptr_nonnull(strstr(error_message(err), path));
    ck_assert(!authz_exists(set, "z"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("authz");
    TCase *tc = tcase_create("patterns");
    tcase_add_checked_fixture(tc, setup, teardown);

    tcase_add_loop_test(tc, patterns_match, 0,
                        sizeof(globs) / sizeof(globs[0]));
    tcase_add_test(tc, a_hard_pattern_ends);
    suite_add_tcase(s, tc);
    tc = tcase_create("objects");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, one_is_allowed);
    tcase_add_test(tc, the_first_rule_that_matches_decides);
    tcase_add_test(tc, without_a_rule_nobody_is_allowed);
    tcase_add_test(tc, a_file_counts_as_it_is_now);
    tcase_add_loop_test(tc, a_bad_file_is_told, 0,
                        sizeof(files) / sizeof(files[0]));
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
