/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests in flight: they read and write what others do, hold the disk until
 * they end, and refuse what is not simple before anything has happened.  Works
 * in the current directory; without rings, or without O_DIRECT there, what
 * needs these is left out.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/dirty.h"
#include "core/graph.h"
#include "core/ring.h"
#include "drivers/file.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/flights.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

#define NAME  "disk.img"
#define SIZE  (4 * MiB)
#define BLOCK 4096
#define MANY  64

static struct graph *g;
static struct node *n;
static struct blk *b;
static struct flights *fs;
static char *bufs; /* MANY blocks, aligned */

static json_t *parsed(const char *text)
{
    CLEANUP_ERROR struct error *err = NULL;
    json_t *o = NULL;
    int r = options_parse(text, NULL, &o, &err);

    ck_assert_msg(r == 0, "%s: %s", text, r < 0 ? error_message(err) : "");
    return o;
}

static void start(const char *text)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = parsed(text);

    g = graph_new();
    int r = graph_open(g, o, &n, &err);
    ck_assert_msg(r == 0, "%s: %s", text, r < 0 ? error_message(err) : "");
    unsigned perm = node_read_only(n) ? PERM_READ : PERM_ALL;
    ck_assert_int_eq(blk_new(g, n, perm, PERM_ALL, "test", &b, NULL), 0);
    fs = flights_new();
    ck_assert_ptr_nonnull(fs);
}

static void stop(void)
{
    flights_free(fs);
    blk_free(b);
    graph_free(g);
}

static void make_image(const char *format)
{
    CLEANUP_JSON json_t *o = json_pack("{s:I}", "size", (json_int_t)SIZE);

    (void)unlink(NAME);
    ck_assert_int_eq(image_create(NAME, format, o, NULL), 0);
}

static void setup(void)
{
    ck_assert_int_eq(
        posix_memalign((void **)&bufs, BLOCK, (size_t)MANY * BLOCK), 0);
}

static void teardown(void)
{
    free(bufs);
    (void)unlink(NAME);
}

static char *block(unsigned i)
{
    return bufs + (size_t)i * BLOCK;
}

static bool direct_works(void)
{
    int fd = open(NAME, O_RDWR | O_CREAT | O_DIRECT, 0600);

    if (fd >= 0) {
        (void)close(fd);
    }
    return fd >= 0;
}

static void fill(void)
{
    CLEANUP_FREE char *data = malloc(SIZE);

    for (size_t i = 0; i < SIZE; i++) {
        data[i] = (char)(i / BLOCK % 251 + 1);
    }
    ck_assert_int_eq(blk_pwrite(b, data, SIZE, 0, 0), 0);
    ck_assert_int_eq(blk_flush(b), 0);
}

static char filled(uint64_t offset)
{
    return (char)(offset / BLOCK % 251 + 1);
}

static void *tag(unsigned i)
{
    return (void *)(uintptr_t)(i + 1);
}

/* Wait for one; its number. */
static unsigned land(int *result)
{
    void *opaque = NULL;

    while (!flights_next(fs, &opaque, result)) {
        flights_wait(fs);
    }
    return (unsigned)(uintptr_t)opaque - 1;
}

static void land_all(void)
{
    while (flights_count(fs) > 0) {
        int r = -1;
        (void)land(&r);
        ck_assert_int_eq(r, 0);
    }
}

static void expect_block(unsigned i, char c)
{
    for (unsigned k = 0; k < BLOCK; k++) {
        if (block(i)[k] != c) {
            ck_abort_msg("block %u: %d, not %d, at %u", i, block(i)[k], c, k);
        }
    }
}

static const char *const disks[][2] = {
    {"raw", "driver=raw,file.driver=file,file.filename=" NAME},
    {"raw", "driver=raw,cache.direct=on,file.driver=file,file.filename=" NAME},
    {"qcow2", "driver=qcow2,file.driver=file,file.filename=" NAME},
    {"qcow2", "driver=qcow2,cache.direct=on,file.driver=file,"
              "file.filename=" NAME},
};
#define DIRECT_RAW   disks[1][1]
#define DIRECT_QCOW2 disks[3][1]

static bool is_direct(int i)
{
    return i % 2 == 1;
}

START_TEST(what_flies_reads_and_writes_what_others_do)
{
    uint64_t at[MANY];

    make_image(disks[_i][0]);
    if (is_direct(_i) && !direct_works()) {
        return;
    }
    start(disks[_i][1]);
    fill();
    srand(1);
    for (unsigned round = 0; round < 20; round++) {
        bool write = is_direct(_i) && round % 2 == 1;
        for (unsigned i = 0; i < MANY; i++) {
            at[i] = ((uint64_t)rand() % (SIZE / BLOCK / MANY) * MANY + i) *
                    BLOCK;
            memset(block(i), write ? filled(at[i]) : 0, BLOCK);
            int r = write ? blk_fly_write(fs, b, block(i), BLOCK, at[i], tag(i))
                          : blk_fly_read(fs, b, block(i), BLOCK, at[i], tag(i));
            ck_assert_int_eq(r, 0);
        }
        ck_assert_int_eq(flights_count(fs), MANY);
        ck_assert(flights_submit(fs));
        land_all();
        ck_assert_int_eq(flights_fd(fs), -1);
        for (unsigned i = 0; i < MANY; i++) {
            if (write) {
                memset(block(i), 0, BLOCK);
                ck_assert_int_eq(blk_pread(b, block(i), BLOCK, at[i], 0), 0);
            }
            expect_block(i, filled(at[i]));
        }
    }
    stop();
}
END_TEST

static void refused(int write, uint64_t offset, uint64_t bytes)
{
    int r = write ? blk_fly_write(fs, b, bufs, bytes, offset, tag(0))
                  : blk_fly_read(fs, b, bufs, bytes, offset, tag(0));
    ck_assert_int_eq(r, -EAGAIN);
    ck_assert_int_eq(flights_count(fs), 0);
    graph_lock(g); /* the disk is not held */
    graph_drain(g, n);
    graph_unlock(g);
}

START_TEST(what_is_not_simple_is_refused)
{
    make_image("qcow2");
    if (!direct_works()) {
        return;
    }
    start(DIRECT_QCOW2);
    memset(bufs, 1, BLOCK);
    refused(0, 0, BLOCK);    /* unallocated */
    refused(1, 0, BLOCK);    /* a new cluster */
    refused(0, SIZE, BLOCK); /* outside */
    refused(1, SIZE - 512, BLOCK);
    fill();
    refused(0, 100, 100); /* not in blocks */
    refused(1, 100, 100);
    ck_assert_int_eq(blk_zero(b, 0, 64 * KiB, 0), 0);
    refused(0, 0, BLOCK);
    refused(1, 0, BLOCK);
    refused(0, 60 * KiB, 8 * KiB); /* two pieces */
    stop();
    start("driver=qcow2,read-only=on,file.driver=file,file.filename=" NAME);
    refused(1, 128 * KiB, BLOCK);
    stop();
    /* Who looks at requests sees them as threads send them. */
    start("driver=qcow2,file.driver=blkdebug,file.image.driver=file,"
          "file.image.filename=" NAME ",file.image.cache.direct=on");
    refused(0, 128 * KiB, BLOCK);
    refused(1, 128 * KiB, BLOCK);
    stop();
    start("driver=blkdebug,image.driver=file,image.cache.direct=on,"
          "image.filename=" NAME);
    refused(0, 128 * KiB, BLOCK);
    refused(1, 128 * KiB, BLOCK);
    stop();
    start("driver=qcow2,detect-zeroes=on,file.driver=file,"
          "file.cache.direct=on,file.filename=" NAME);
    refused(1, 128 * KiB, BLOCK);
    stop();
    start("driver=qcow2,file.driver=file,file.aio=threads,"
          "file.cache.direct=on,file.filename=" NAME);
    refused(0, 128 * KiB, BLOCK);
    refused(1, 128 * KiB, BLOCK);
    stop();
}
END_TEST

START_TEST(what_the_file_has_no_more_reads_as_zeroes)
{
    make_image("raw");
    if (is_direct(_i) && !direct_works()) {
        return;
    }
    start(disks[_i][1]);
    fill();
    ck_assert_int_eq(truncate(NAME, 2 * BLOCK + 100), 0);
    memset(bufs, 7, 4 * BLOCK);
    ck_assert_int_eq(blk_fly_read(fs, b, bufs, 4 * BLOCK, 0, tag(0)), 0);
    ck_assert_int_eq(blk_fly_read(fs, b, block(8), BLOCK, MiB, tag(1)), 0);
    land_all();
    expect_block(0, filled(0));
    expect_block(1, filled(BLOCK));
    ck_assert_int_eq(block(2)[99], filled(2 * BLOCK));
    ck_assert_int_eq(block(2)[100], 0);
    expect_block(3, 0);
    expect_block(8, 0);
    stop();
}
END_TEST

/* Files may not become so long: blocks from there on cannot be written. */
START_TEST(an_error_is_told_of_the_request_that_had_it)
{
    struct rlimit limit = {SIZE / 2, SIZE};

    make_image("raw");
    if (!direct_works()) {
        return;
    }
    start(DIRECT_RAW);
    (void)signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (unsigned i = 0; i < MANY; i++) {
        memset(block(i), 3, BLOCK);
        uint64_t at = i % 2 ? SIZE / 2 + i * BLOCK : i * BLOCK;
        ck_assert_int_eq(blk_fly_write(fs, b, block(i), BLOCK, at, tag(i)), 0);
    }
    for (unsigned k = 0; k < MANY; k++) {
        int r = 1;
        unsigned i = land(&r);
        ck_assert_int_eq(r, i % 2 ? -ENOSPC : 0);
    }
    ck_assert_int_eq(flights_count(fs), 0);
    stop();
}
END_TEST

START_TEST(what_is_done_in_part_goes_on)
{
    make_image("raw");
    start(disks[0][1]);
    struct node *file = node_child(n, CHILD_FILE);
    struct file *s = file->state;
    uint64_t changes = atomic_load(&s->changes);
    struct moving m = {true, bufs, 3 * BLOCK, BLOCK};

    ck_assert_int_eq(file_flight.end(file, &m, -EINTR), MOVE_MORE);
    ck_assert_int_eq(file_flight.end(file, &m, -EAGAIN), MOVE_MORE);
    ck_assert_uint_eq(m.bytes, 3 * BLOCK);
    ck_assert_int_eq(file_flight.end(file, &m, BLOCK), MOVE_MORE);
    ck_assert_ptr_eq(m.buf, block(1));
    ck_assert_uint_eq(m.bytes, 2 * BLOCK);
    ck_assert_uint_eq(m.offset, 2 * BLOCK);
    ck_assert_uint_eq(atomic_load(&s->changes), changes);
    struct moving failed = m;
    ck_assert_int_eq(file_flight.end(file, &m, 2 * BLOCK), 0);
    ck_assert_uint_eq(atomic_load(&s->changes), changes + 1);
    ck_assert_int_eq(file_flight.end(file, &failed, 0), -EIO);
    ck_assert_int_eq(file_flight.end(file, &failed, -EIO), -EIO);
    ck_assert_int_eq(file_flight.end(file, &failed, -EFBIG), -ENOSPC);
    ck_assert_uint_eq(atomic_load(&s->changes), changes + 4);

    struct moving r = {false, bufs, 3 * BLOCK, BLOCK};
    memset(bufs, 5, 3 * BLOCK);
    ck_assert_int_eq(file_flight.end(file, &r, -EAGAIN), MOVE_MORE);
    ck_assert_int_eq(file_flight.end(file, &r, 100), MOVE_MORE);
    ck_assert_ptr_eq(r.buf, bufs + 100);
    ck_assert_int_eq(file_flight.end(file, &r, 0), 0);
    ck_assert_int_eq(bufs[99], 5);
    ck_assert_int_eq(bufs[100], 0);
    ck_assert_int_eq(bufs[3 * BLOCK - 1], 0);
    ck_assert_int_eq(file_flight.end(file, &r, -EIO), -EIO);
    stop();
}
END_TEST

START_TEST(no_more_fly_than_the_ring_holds)
{
    make_image("raw");
    start(disks[0][1]);
    for (unsigned i = 0; i < RING_ENTRIES; i++) {
        ck_assert_int_eq(
            blk_fly_read(fs, b, block(i % MANY), BLOCK, i * BLOCK, tag(i)), 0);
    }
    ck_assert_int_eq(blk_fly_read(fs, b, bufs, BLOCK, 0, tag(0)), -EAGAIN);
    land_all();
    ck_assert_int_eq(blk_fly_read(fs, b, bufs, BLOCK, 0, tag(0)), 0);
    land_all();
    stop();
}
END_TEST

/* --- A drain --- */

static _Atomic bool drained;

static void *drainer(void *arg)
{
    (void)arg;
    graph_lock(g);
    graph_drain(g, n);
    atomic_store(&drained, true);
    graph_unlock(g);
    return NULL;
}

START_TEST(a_drain_waits_for_what_is_in_flight_and_for_no_more)
{
    pthread_t t;
    int r = -1;

    make_image("raw");
    if (!direct_works()) {
        return;
    }
    start(DIRECT_RAW);
    memset(bufs, 1, 2 * BLOCK);
    ck_assert_int_eq(blk_fly_write(fs, b, bufs, BLOCK, 0, tag(0)), 0);
    ck_assert_int_eq(blk_fly_write(fs, b, block(1), BLOCK, BLOCK, tag(1)), 0);
    atomic_store(&drained, false);
    ck_assert_int_eq(thread_start(&t, "drain", drainer, NULL), 0);
    while (!node_is_draining(n)) {
        (void)usleep(100);
    }
    ck_assert_int_eq(blk_fly_write(fs, b, bufs, BLOCK, 0, tag(2)), -EAGAIN);
    ck_assert_int_eq(blk_pwrite(b, bufs, BLOCK, 0, REQ_NOWAIT), -EAGAIN);
    (void)land(&r);
    (void)usleep(20000);
    ck_assert(!atomic_load(&drained));
    (void)land(&r);
    thread_join(t);
    ck_assert(atomic_load(&drained));
    ck_assert_int_eq(blk_fly_write(fs, b, bufs, BLOCK, 0, tag(0)), 0);
    land_all();
    stop();
}
END_TEST

/* --- What else a write has to do --- */

START_TEST(a_write_in_flight_is_dirty_and_is_flushed_after_its_end)
{
    make_image("raw");
    if (!direct_works()) {
        return;
    }
    start(DIRECT_RAW);
    graph_lock(g);
    graph_drain(g, n);
    struct bitmap *bm = bitmap_new_anonymous(n, 64 * KiB);
    graph_unlock(g);
    ck_assert_ptr_nonnull(bm);
    struct file *s = node_child(n, CHILD_FILE)->state;
    uint64_t changes = atomic_load(&s->changes);

    ck_assert_int_eq(blk_fly_write(fs, b, bufs, BLOCK, MiB, tag(0)), 0);
    ck_assert_uint_eq(bitmap_count(bm), 64 * KiB); /* before its bytes move */
    ck_assert_uint_eq(atomic_load(&s->changes), changes);
    land_all();
    ck_assert_uint_eq(atomic_load(&s->changes), changes + 1);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(atomic_load(&s->flushed), changes + 1);
    stop();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("flights");
    TCase *tc = tcase_create("all");

    if (ring_test() < 0) {
        (void)printf("no rings here: %s\n", strerror(-ring_test()));
        return 77;
    }
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, what_flies_reads_and_writes_what_others_do, 0, 4);
    tcase_add_test(tc, what_is_not_simple_is_refused);
    tcase_add_loop_test(tc, what_the_file_has_no_more_reads_as_zeroes, 0, 2);
    tcase_add_test(tc, an_error_is_told_of_the_request_that_had_it);
    tcase_add_test(tc, what_is_done_in_part_goes_on);
    tcase_add_test(tc, no_more_fly_than_the_ring_holds);
    tcase_add_test(tc, a_drain_waits_for_what_is_in_flight_and_for_no_more);
    tcase_add_test(tc, a_write_in_flight_is_dirty_and_is_flushed_after_its_end);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
