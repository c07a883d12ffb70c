/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 where room ends, at each block that it can end at: what was
 * acknowledged can be flushed and is there when the image is opened again, the
 * image is sound, and ENOSPC is said only when nothing is left to be used.
 */
#include <check.h>
#include <inttypes.h>
#include <stdio.h>

#include "nbdelta/action.h"
#include "nbdelta/internal-snapshot.h"
#include "qcow2-check.h"
#include "qcow2/qcow2.h"
#include "small-disk.h"

#define DISK (2 * MiB)
#define UNIT 512

static unsigned char model[DISK];
static uint64_t file_size;

static uint64_t seed;
static uint64_t rnd(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % below;
}

struct session {
    struct graph *g;
    struct blk *b;
};

static struct session start(void)
{
    struct session x = {.g = graph_new()};
    struct node *n = small_open(x.g, file_size);

    ck_assert_int_eq(blk_new(x.g, n, PERM_READ | PERM_WRITE | PERM_RESIZE,
                             PERM_ALL, "test", &x.b, NULL),
                     0);
    return x;
}

static void stop(struct session *x)
{
    blk_free(x->b);
    graph_free(x->g);
}

static void load(const char *options, bool device)
{
    uint64_t blocks = small_load(options, device);

    memset(model, 0, sizeof(model));
    file_size = blocks * SMALL_BLOCK;
}

/* Acknowledged, or without room.  What failed may have been done in part. */
static bool one_request(struct blk *b, unsigned stamp)
{
    static unsigned char buf[DISK];
    uint64_t from = rnd(DISK / UNIT) * UNIT;
    uint64_t len = min_u64((1 + rnd(rnd(4) ? 16 : 300)) * UNIT, DISK - from);
    unsigned kind = (unsigned)rnd(10);
    int r;

    if (kind == 9) {
        r = blk_flush(b);
        ck_assert_int_eq(r, 0);
        return true;
    }
    memset(buf, kind < 7 ? (int)(1 + stamp % 255) : 0, len);
    r = kind < 7 ? blk_pwrite(b, buf, len, from, 0)
                 : blk_zero(b, from, len, kind == 7 ? REQ_MAY_UNMAP : 0);
    if (r < 0) {
        ck_assert_int_eq(r, -ENOSPC);
        ck_assert_int_eq(blk_pread(b, model + from, len, from, 0), 0);
        return false;
    }
    memcpy(model + from, buf, len);
    return true;
}

static void expect_model(struct blk *b, uint64_t room)
{
    static unsigned char got[DISK];

    ck_assert_int_eq(blk_pread(b, got, DISK, 0, 0), 0);
    for (uint64_t at = 0; at < DISK; at += UNIT) {
        ck_assert_msg(memcmp(got + at, model + at, UNIT) == 0,
                      "with room for %" PRIu64 " blocks, what is at %" PRIu64
                      " is not what was acknowledged",
                      room, at);
    }
}

static struct verdict expect_uncorrupted(uint64_t room)
{
    struct image image = {small.bytes, SMALL_MAX};
    struct verdict v = check_image(&image);

    ck_assert_msg(v.corruptions == 0, "corrupt with room for %" PRIu64, room);
    return v;
}

static void expect_sound(uint64_t room)
{
    struct verdict v = expect_uncorrupted(room);

    ck_assert_msg(v.leaks == 0, "leaks with room for %" PRIu64, room);
}

static void fill_up(const char *options, bool device, uint64_t room)
{
    load(options, device);
    if (device) {
        small.capacity = small.used + room;
        file_size = small.capacity * SMALL_BLOCK;
    } else {
        small.capacity += room;
    }
    seed = 4711;
    struct session x = start();
    unsigned failed = 0;
    for (unsigned i = 0; i < 150 && failed < 5; i++) {
        failed += !one_request(x.b, i);
    }
    ck_assert_msg(blk_flush(x.b) == 0,
                  "with room for %" PRIu64 " blocks, what was acknowledged "
                  "cannot be flushed",
                  room);
    expect_model(x.b, room);
    stop(&x);
    expect_sound(room);
    x = start();
    expect_model(x.b, room);
    stop(&x);
}

static const char *const shapes[] = {
    "{\"size\": 2097152, \"cluster_size\": 512}",
    "{\"size\": 2097152, \"cluster_size\": 4096}",
    "{\"size\": 2097152, \"cluster_size\": 512, \"refcount_bits\": 64}",
    "{\"size\": 2097152, \"cluster_size\": 65536}",
};

START_TEST(a_full_file_system_keeps_what_it_took)
{
    uint64_t step = _i == 3 ? 61 : 7;

    for (uint64_t room = 0; room < 2500; room += step + room / 20) {
        fill_up(shapes[_i], false, room);
    }
}
END_TEST

START_TEST(a_full_device_keeps_what_it_took)
{
    uint64_t step = _i == 3 ? 61 : 7;

    for (uint64_t room = 0; room < 2500; room += step + room / 20) {
        fill_up(shapes[_i], true, room);
    }
}
END_TEST

/* A device that the disk fits on exactly, with all its tables. */
static void fit(const char *options)
{
    static unsigned char buf[DISK];

    load(options, true);
    struct session x = start();
    memset(buf, 1, sizeof(buf));
    ck_assert_int_eq(blk_pwrite(x.b, buf, DISK, 0, 0), 0);
    ck_assert_int_eq(blk_flush(x.b), 0);
    struct qcow2 *s = blk_node(x.b)->state;
    uint64_t end = s->virgin;
    stop(&x);
    load(options, true);
    small.capacity = end / SMALL_BLOCK;
    file_size = end;
}

START_TEST(a_device_of_the_needed_size_takes_writes_after_trims_in_any_order)
{
    static unsigned char buf[DISK];

    fit(shapes[_i]);
    seed = 99;
    struct session x = start();
    for (unsigned i = 0; i < 200; i++) {
        uint64_t from = rnd(DISK / UNIT) * UNIT;
        uint64_t len = min_u64((1 + rnd(DISK / UNIT / 2)) * UNIT, DISK - from);
        int r;

        switch (rnd(5)) {
        case 0:
            r = blk_discard(x.b, from, len);
            ck_assert_int_eq(blk_pread(x.b, model + from, len, from, 0), 0);
            break;
        case 1:
            r = blk_zero(x.b, from, len, REQ_MAY_UNMAP);
            memset(model + from, 0, len);
            break;
        case 2:
            r = rnd(8) ? 0 : blk_flush(x.b);
            break;
        default:
            memset(buf, (int)(1 + i % 255), len);
            r = blk_pwrite(x.b, buf, len, from, 0);
            memcpy(model + from, buf, len);
        }
        ck_assert_msg(r == 0, "request %u: %s", i, strerror(-r));
    }
    expect_model(x.b, small.capacity);
    stop(&x);
    expect_sound(small.capacity);
}
END_TEST

/* Requests that hold clusters in limbo are waited for. */
START_TEST(a_reader_in_the_way_is_waited_for)
{
    static unsigned char buf[DISK];

    fit(shapes[1]);
    struct session x = start();
    struct qcow2 *s = blk_node(x.b)->state;
    memset(buf, 1, sizeof(buf));
    ck_assert_int_eq(blk_pwrite(x.b, buf, DISK, 0, 0), 0);
    ck_assert_int_eq(blk_flush(x.b), 0);
    unsigned ticket = qcow2_ticket_take(s);
    ck_assert_int_eq(blk_discard(x.b, 0, DISK), 0);
    /* Not for ever: he does not go. */
    ck_assert_int_eq(blk_pwrite(x.b, buf, UNIT, 0, 0), -ENOSPC);
    qcow2_ticket_drop(s, ticket);
    ck_assert_int_eq(blk_pwrite(x.b, buf, DISK, 0, 0), 0);
    stop(&x);
    expect_sound(small.capacity);
}
END_TEST

/* Tables that lie in holes (a sparse copy of the image) get their blocks when
 * they are changed, before anything is acknowledged.  What is freed leaks, if
 * it leaves no room to say so. */
START_TEST(tables_in_holes_get_blocks_before_they_are_changed)
{
    for (uint64_t room = 0; room < 400; room += 3) {
        load(shapes[1], false);
        small.capacity = SMALL_COUNT;
        struct session x = start();
        for (uint64_t at = 0; at < DISK; at += 64 * KiB) {
            model[at] = 9;
            ck_assert_int_eq(blk_pwrite(x.b, model + at, UNIT, at, 0), 0);
        }
        stop(&x);
        for (uint64_t i = 0; i < SMALL_COUNT; i++) {
            if (small.there[i] &&
                bytes_are_zero(small.bytes + i * SMALL_BLOCK, SMALL_BLOCK)) {
                small.there[i] = false;
                small.used--;
            }
        }
        small.capacity = small.used + room;
        seed = 5 + room;
        x = start();
        for (unsigned i = 0; i < 60; i++) {
            (void)one_request(x.b, i);
        }
        ck_assert_int_eq(blk_flush(x.b), 0);
        stop(&x);
        (void)expect_uncorrupted(room);
        x = start();
        expect_model(x.b, room);
        stop(&x);
    }
}
END_TEST

/* An L1 table of several pages, all holes: entries at its two ends are written
 * back without blocks for what is between. */
START_TEST(a_long_table_in_holes_needs_room_for_its_entries_only)
{
    const char *options = "{\"size\": 67108864, \"cluster_size\": 512}";
    static unsigned char buf[UNIT];

    memset(buf, 1, sizeof(buf));
    for (uint64_t room = 0; room < 60; room++) {
        load(options, false);
        struct session x = start();
        struct qcow2 *s = blk_node(x.b)->state;
        ck_assert_uint_eq(s->l1_size, 2048);
        for (uint64_t i = 0; i < 2048 * 8 / SMALL_BLOCK; i++) {
            small.there[s->l1_offset / SMALL_BLOCK + i] = false;
            small.used--;
        }
        small.capacity = small.used + room;
        int r = blk_pwrite(x.b, buf, UNIT, 0, 0);
        r = r < 0 ? r : blk_pwrite(x.b, buf, UNIT, 64 * MiB - UNIT, 0);
        ck_assert(r == 0 || (r == -ENOSPC && room < 24));
        ck_assert_msg(blk_flush(x.b) == 0, "no flush with room for %" PRIu64,
                      room);
        stop(&x);
        (void)expect_uncorrupted(room);
    }
}
END_TEST

static int write_compressed(struct blk *b, const void *buf, uint64_t bytes,
                            uint64_t offset)
{
    struct node *n = blk_node(b);
    struct tree *t = node_enter(n, false);
    int r = node_write_compressed(n, buf, bytes, offset);

    node_leave(t);
    return r;
}

/* What it has taken itself, and gives up, is no room that others have freed:
 * it does not go on for ever. */
START_TEST(a_compressed_write_without_room_ends)
{
    static unsigned char buf[64 * KiB];

    for (uint64_t room = 0; room < 150; room += 1 + room / 10) {
        load(shapes[_i], false);
        small.capacity += room;
        seed = 17 + room;
        struct session x = start();
        int r = 0;
        for (uint64_t at = 0; at < DISK && r == 0; at += sizeof(buf)) {
            for (uint64_t i = 0; i < sizeof(buf); i++) {
                buf[i] = i % 4 ? 'x' : (unsigned char)rnd(256);
            }
            r = write_compressed(x.b, buf, sizeof(buf), at);
            ck_assert(r == 0 || r == -ENOSPC);
            ck_assert_int_eq(blk_pread(x.b, model + at, sizeof(buf), at, 0), 0);
            ck_assert(r < 0 || memcmp(model + at, buf, sizeof(buf)) == 0);
        }
        ck_assert_int_eq(r, -ENOSPC);
        ck_assert_int_eq(blk_flush(x.b), 0);
        stop(&x);
        expect_sound(room);
        x = start();
        expect_model(x.b, room);
        stop(&x);
    }
}
END_TEST

/* Either it grows, or all is as it was. */
START_TEST(a_resize_without_room_changes_nothing)
{
    for (uint64_t room = 0; room < 300; room += 2) {
        CLEANUP_ERROR struct error *err = NULL;
        load(shapes[0], false);
        small.capacity += room;
        struct session x = start();
        int r = blk_resize(x.b, 64 * MiB, &err);
        ck_assert(r == 0 || r == -ENOSPC);
        ck_assert_uint_eq(blk_size(x.b), r == 0 ? 64 * MiB : DISK);
        ck_assert_int_eq(blk_flush(x.b), 0);
        stop(&x);
        expect_sound(room);
    }
}
END_TEST

static int change(struct session *x, enum internal_verb verb)
{
    const struct internal_options o = {
        .node = blk_node(x->b), .verb = verb, .name = "s"};
    struct action *a;
    int r = snapshot_internal_action(&o, &a, NULL);

    return r < 0 ? r : action_run(x->g, a, NULL);
}

/* The file has grown. */
static void find_end(void)
{
    uint64_t end = SMALL_COUNT;

    while (end > 0 && !small.there[end - 1]) {
        end--;
    }
    file_size = max_u64(file_size, end * SMALL_BLOCK);
}

static uint32_t snapshot_count(void)
{
    return load_be32(small.bytes + 60);
}

/* A snapshot is made, gone back to and removed, where room ends anywhere: each
 * step is done, or has changed nothing.  Between them the guest writes. */
static void live_with_snapshot(const char *options, uint64_t room,
                               unsigned *refused)
{
    static unsigned char then[DISK];

    load(options, false);
    small.capacity += room;
    seed = 815;
    struct session x = start();
    for (unsigned i = 0; i < 12; i++) {
        (void)one_request(x.b, i);
    }
    memcpy(then, model, DISK);
    int r = change(&x, INTERNAL_MAKE);
    ck_assert(r == 0 || r == -ENOSPC);
    ck_assert_uint_eq(snapshot_count(), r == 0);
    refused[INTERNAL_MAKE] += r < 0;
    for (unsigned i = 0; i < 12; i++) {
        (void)one_request(x.b, 100 + i);
    }
    if (r == 0 && room % 2) {
        r = change(&x, INTERNAL_APPLY);
        ck_assert(r == 0 || r == -ENOSPC);
        refused[INTERNAL_APPLY] += r < 0;
        if (r == 0) {
            memcpy(model, then, DISK);
        }
        (void)one_request(x.b, 200);
    }
    expect_model(x.b, room);
    if (snapshot_count() > 0 && room % 3) {
        r = change(&x, INTERNAL_REMOVE);
        ck_assert(r == 0 || r == -ENOSPC);
        ck_assert_uint_eq(snapshot_count(), r < 0);
    }
    ck_assert_int_eq(blk_flush(x.b), 0);
    stop(&x);
    expect_sound(room);
    find_end();
    x = start();
    expect_model(x.b, room);
    stop(&x);
}

START_TEST(a_snapshot_without_room_changes_nothing)
{
    static const char *const options[] = {
        "{\"size\": 2097152, \"cluster_size\": 512}",
        "{\"size\": 2097152, \"cluster_size\": 4096}",
        "{\"size\": 2097152, \"cluster_size\": 16384, \"extended_l2\": true}",
    };

    unsigned refused[INTERNAL_APPLY + 1] = {0};

    for (uint64_t room = 0; room < 2000; room += 5 + room / 15) {
        live_with_snapshot(options[_i], room, refused);
    }
    ck_assert_uint_gt(refused[INTERNAL_MAKE], 0);
    ck_assert_uint_gt(refused[INTERNAL_APPLY], 0);
}
END_TEST

/* A shrink whose k-th write or flush fails, then the guest writes on, and the
 * process is killed: nothing that is on disk leads to what was used anew. */
START_TEST(a_shrink_that_fails_leaves_a_sound_image)
{
    static unsigned char buf[DISK];
    bool failed = true;

    for (unsigned k = 1; failed; k++) {
        load(shapes[0], false);
        small.capacity = SMALL_COUNT;
        struct session x = start();
        memset(buf, 3, sizeof(buf));
        ck_assert_int_eq(blk_pwrite(x.b, buf, DISK / 2, DISK / 2, 0), 0);
        ck_assert_int_eq(blk_flush(x.b), 0);
        small.fail_at = k;
        (void)blk_resize(x.b, DISK / 2, NULL);
        failed = small.fail_at == 0;
        small.fail_at = 0;
        memset(buf, 4, sizeof(buf));
        ck_assert_int_eq(blk_pwrite(x.b, buf, DISK / 2, 0, 0), 0);
        (void)expect_uncorrupted(k);
        int r = blk_flush(x.b); /* it may have been a flush */
        ck_assert(r == 0 || (failed && r == -EIO));
        ck_assert_int_eq(blk_flush(x.b), 0);
        stop(&x);
        (void)expect_uncorrupted(k);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qcow2-room");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, a_full_file_system_keeps_what_it_took, 0, 4);
    tcase_add_loop_test(tc, a_full_device_keeps_what_it_took, 0, 4);
    tcase_add_loop_test(
        tc, a_device_of_the_needed_size_takes_writes_after_trims_in_any_order,
        0, 4);
    tcase_add_test(tc, a_reader_in_the_way_is_waited_for);
    tcase_add_test(tc, tables_in_holes_get_blocks_before_they_are_changed);
    tcase_add_test(tc, a_long_table_in_holes_needs_room_for_its_entries_only);
    tcase_add_loop_test(tc, a_compressed_write_without_room_ends, 0, 4);
    tcase_add_test(tc, a_resize_without_room_changes_nothing);
    tcase_add_test(tc, a_shrink_that_fails_leaves_a_sound_image);
    tcase_add_loop_test(tc, a_snapshot_without_room_changes_nothing, 0, 3);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
