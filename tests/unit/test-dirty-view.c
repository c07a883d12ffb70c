/* SPDX-License-Identifier: BSD-3-Clause */
/* The dirty view of a disk: bits of when it was opened, bytes of now. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap-util.h"
#include "core/graph-priv.h"
#include "core/throttle-group.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define SIZE (16 * MiB)
#define G    (64 * KiB)

static uint64_t stopped(void)
{
    return 1;
}

static struct graph *g;
static struct node *n;
static struct blk *b;
static char buf[SIZE + 4 * MiB];

static void setup(void)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:I}", "driver", "mem",
                                       "node-name", "disk", "size",
                                       (json_int_t)SIZE);

    g = graph_new();
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(bitmap_add(g, n, "b", G, false, false, NULL), 0);
}

static void teardown(void)
{
    blk_free(b);
    graph_free(g);
}

static int try_view(const char *name, struct blk **viewp, struct error **errp)
{
    struct bitmap *bm = bitmap_find(n, name);

    ck_assert_ptr_nonnull(bm);
    int r = blk_dirty_view(g, b, bm, false, "client", viewp, errp);
    bitmap_unref(bm);
    return r;
}

static struct blk *view(void)
{
    struct blk *v;

    ck_assert_int_eq(try_view("b", &v, NULL), 0);
    return v;
}

static void put(char byte, uint64_t offset, uint64_t bytes)
{
    memset(buf, byte, bytes);
    ck_assert_int_eq(blk_pwrite(b, buf, bytes, offset, 0), 0);
}

/* All of the range reads as @byte. */
static void reads(struct blk *v, char byte, uint64_t offset, uint64_t bytes)
{
    memset(buf, byte ^ 1, bytes);
    ck_assert_int_eq(blk_pread(v, buf, bytes, offset, 0), 0);
    ck_assert_int_eq(buf[0], byte);
    ck_assert_int_eq(memcmp(buf, buf + 1, bytes - 1), 0);
}

struct status {
    unsigned flags;
    uint64_t end;
};

static int same_flags(const struct extent *e, void *opaque)
{
    struct status *s = opaque;

    s->end = e->offset + e->length;
    return (e->flags & (EXTENT_DATA | EXTENT_ZERO)) != s->flags;
}

/* All of the range is data, or a hole that reads as zeroes. */
static void is(struct blk *v, bool data, uint64_t offset, uint64_t bytes)
{
    struct status s = {data ? EXTENT_DATA : EXTENT_ZERO, 0};

    ck_assert_int_eq(blk_extents(v, offset, bytes, 0, same_flags, &s), 0);
    ck_assert_uint_eq(s.end, offset + bytes);
}

START_TEST(dirty_is_data_and_all_else_a_hole)
{
    put(7, 0, SIZE);
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    put(8, 3 * G + 5, 10);
    struct blk *v = view();

    ck_assert_uint_eq(blk_size(v), SIZE);
    is(v, false, 0, 3 * G);
    is(v, true, 3 * G, G);
    is(v, false, 4 * G, SIZE - 4 * G);
    blk_free(v);
}
END_TEST

/* A client that reads more than what is dirty gets the right bytes. */
START_TEST(all_bytes_are_those_of_the_disk)
{
    put(7, 0, SIZE);
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    put(8, 3 * G + 5, 10);
    struct blk *v = view();

    reads(v, 7, 0, 3 * G + 5);
    reads(v, 8, 3 * G + 5, 10);
    reads(v, 7, 3 * G + 15, SIZE - 3 * G - 15);
    blk_free(v);
}
END_TEST

/* A client that skips zeroes would leave what was there before. */
START_TEST(zeroes_that_are_dirty_are_data)
{
    put(7, 0, SIZE);
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    ck_assert_int_eq(blk_zero(b, G, G, REQ_MAY_UNMAP), 0);
    ck_assert_int_eq(blk_discard(b, 4 * G, G), 0);
    struct blk *v = view();

    is(v, false, 0, G);
    is(v, true, G, G);
    is(v, true, 4 * G, G);
    reads(v, 0, G, G);
    blk_free(v);
}
END_TEST

START_TEST(bits_are_frozen_and_data_are_not)
{
    put(1, 0, G);
    struct blk *v = view();

    put(2, 0, 2 * G);
    reads(v, 2, 0, 2 * G);
    is(v, false, G, G);
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    is(v, true, 0, G);
    ck_assert_int_eq(bitmap_remove(g, n, "b", NULL), 0);
    is(v, true, 0, G);
    reads(v, 2, 0, G);
    blk_free(v);
}
END_TEST

START_TEST(it_cannot_be_written)
{
    put(1, 0, G);
    struct blk *v = view();

    ck_assert_int_eq(blk_pwrite(v, buf, 512, 0, 0), -EPERM);
    ck_assert_int_eq(blk_zero(v, 0, 512, 0), -EPERM);
    ck_assert_int_eq(blk_discard(v, 0, 512), -EPERM);
    ck_assert_int_eq(blk_flush(v), 0);
    blk_free(v);
}
END_TEST

static struct bitmap *freeze(void)
{
    struct bitmap *bm = bitmap_find(n, "b");

    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(bitmap_freeze(bm, NULL), 0);
    graph_unlock(g);
    return bm;
}

START_TEST(of_a_frozen_bitmap_it_has_what_was_written_since_too)
{
    put(1, 0, G);
    struct bitmap *bm = freeze();
    put(2, 5 * G, G);
    struct blk *v = view();

    is(v, true, 0, G);
    is(v, false, G, 4 * G);
    is(v, true, 5 * G, G);
    blk_free(v);
    graph_lock(g);
    graph_drain(g, n);
    bitmap_reclaim(bm);
    graph_unlock(g);
    bitmap_unref(bm);
}
END_TEST

START_TEST(what_cannot_be_trusted_has_none)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct bitmap *bm = bitmap_find(n, "b");
    struct blk *v;

    atomic_store(&bm->inconsistent, true);
    ck_assert_int_eq(try_view("b", &v, &err), -EINVAL);
    ck_assert_str_eq(error_message(err),
                     "Bitmap 'b' is inconsistent and cannot be used");
    ck_assert_int_eq(bitmap_remove(g, n, "b", NULL), 0);
    ck_assert_int_eq(blk_dirty_view(g, b, bm, false, "client", &v, NULL),
                     -ENOENT);
    bitmap_unref(bm);
}
END_TEST

static unsigned copies(void)
{
    unsigned count = 0;

    graph_lock(g);
    list_for_each (at, &g->view_bits) {
        count++;
    }
    graph_unlock(g);
    return count;
}

/* One copy is for all views while the bits are the same. */
START_TEST(views_share_bits_that_have_not_changed)
{
    put(1, 0, G);
    struct blk *v[5] = {view(), view()};

    put(2, 0, G / 2);
    v[2] = view();
    ck_assert_uint_eq(copies(), 1);
    put(2, 3 * G, 1);
    v[3] = view();
    ck_assert_uint_eq(copies(), 2);
    is(v[1], false, G, SIZE - G);
    is(v[3], true, 3 * G, G);
    /* As many bits, and other ones. */
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    put(3, 5 * G, 2 * G);
    v[4] = view();
    ck_assert_uint_eq(copies(), 3);
    is(v[4], false, 0, 5 * G);
    is(v[4], true, 5 * G, 2 * G);
    is(v[3], true, 3 * G, G);
    for (int i = 0; i < 5; i++) {
        blk_free(v[i]);
    }
    ck_assert_uint_eq(copies(), 0);
    /* What a job collects beside is not in the stamp of the bits. */
    struct bitmap *bm = freeze();
    v[0] = view();
    put(4, 9 * G, G);
    v[1] = view();
    is(v[0], false, 9 * G, G);
    is(v[1], true, 9 * G, G);
    blk_free(v[0]);
    blk_free(v[1]);
    graph_lock(g);
    graph_drain(g, n);
    bitmap_reclaim(bm);
    graph_unlock(g);
    bitmap_unref(bm);
}
END_TEST

START_TEST(copies_have_a_limit)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:I}", "driver", "null-co",
                                       "node-name", "vast", "size",
                                       (json_int_t)(4 * 1024 * GiB));
    struct node *vast;
    struct blk *all = b;
    struct blk *v[3];

    ck_assert_int_eq(graph_open(g, o, &vast, NULL), 0);
    ck_assert_int_eq(blk_new(g, vast, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(bitmap_add(g, vast, "b", 1 * KiB, false, false, NULL), 0);
    n = vast;
    v[0] = view(); /* half a GiB, if it were touched */
    ck_assert_int_eq(blk_discard(b, 0, 1), 0);
    ck_assert_int_eq(try_view("b", &v[1], &err), -EDQUOT);
    ck_assert_ptr_nonnull(strstr(error_message(err), "no room"));
    blk_free(v[0]);
    v[1] = view();
    v[2] = view();
    blk_free(v[1]);
    blk_free(v[2]);
    blk_free(b);
    b = all;
}
END_TEST

START_TEST(a_disk_that_shrinks_has_nothing_there)
{
    put(1, 0, SIZE);
    struct blk *v = view();

    ck_assert_int_eq(blk_resize(b, SIZE / 2, NULL), 0);
    ck_assert_uint_eq(blk_size(v), SIZE);
    is(v, true, 0, SIZE / 2);
    is(v, false, SIZE / 2, SIZE / 2);
    reads(v, 1, 0, SIZE / 2);
    reads(v, 0, SIZE / 2, SIZE / 2);
    reads(v, 0, SIZE - 1, 1);
    blk_free(v);
}
END_TEST

START_TEST(a_disk_in_use_is_not_closed_under_it)
{
    struct blk *v = view();

    blk_free(b);
    b = NULL;
    ck_assert_int_eq(graph_close(g, n, NULL), -EBUSY);
    is(v, false, 0, SIZE);
    blk_free(v);
    ck_assert_int_eq(graph_close(g, n, NULL), 0);
}
END_TEST

static _Atomic bool over;

static void *write_on(void *opaque)
{
    static const char data[512] = {3};

    for (uint64_t at = 0; !atomic_load(&over); at = (at + 5 * G) % SIZE) {
        ck_assert_int_eq(blk_pwrite(opaque, data, sizeof(data), at, 0), 0);
    }
    return NULL;
}

static int count_data(const struct extent *e, void *opaque)
{
    *(uint64_t *)opaque += e->flags & EXTENT_DATA ? e->length : 0;
    return 0;
}

static uint64_t data_of(struct blk *v)
{
    uint64_t bytes = 0;

    ck_assert_int_eq(blk_extents(v, 0, SIZE, 0, count_data, &bytes), 0);
    return bytes;
}

START_TEST(views_come_and_go_under_writes)
{
    pthread_t writer;

    ck_assert_int_eq(thread_start(&writer, "write", write_on, b), 0);
    for (unsigned i = 0; i < 30; i++) {
        struct blk *v = view();
        uint64_t before = data_of(v);

        ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
        ck_assert_int_eq(blk_pread(v, buf, SIZE, 0, 0), 0);
        ck_assert_uint_eq(data_of(v), before);
        blk_free(v);
    }
    atomic_store(&over, true);
    thread_join(writer);
}
END_TEST

struct waits {
    struct blk *blk;
    _Atomic bool done;
};

static void *write_one(void *opaque)
{
    struct waits *w = opaque;

    ck_assert_int_eq(blk_pwrite(w->blk, buf, 512, 0, 0), 0);
    atomic_store(&w->done, true);
    return NULL;
}

/* Users and views come and go beside a request that a limit holds back: they
 * do not wait for it, and it is let go by nobody but the end. */
START_TEST(it_lets_go_of_nothing_that_waits)
{
    CLEANUP_JSON json_t *group = json_pack("{s:s, s:s, s:{s:i}}", "qom-type",
                                           "throttle-group", "id", "tg",
                                           "limits", "iops-total", 1);
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "driver",
                                       "throttle", "node-name", "slow",
                                       "throttle-group", "tg", "file", "disk");
    struct waits w = {NULL, false};
    pthread_t t;

    ck_assert_int_eq(throttle_group_create(g, group, NULL), 0);
    graph_lock(g);
    struct throttle_group *tg = throttle_group_get(g, "tg");
    throttle_group_set_clock(tg, stopped);
    throttle_group_put(tg);
    graph_unlock(g);
    struct node *slow;
    ck_assert_int_eq(graph_open(g, o, &slow, NULL), 0);
    struct blk *all = b;
    ck_assert_int_eq(blk_new(g, slow, PERM_ALL, PERM_ALL, "t", &b, NULL), 0);
    w.blk = b;
    ck_assert_int_eq(blk_pwrite(b, buf, 512, 0, 0), 0); /* the last for now */
    ck_assert_int_eq(pthread_create(&t, NULL, write_one, &w), 0);
    while (throttle_group_waiting(tg) == 0) {
        ck_assert(!atomic_load(&w.done));
    }
    for (int i = 0; i < 10; i++) {
        struct blk *user;
        struct blk *v = view();

        ck_assert_int_eq(
            blk_new(g, slow, PERM_READ, PERM_ALL, "u", &user, NULL), 0);
        is(v, false, G, G);
        blk_free(user);
        blk_free(v);
        json_decref(bitmap_query(n));
        ck_assert_uint_eq(throttle_group_waiting(tg), 1);
        ck_assert(!atomic_load(&w.done));
    }
    graph_lock(g);
    graph_drain(g, slow);
    graph_unlock(g);
    ck_assert_int_eq(pthread_join(t, NULL), 0);
    blk_free(b);
    b = all;
    ck_assert_int_eq(graph_close(g, slow, NULL), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("dirty-view");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, dirty_is_data_and_all_else_a_hole);
    tcase_add_test(tc, all_bytes_are_those_of_the_disk);
    tcase_add_test(tc, zeroes_that_are_dirty_are_data);
    tcase_add_test(tc, bits_are_frozen_and_data_are_not);
    tcase_add_test(tc, it_cannot_be_written);
    tcase_add_test(tc, of_a_frozen_bitmap_it_has_what_was_written_since_too);
    tcase_add_test(tc, what_cannot_be_trusted_has_none);
    tcase_add_test(tc, views_share_bits_that_have_not_changed);
    tcase_add_test(tc, copies_have_a_limit);
    tcase_add_test(tc, it_lets_go_of_nothing_that_waits);
    tcase_add_test(tc, a_disk_that_shrinks_has_nothing_there);
    tcase_add_test(tc, a_disk_in_use_is_not_closed_under_it);
    tcase_add_test(tc, views_come_and_go_under_writes);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
