/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Limbo, rule by rule (alloc.c, flush.c and map.c of qcow2).  A cluster that
 * nothing in memory refers to any more
 *
 *  1. is kept until a flush has succeeded that copied the tables after it was
 *     unlinked: time does not do it, nor does a flush that fails, or one that
 *     had copied the tables before; not even if that one covers its neighbour;
 *  2. is kept until all have dropped their tickets who took them before it was
 *     unlinked, for they may have seen the old entry: two steps of the epoch,
 *     one is not enough;
 *  3. is not held up for ever by tickets that are taken later;
 *  4. is discarded while it still counts, so that nobody has it by then;
 *  5. is not discarded if it has other references, and loses one of them.
 *
 * And a request that maps has its ticket before it looks at the table.
 */
#include <check.h>

#include "qcow2-check.h"
#include "qcow2/alloc.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"
#include "small-disk.h"

#define CLUSTER UINT64_C(4096)
#define SHAPE   "{\"size\": 2097152, \"cluster_size\": 4096}"

static struct graph *g;
static struct blk *b;
static struct qcow2 *s;

static void open_small(uint64_t size)
{
    g = graph_new();
    struct node *n = small_open(g, size);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    s = n->state;
}

static void start(void)
{
    uint64_t blocks = small_load(SHAPE, false);

    small.capacity = SMALL_COUNT;
    open_small(blocks * SMALL_BLOCK);
}

static void stop(void)
{
    struct image image = {small.bytes, SMALL_MAX};

    blk_free(b);
    graph_free(g);
    struct verdict v = check_image(&image);
    ck_assert_uint_eq(v.corruptions, 0);
    ck_assert_uint_eq(v.leaks, 0);
}

static void write_cluster(uint64_t index)
{
    static char buf[CLUSTER];

    memset(buf, 7, sizeof(buf));
    ck_assert_int_eq(blk_pwrite(b, buf, CLUSTER, index * CLUSTER, 0), 0);
}

static void free_cluster(uint64_t index)
{
    ck_assert_int_eq(blk_zero(b, index * CLUSTER, CLUSTER, REQ_MAY_UNMAP), 0);
}

static uint64_t host_of(uint64_t index)
{
    struct mapping m;

    ck_assert_int_eq(node_map(blk_node(b), index * CLUSTER, CLUSTER, 0, &m), 0);
    node_map_put(blk_node(b), &m);
    ck_assert_int_eq(m.kind, MAP_DATA);
    return m.host;
}

static uint64_t refcount(uint64_t host)
{
    uint64_t count;

    mutex_lock(&s->meta);
    ck_assert_int_eq(qcow2_refcount_get(s, host / CLUSTER, &count), 0);
    mutex_unlock(&s->meta);
    return count;
}

/* It is counted, and the file has its blocks. */
static bool is_kept(uint64_t host)
{
    bool there = small.there[host / SMALL_BLOCK];

    ck_assert_uint_eq(refcount(host), there);
    return there;
}

/* Durable, and with a cluster of its own. */
static uint64_t settled_cluster(uint64_t index)
{
    write_cluster(index);
    ck_assert_int_eq(blk_flush(b), 0);
    return host_of(index);
}

START_TEST(it_is_kept_until_the_disk_knows)
{
    start();
    uint64_t host = settled_cluster(0);
    free_cluster(0);
    mutex_lock(&s->flush_lock);
    for (int i = 0; i < 5; i++) { /* time alone does not do it */
        ck_assert_int_eq(qcow2_release_freed(s), 0);
        ck_assert(is_kept(host));
    }
    mutex_unlock(&s->flush_lock);
    for (uint64_t i = 1; i < 50; i++) {
        write_cluster(i);
        ck_assert_uint_ne(host_of(i), host);
    }
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert(!is_kept(host));
    stop();
}
END_TEST

START_TEST(it_is_kept_when_the_flush_fails)
{
    for (unsigned k = 1; k < 6; k++) {
        start();
        uint64_t host = settled_cluster(0);
        free_cluster(0);
        small.fail_at = k;
        if (blk_flush(b) < 0) {
            small.fail_at = 0;
            mutex_lock(&s->flush_lock);
            ck_assert_int_eq(qcow2_release_freed(s), 0);
            mutex_unlock(&s->flush_lock);
            ck_assert(is_kept(host));
        } else {
            ck_assert_uint_gt(k, 1);
        }
        small.fail_at = 0;
        ck_assert_int_eq(blk_flush(b), 0);
        ck_assert(!is_kept(host));
        stop();
    }
}
END_TEST

/* As zero.c does, which is another thread. */
static void free_another(void)
{
    struct qcow2_table *t;

    small.on_write = NULL;
    mutex_unlock(&small.lock);
    mutex_lock(&s->meta);
    ck_assert_int_eq(qcow2_l2_get_writable(s, 0, &t), 0);
    ck_assert_int_eq(
        qcow2_l2_put(s, t, CLUSTER, CLUSTER, QCOW2_KIND_ZERO_PLAIN, 0), 0);
    qcow2_cache_put(s->l2, t);
    mutex_unlock(&s->meta);
    mutex_lock(&small.lock);
}

START_TEST(it_is_kept_when_it_was_freed_during_the_flush)
{
    start();
    uint64_t first = settled_cluster(0);
    uint64_t second = settled_cluster(1);
    free_cluster(0);
    ck_assert_uint_eq(second, first + CLUSTER); /* it could join its run */
    small.on_write = free_another;
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_ptr_null(small.on_write);
    ck_assert(!is_kept(first));
    ck_assert(is_kept(second));
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert(!is_kept(second));
    stop();
}
END_TEST

START_TEST(it_is_kept_while_somebody_may_have_seen_it)
{
    start();
    uint64_t host = settled_cluster(0);
    unsigned before = qcow2_ticket_take(s);
    free_cluster(0);
    for (int i = 0; i < 4; i++) {
        unsigned after = qcow2_ticket_take(s); /* a later request */
        ck_assert_int_eq(blk_flush(b), 0);
        ck_assert(is_kept(host));
        qcow2_ticket_drop(s, after);
    }
    qcow2_ticket_drop(s, before);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert(!is_kept(host));
    stop();
}
END_TEST

/* A request that came when it was unlinked holds it up only once. */
START_TEST(those_who_came_later_do_not_hold_it_up_for_ever)
{
    start();
    uint64_t host = settled_cluster(0);
    free_cluster(0);
    unsigned tickets[2];
    tickets[0] = qcow2_ticket_take(s);
    ck_assert_int_eq(blk_flush(b), 0);
    tickets[1] = qcow2_ticket_take(s);
    qcow2_ticket_drop(s, tickets[0]);
    ck_assert_int_eq(blk_flush(b), 0);
    tickets[0] = qcow2_ticket_take(s);
    qcow2_ticket_drop(s, tickets[1]);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert(!is_kept(host));
    qcow2_ticket_drop(s, tickets[0]);
    stop();
}
END_TEST

/* What the disk knows to be free already is not joined by what it does not. */
START_TEST(neighbours_wait_each_for_their_own_flush)
{
    start();
    uint64_t host = settled_cluster(0);
    write_cluster(1);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(host_of(1), host + CLUSTER);
    unsigned ticket = qcow2_ticket_take(s);
    free_cluster(0);
    ck_assert_int_eq(blk_flush(b), 0); /* on disk, and held up */
    free_cluster(1);
    qcow2_ticket_drop(s, ticket);
    mutex_lock(&s->flush_lock);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(qcow2_release_freed(s), 0);
    }
    mutex_unlock(&s->flush_lock);
    ck_assert(!is_kept(host));
    ck_assert(is_kept(host + CLUSTER));
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert(!is_kept(host + CLUSTER));
    stop();
}
END_TEST

static unsigned discards;
static uint64_t count_at_discard;

static void look_at_count(uint64_t offset, uint64_t bytes)
{
    ck_assert_uint_eq(bytes, CLUSTER);
    count_at_discard = refcount(offset);
    discards++;
}

START_TEST(it_is_discarded_while_it_still_counts)
{
    start();
    uint64_t host = settled_cluster(0);
    discards = 0;
    small.on_discard = look_at_count;
    free_cluster(0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(discards, 1);
    ck_assert_uint_eq(count_at_discard, 1);
    ck_assert(!is_kept(host));
    small.on_discard = NULL;
    stop();
}
END_TEST

START_TEST(it_is_not_discarded_if_others_refer_to_it)
{
    start();
    uint64_t host = settled_cluster(0);
    mutex_lock(&s->meta);
    ck_assert_int_eq(qcow2_ref_more(s, host), 0);
    mutex_unlock(&s->meta);
    free_cluster(0);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(blk_flush(b), 0);
        ck_assert(is_kept(host));
    }
    mutex_lock(&s->meta);
    qcow2_ref_undo(s, host, CLUSTER);
    mutex_unlock(&s->meta);
    stop();
}
END_TEST

static unsigned reads;

static void look_for_ticket(void)
{
    ck_assert_uint_gt(atomic_load(&s->users[0]) + atomic_load(&s->users[1]), 0);
    reads++;
}

START_TEST(whoever_maps_has_a_ticket_before_he_looks)
{
    start();
    uint64_t host = settled_cluster(0);
    blk_free(b);
    graph_free(g);
    open_small(SMALL_MAX); /* without a table in memory */
    reads = 0;
    small.on_read = look_for_ticket;
    ck_assert_uint_eq(host_of(0), host);
    small.on_read = NULL;
    ck_assert_uint_gt(reads, 0);
    ck_assert_uint_eq(atomic_load(&s->users[0]) + atomic_load(&s->users[1]), 0);
    stop();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("qcow2-limbo");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, it_is_kept_until_the_disk_knows);
    tcase_add_test(tc, it_is_kept_when_the_flush_fails);
    tcase_add_test(tc, it_is_kept_when_it_was_freed_during_the_flush);
    tcase_add_test(tc, it_is_kept_while_somebody_may_have_seen_it);
    tcase_add_test(tc, those_who_came_later_do_not_hold_it_up_for_ever);
    tcase_add_test(tc, neighbours_wait_each_for_their_own_flush);
    tcase_add_test(tc, it_is_discarded_while_it_still_counts);
    tcase_add_test(tc, it_is_not_discarded_if_others_refer_to_it);
    tcase_add_test(tc, whoever_maps_has_a_ticket_before_he_looks);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
