/* SPDX-License-Identifier: BSD-3-Clause */
/* A write past an offset is told of, once, whoever writes meanwhile. */
#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define SIZE (1 * MiB)

static struct {
    _Atomic unsigned count;
    _Atomic uint64_t threshold;
    _Atomic uint64_t exceeded;
    char node[32];
} told;

static void take(const char *node, uint64_t threshold, uint64_t exceeded,
                 void *opaque)
{
    (void)opaque;
    if (atomic_fetch_add(&told.count, 1) == 0) {
        strcpy(told.node, node);
    }
    atomic_store(&told.threshold, threshold);
    atomic_store(&told.exceeded, exceeded);
}

struct disk {
    struct graph *g;
    struct node *n;
    struct blk *b;
};

static struct disk disk_open(void)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:I}", "driver", "mem",
                                       "node-name", "m", "size",
                                       (json_int_t)SIZE);
    struct disk d = {.g = graph_new()};

    memset(&told, 0, sizeof(told));
    ck_assert_ptr_nonnull(d.g);
    graph_on_threshold(d.g, take, NULL);
    ck_assert_int_eq(graph_open(d.g, o, &d.n, NULL), 0);
    ck_assert_int_eq(blk_new(d.g, d.n, PERM_ALL, PERM_ALL, "test", &d.b, NULL),
                     0);
    return d;
}

static void disk_close(struct disk *d)
{
    blk_free(d->b);
    graph_free(d->g);
}

static void put(struct disk *d, uint64_t offset, uint64_t bytes)
{
    char *buf = calloc(1, bytes);

    ck_assert_int_eq(blk_pwrite(d->b, buf, bytes, offset, 0), 0);
    free(buf);
}

static json_int_t shown(struct disk *d)
{
    CLEANUP_JSON json_t *info = node_query(d->g, d->n);

    return json_integer_value(json_object_get(info, "write_threshold"));
}

static json_int_t highest(struct disk *d)
{
    CLEANUP_JSON json_t *info = node_query_stats(d->g, d->n);

    return json_integer_value(
        json_object_get(json_object_get(info, "stats"), "wr_highest_offset"));
}

START_TEST(is_told_once)
{
    struct disk d = disk_open();

    ck_assert_int_eq(shown(&d), 0);
    put(&d, 0, 100);
    node_set_threshold(d.n, 4096);
    ck_assert_int_eq(shown(&d), 4096);
    put(&d, 0, 4096); /* up to it */
    ck_assert_uint_eq(told.count, 0);
    put(&d, 4000, 196);
    ck_assert_uint_eq(told.count, 1);
    ck_assert_str_eq(told.node, "m");
    ck_assert_uint_eq(told.threshold, 4096);
    ck_assert_uint_eq(told.exceeded, 100);
    ck_assert_int_eq(shown(&d), 0);
    put(&d, 8192, 4096);
    ck_assert_uint_eq(told.count, 1);
    ck_assert_int_eq(highest(&d), 12288);

    /* Below what was written already. */
    node_set_threshold(d.n, 1000);
    put(&d, 0, 1000);
    ck_assert_uint_eq(told.count, 1);
    ck_assert_int_eq(blk_zero(d.b, 500, 501, 0), 0);
    ck_assert_uint_eq(told.count, 2);
    ck_assert_uint_eq(told.exceeded, 1);
    ck_assert_int_eq(highest(&d), 12288);

    /* Taken back. */
    node_set_threshold(d.n, 1000);
    node_set_threshold(d.n, 0);
    put(&d, 20000, 1000);
    ck_assert_uint_eq(told.count, 2);
    ck_assert_int_eq(highest(&d), 21000);

    /* Reads and discards are no writes. */
    char buf[512];
    node_set_threshold(d.n, 1);
    ck_assert_int_eq(blk_pread(d.b, buf, sizeof(buf), 0, 0), 0);
    ck_assert_int_eq(blk_discard(d.b, 0, 4096), 0);
    ck_assert_uint_eq(told.count, 2);
    disk_close(&d);
}
END_TEST

#define WRITERS 3

struct writer {
    struct disk *d;
    _Atomic bool *stop;
};

static void *write_on(void *arg)
{
    const struct writer *w = arg;
    char buf[512] = {0};
    uint64_t at = 0;

    while (!atomic_load(w->stop)) {
        ck_assert_int_eq(blk_pwrite(w->d->b, buf, sizeof(buf), at, 0), 0);
        at = (at + 512 * 37) % SIZE;
    }
    return NULL;
}

/* Each threshold is told of once, although it is set between writes. */
START_TEST(is_told_among_writers)
{
    struct disk d = disk_open();
    pthread_t threads[WRITERS];
    _Atomic bool stop = false;
    struct writer w = {&d, &stop};

    for (unsigned i = 0; i < WRITERS; i++) {
        ck_assert_int_eq(thread_start(&threads[i], "writer", write_on, &w), 0);
    }
    for (unsigned i = 0; i < 500; i++) {
        unsigned before = told.count;

        ck_assert_uint_eq(before, i);
        node_set_threshold(d.n, (i * 7919 * 512) % (SIZE - 512) + 1);
        while (told.count == before) {
            (void)sched_yield();
        }
        ck_assert_uint_gt(told.exceeded, 0);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < WRITERS; i++) {
        thread_join(threads[i]);
    }
    ck_assert_uint_eq(told.count, 500);
    disk_close(&d);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("threshold");
    TCase *t = tcase_create("threshold");
    SRunner *r = srunner_create(s);

    tcase_set_timeout(t, 60);
    tcase_add_test(t, is_told_once);
    tcase_add_test(t, is_told_among_writers);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
