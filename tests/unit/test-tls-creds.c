/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS credentials that a graph knows: their properties, and how long they
 * live. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/tls-creds.h"

static struct graph *graph;

static void setup(void)
{
    graph = graph_new();
    ck_assert_ptr_nonnull(graph);
}

static void teardown(void)
{
    graph_free(graph);
}

static void create(json_t *properties)
{
    ck_assert_int_eq(tls_creds_create(graph, properties, NULL), 0);
    json_decref(properties);
}

static const struct tls_creds *get(const char *id, bool server)
{
    const struct tls_creds *c = NULL;

    ck_assert_int_eq(tls_creds_get(graph, id, server, &c, NULL), 0);
    return c;
}

START_TEST(what_is_not_given_is_as_in_qemu)
{
    create(json_pack("{ss ss ss}", "qom-type", "tls-creds-x509", "id", "t",
                     "dir", "/d"));
    const struct tls_creds *c = get("t", false);
    ck_assert_int_eq(c->kind, TLS_X509);
    ck_assert(!c->server);
    ck_assert(c->verify_peer);
    ck_assert(c->sanity_check);
    ck_assert_str_eq(c->dir, "/d");
    ck_assert_ptr_null(c->priority);
    ck_assert_ptr_null(c->username);
    ck_assert_ptr_null(c->passwordid);
    tls_creds_put(c);
}
END_TEST

START_TEST(what_is_given_is_kept)
{
    create(json_pack("{ss ss ss ss sb sb ss ss}", "qom-type", "tls-creds-x509",
                     "id", "t", "dir", "/d", "endpoint", "server",
                     "verify-peer", 0, "sanity-check", 0, "passwordid", "sec0",
                     "priority", "NORMAL"));
    const struct tls_creds *c = get("t", true);
    ck_assert(!c->verify_peer);
    ck_assert(!c->sanity_check);
    ck_assert_str_eq(c->passwordid, "sec0");
    ck_assert_str_eq(c->priority, "NORMAL");
    tls_creds_put(c);
}
END_TEST

START_TEST(a_client_has_a_user_name)
{
    create(json_pack("{ss ss ss}", "qom-type", "tls-creds-psk", "id", "a",
                     "dir", "/d"));
    create(json_pack("{ss ss ss ss}", "qom-type", "tls-creds-psk", "id", "b",
                     "dir", "/d", "username", "alice"));
    const struct tls_creds *a = get("a", false);
    const struct tls_creds *b = get("b", false);
    ck_assert_str_eq(a->username, "qemu");
    ck_assert_str_eq(b->username, "alice");
    tls_creds_put(a);
    tls_creds_put(b);
}
END_TEST

static const struct {
    const char *properties;
    const char *text;
} bad[] = {
    {"{\"qom-type\": \"tls-creds-x509\", \"id\": \"t\"}",
     "Missing 'dir' property value"},
    {"{\"qom-type\": \"tls-creds-psk\", \"id\": \"t\", \"dir\": \"/\", "
     "\"endpoint\": \"server\", \"username\": \"u\"}",
     "username should not be set when endpoint=server"},
    {"{\"qom-type\": \"tls-creds-psk\", \"id\": \"t\", \"dir\": \"/\", "
     "\"passwordid\": \"s\"}",
     "tls-creds-psk does not take the option 'passwordid'"},
    {"{\"qom-type\": \"tls-creds-x509\", \"dir\": \"/\"}",
     "Parameter 'id' is missing"},
    {"{\"id\": \"t\", \"dir\": \"/\"}", "Parameter 'qom-type' is missing"},
    {"{\"qom-type\": \"tls-creds-x509\", \"id\": \"t\", \"dir\": 5}",
     "option 'dir' must be a string"},
    {"[]", "options must be a JSON object"},
};

START_TEST(bad_properties_are_told)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *props = json_loads(bad[_i].properties, 0, NULL);
    const struct tls_creds *c;

    ck_assert_ptr_nonnull(props);
    ck_assert_int_eq(tls_creds_create(graph, props, &err), -EINVAL);
    ck_assert_str_eq(error_message(err), bad[_i].text);
    ck_assert_int_eq(tls_creds_get(graph, "t", false, &c, NULL), -ENOENT);
}
END_TEST

START_TEST(an_id_is_taken_until_it_is_deleted)
{
    CLEANUP_JSON json_t *props = json_pack("{ss ss}", "qom-type",
                                           "tls-creds-anon", "id", "t");

    ck_assert_int_eq(tls_creds_create(graph, props, NULL), 0);
    ck_assert_int_eq(tls_creds_create(graph, props, NULL), -EEXIST);
    ck_assert_int_eq(tls_creds_delete(graph, "t", NULL), 0);
    ck_assert_int_eq(tls_creds_delete(graph, "t", NULL), -ENOENT);
    ck_assert_int_eq(tls_creds_create(graph, props, NULL), 0);
}
END_TEST

START_TEST(each_end_has_its_own)
{
    CLEANUP_ERROR struct error *err = NULL;
    const struct tls_creds *c;

    create(json_pack("{ss ss}", "qom-type", "tls-creds-anon", "id", "t"));
    ck_assert_int_eq(tls_creds_get(graph, "t", true, &c, &err), -EINVAL);
    ck_assert_str_eq(error_message(err),
                     "Expected TLS credentials for a server endpoint");
}
END_TEST

START_TEST(deleted_ones_live_on_for_their_users)
{
    create(json_pack("{ss ss ss}", "qom-type", "tls-creds-psk", "id", "t",
                     "dir", "/d"));
    const struct tls_creds *c = get("t", false);
    ck_assert_int_eq(tls_creds_delete(graph, "t", NULL), 0);
    graph_free(graph);
    graph = NULL;
    ck_assert_str_eq(c->dir, "/d");
    tls_creds_put(c);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tls-creds");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, what_is_not_given_is_as_in_qemu);
    tcase_add_test(tc, what_is_given_is_kept);
    tcase_add_test(tc, a_client_has_a_user_name);
    tcase_add_loop_test(tc, bad_properties_are_told, 0,
                        sizeof(bad) / sizeof(bad[0]));
    tcase_add_test(tc, an_id_is_taken_until_it_is_deleted);
    tcase_add_test(tc, each_end_has_its_own);
    tcase_add_test(tc, deleted_ones_live_on_for_their_users);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
