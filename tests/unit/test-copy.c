/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine by itself: ends, sets, zeroes, stopping, speed, failures. */
#include "../unit/job-util.h"
#include "copy/copy-before-write.h"

#define CLUSTER (64 * KiB)

struct bench {
    struct graph *g;
    struct node *src;
    struct node *dst;
    struct node *filter;
    struct copy *c;
    struct blk *guest;
};

static void setup(struct bench *b, uint64_t size, bool target_zero)
{
    struct copy_options o = {
        .size = size,
        .cluster = CLUSTER,
        .target_zero = target_zero,
        .max_workers = 3,
        .max_chunk = 2 * CLUSTER,
    };

    memset(b, 0, sizeof(*b));
    b->g = graph_new();
    b->src = disk_new(b->g, "src", size);
    b->dst = disk_new(b->g, "dst", size);
    b->c = copy_new(&o);
    ck_assert_ptr_nonnull(b->c);
    ck_assert_int_eq(blk_new(b->g, b->src, PERM_READ | PERM_WRITE, PERM_ALL,
                             "guest", &b->guest, NULL),
                     0);
}

static void arm(struct bench *b)
{
    graph_lock(b->g);
    graph_drain(b->g, b->src);
    ck_assert_int_eq(
        cbw_insert(b->g, b->src, b->dst, b->c, NULL, &b->filter, NULL), 0);
    graph_unlock(b->g);
}

/* The ends, and no filter: guests' writes copy nothing. */
static void join(struct bench *b)
{
    graph_lock(b->g);
    ck_assert_int_eq(node_attach(b->src, CHILD_TARGET, b->dst, "target",
                                 PERM_READ | PERM_WRITE | PERM_RESIZE, PERM_ALL,
                                 NULL),
                     0);
    copy_set_ends(b->c, b->src, b->src, b->dst);
    graph_unlock(b->g);
}

static void resize_both(struct bench *b, uint64_t size)
{
    graph_lock(b->g);
    graph_drain(b->g, b->src);
    ck_assert_int_eq(node_resize(node_child(b->src, CHILD_FILE), size, NULL),
                     0);
    ck_assert_int_eq(node_resize(node_child(b->dst, CHILD_FILE), size, NULL),
                     0);
    graph_unlock(b->g);
}

/* Fill its set again with some of a disk of @size bytes. */
static void refill(struct bench *b, uint64_t size, uint64_t offset,
                   uint64_t bytes)
{
    struct hbitmap *bits = hbitmap_new(size, CLUSTER);

    hbitmap_set(bits, offset, bytes);
    graph_lock(b->g);
    graph_drain(b->g, b->src);
    copy_refill(b->c, bits);
    graph_unlock(b->g);
}

static void teardown(struct bench *b)
{
    graph_lock(b->g);
    if (b->filter) {
        cbw_remove(b->filter);
    }
    graph_unlock(b->g);
    copy_free(b->c);
    blk_free(b->guest);
    graph_free(b->g);
}

static void ck_progress(struct bench *b, uint64_t done, uint64_t total)
{
    uint64_t d;
    uint64_t t;

    copy_progress(b->c, &d, &t);
    ck_assert_uint_eq(d, done);
    ck_assert_uint_eq(t, total);
}

START_TEST(all_of_an_odd_size_is_copied)
{
    uint64_t size = 20 * CLUSTER + 12345;
    enum copy_side side;
    struct bench b;

    setup(&b, size, false);
    disk_fill(b.src, size);
    copy_add(b.c, 0, size);
    arm(&b);
    ck_progress(&b, 0, size);
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    char *expected = disk_read(b.src);
    ck_disk_is(b.dst, expected);
    ck_progress(&b, size, size);
    free(expected);
    teardown(&b);
}
END_TEST

START_TEST(nothing_is_copied_of_an_empty_disk)
{
    enum copy_side side;
    struct bench b;

    setup(&b, 0, false);
    copy_add(b.c, 0, 0);
    arm(&b);
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    ck_progress(&b, 0, 0);
    teardown(&b);
}
END_TEST

START_TEST(only_the_set_is_copied_rounded_to_clusters)
{
    enum copy_side side;
    struct bench b;
    uint64_t size = 16 * CLUSTER;
    struct hbitmap *bits = hbitmap_new(size, 4096);

    setup(&b, size, false);
    disk_fill(b.src, size);
    hbitmap_set(bits, 3 * CLUSTER + 4096, 1);
    hbitmap_set(bits, 10 * CLUSTER - 1, 2);
    copy_add_bits(b.c, bits);
    hbitmap_free(bits);
    arm(&b);
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    char *src = disk_read(b.src);
    char *expected = calloc(1, size);
    memcpy(expected + 3 * CLUSTER, src + 3 * CLUSTER, CLUSTER);
    memcpy(expected + 9 * CLUSTER, src + 9 * CLUSTER, 2 * CLUSTER);
    ck_disk_is(b.dst, expected);
    ck_progress(&b, 3 * CLUSTER, 3 * CLUSTER);
    free(src);
    free(expected);
    teardown(&b);
}
END_TEST

START_TEST(zeroes_are_not_written_to_a_fresh_target)
{
    enum copy_side side;
    struct bench b;

    setup(&b, 1000 * CLUSTER, true);
    disk_write(b.src, 500 * CLUSTER, 7, 100);
    copy_add(b.c, 0, 1000 * CLUSTER);
    arm(&b);
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    ck_assert_int_eq(trap_of(b.src)->reads, 1);
    ck_assert_int_eq(trap_of(b.dst)->writes, 1);
    char *expected = disk_read(b.src);
    ck_disk_is(b.dst, expected);
    free(expected);
    ck_progress(&b, 1000 * CLUSTER, 1000 * CLUSTER);
    teardown(&b);
}
END_TEST

START_TEST(zeroes_replace_what_a_used_target_has)
{
    enum copy_side side;
    struct bench b;

    setup(&b, 100 * CLUSTER, false);
    disk_fill(b.dst, 100 * CLUSTER);
    disk_write(b.src, 5 * CLUSTER + 7, 9, 1);
    copy_add(b.c, 0, 100 * CLUSTER);
    arm(&b);
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    ck_assert_int_eq(trap_of(b.src)->reads, 1);
    char *expected = disk_read(b.src);
    ck_disk_is(b.dst, expected);
    free(expected);
    teardown(&b);
}
END_TEST

START_TEST(ends_need_no_filter_and_a_set_can_be_filled_again)
{
    enum copy_side side;
    struct bench b;
    char byte = 'x';

    setup(&b, 40 * CLUSTER, true);
    disk_write(b.src, 7 * CLUSTER, 7, 20 * CLUSTER);
    copy_add(b.c, 0, 40 * CLUSTER);
    join(&b);
    ck_assert_int_eq(blk_pwrite(b.guest, &byte, 1, 0, 0), 0);
    ck_assert_int_eq(trap_of(b.dst)->writes, 0);
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    ck_assert(copy_is_done(b.c));
    char *expected = disk_read(b.src);
    ck_disk_is(b.dst, expected);
    ck_progress(&b, 40 * CLUSTER, 40 * CLUSTER);

    /* What was data before, and is zeroes now, is written by now. */
    ck_assert_int_eq(blk_zero(b.guest, 8 * CLUSTER, 2 * CLUSTER, 0), 0);
    ck_assert_int_eq(blk_pwrite(b.guest, &byte, 1, 30 * CLUSTER, 0), 0);
    refill(&b, 40 * CLUSTER, 8 * CLUSTER, 2 * CLUSTER);
    ck_assert(!copy_is_done(b.c));
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    memset(expected + 8 * CLUSTER, 0, 2 * CLUSTER);
    ck_disk_is(b.dst, expected);
    ck_progress(&b, 42 * CLUSTER, 42 * CLUSTER);
    free(expected);
    teardown(&b);
}
END_TEST

START_TEST(a_disk_that_has_grown_is_copied_to_its_new_end)
{
    enum copy_side side;
    struct bench b;

    setup(&b, 4 * CLUSTER, false);
    disk_fill(b.src, 4 * CLUSTER);
    copy_add(b.c, 0, 4 * CLUSTER);
    join(&b);
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    resize_both(&b, 6 * CLUSTER + 512);
    disk_write(b.src, 5 * CLUSTER, 5, CLUSTER + 512);
    refill(&b, 6 * CLUSTER + 512, 4 * CLUSTER, 2 * CLUSTER + 512);
    ck_assert_uint_eq(copy_size(b.c), 6 * CLUSTER + 512);
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    char *expected = disk_read(b.src);
    ck_disk_is(b.dst, expected);
    free(expected);
    ck_progress(&b, 6 * CLUSTER + 512, 6 * CLUSTER + 512);
    teardown(&b);
}
END_TEST

START_TEST(in_a_drained_section_speed_does_not_count)
{
    enum copy_side side;
    struct bench b;

    setup(&b, 20 * CLUSTER, false);
    disk_fill(b.src, 20 * CLUSTER);
    copy_add(b.c, 0, 20 * CLUSTER);
    join(&b);
    copy_set_speed(b.c, 1);
    graph_lock(b.g);
    graph_drain(b.g, b.src);
    ck_assert_int_eq(copy_run_drained(b.c, &side), 0);
    graph_unlock(b.g);
    char *expected = disk_read(b.src);
    ck_disk_is(b.dst, expected);
    free(expected);
    teardown(&b);
}
END_TEST

struct runner {
    struct bench *b;
    enum copy_side side;
    int r;
};

static void *run_thread(void *opaque)
{
    struct runner *run = opaque;
    run->r = copy_run(run->b->c, &run->side);
    return NULL;
}

START_TEST(stopping_waits_for_chunks_in_hand_and_it_can_go_on)
{
    struct bench b;
    struct runner run = {.b = &b};
    pthread_t t;
    uint64_t done;
    uint64_t total;
    uint64_t size = 40 * CLUSTER;

    setup(&b, size, false);
    disk_fill(b.src, size);
    copy_add(b.c, 0, size);
    arm(&b);
    trap_gate(trap_of(b.src), true);
    ck_assert_int_eq(thread_start(&t, "run", run_thread, &run), 0);
    trap_wait(trap_of(b.src), 3);
    copy_stop(b.c, true);
    trap_gate(trap_of(b.src), false);
    thread_join(t);
    ck_assert_int_eq(run.r, COPY_STOPPED);
    copy_progress(b.c, &done, &total);
    ck_assert_uint_eq(done, 6 * CLUSTER);
    copy_stop(b.c, false);
    ck_assert_int_eq(copy_run(b.c, &run.side), 0);
    char *expected = disk_read(b.src);
    ck_disk_is(b.dst, expected);
    free(expected);
    teardown(&b);
}
END_TEST

START_TEST(speed_is_limited)
{
    enum copy_side side;
    struct bench b;

    setup(&b, 5 * CLUSTER, false);
    disk_fill(b.src, 5 * CLUSTER);
    copy_add(b.c, 0, 5 * CLUSTER);
    arm(&b);
    copy_set_speed(b.c, 10 * CLUSTER);
    uint64_t before = now_ns();
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    /* The first chunk goes at once. */
    ck_assert_uint_ge(now_ns() - before, 390 * UINT64_C(1000000));
    teardown(&b);
}
END_TEST

START_TEST(a_new_speed_wakes_those_that_wait_for_the_old)
{
    struct bench b;
    struct runner run = {.b = &b};
    pthread_t t;
    uint64_t done = 0;
    uint64_t total;

    setup(&b, 5 * CLUSTER, false);
    disk_fill(b.src, 5 * CLUSTER);
    copy_add(b.c, 0, 5 * CLUSTER);
    arm(&b);
    copy_set_speed(b.c, 1); /* a cluster in 18 hours */
    ck_assert_int_eq(thread_start(&t, "run", run_thread, &run), 0);
    while (done == 0) {
        copy_progress(b.c, &done, &total);
        nap();
    }
    ck_assert_uint_eq(done, CLUSTER);
    copy_set_speed(b.c, 0);
    thread_join(t);
    ck_assert_int_eq(run.r, 0);
    teardown(&b);
}
END_TEST

START_TEST(a_worker_that_fails_can_try_again)
{
    enum copy_side side = COPY_WRITE;
    struct bench b;
    uint64_t size = 10 * CLUSTER;

    setup(&b, size, false);
    disk_fill(b.src, size);
    copy_add(b.c, 0, size);
    arm(&b);
    trap_of(b.src)->read_error = -EIO;
    ck_assert_int_eq(copy_run(b.c, &side), -EIO);
    ck_assert_int_eq(side, COPY_READ);
    trap_of(b.src)->read_error = 0;
    trap_of(b.dst)->write_error = -ENOSPC;
    ck_assert_int_eq(copy_run(b.c, &side), -ENOSPC);
    ck_assert_int_eq(side, COPY_WRITE);
    ck_progress(&b, 0, size);
    trap_of(b.dst)->write_error = 0;
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    char *expected = disk_read(b.src);
    ck_disk_is(b.dst, expected);
    free(expected);
    teardown(&b);
}
END_TEST

START_TEST(a_guest_is_never_failed_but_the_copy_is)
{
    enum copy_side side = COPY_READ;
    struct bench b;
    char byte = 'x';

    setup(&b, 10 * CLUSTER, false);
    disk_fill(b.src, 10 * CLUSTER);
    copy_add(b.c, 0, 10 * CLUSTER);
    arm(&b);
    trap_of(b.dst)->write_error = -ENOSPC;
    ck_assert_int_eq(blk_pwrite(b.guest, &byte, 1, 77, 0), 0);
    trap_of(b.dst)->write_error = 0;
    int writes = trap_of(b.dst)->writes;
    ck_assert_int_eq(blk_pwrite(b.guest, &byte, 1, 5 * CLUSTER, 0), 0);
    ck_assert_int_eq(trap_of(b.dst)->writes, writes);
    ck_assert_int_eq(copy_run(b.c, &side), -ENOSPC);
    ck_assert_int_eq(side, COPY_WRITE);
    ck_assert_int_eq(copy_run(b.c, &side), -ENOSPC);
    char *now = disk_read(b.src);
    ck_assert_int_eq(now[77], 'x');
    ck_assert_int_eq(now[5 * CLUSTER], 'x');
    free(now);
    teardown(&b);
}
END_TEST

START_TEST(nowait_is_refused_where_it_would_copy)
{
    struct bench b;
    char byte = 'x';

    setup(&b, 10 * CLUSTER, false);
    disk_fill(b.src, 10 * CLUSTER);
    copy_add(b.c, 0, CLUSTER);
    arm(&b);
    ck_assert_int_eq(blk_pwrite(b.guest, &byte, 1, CLUSTER - 1, REQ_NOWAIT),
                     -EAGAIN);
    ck_assert_int_eq(blk_pwrite(b.guest, &byte, 1, CLUSTER, REQ_NOWAIT), 0);
    ck_assert_int_eq(blk_pwrite(b.guest, &byte, 1, CLUSTER - 1, 0), 0);
    ck_assert_int_eq(blk_pwrite(b.guest, &byte, 1, 0, REQ_NOWAIT), 0);
    teardown(&b);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        all_of_an_odd_size_is_copied,
        nothing_is_copied_of_an_empty_disk,
        only_the_set_is_copied_rounded_to_clusters,
        zeroes_are_not_written_to_a_fresh_target,
        zeroes_replace_what_a_used_target_has,
        ends_need_no_filter_and_a_set_can_be_filled_again,
        a_disk_that_has_grown_is_copied_to_its_new_end,
        in_a_drained_section_speed_does_not_count,
        stopping_waits_for_chunks_in_hand_and_it_can_go_on,
        speed_is_limited,
        a_new_speed_wakes_those_that_wait_for_the_old,
        a_worker_that_fails_can_try_again,
        a_guest_is_never_failed_but_the_copy_is,
        nowait_is_refused_where_it_would_copy,
    };
    return run_suite("copy", tests, ARRAY_SIZE(tests));
}
