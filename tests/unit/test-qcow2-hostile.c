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
#include <sys/stat.h>
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

/* Writing fails, and leaves @bytes at @offset alone, except for the bit. */
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

/* --- What is counted as free, or led to as data, and is metadata --- */

static uint64_t l2_offset(void)
{
    return get(l1_offset()) & UINT64_C(0x00fffffffffffe00);
}

/* With some data, and a bitmap. */
static void make_more(void)
{
    char data[CLUSTER] = {1};

    make();
    start();
    for (uint64_t at = 0; at < 1 << 18; at += 64 * CLUSTER) {
        ck_assert_int_eq(blk_pwrite(b, data, CLUSTER, at, 0), 0);
    }
    blk_free(b);
    graph_free(g);
}

static uint64_t place(int what)
{
    switch (what) {
    case 0:
        return l1_offset();
    case 1:
        return reftable_offset();
    case 2:
        return get(reftable_offset()); /* the refcount block */
    case 3:
        return l2_offset();
    default:
        return get(l1_offset() + 24) & UINT64_C(0x00fffffffffffe00);
    }
}

/* Writes until clusters are needed that lie there: then an error, and nothing
 * has happened to them. */
START_TEST(metadata_that_counts_as_free_is_not_overwritten)
{
    unsigned char before[CLUSTER];
    unsigned char after[CLUSTER];
    char data[CLUSTER];
    int r = 0;

    memset(data, 0xee, sizeof(data));
    make_more();
    uint64_t at = place(_i);
    uncount(at);
    ck_assert_int_eq(pread(fd, before, CLUSTER, (off_t)at), CLUSTER);
    start();
    for (uint64_t o = 1; o < 200 && r == 0; o++) {
        r = blk_pwrite(b, data, CLUSTER, o * 3 * CLUSTER, 0);
    }
    ck_assert_int_eq(r, -EIO);
    (void)blk_flush(b);
    blk_free(b);
    b = NULL;
    graph_free(g);
    g = NULL;
    ck_assert_int_eq(pread(fd, after, CLUSTER, (off_t)at), CLUSTER);
    ck_assert_uint_eq(get(72), 2);
    if (_i == 2) {
        before[at / CLUSTER * 2 % CLUSTER] = 0; /* of its own count, no more */
    }
    ck_assert(memcmp(after, data, CLUSTER) != 0);
    finish();
}
END_TEST

/* An L1 entry says that a table of another kind is an L2 table which is shared:
 * it is not copied and freed. */
START_TEST(metadata_that_an_l1_entry_leads_to_is_not_freed)
{
    unsigned char be[8];
    char data[CLUSTER] = {1};

    make_more();
    store_be64(be, place(_i));
    put(l1_offset() + 10 * 8, be, 8);
    start();
    ck_assert_int_eq(blk_pwrite(b, data, CLUSTER, (10 * 64 + 40) * CLUSTER, 0),
                     -EIO);
    ck_assert_uint_eq(get(72), 2); /* corrupt */
    finish();
}
END_TEST

/* An entry says that data are there, and may be overwritten or freed. */
START_TEST(metadata_that_an_entry_leads_to_is_not_overwritten)
{
    unsigned char before[CLUSTER];
    unsigned char after[CLUSTER];
    unsigned char be[8];
    char data[CLUSTER];
    uint64_t from = 5 * CLUSTER;
    int r;

    memset(data, 0xee, sizeof(data));
    make_more();
    uint64_t at = place(_i / 3);
    store_be64(be, at | UINT64_C(1) << 63);
    put(l2_offset() + 5 * 8, be, 8);
    ck_assert_int_eq(pread(fd, before, CLUSTER, (off_t)at), CLUSTER);
    start();
    switch (_i % 3) {
    case 0:
        r = blk_pwrite(b, data, CLUSTER, from, 0);
        break;
    case 1:
        (void)blk_zero(b, from, CLUSTER, REQ_MAY_UNMAP);
        r = blk_pwrite(b, data, CLUSTER, from, 0);
        break;
    default:
        (void)blk_discard(b, from, CLUSTER);
        r = blk_pwrite(b, data, CLUSTER, from, 0);
    }
    ck_assert_int_eq(r, -EIO);
    blk_free(b);
    b = NULL;
    graph_free(g);
    g = NULL;
    ck_assert_int_eq(pread(fd, after, CLUSTER, (off_t)at), CLUSTER);
    ck_assert_uint_eq(get(72), 2);
    if (at != l2_offset()) {
        ck_assert_mem_eq(before, after, CLUSTER);
    }
    finish();
}
END_TEST

/* --- Work without bound --- */

/* All entries of the refcount table lead to one block, in which all is used. */
START_TEST(a_refcount_table_that_lies_is_found_out_soon)
{
    unsigned char full[CLUSTER];
    unsigned char be[8];
    char data[CLUSTER] = {1};
    struct stat st;

    make();
    uint64_t block = get(reftable_offset());
    for (int i = 0; i < CLUSTER / 2; i++) {
        full[2 * i] = 0;
        full[2 * i + 1] = 1;
    }
    put(block, full, CLUSTER);
    store_be64(be, block);
    for (uint64_t i = 1; i < CLUSTER / 8; i++) {
        put(reftable_offset() + i * 8, be, 8);
    }
    start();
    ck_assert_int_eq(blk_pwrite(b, data, CLUSTER, 0, 0), -EIO);
    blk_free(b);
    b = NULL;
    graph_free(g);
    g = NULL;
    ck_assert_uint_eq(get(72), 2);
    ck_assert_int_eq(fstat(fd, &st), 0);
    ck_assert_int_lt(st.st_size, 1 << 20);
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
    tcase_add_loop_test(tc, metadata_that_counts_as_free_is_not_overwritten, 0,
                        5);
    tcase_add_loop_test(tc, metadata_that_an_l1_entry_leads_to_is_not_freed, 0,
                        3);
    tcase_add_loop_test(tc, metadata_that_an_entry_leads_to_is_not_overwritten,
                        0, 15);
    tcase_add_test(tc, a_refcount_table_that_lies_is_found_out_soon);
    tcase_add_test(tc, an_honest_image_is_written);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
