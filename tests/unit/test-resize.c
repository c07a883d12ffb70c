/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk that is resized, or exchanged, below nodes that have its size. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "bitmap-util.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/options.h"

static struct graph *g;

static struct node *add(const char *text)
{
    CLEANUP_JSON json_t *options = NULL;
    struct node *n = NULL;

    ck_assert_int_eq(options_parse(text, NULL, &options, NULL), 0);
    ck_assert_int_eq(graph_open(g, options, &n, NULL), 0);
    return n;
}

static struct blk *use(struct node *n, unsigned perm)
{
    struct blk *b = NULL;

    ck_assert_int_eq(blk_new(g, n, perm, PERM_ALL, "test", &b, NULL), 0);
    return b;
}

static int resize(struct node *n, uint64_t size)
{
    struct blk *b = use(n, PERM_RESIZE);
    int r = blk_resize(b, size, NULL);

    blk_free(b);
    return r;
}

static void setup(void)
{
    g = graph_new();
    ck_assert_ptr_nonnull(g);
    (void)add("driver=mem,node-name=disk,size=4M");
    (void)add("driver=mem,node-name=small,size=1M");
    (void)add("driver=raw,file=disk,node-name=raw");
    (void)add("driver=blkdebug,image=raw,node-name=top");
    (void)add("driver=raw,file=disk,offset=1M,size=2M,node-name=window");
}

static void teardown(void)
{
    graph_free(g);
}

static uint64_t dirty(struct node *n)
{
    CLEANUP_JSON json_t *list = bitmap_query(n);

    return (uint64_t)json_integer_value(
        json_object_get(json_array_get(list, 0), "count"));
}

START_TEST(those_above_follow_with_their_bitmaps)
{
    struct node *disk = graph_find(g, "disk");
    struct node *top = graph_find(g, "top");
    struct node *window = graph_find(g, "window");
    struct blk *b = use(top, PERM_READ | PERM_WRITE);
    char byte = 1;

    ck_assert_int_eq(bitmap_add(g, top, "b0", 64 * KiB, false, false, NULL), 0);
    ck_assert_int_eq(resize(disk, 6 * MiB), 0);
    ck_assert_uint_eq(node_size(top), 6 * MiB);
    ck_assert_uint_eq(dirty(top), 2 * MiB); /* what has grown */
    ck_assert_int_eq(blk_pwrite(b, &byte, 1, 6 * MiB - 1, 0), 0);
    ck_assert_uint_eq(node_size(window), 2 * MiB);

    ck_assert_int_eq(resize(disk, 2 * MiB), 0);
    ck_assert_uint_eq(node_size(top), 2 * MiB);
    ck_assert_uint_eq(node_size(window), 1 * MiB);
    ck_assert_uint_eq(dirty(top), 0);
    ck_assert_int_eq(blk_pread(b, &byte, 1, 2 * MiB, 0), -EINVAL);
    ck_assert_int_eq(blk_pread(b, &byte, 1, 2 * MiB - 1, 0), 0);

    /* From above it is the same. */
    ck_assert_int_eq(resize(top, 3 * MiB), 0);
    ck_assert_uint_eq(node_size(disk), 3 * MiB);
    ck_assert_uint_eq(dirty(top), 1 * MiB);
    blk_free(b);
}
END_TEST

START_TEST(another_disk_is_seen_in_its_size)
{
    CLEANUP_JSON json_t *list = json_pack("[{s:s, s:s, s:s}]", "driver", "raw",
                                          "node-name", "raw", "file", "small");
    struct node *top = graph_find(g, "top");
    struct blk *b = use(top, PERM_READ | PERM_WRITE);
    char byte = 1;

    ck_assert_int_eq(bitmap_add(g, top, "b0", 64 * KiB, false, false, NULL), 0);
    ck_assert_int_eq(graph_reopen(g, list, NULL), 0);
    ck_assert_uint_eq(node_size(top), 1 * MiB);
    ck_assert_int_eq(blk_pwrite(b, &byte, 1, 1 * MiB, 0), -EINVAL);
    ck_assert_int_eq(blk_pwrite(b, &byte, 1, 1 * MiB - 1, 0), 0);
    ck_assert_uint_gt(dirty(top), 0);
    blk_free(b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("resize");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, those_above_follow_with_their_bitmaps);
    tcase_add_test(tc, another_disk_is_seen_in_its_size);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
