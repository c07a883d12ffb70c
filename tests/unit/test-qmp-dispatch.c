/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests are judged before anything runs, in the words of QEMU. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "commands/table.h"
#include "daemon.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qmp/parse.h"

static struct daemon server = {.service = &qmp_service};

struct verdict {
    struct qmp_state state;
    char text[512]; /* "" when the request is good */
    bool not_found; /* the class is CommandNotFound */
    char *reply;
};

static void on_value(json_t *value, const char *why, void *opaque)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct verdict *v = opaque;
    struct qmp_call call = {.daemon = &server, .state = &v->state};
    const struct qmp_command *cmd = NULL;

    ck_assert_msg(value != NULL, "%s", why);
    v->text[0] = '\0';
    if (qmp_check_request(value, &call, &cmd, &err) < 0) {
        ck_assert_uint_lt(strlen(error_message(err)), sizeof(v->text));
        strcpy(v->text, error_message(err));
        v->not_found = call.class == QMP_COMMAND_NOT_FOUND;
    } else {
        ck_assert_ptr_nonnull(cmd);
        v->not_found = false;
    }
}

static struct verdict judged(const char *request, struct qmp_state state)
{
    struct verdict v = {.state = state};
    struct qmp_parser *p = qmp_parser_new(&qmp_limits_known, on_value, &v);

    qmp_parser_feed(p, request, strlen(request));
    qmp_parser_feed(p, " ", 1);
    qmp_parser_free(p);
    return v;
}

static void says(const char *request, const char *text)
{
    const struct qmp_state ready = {.negotiated = true};

    ck_assert_str_eq(judged(request, ready).text, text);
}

/* The arguments of a command. */
static void args_say(const char *command, const char *args, const char *text)
{
    CLEANUP_FREE char *request = NULL;

    ck_assert_int_gt(
        asprintf(&request, "{'execute':'%s','arguments':%s}", command, args),
        0);
    says(request, text);
}

START_TEST(envelope)
{
    says("{'execute':'query-version'}", "");
    says("{'execute':'query-version','id':{'x':1},'arguments':{}}", "");
    says("[1]", "QMP input must be a JSON object");
    says("{}", "QMP input lacks member 'execute'");
    says("{'execute':5}", "QMP input member 'execute' must be a string");
    says("{'execute':'query-version','foo':1}",
         "QMP input member 'foo' is unexpected");
    says("{'execute':'query-version','arguments':[]}",
         "QMP input member 'arguments' must be an object");
    says("{'exec-oob':'query-version'}",
         "QMP input member 'exec-oob' is unexpected");
    says("{'execute':'foo'}", "The command foo has not been found");
}
END_TEST

START_TEST(negotiation_comes_first_and_once)
{
    const struct qmp_state fresh = {.negotiated = false};
    const struct qmp_state oob = {.negotiated = true, .oob = true};
    struct verdict v = judged("{'execute':'query-version'}", fresh);

    ck_assert_str_eq(
        v.text, "Expecting capabilities negotiation with 'qmp_capabilities'");
    ck_assert(v.not_found);
    v = judged("{'execute':'qmp_capabilities'}", fresh);
    ck_assert_str_eq(v.text, "");
    v = judged("{'execute':'qmp_capabilities'}", oob);
    ck_assert_str_eq(v.text, "Capabilities negotiation is already complete, "
                             "command ignored");
    ck_assert(v.not_found);
    v = judged("{'exec-oob':'query-version'}", oob);
    ck_assert_str_eq(v.text, "");
    v = judged("{'exec-oob':'query-jobs'}", oob);
    ck_assert_str_eq(v.text, "The command query-jobs does not support OOB");
    v = judged("{'exec-oob':'query-version','execute':'quit'}", oob);
    ck_assert_str_eq(v.text,
                     "QMP input member 'exec-oob' clashes with 'execute'");
}
END_TEST

START_TEST(capabilities_are_known_words)
{
    const struct qmp_state fresh = {.negotiated = false};
    struct verdict v = judged("{'execute':'qmp_capabilities',"
                              "'arguments':{'enable':['oob','foo']}}",
                              fresh);

    ck_assert_str_eq(v.text,
                     "Parameter 'enable[1]' does not accept value 'foo'");
    v = judged("{'execute':'qmp_capabilities',"
               "'arguments':{'enable':'oob'}}",
               fresh);
    ck_assert_str_eq(v.text,
                     "Invalid parameter type for 'enable', expected: array");
    v = judged("{'execute':'qmp_capabilities',"
               "'arguments':{'enable':[1]}}",
               fresh);
    ck_assert_str_eq(
        v.text, "Invalid parameter type for 'enable[0]', expected: string");
}
END_TEST

START_TEST(arguments_missing_and_unexpected)
{
    static const char add[] = "block-dirty-bitmap-add";

    args_say(add, "{'node':'n','name':'b'}", "");
    args_say(add, "{'node':'n'}", "Parameter 'name' is missing");
    args_say(add, "{'name':'n'}", "Parameter 'node' is missing");
    /* In the order of the table; what it does not have comes last. */
    args_say(add, "{'name':'n','nod':1}", "Parameter 'node' is missing");
    args_say(add, "{'name':1,'nod':1}", "Parameter 'node' is missing");
    args_say(add, "{'node':'n','name':1,'x':1}",
             "Invalid parameter type for 'name', expected: string");
    args_say(add, "{'node':'n','persistent':1}", "Parameter 'name' is missing");
    args_say(add, "{'node':'n','name':'b','x':1}",
             "Parameter 'x' is unexpected");
    args_say("query-version", "{'a':1}", "Parameter 'a' is unexpected");
}
END_TEST

START_TEST(arguments_of_wrong_type)
{
    static const char add[] = "block-dirty-bitmap-add";

    args_say(add, "{'node':1,'name':'b'}",
             "Invalid parameter type for 'node', expected: string");
    args_say(add, "{'node':'n','name':'b','persistent':'on'}",
             "Invalid parameter type for 'persistent', expected: boolean");
    args_say(add, "{'node':'n','name':'b','granularity':'64k'}",
             "Parameter 'granularity' expects uint64");
    args_say(add, "{'node':'n','name':'b','granularity':1.5}",
             "Parameter 'granularity' expects uint64");
    args_say(add, "{'node':'n','name':'b','granularity':-1}",
             "Parameter 'granularity' expects uint32_t");
    args_say(add, "{'node':'n','name':'b','granularity':4294967296}",
             "Parameter 'granularity' expects uint32_t");
    args_say("block-job-set-speed", "{'device':'j','speed':'x'}",
             "Invalid parameter type for 'speed', expected: integer");
}
END_TEST

START_TEST(arguments_with_members)
{
    static const char backup[] = "drive-backup";
    static const char merge[] = "block-dirty-bitmap-merge";

    args_say(backup, "{'device':'n'}", "Parameter 'sync' is missing");
    args_say(backup, "{'device':'n','sync':'foo','target':'t'}",
             "Parameter 'sync' does not accept value 'foo'");
    args_say(backup, "{'device':'n','sync':'full','target':'t','x-perf':5}",
             "Invalid parameter type for 'x-perf', expected: object");
    args_say(backup,
             "{'device':'n','sync':'full','target':'t',"
             "'x-perf':{'max-workers':'x'}}",
             "Invalid parameter type for 'x-perf.max-workers', expected: "
             "integer");
    args_say(backup,
             "{'device':'n','sync':'full','target':'t',"
             "'x-perf':{'max-foo':1}}",
             "Parameter 'x-perf.max-foo' is unexpected");
    args_say(merge, "{'node':'n','target':'b','bitmaps':[]}", "");
    args_say(merge,
             "{'node':'n','target':'b','bitmaps':['a',"
             "{'node':'n','name':'b'}]}",
             "");
    args_say(merge, "{'node':'n','target':'b','bitmaps':['a',1]}",
             "Invalid parameter type for 'bitmaps[1]', expected: "
             "BlockDirtyBitmapOrStr");
    args_say(merge, "{'node':'n','target':'b','bitmaps':[{'name':'b'}]}",
             "Parameter 'bitmaps[0].node' is missing");
}
END_TEST

static void dispatched(const char *request, const char *expected)
{
    struct qmp_state state = {.negotiated = true};
    CLEANUP_JSON json_t *value = json_loads(request, JSON_DECODE_ANY, NULL);
    CLEANUP_JSON json_t *reply = qmp_dispatch(&server, &state, value);
    CLEANUP_FREE char *text = NULL;
    size_t len = 0;

    ck_assert_ptr_nonnull(value);
    ck_assert_ptr_nonnull(reply);
    text = qmp_to_text(reply, &len);
    ck_assert_ptr_nonnull(text);
    ck_assert_str_eq(text, expected);
    ck_assert_uint_eq(len, strlen(expected));
}

START_TEST(replies_echo_ids_where_qemu_does)
{
    dispatched("{\"execute\":\"query-name\"}", "{\"return\": {}}\r\n");
    dispatched("{\"id\":{\"x\":[1]},\"execute\":\"query-name\"}",
               "{\"return\": {}, \"id\": {\"x\": [1]}}\r\n");
    dispatched("{\"id\":null,\"execute\":\"query-name\"}",
               "{\"return\": {}, \"id\": null}\r\n");
    dispatched("{\"execute\":\"foo\",\"id\":3}",
               "{\"id\": 3, \"error\": {\"class\": \"CommandNotFound\", "
               "\"desc\": \"The command foo has not been found\"}}\r\n");
}
END_TEST

START_TEST(replies_are_ascii)
{
    dispatched("{\"id\":\"\u00e9\",\"execute\":\"query-name\"}",
               "{\"return\": {}, \"id\": \"\\u00E9\"}\r\n");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qmp-dispatch");
    TCase *tc = tcase_create("qmp-dispatch");
    tcase_add_test(tc, envelope);
    tcase_add_test(tc, negotiation_comes_first_and_once);
    tcase_add_test(tc, capabilities_are_known_words);
    tcase_add_test(tc, arguments_missing_and_unexpected);
    tcase_add_test(tc, arguments_of_wrong_type);
    tcase_add_test(tc, arguments_with_members);
    tcase_add_test(tc, replies_echo_ids_where_qemu_does);
    tcase_add_test(tc, replies_are_ascii);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
