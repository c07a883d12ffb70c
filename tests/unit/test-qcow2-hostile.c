/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images whose refcounts lie: what is in use all the time is not handed out,
 * the first attempt ends all writing, and the image says so.  The fuzzer has
 * found the first of them.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

#define NAME    "hostile.qcow2"
#define CLUSTER 512

static int fd = -1;
static struct graph *g;
static struct node *n;
static struct blk *b;

static uint64_t get(uint64_t offset)
{
    unsigned char be[8];
    ck_assert_int_eq(pread(fd, be, 8, (off_t)offset), 8);
    return load_be64(be);
}

static void put(uint64_t offset, const void *bytes, size_t len)
{
    ck_assert_int_eq(pwrite(fd, bytes, len, (off_t)offset), (ssize_t)len);
}

static uint64_t l1_offset(void)
{
    return get(40);
}

static uint64_t reftable_offset(void)
{
    return get(48);
}

static void make(void)
{
    CLEANUP_JSON json_t *o = json_pack("{s:i, s:i}", "size", 1 << 20,
                                       "cluster_size", CLUSTER);

    ck_assert_int_eq(image_create(NAME, "qcow2", o, NULL), 0);
    fd = open(NAME, O_RDWR);
    ck_assert_int_ge(fd, 0);
}

/* Say that the cluster at @offset is free. */
static void uncount(uint64_t offset)
{
    uint64_t block = get(reftable_offset());
    put(block + offset / CLUSTER * 2, "\0\0", 2);
}

static void start(void)
{
    CLEANUP_JSON json_t *o = NULL;

    ck_assert_int_eq(options_from_image(NAME, "qcow2", &o, NULL), 0);
    g = graph_new();
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
}

static void finish(void)
{
    blk_free(b);
    graph_free(g);
    (void)close(fd);
    (void)unlink(NAME);
}

/* Writing fails, and has left @bytes at @offset alone but for the bit. */
static void refuses_to_write(uint64_t offset, size_t bytes)
{
    CLEANUP_ERROR struct error *err = NULL;
    unsigned char before[CLUSTER];
    unsigned char after[CLUSTER];
    char data[2 * CLUSTER];

    memset(data, 0xee, sizeof(data));
    ck_assert_int_eq(pread(fd, before, bytes, (off_t)offset), (ssize_t)bytes);
    start();
    ck_assert_int_eq(blk_pwrite(b, data, sizeof(data), 0, 0), -EIO);
    ck_assert_int_eq(blk_pwrite(b, data, 1, 100000, 0), -EIO);
    ck_assert_int_eq(blk_zero(b, 0, 1 << 20, 0), -EIO);
    ck_assert_int_lt(blk_resize(b, 1 << 22, &err), 0);
    ck_assert_int_eq(blk_pread(b, data, sizeof(data), 0, 0), 0);
    (void)blk_flush(b);
    blk_free(b);
    b = NULL;
    graph_free(g);
    g = NULL;
    ck_assert_int_eq(pread(fd, after, bytes, (off_t)offset), (ssize_t)bytes);
    ck_assert_uint_eq(get(72), 2); /* corrupt */
    if (offset == 0) {
        memcpy(before + 72, after + 72, 8);
    }
    ck_assert_mem_eq(before, after, bytes);
}

START_TEST(without_a_refcount_block_the_header_is_not_one)
{
    make();
    put(reftable_offset(), "\0\0\0\0\0\0\0", 8);
    refuses_to_write(0, CLUSTER);
    finish();
}
END_TEST

START_TEST(the_header_is_not_free)
{
    make();
    uncount(0);
    refuses_to_write(0, CLUSTER);
    finish();
}
END_TEST

START_TEST(the_l1_table_is_not_free)
{
    make();
    uncount(l1_offset());
    refuses_to_write(l1_offset(), 8);
    finish();
}
END_TEST

START_TEST(the_refcount_table_is_not_free)
{
    make();
    uncount(reftable_offset());
    refuses_to_write(reftable_offset(), 8);
    finish();
}
END_TEST

START_TEST(an_honest_image_is_written)
{
    char data[CLUSTER] = {1};

    make();
    start();
    for (uint64_t at = 0; at < 1 << 20; at += 7 * CLUSTER) {
        ck_assert_int_eq(blk_pwrite(b, data, CLUSTER, at, 0), 0);
    }
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(get(72), 0);
    finish();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qcow2-hostile");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, without_a_refcount_block_the_header_is_not_one);
    tcase_add_test(tc, the_header_is_not_free);
    tcase_add_test(tc, the_l1_table_is_not_free);
    tcase_add_test(tc, the_refcount_table_is_not_free);
    tcase_add_test(tc, an_honest_image_is_written);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
