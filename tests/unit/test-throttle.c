/* SPDX-License-Identifier: BSD-3-Clause */
/* Leaky buckets with a time of our own, and requests that wait for them. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph.h"
#include "core/throttle-group.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"

#define SECOND UINT64_C(1000000000)

/* --- Buckets --- */

static void start(struct throttle *t, enum throttle_bucket b, uint64_t avg,
                  uint64_t max, uint64_t length)
{
    struct throttle_config c = {.iops_size = 0};

    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        c.limit[i].length = 1;
    }
    c.limit[b] = (struct throttle_limit){avg, max, length};
    ck_assert_int_eq(throttle_check(&c, NULL), 0);
    throttle_start(t, &c, 0);
}

/* How many requests of @bytes pass at once at @now. */
static unsigned passing(struct throttle *t, bool write, uint64_t bytes,
                        uint64_t now)
{
    unsigned count = 0;

    while (throttle_wait(t, write, now) == 0 && count < 100000) {
        throttle_account(t, write, bytes);
        count++;
    }
    return count;
}

/* How many pass until @end when each goes as soon as it may. */
static unsigned passing_until(struct throttle *t, bool write, uint64_t bytes,
                              uint64_t now, uint64_t end)
{
    unsigned count = 0;

    while (now < end) {
        count += passing(t, write, bytes, now);
        now += throttle_wait(t, write, now);
    }
    return count;
}

START_TEST(the_average_is_kept)
{
    struct throttle t;

    start(&t, THROTTLE_IOPS_TOTAL, 100, 0, 1);
    unsigned first = passing(&t, false, 512, 0);
    ck_assert_uint_eq(first, 11); /* a tenth of a second's, and one more */
    unsigned more = passing_until(&t, false, 512, 0, 10 * SECOND);
    ck_assert_uint_ge(more, 990);
    ck_assert_uint_le(more, 1001);
}
END_TEST

START_TEST(bytes_are_counted_by_their_number)
{
    struct throttle t;

    start(&t, THROTTLE_BPS_TOTAL, 1000, 0, 1);
    throttle_account(&t, true, 2100);
    ck_assert_uint_eq(throttle_wait(&t, true, 0) / 1000, 2000000);
    ck_assert_uint_eq(throttle_wait(&t, true, SECOND) / 1000, 1000000);
    ck_assert_uint_eq(throttle_wait(&t, true, 2 * SECOND + 10), 0);
}
END_TEST

START_TEST(directions_have_limits_of_their_own)
{
    struct throttle t;

    start(&t, _i ? THROTTLE_IOPS_WRITE : THROTTLE_BPS_READ, 10, 0, 1);
    throttle_account(&t, _i, 1000);
    throttle_account(&t, _i, 1000);
    ck_assert_uint_gt(throttle_wait(&t, _i, 0), 0);
    ck_assert_uint_eq(throttle_wait(&t, !_i, 0), 0);
    throttle_account(&t, !_i, 1000000);
    ck_assert_uint_eq(throttle_wait(&t, !_i, 0), 0);
}
END_TEST

START_TEST(a_total_counts_both_directions)
{
    struct throttle t;

    start(&t, THROTTLE_IOPS_TOTAL, 10, 0, 1);
    throttle_account(&t, true, 512);
    ck_assert_uint_eq(throttle_wait(&t, false, 0), 0);
    throttle_account(&t, false, 512);
    ck_assert_uint_gt(throttle_wait(&t, true, 0), 0);
    ck_assert_uint_gt(throttle_wait(&t, false, 0), 0);
}
END_TEST

START_TEST(a_burst_goes_at_once)
{
    struct throttle t;

    start(&t, THROTTLE_IOPS_TOTAL, 10, 500, 1);
    ck_assert_uint_eq(passing(&t, false, 512, 0), 501);
    ck_assert_uint_eq(passing(&t, false, 512, SECOND), 10);
}
END_TEST

START_TEST(a_long_burst_has_its_rate_and_its_end)
{
    struct throttle t;

    start(&t, THROTTLE_IOPS_TOTAL, 10, 100, 5);
    ck_assert_uint_eq(passing(&t, false, 512, 0), 11);
    unsigned first = passing_until(&t, false, 512, 0, SECOND);
    ck_assert_uint_ge(first, 95);
    ck_assert_uint_le(first, 101);
    unsigned rest = passing_until(&t, false, 512, SECOND, 5 * SECOND);
    ck_assert_uint_ge(rest, 395);
    ck_assert_uint_le(rest, 405);
    (void)passing_until(&t, false, 512, 5 * SECOND, 10 * SECOND);
    ck_assert_uint_le(passing_until(&t, false, 512, 10 * SECOND, 20 * SECOND),
                      102);
}
END_TEST

START_TEST(large_requests_are_several_operations)
{
    struct throttle t;

    start(&t, THROTTLE_IOPS_TOTAL, 10, 0, 1);
    t.config.iops_size = 4096;
    throttle_account(&t, false, 4096 * 11);
    ck_assert_uint_eq(throttle_wait(&t, false, 0) / 1000, 1000000);
    throttle_start(&t, &t.config, 0);
    throttle_account(&t, false, 100);
    ck_assert_uint_eq(throttle_wait(&t, false, 0), 0);
}
END_TEST

/* --- Groups and their options --- */

static struct graph *g;
static struct blk *b;

static _Atomic uint64_t clock_now;

static uint64_t test_clock(void)
{
    return atomic_load(&clock_now);
}

static void setup(void)
{
    g = graph_new();
    b = NULL;
    atomic_store(&clock_now, SECOND);
}

static void teardown(void)
{
    blk_free(b);
    graph_free(g);
}

static json_t *parse(const char *text)
{
    json_t *o = json_loads(text, 0, NULL);
    ck_assert_msg(o != NULL, "%s", text);
    return o;
}

static int create(const char *text, struct error **errp)
{
    CLEANUP_JSON json_t *o = parse(text);
    return throttle_group_create(g, o, errp);
}

static int open_text(const char *text, struct node **n, struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    int r = options_parse(text, NULL, &o, errp);
    return r < 0 ? r : graph_open(g, o, n, errp);
}

static struct throttle_group *group(const char *name)
{
    graph_lock(g);
    struct throttle_group *t = throttle_group_get(g, name);
    ck_assert_ptr_nonnull(t);
    throttle_group_put(t);
    graph_unlock(g);
    return t;
}

static json_int_t limit(const char *name, const char *key)
{
    CLEANUP_JSON json_t *all = throttle_group_query(g, name);
    const json_t *value = json_object_get(all, key);
    ck_assert_msg(json_is_integer(value), "%s", key);
    return json_integer_value(value);
}

START_TEST(groups_are_made_changed_and_deleted)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *change = parse("{\"iops-total-max\": 300}");
    struct node *n;

    ck_assert_int_eq(create("{\"qom-type\": \"throttle-group\", \"id\": \"a\","
                            "\"limits\": {\"iops-total\": 10}}",
                            NULL),
                     0);
    ck_assert_int_eq(create("{\"id\": \"b\", \"x-bps-read\": \"64k\"}", NULL),
                     0);
    ck_assert_int_eq(limit("a", "iops-total"), 10);
    ck_assert_int_eq(limit("a", "iops-total-max-length"), 1);
    ck_assert_int_eq(limit("b", "bps-read"), 65536);
    ck_assert_int_eq(create("{\"id\": \"a\"}", &err), -EEXIST);
    ck_assert_int_eq(throttle_group_change(g, "a", change, NULL), 0);
    ck_assert_int_eq(limit("a", "iops-total"), 10);
    ck_assert_int_eq(limit("a", "iops-total-max"), 300);
    /* What contradicts itself changes nothing. */
    ck_assert_int_eq(throttle_group_change(g, "b", change, &err), -EINVAL);
    ck_assert_int_eq(limit("b", "iops-total-max"), 0);
    ck_assert_int_eq(throttle_group_change(g, "c", change, &err), -ENOENT);

    ck_assert_int_eq(open_text("driver=throttle,throttle-group=a,"
                               "file.driver=mem,file.size=1M",
                               &n, NULL),
                     0);
    ck_assert_int_eq(throttle_group_delete(g, "a", &err), -EBUSY);
    ck_assert_str_eq(error_message(err),
                     "object 'a' is in use, can not be deleted");
    ck_assert_int_eq(graph_close(g, n, NULL), 0);
    ck_assert_int_eq(throttle_group_delete(g, "a", NULL), 0);
    ck_assert_int_eq(throttle_group_delete(g, "a", &err), -ENOENT);
    ck_assert_str_eq(error_message(err), "object 'a' not found");
    ck_assert_ptr_null(throttle_group_query(g, "a"));
}
END_TEST

START_TEST(bad_limits_are_refused)
{
    static const char *const cases[][2] = {
        {"{\"limits\": {}}", "Parameter 'id' is missing"},
        {"{\"id\": \"a\", \"limits\": 5}", "'limits' must be an object"},
        {"{\"id\": \"a\", \"limits\": {\"iops\": 5}}",
         "does not take the option 'iops'"},
        {"{\"id\": \"a\", \"x-iops-total\": -1}",
         "Property values cannot be negative"},
        {"{\"id\": \"a\", \"x-iops-total\": 1, \"x-iops-read\": 1}",
         "cannot be used at the same time"},
        {"{\"id\": \"a\", \"x-iops-size\": 4096}",
         "iops size requires an iops value to be set"},
        {"{\"id\": \"a\", \"x-bps-read\": 1000000000000001}",
         "must be within [0, 1000000000000000]"},
        {"{\"id\": \"a\", \"x-bps-read-max\": 5}",
         "bps_max/iops_max require corresponding bps/iops values"},
        {"{\"id\": \"a\", \"x-bps-read\": 6, \"x-bps-read-max\": 5}",
         "bps_max/iops_max cannot be lower than bps/iops"},
        {"{\"id\": \"a\", \"x-bps-read-max-length\": 2}",
         "burst length set without burst rate"},
        {"{\"id\": \"a\", \"x-bps-read-max-length\": 0}",
         "the burst length cannot be 0"},
        {"{\"id\": \"a\", \"x-bps-read\": 1, \"x-bps-read-max\": "
         "1000000000000000, \"x-bps-read-max-length\": 2}",
         "burst length too high for this burst rate"},
    };
    CLEANUP_ERROR struct error *err = NULL;

    ck_assert_int_eq(create(cases[_i][0], &err), -EINVAL);
    ck_assert_msg(strstr(error_message(err), cases[_i][1]) != NULL, "%s",
                  error_message(err));
}
END_TEST

START_TEST(a_node_needs_a_group_that_is_there)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct node *n;

    ck_assert_int_eq(
        open_text("driver=throttle,file.driver=mem,file.size=1M", &n, &err),
        -EINVAL);
    ck_assert_str_eq(error_message(err), "Please specify a throttle group");
    error_free(err);
    err = NULL;
    ck_assert_int_eq(open_text("driver=throttle,throttle-group=x,"
                               "file.driver=mem,file.size=1M",
                               &n, &err),
                     -ENOENT);
    ck_assert_str_eq(error_message(err), "Throttle group 'x' does not exist");
}
END_TEST

/* --- Requests that wait --- */

static struct node *open_throttled(const char *name)
{
    CLEANUP_JSON json_t *o = json_pack(
        "{s:s, s:s, s:s, s:s, s:{s:s, s:s, s:s}}", "driver", "throttle",
        "throttle-group", "tg", "node-name", name, "discard", "unmap", "file",
        "driver", "mem", "size", "1M", "discard", "unmap");
    struct node *n;

    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    return n;
}

static void open_group(const char *limits)
{
    ck_assert_int_eq(create(limits, NULL), 0);
    throttle_group_set_clock(group("tg"), test_clock);
}

static void attach(struct node *n)
{
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
}

static int wr(uint64_t bytes, unsigned flags)
{
    static const char data[65536];
    return blk_pwrite(b, data, bytes, 0, flags);
}

static int rd(unsigned flags)
{
    char data[512];
    return blk_pread(b, data, sizeof(data), 0, flags);
}

static _Atomic unsigned finished;

static void *run_write(void *opaque)
{
    (void)opaque;
    ck_assert_int_eq(wr(512, 0), 0);
    atomic_fetch_add(&finished, 1);
    return NULL;
}

static void send_writes(pthread_t *threads, unsigned count)
{
    atomic_store(&finished, 0);
    for (unsigned i = 0; i < count; i++) {
        ck_assert_int_eq(thread_start(&threads[i], "writer", run_write, NULL),
                         0);
    }
    while (throttle_group_waiting(group("tg")) + atomic_load(&finished) <
           count) {
        (void)sched_yield();
    }
}

static void join_all(pthread_t *threads, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        thread_join(threads[i]);
    }
}

START_TEST(requests_wait_for_the_clock)
{
    pthread_t threads[4];

    open_group("{\"id\": \"tg\", \"limits\": {\"iops-write\": 10}}");
    attach(open_throttled("n"));
    ck_assert_int_eq(rd(REQ_NOWAIT), -EAGAIN);
    ck_assert_int_eq(wr(512, 0), 0);
    ck_assert_int_eq(wr(512, 0), 0); /* now it is overfull */
    send_writes(threads, 4);
    ck_assert_uint_eq(atomic_load(&finished), 0);
    ck_assert_int_eq(rd(0), 0); /* reads have no limit */
    for (unsigned i = 1; i <= 4; i++) {
        atomic_fetch_add(&clock_now, SECOND / 10 + 1000);
        throttle_group_kick(group("tg"));
        while (atomic_load(&finished) < i) {
            (void)sched_yield();
        }
        ck_assert_uint_eq(atomic_load(&finished), i);
        ck_assert_uint_eq(throttle_group_waiting(group("tg")), 4 - i);
    }
    join_all(threads, 4);
}
END_TEST

START_TEST(nodes_of_a_group_share_its_limits)
{
    struct blk *first;
    pthread_t thread;

    open_group("{\"id\": \"tg\", \"limits\": {\"bps-total\": 1000}}");
    attach(open_throttled("n1"));
    first = b;
    ck_assert_int_eq(wr(2000, 0), 0);
    attach(open_throttled("n2"));
    send_writes(&thread, 1);
    ck_assert_uint_eq(throttle_group_waiting(group("tg")), 1);
    atomic_fetch_add(&clock_now, 2 * SECOND);
    throttle_group_kick(group("tg"));
    join_all(&thread, 1);
    blk_free(first);
}
END_TEST

START_TEST(without_limits_nothing_waits)
{
    open_group("{\"id\": \"tg\"}");
    attach(open_throttled("n"));
    for (int i = 0; i < 1000; i++) {
        ck_assert_int_eq(wr(512, REQ_NOWAIT), 0);
    }
}
END_TEST

START_TEST(zeroes_and_discards_count_as_writes)
{
    pthread_t thread;

    open_group("{\"id\": \"tg\", \"limits\": {\"bps-write\": 1000}}");
    attach(open_throttled("n"));
    ck_assert_int_eq(_i ? blk_zero(b, 0, 65536, 0) : blk_discard(b, 0, 65536),
                     0);
    send_writes(&thread, 1);
    ck_assert_uint_eq(throttle_group_waiting(group("tg")), 1);
    atomic_fetch_add(&clock_now, 66 * SECOND);
    throttle_group_kick(group("tg"));
    join_all(&thread, 1);
}
END_TEST

START_TEST(waiting_requests_follow_a_change_of_limits)
{
    CLEANUP_JSON json_t *none = parse("{\"iops-total\": 0}");
    pthread_t threads[2];

    open_group("{\"id\": \"tg\", \"limits\": {\"iops-total\": 1}}");
    attach(open_throttled("n"));
    ck_assert_int_eq(wr(512, 0), 0);
    send_writes(threads, 2);
    ck_assert_int_eq(throttle_group_change(g, "tg", none, NULL), 0);
    join_all(threads, 2);
    ck_assert_int_eq(wr(512, REQ_NOWAIT), 0);
}
END_TEST

START_TEST(a_drain_lets_through_what_waits)
{
    pthread_t threads[3];

    open_group("{\"id\": \"tg\", \"limits\": {\"bps-total\": 1}}");
    attach(open_throttled("n"));
    ck_assert_int_eq(wr(65536, 0), 0); /* that takes a day */
    send_writes(threads, 3);
    ck_assert_uint_eq(throttle_group_waiting(group("tg")), 3);
    struct throttle_group *t = group("tg");
    graph_lock(g);
    graph_drain(g, blk_node(b)); /* the clock stands still */
    ck_assert_uint_eq(throttle_group_waiting(t), 0);
    graph_unlock(g);
    join_all(threads, 3);
    send_writes(threads, 1); /* and then it is limited again */
    ck_assert_uint_eq(throttle_group_waiting(group("tg")), 1);
    atomic_fetch_add(&clock_now, 100000 * SECOND);
    throttle_group_kick(group("tg"));
    join_all(threads, 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("throttle");
    TCase *tc = tcase_create("buckets");

    tcase_add_test(tc, the_average_is_kept);
    tcase_add_test(tc, bytes_are_counted_by_their_number);
    tcase_add_loop_test(tc, directions_have_limits_of_their_own, 0, 2);
    tcase_add_test(tc, a_total_counts_both_directions);
    tcase_add_test(tc, a_burst_goes_at_once);
    tcase_add_test(tc, a_long_burst_has_its_rate_and_its_end);
    tcase_add_test(tc, large_requests_are_several_operations);
    suite_add_tcase(s, tc);
    tc = tcase_create("groups");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, groups_are_made_changed_and_deleted);
    tcase_add_loop_test(tc, bad_limits_are_refused, 0, 12);
    tcase_add_test(tc, a_node_needs_a_group_that_is_there);
    tcase_add_test(tc, requests_wait_for_the_clock);
    tcase_add_test(tc, nodes_of_a_group_share_its_limits);
    tcase_add_test(tc, without_limits_nothing_waits);
    tcase_add_loop_test(tc, zeroes_and_discards_count_as_writes, 0, 2);
    tcase_add_test(tc, waiting_requests_follow_a_change_of_limits);
    tcase_add_test(tc, a_drain_lets_through_what_waits);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
