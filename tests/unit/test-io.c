/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The I/O path over a protocol driver of this test that is fussy: it takes
 * only what core promises a driver, and fails the test on anything else.
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "util/iov.h"

#define SIZE (2 * MiB)

struct fussy {
    unsigned char bytes[SIZE + 64 * KiB];
    uint32_t align;
    uint32_t max_transfer;
    uint32_t zero_align;
    bool no_zero;
    _Atomic unsigned flushes;
    _Atomic unsigned zeroes;
    _Atomic unsigned writes;
};

static struct fussy *fussy;

static void expect_promise(uint64_t offset, uint64_t bytes,
                           const struct iovec *iov, int cnt)
{
    ck_assert_uint_gt(bytes, 0);
    ck_assert_uint_le(bytes, fussy->max_transfer);
    ck_assert_uint_eq((offset | bytes) & (fussy->align - 1), 0);
    ck_assert_uint_eq(iov_bytes(iov, cnt), bytes);
    ck_assert_int_le(cnt, IOV_MAX_INNER);
    for (int i = 0; i < cnt && fussy->align > 1; i++) {
        ck_assert_uint_eq((uintptr_t)iov[i].iov_base & (fussy->align - 1), 0);
    }
}

static int fussy_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    (void)n;
    (void)flags;
    expect_promise(offset, bytes, iov, cnt);
    iov_from_buf(iov, cnt, 0, fussy->bytes + offset, bytes);
    return 0;
}

static int fussy_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                         const struct iovec *iov, int cnt, unsigned flags)
{
    (void)n;
    ck_assert_uint_eq(flags & REQ_FUA, 0);
    expect_promise(offset, bytes, iov, cnt);
    iov_to_buf(iov, cnt, 0, fussy->bytes + offset, bytes);
    fussy->writes++;
    return 0;
}

static int fussy_zero(struct node *n, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    (void)flags;
    ck_assert_uint_eq(offset & (fussy->zero_align - 1), 0);
    ck_assert(offset + bytes == node_size(n) ||
              is_aligned(bytes, fussy->zero_align));
    if (fussy->no_zero) {
        return -ENOTSUP;
    }
    memset(fussy->bytes + offset, 0, bytes);
    fussy->zeroes++;
    return 0;
}

static int fussy_flush(struct node *n)
{
    (void)n;
    fussy->flushes++;
    return 0;
}

static void fussy_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->align = fussy->align;
    lim->zero_align = fussy->zero_align;
    lim->max_transfer = fussy->max_transfer;
    lim->fast_zero = !fussy->no_zero;
}

static const struct driver fussy_driver = {
    .name = "fussy",
    .is_protocol = true,
    .limits = fussy_limits,
    .preadv = fussy_preadv,
    .pwritev = fussy_pwritev,
    .zero = fussy_zero,
    .flush = fussy_flush,
};

static struct graph *g;
static struct blk *b;
static unsigned char *model;

static struct node *like_size(uint64_t size)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:I}", "driver", "null-co",
                                       "size", (json_int_t)size);
    struct node *n;
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    return n;
}

static struct blk *attach(struct node *n)
{
    struct blk *user;
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &user, NULL),
        0);
    return user;
}

static void start(uint32_t align, uint32_t max_transfer, uint32_t zero_align)
{
    struct node *n;

    fussy = calloc(1, sizeof(*fussy));
    fussy->align = align;
    fussy->max_transfer = max_transfer;
    fussy->zero_align = zero_align;
    model = calloc(1, SIZE);
    g = graph_new();
    struct node *like = like_size(SIZE);
    graph_lock(g);
    ck_assert_int_eq(node_new(g, &fussy_driver, "fussy", like, &n, NULL), 0);
    node_refresh_limits(n);
    graph_unlock(g);
    b = attach(n);
    graph_lock(g);
    node_unref(n);
    graph_unlock(g);
}

static void stop(void)
{
    blk_free(b);
    graph_free(g);
    free(fussy);
    free(model);
}

static uint64_t seed = 99;
static uint64_t rnd(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % below;
}

static void random_requests(unsigned count)
{
    CLEANUP_FREE unsigned char *buf = malloc(256 * KiB);

    for (unsigned i = 0; i < count; i++) {
        uint64_t at = rnd(SIZE);
        uint64_t len = min_u64(1 + rnd(rnd(3) ? 5000 : 200000), SIZE - at);
        switch (rnd(4)) {
        case 0:
            ck_assert_int_eq(blk_zero(b, at, len, 0), 0);
            memset(model + at, 0, len);
            break;
        case 1: {
            uint64_t half = len / 2;
            struct iovec v[3] = {
                {buf, half}, {buf + 200000, 0}, {buf + half, len - half}};
            ck_assert_int_eq(blk_preadv(b, v, 3, at, 0), 0);
            ck_assert_mem_eq(buf, model + at, len);
            break;
        }
        default:
            memset(buf, (int)rnd(256), len);
            ck_assert_int_eq(blk_pwrite(b, buf, len, at, 0), 0);
            memcpy(model + at, buf, len);
        }
    }
    ck_assert_mem_eq(fussy->bytes, model, SIZE);
}

START_TEST(unaligned_requests_are_padded_and_split)
{
    static const uint32_t shapes[][3] = {
        {1, 1 << 30, 1},  {512, 1 << 20, 512}, {4096, 8192, 65536},
        {512, 512, 4096}, {1, 1000, 1},
    };
    start(shapes[_i][0], shapes[_i][1], shapes[_i][2]);
    random_requests(400);
    stop();
}
END_TEST

START_TEST(zero_falls_back_to_writing_unless_that_is_forbidden)
{
    start(512, 65536, 4096);
    memset(fussy->bytes, 7, SIZE);
    memset(model, 7, SIZE);
    fussy->no_zero = true;
    ck_assert_int_eq(blk_zero(b, 100, 100000, 0), 0);
    memset(model + 100, 0, 100000);
    ck_assert_mem_eq(fussy->bytes, model, SIZE);
    ck_assert_uint_eq(fussy->zeroes, 0);
    stop();

    start(512, 65536, 4096);
    fussy->no_zero = true;
    struct node *n = blk_node(b);
    graph_lock(g);
    node_refresh_limits(n);
    graph_unlock(g);
    ck_assert_int_eq(blk_zero(b, 0, 65536, REQ_NO_FALLBACK), -ENOTSUP);
    ck_assert_uint_eq(fussy->writes, 0);
    stop();
}
END_TEST

START_TEST(fua_becomes_a_flush_after_the_write)
{
    char buf[512] = {1};
    start(1, 1 << 20, 1);
    ck_assert_int_eq(blk_pwrite(b, buf, 512, 0, 0), 0);
    ck_assert_uint_eq(fussy->flushes, 0);
    ck_assert_int_eq(blk_pwrite(b, buf, 512, 0, REQ_FUA), 0);
    ck_assert_uint_eq(fussy->flushes, 1);
    ck_assert_int_eq(blk_zero(b, 0, 512, REQ_FUA), 0);
    ck_assert_uint_eq(fussy->flushes, 2);
    stop();
}
END_TEST

START_TEST(requests_outside_the_disk_or_without_permission_fail)
{
    char buf[512];
    struct blk *reader;

    start(1, 1 << 20, 1);
    ck_assert_int_eq(blk_pread(b, buf, 512, SIZE - 511, 0), -EINVAL);
    ck_assert_int_eq(blk_pread(b, buf, 512, UINT64_MAX - 10, 0), -EINVAL);
    ck_assert_int_eq(blk_pwrite(b, buf, 1, SIZE, 0), -EINVAL);
    ck_assert_int_eq(blk_zero(b, 1, UINT64_MAX, 0), -EINVAL);
    ck_assert_int_eq(blk_discard(b, SIZE, 1), -EINVAL);
    ck_assert_int_eq(blk_pread(b, buf, 0, SIZE, 0), 0);
    ck_assert_int_eq(
        blk_new(g, blk_node(b), PERM_READ, PERM_ALL, "reader", &reader, NULL),
        0);
    ck_assert_int_eq(blk_pread(reader, buf, 512, 0, 0), 0);
    ck_assert_int_eq(blk_pwrite(reader, buf, 512, 0, 0), -EPERM);
    blk_free(reader);
    stop();
}
END_TEST

START_TEST(permissions_that_conflict_name_both_sides)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct blk *other = NULL;

    start(1, 1 << 20, 1);
    ck_assert_int_eq(blk_new(g, blk_node(b), PERM_READ, PERM_READ, "job 'copy'",
                             &other, &err),
                     -EBUSY);
    ck_assert_ptr_nonnull(strstr(error_message(err), "both required by test"));
    ck_assert_ptr_nonnull(strstr(error_message(err), "by job 'copy'"));
    stop();
}
END_TEST

/* --- Threads --- */

struct worker {
    unsigned id;
    unsigned rounds;
};

/* Every thread writes bytes that share blocks of 4096 with those of others. */
static void *write_stripes(void *arg)
{
    const struct worker *w = arg;
    unsigned char buf[100];

    memset(buf, (int)w->id + 1, sizeof(buf));
    for (unsigned i = 0; i < w->rounds; i++) {
        uint64_t at = (uint64_t)i * 400 + w->id * 100;
        if (blk_pwrite(b, buf, sizeof(buf), at, 0) != 0) {
            return arg;
        }
    }
    return NULL;
}

START_TEST(neighbours_in_one_block_do_not_lose_each_others_writes)
{
    pthread_t t[4];
    struct worker w[4];

    start(4096, 65536, 4096);
    for (unsigned i = 0; i < 4; i++) {
        w[i] = (struct worker){i, 500};
        ck_assert_int_eq(pthread_create(&t[i], NULL, write_stripes, &w[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        void *failed;
        (void)pthread_join(t[i], &failed);
        ck_assert_ptr_null(failed);
    }
    for (unsigned i = 0; i < 500 * 400; i++) {
        ck_assert_uint_eq(fussy->bytes[i], i / 100 % 4 + 1);
    }
    stop();
}
END_TEST

static _Atomic bool finished;

/* @arg leads to the thread's own offset. */
static void *write_on(void *arg)
{
    const uint64_t *offset = arg;
    unsigned char buf[512] = {0};
    void *bad = NULL;

    while (!finished) {
        if (blk_pwrite(b, buf, sizeof(buf), *offset, 0) != 0) {
            bad = arg;
        }
    }
    return bad;
}

START_TEST(a_drained_section_has_no_request_inside)
{
    uint64_t offsets[2] = {0, 4096};
    pthread_t t[2];

    start(1, 1 << 20, 1);
    finished = false;
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(pthread_create(&t[i], NULL, write_on, &offsets[i]), 0);
    }
    for (unsigned i = 0; i < 200; i++) {
        struct node *n = blk_node(b);
        graph_lock(g);
        graph_drain(g, n);
        unsigned before = fussy->writes;
        for (volatile unsigned spin = 0; spin < 20000; spin++) {
        }
        ck_assert_uint_eq(fussy->writes, before);
        char byte;
        ck_assert_int_eq(blk_pread(b, &byte, 1, 0, REQ_NOWAIT), -EAGAIN);
        graph_unlock(g);
    }
    finished = true;
    for (unsigned i = 0; i < 2; i++) {
        void *failed;
        (void)pthread_join(t[i], &failed);
        ck_assert_ptr_null(failed);
    }
    stop();
}
END_TEST

/* A filter comes and goes above the node while requests run: they always see
 * one of the two, and trees merge and split under them. */
static const struct driver filter_driver = {
    .name = "pass",
    .is_filter = true,
};

START_TEST(a_filter_can_come_and_go_under_requests)
{
    uint64_t offsets[2] = {0, 4096};
    pthread_t t[2];
    struct node *filter;

    start(1, 1 << 20, 1);
    struct node *n = blk_node(b);
    struct node *other = like_size(1 * MiB);
    finished = false;
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(pthread_create(&t[i], NULL, write_on, &offsets[i]), 0);
    }
    for (unsigned i = 0; i < 100; i++) {
        graph_lock(g);
        ck_assert_int_eq(node_new(g, &filter_driver, NULL, n, &filter, NULL),
                         0);
        ck_assert_int_eq(node_attach(filter, CHILD_FILE, n, "file",
                                     PERM_READ | PERM_WRITE, PERM_ALL, NULL),
                         0);
        ck_assert_int_eq(node_attach(filter, CHILD_TARGET, other, "target",
                                     PERM_READ, PERM_ALL, NULL),
                         0);
        ck_assert_ptr_eq(other->tree, n->tree);
        node_refresh_limits(filter);
        node_replace(n, filter);
        graph_unlock(g);
        ck_assert_ptr_eq(blk_node(b), filter);
        graph_lock(g);
        node_replace(filter, n);
        node_unref(filter);
        ck_assert_ptr_ne(other->tree, n->tree);
        graph_unlock(g);
        ck_assert_ptr_eq(blk_node(b), n);
    }
    finished = true;
    for (unsigned i = 0; i < 2; i++) {
        void *failed;
        (void)pthread_join(t[i], &failed);
        ck_assert_ptr_null(failed);
    }
    stop();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("io");
    TCase *tc = tcase_create("core");

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, unaligned_requests_are_padded_and_split, 0, 5);
    tcase_add_test(tc, zero_falls_back_to_writing_unless_that_is_forbidden);
    tcase_add_test(tc, fua_becomes_a_flush_after_the_write);
    tcase_add_test(tc, requests_outside_the_disk_or_without_permission_fail);
    tcase_add_test(tc, permissions_that_conflict_name_both_sides);
    tcase_add_test(tc, neighbours_in_one_block_do_not_lose_each_others_writes);
    tcase_add_test(tc, a_drained_section_has_no_request_inside);
    tcase_add_test(tc, a_filter_can_come_and_go_under_requests);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
