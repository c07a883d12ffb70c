/* SPDX-License-Identifier: BSD-3-Clause */
/* Disks in memory: sparse, zeroed, resized, shared by threads. */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/node.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"

static struct graph *g;
static struct node *n;
static struct blk *b;

static int open_text(const char *text, struct node **opened,
                     struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    int r = options_parse(text, NULL, &o, errp);
    return r < 0 ? r : graph_open(g, o, opened, errp);
}

static void start(const char *text)
{
    g = graph_new();
    ck_assert_int_eq(open_text(text, &n, NULL), 0);
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
}

static void stop(void)
{
    blk_free(b);
    graph_free(g);
}

static void write_byte(char c, uint64_t bytes, uint64_t offset)
{
    CLEANUP_FREE char *buf = malloc(bytes);
    memset(buf, c, bytes);
    ck_assert_int_eq(blk_pwrite(b, buf, bytes, offset, 0), 0);
}

static void expect_byte(char c, uint64_t bytes, uint64_t offset)
{
    CLEANUP_FREE char *buf = malloc(bytes);
    memset(buf, c + 1, bytes);
    ck_assert_int_eq(blk_pread(b, buf, bytes, offset, REQ_NOWAIT), 0);
    for (uint64_t i = 0; i < bytes; i++) {
        if (buf[i] != c) { /* each ck_assert is a system call */
            ck_abort_msg("%d, not %d, at %" PRIu64, buf[i], c, offset + i);
        }
    }
}

static int add_data(const struct extent *ext, void *opaque)
{
    uint64_t *sum = opaque;
    *sum += ext->flags & EXTENT_DATA ? ext->length : 0;
    return 0;
}

static uint64_t data_bytes(void)
{
    uint64_t sum = 0;
    ck_assert_int_eq(blk_extents(b, 0, blk_size(b), 0, add_data, &sum), 0);
    return sum;
}

START_TEST(only_what_is_written_takes_memory)
{
    start("driver=mem,size=64G,discard=unmap");
    ck_assert_uint_eq(data_bytes(), 0);
    write_byte(1, 1, 32 * GiB);
    write_byte(2, 70000, 64 * GiB - 70000);
    ck_assert_uint_eq(data_bytes(), 3 * 64 * KiB);
    expect_byte(0, 1000, 32 * GiB - 1000);
    expect_byte(1, 1, 32 * GiB);
    expect_byte(0, 1000, 32 * GiB + 1);
    expect_byte(2, 70000, 64 * GiB - 70000);
    ck_assert_int_eq(blk_zero(b, 0, 64 * GiB, 0), 0);
    ck_assert_uint_eq(data_bytes(), 0);
    expect_byte(0, 70000, 64 * GiB - 70000);
    stop();
}
END_TEST

START_TEST(parts_of_chunks_are_zeroed)
{
    start("driver=mem,size=1000000,discard=unmap");
    write_byte(3, 1000000, 0);
    ck_assert_int_eq(blk_zero(b, 100, 200000, 0), 0);
    expect_byte(3, 100, 0);
    expect_byte(0, 200000, 100);
    expect_byte(3, 799900, 200100);
    ck_assert_int_eq(blk_discard(b, 999000, 1000), 0);
    expect_byte(0, 1000, 999000);
    expect_byte(3, 798900, 200100);
    stop();
}
END_TEST

START_TEST(what_was_cut_off_does_not_come_back)
{
    CLEANUP_ERROR struct error *err = NULL;

    start("driver=mem,size=1000000");
    write_byte(4, 1000000, 0);
    ck_assert_int_eq(blk_resize(b, 100000, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 100000, 0), -EINVAL);
    ck_assert_int_eq(blk_resize(b, 2000000, NULL), 0);
    expect_byte(4, 100000, 0);
    expect_byte(0, 1900000, 100000);
    write_byte(5, 1000000, 1000000);
    ck_assert_int_eq(blk_resize(b, 65536, NULL), 0);
    ck_assert_int_eq(blk_resize(b, 2000000, NULL), 0);
    expect_byte(4, 65536, 0);
    expect_byte(0, 2000000 - 65536, 65536);
    ck_assert_int_eq(blk_resize(b, 65 * GiB, &err), -EFBIG);
    ck_assert_uint_eq(blk_size(b), 2000000);
    ck_assert_int_eq(blk_resize(b, 0, NULL), 0);
    stop();
}
END_TEST

START_TEST(it_grows_below_a_format)
{
    start("driver=mem,size=0");
    n->growable = true;
    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(node_pwrite(n, "abc", 3, 200000, 0), 0);
    ck_assert_int_eq(node_pwrite(n, "abc", 3, 64 * GiB - 2, 0), -ENOSPC);
    graph_unlock(g);
    ck_assert_uint_eq(blk_size(b), 200003);
    expect_byte(0, 200000, 0);
    expect_byte('a', 1, 200000);
    stop();
}
END_TEST

START_TEST(bad_sizes_are_refused)
{
    struct node *opened;

    g = graph_new();
    ck_assert_int_eq(open_text("driver=mem", &opened, NULL), -EINVAL);
    ck_assert_int_eq(open_text("driver=mem,size=65G", &opened, NULL), -EINVAL);
    ck_assert_int_eq(open_text("driver=mem,size=-1", &opened, NULL), -EINVAL);
    ck_assert_int_eq(open_text("driver=mem,size=64G", &opened, NULL), 0);
    graph_free(g);
}
END_TEST

/* Each thread has its blocks of 512 bytes, in chunks that all share. */
static void *own_blocks(void *arg)
{
    uintptr_t self = (uintptr_t)arg;
    char buf[512];

    for (unsigned i = 0; i < 2000; i++) {
        uint64_t at = (i % 1000 * 4 + self) * 512;
        memset(buf, (int)(self + 1), sizeof(buf));
        ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), at, 0), 0);
        if (i % 3 == 0) {
            ck_assert_int_eq(blk_zero(b, at, sizeof(buf), 0), 0);
            memset(buf, 0, sizeof(buf));
        }
        char back[512];
        ck_assert_int_eq(blk_pread(b, back, sizeof(back), at, 0), 0);
        ck_assert_mem_eq(back, buf, sizeof(buf));
        if (i % 100 == 0) {
            (void)data_bytes();
        }
    }
    return NULL;
}

START_TEST(threads_do_not_disturb_one_another)
{
    pthread_t threads[4];

    start("driver=mem,size=4M");
    for (uintptr_t i = 0; i < ARRAY_SIZE(threads); i++) {
        ck_assert_int_eq(
            thread_start(&threads[i], "own", own_blocks, (void *)i), 0);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(threads); i++) {
        thread_join(threads[i]);
    }
    stop();
}
END_TEST

/* null-co says yes to everything. */
START_TEST(null_takes_everything_and_gives_zeroes_on_request)
{
    char buf[100] = {1};

    start("driver=null-co,size=1G,read-zeroes=on");
    ck_assert_uint_eq(blk_size(b), GiB);
    write_byte(1, 1000, GiB - 1000);
    expect_byte(0, 1000, GiB - 1000);
    ck_assert_int_eq(blk_zero(b, 0, GiB, 0), 0);
    ck_assert_int_eq(blk_discard(b, 0, GiB), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(data_bytes(), 0);
    stop();

    start("driver=null-co,latency-ns=1000");
    ck_assert_uint_eq(data_bytes(), GiB);
    ck_assert_int_eq(blk_pread(b, buf, 100, 0, REQ_NOWAIT), -EAGAIN);
    ck_assert_int_eq(blk_pwrite(b, buf, 100, 0, REQ_NOWAIT), -EAGAIN);
    ck_assert_int_eq(blk_pread(b, buf, 100, 0, 0), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    stop();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("mem");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, only_what_is_written_takes_memory);
    tcase_add_test(tc, parts_of_chunks_are_zeroed);
    tcase_add_test(tc, what_was_cut_off_does_not_come_back);
    tcase_add_test(tc, it_grows_below_a_format);
    tcase_add_test(tc, bad_sizes_are_refused);
    tcase_add_test(tc, threads_do_not_disturb_one_another);
    tcase_add_test(tc, null_takes_everything_and_gives_zeroes_on_request);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
