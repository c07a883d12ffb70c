/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is done ahead of the drained section that changes bitmaps, and behind
 * it. Clusters that a store has reserved go back where nothing is stored in the
 * end, and a flush behind it that fails is tried again by the next one.  Bits
 * that are cleared go from the image behind the section, in which nothing is
 * written. What guests write during a long flush ahead is flushed ahead, too.
 * What the image has then is looked at as kill -9 leaves it.  And what a clean
 * end has to write of a bitmap that was there.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bitmap-util.h"
#include "core/graph.h"
#include "nbdelta/action.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "qcow2/bitmaps.h"

#define DISKS 2

static struct graph *g;
static struct node *disks[DISKS];

/* By disk: flushes that succeed before one fails; negative: all do. */
static _Atomic int left[DISKS] = {-1, -1};
static _Atomic bool only_behind; /* a drained section that writes */
static _Atomic bool failed;
static _Atomic uint64_t written; /* bytes */
static _Atomic unsigned waited;  /* writes and flushes in drained sections */

/* Flushes until one takes long, during which a guest writes; negative: none. */
static _Atomic int until_long = -1;
static _Atomic bool unflushed;       /* what it has written */
static _Atomic bool flushed_drained; /* in a drained section */

static void have_guest_write(const struct node *n)
{
    static const struct timespec long_flush = {0, 60000000};

    flushed_drained |= unflushed && node_is_draining(n);
    unflushed = false;
    if (until_long >= 0 && until_long-- == 0 && !node_is_draining(n)) {
        (void)nanosleep(&long_flush, NULL);
        unflushed = true;
    }
}

static int counted_flush(struct node *n)
{
    int i = n->name[strlen("count")] - '0';

    waited += node_is_draining(n);
    have_guest_write(n);
    bool counts = !only_behind || waited > 0;
    if (counts && left[i] >= 0 && left[i]-- == 0) {
        failed = true;
        return -EIO;
    }
    return node_flush(node_child(n, CHILD_FILE));
}

static int pass_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    return node_preadv(node_child(n, CHILD_FILE), offset, bytes, iov, cnt,
                       flags);
}

static int pass_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    written += bytes;
    waited += node_is_draining(n);
    return node_pwritev(node_child(n, CHILD_FILE), offset, bytes, iov, cnt,
                        flags);
}

static const struct driver counting_driver = {
    .name = "counting",
    .is_filter = true,
    .flags_write = REQ_FUA,
    .preadv = pass_preadv,
    .pwritev = pass_pwritev,
    .flush = counted_flush,
};

static const char *file_of(unsigned i)
{
    static const char *const files[DISKS] = {"d0.qcow2", "d1.qcow2"};
    return files[i];
}

static struct node *open_again(unsigned i)
{
    char name[16];
    struct node *like;
    struct node *n;
    struct node *q;

    (void)snprintf(name, sizeof(name), "count%u", i);
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s}", "driver", "file",
                                       "filename", file_of(i));
    CLEANUP_JSON json_t *qo = json_pack("{s:s, s:s}", "driver", "qcow2", "file",
                                        name);
    ck_assert_int_eq(graph_open(g, o, &like, NULL), 0);
    graph_lock(g);
    ck_assert_int_eq(node_new(g, &counting_driver, name, like, &n, NULL), 0);
    ck_assert_int_eq(node_attach(n, CHILD_FILE, like, "file",
                                 PERM_READ | PERM_WRITE, PERM_ALL, NULL),
                     0);
    node_refresh_limits(n);
    n->monitor_owned = true;
    graph_unlock(g);
    ck_assert_int_eq(graph_open(g, qo, &q, NULL), 0);
    return q;
}

static struct node *open_disk(unsigned i, int64_t size)
{
    CLEANUP_JSON json_t *o = json_pack("{s:I}", "size", size);

    ck_assert_int_eq(image_create(file_of(i), "qcow2", o, NULL), 0);
    /* Room for what bitmaps need, as filters do not grow. */
    ck_assert_int_eq(truncate(file_of(i), 4 << 20), 0);
    return open_again(i);
}

static void write_at(unsigned disk, uint64_t offset)
{
    struct blk *b;

    ck_assert_int_eq(blk_new(g, disks[disk], PERM_READ | PERM_WRITE, PERM_ALL,
                             "test", &b, NULL),
                     0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, offset, 0), 0);
    blk_free(b);
}

/* Disks with a bitmap each, in memory, that has a bit. */
static void begin(void)
{
    g = graph_new();
    for (unsigned i = 0; i < DISKS; i++) {
        disks[i] = open_disk(i, 64 << 20);
        ck_assert_int_eq(bitmap_add(g, disks[i], "b", 0, false, false, NULL),
                         0);
        write_at(i, 8 << 20);
    }
}

static void end(void)
{
    graph_free(g);
    for (unsigned i = 0; i < DISKS; i++) {
        (void)unlink(file_of(i));
    }
}

/* One transaction makes the bitmaps of @count disks persistent. */
static int persist(unsigned count)
{
    struct list list;
    struct action *a;

    list_init(&list);
    for (unsigned i = 0; i < count; i++) {
        struct bitmap_ref ref = {disks[i], "b"};

        ck_assert_int_eq(bitmap_persist_action(ref, &a, NULL), 0);
        list_append(&list, &a->link);
    }
    return actions_run(g, &list, NULL);
}

static const struct qcow2 *state(unsigned i)
{
    return disks[i]->state;
}

static void copy_file(const char *from, const char *to)
{
    int in = open(from, O_RDONLY);
    int out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    char buf[65536];
    ssize_t len;

    ck_assert(in >= 0 && out >= 0);
    while ((len = read(in, buf, sizeof(buf))) > 0) {
        ck_assert_int_eq(write(out, buf, (size_t)len), len);
    }
    (void)close(in);
    (void)close(out);
}

/* Clusters that the image leaks if we are killed now. */
static uint64_t leaks(unsigned i)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:b}", "driver", "file",
                                       "filename", "killed.qcow2", "read-only",
                                       1);
    const struct image_check_options how = {0};
    struct graph *other = graph_new();
    struct image_check c;
    struct node *n;

    copy_file(file_of(i), "killed.qcow2");
    ck_assert_int_eq(graph_open(other, o, &n, NULL), 0);
    ck_assert_int_eq(image_check(other, n, "qcow2", &how, &c, NULL), 0);
    ck_assert_uint_eq(c.corruptions, 0);
    graph_free(other);
    (void)unlink("killed.qcow2");
    return c.leaks;
}

/* Is there a bit for @offset in the image that kill -9 leaves? */
static bool is_dirty_killed(uint64_t offset)
{
    CLEANUP_JSON json_t *o =
        json_pack("{s:s, s:{s:s, s:s}, s:b}", "driver", "qcow2", "file",
                  "driver", "file", "filename", "killed.qcow2", "read-only", 1);
    struct graph *other = graph_new();
    struct node *n;

    copy_file(file_of(0), "killed.qcow2");
    ck_assert_int_eq(graph_open(other, o, &n, NULL), 0);
    struct bitmap *bm = bitmap_find(n, "b");
    ck_assert_ptr_nonnull(bm);
    ck_assert(bitmap_readable(bm));
    bool dirty = hbitmap_get(bm->bits, offset);
    bitmap_unref(bm);
    graph_free(other);
    (void)unlink("killed.qcow2");
    return dirty;
}

/* The second disk's flush ahead fails, when the first one has its reserve. */
START_TEST(a_reserve_that_is_not_used_goes_back)
{
    begin();
    left[1] = 0;
    ck_assert_int_eq(persist(2), -EIO);
    left[1] = -1;
    for (unsigned i = 0; i < DISKS; i++) {
        ck_assert_uint_eq(state(i)->bitmaps.reserve.bytes, 0);
    }
    ck_assert_uint_eq(leaks(0), 0);
    ck_assert_int_eq(persist(2), 0);
    ck_assert_uint_eq(leaks(0), 0);
    ck_assert_uint_eq(leaks(1), 0);
    end();
}
END_TEST

/* Make the k-th flush fail of all, or of those that are behind the drained
 * section, until there are no more. */
static void fail_each_flush(bool behind)
{
    for (int k = 0;; k++) {
        begin();
        failed = false;
        waited = 0;
        only_behind = behind;
        left[0] = k;
        int r = persist(1);
        left[0] = -1;
        if (!failed) {
            end();
            ck_assert_int_gt(k, 0);
            break;
        }
        ck_assert(r == 0 || (r == -EIO && !behind));
        ck_assert_uint_eq(state(0)->bitmaps.reserve.bytes, 0);
        if (r < 0) {
            ck_assert_int_eq(persist(1), 0);
        } else {
            ck_assert(state(0)->bitmaps.behind);
            ck_assert_int_eq(bitmap_enable(g, disks[0], "b", true, NULL), 0);
        }
        ck_assert(!state(0)->bitmaps.behind);
        ck_assert_uint_eq(leaks(0), 0);
        end();
    }
    only_behind = false;
}

/* Those ahead fail the transaction; how many there are depends on how long they
 * take.  Nothing is flushed while guests wait. */
START_TEST(a_flush_behind_that_fails_is_tried_again)
{
    fail_each_flush(false);
    fail_each_flush(true);
}
END_TEST

/* --- Clearing --- */

/* 16 slices of 256 MiB; bits in three of them. */
static const uint64_t written_to[] = {0, GiB / 4 + MiB, 5 * GiB / 4};

static void begin_slices(void)
{
    g = graph_new();
    disks[0] = open_disk(0, (int64_t)(4 * GiB));
    ck_assert_int_eq(bitmap_add(g, disks[0], "b", 512, true, false, NULL), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(written_to); i++) {
        write_at(0, written_to[i]);
    }
}

static void end_slices(void)
{
    graph_free(g);
    (void)unlink(file_of(0));
}

static unsigned dirty_killed(void)
{
    unsigned count = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(written_to); i++) {
        count += is_dirty_killed(written_to[i]);
    }
    return count;
}

START_TEST(guests_wait_for_no_write_of_a_clear)
{
    begin_slices();
    ck_assert_uint_eq(dirty_killed(), ARRAY_SIZE(written_to));
    waited = 0;
    ck_assert_int_eq(bitmap_clear(g, disks[0], "b", NULL), 0);
    ck_assert_uint_eq(waited, 0);
    ck_assert_uint_eq(dirty_killed(), 0);
    write_at(0, written_to[1]); /* it was armed before */
    ck_assert_uint_eq(dirty_killed(), 1);
    ck_assert(is_dirty_killed(written_to[1]));
    end_slices();
}
END_TEST

/* What was written before is not durable, so the bits stay. */
START_TEST(bits_stay_while_the_flush_behind_a_clear_fails)
{
    begin_slices();
    left[0] = 0;
    ck_assert_int_eq(bitmap_clear(g, disks[0], "b", NULL), 0);
    ck_assert_int_eq(left[0], -1);
    ck_assert_uint_eq(dirty_killed(), ARRAY_SIZE(written_to));
    ck_assert_ptr_nonnull(state(0)->bitmaps.tightener);
    ck_assert_int_eq(qcow2_bitmaps_tighten(disks[0]->state), 0);
    ck_assert_uint_eq(dirty_killed(), 0);
    end_slices();
}
END_TEST

/* A guest writes before the image has followed.  Nothing was armed before. */
START_TEST(what_is_written_after_a_clear_stays)
{
    struct bitmap *bm;

    begin_slices();
    graph_free(g);
    g = graph_new();
    disks[0] = open_again(0);
    graph_lock(g);
    graph_drain(g, disks[0]);
    ck_assert_int_eq(bitmap_lookup(disks[0], "b", BITMAP_USE_CHANGE, &bm, NULL),
                     0);
    hbitmap_free(bitmap_swap_bits(bm, hbitmap_new(4 * GiB, 512)));
    graph_unlock(g);
    write_at(0, GiB / 8);
    bitmap_store_behind(disks[0]);
    ck_assert(is_dirty_killed(GiB / 8));
    ck_assert_uint_eq(dirty_killed(), 0);
    end_slices();
}
END_TEST

/* --- Long flushes --- */

static int resize(uint64_t size)
{
    struct blk *b;

    ck_assert_int_eq(
        blk_new(g, disks[0], PERM_RESIZE, PERM_ALL, "test", &b, NULL), 0);
    int r = blk_resize(b, size, NULL);
    blk_free(b);
    return r;
}

/* Each of the flushes ahead takes long. */
START_TEST(what_is_written_during_a_long_flush_is_flushed_ahead)
{
    g = graph_new();
    disks[0] = open_disk(0, 64 << 20);
    ck_assert_int_eq(bitmap_add(g, disks[0], "b", 0, true, false, NULL), 0);
    for (int k = 0; k < 2; k++) {
        until_long = k;
        ck_assert_int_eq(resize((uint64_t)(65 + k) << 20), 0);
        ck_assert_int_eq(until_long, -1);
        ck_assert(!flushed_drained);
    }
    until_long = 0;
    ck_assert_int_eq(bitmap_enable(g, disks[0], "b", false, NULL), 0);
    ck_assert_int_eq(until_long, -1);
    ck_assert(!flushed_drained);
    end_slices();
}
END_TEST

/* --- A clean end --- */

static bool is_dirty(uint64_t offset)
{
    struct bitmap *bm = bitmap_find(disks[0], "b");

    ck_assert_ptr_nonnull(bm);
    bool dirty = hbitmap_get(bm->bits, offset);
    bitmap_unref(bm);
    return dirty;
}

/* Bits of 4 GiB, in one cluster that is there: two places of it are armed, and
 * one more that is tightened before the end. */
START_TEST(a_clean_end_writes_what_was_armed)
{
    const uint64_t gib = UINT64_C(1) << 30;

    g = graph_new();
    disks[0] = open_disk(0, (int64_t)(4 * gib));
    ck_assert_int_eq(bitmap_add(g, disks[0], "b", 65536, true, false, NULL), 0);
    write_at(0, 2 * gib);
    graph_free(g);
    g = graph_new();
    disks[0] = open_again(0);
    write_at(0, gib);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(qcow2_bitmaps_tighten(disks[0]->state), 0);
    }
    write_at(0, 0);
    write_at(0, 3 * gib);
    struct blk *b;
    ck_assert_int_eq(blk_new(g, disks[0], PERM_READ | PERM_WRITE, PERM_ALL,
                             "test", &b, NULL),
                     0);
    ck_assert_int_eq(blk_flush(b), 0);
    blk_free(b);
    written = 0;
    graph_free(g);
    ck_assert_uint_gt(written, 0);
    ck_assert_uint_le(written, 4096);
    g = graph_new();
    disks[0] = open_again(0);
    for (unsigned i = 0; i < 4; i++) {
        ck_assert(is_dirty(i * gib));
        ck_assert(!is_dirty(i * gib + 65536));
    }
    graph_free(g);
    (void)unlink(file_of(0));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bitmap-ahead");
    TCase *tc = tcase_create("ahead");

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_reserve_that_is_not_used_goes_back);
    tcase_add_test(tc, a_flush_behind_that_fails_is_tried_again);
    tcase_add_test(tc, guests_wait_for_no_write_of_a_clear);
    tcase_add_test(tc, bits_stay_while_the_flush_behind_a_clear_fails);
    tcase_add_test(tc, what_is_written_after_a_clear_stays);
    tcase_add_test(tc, what_is_written_during_a_long_flush_is_flushed_ahead);
    tcase_add_test(tc, a_clean_end_writes_what_was_armed);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int bad = srunner_ntests_failed(sr);
    srunner_free(sr);
    return bad ? EXIT_FAILURE : EXIT_SUCCESS;
}
