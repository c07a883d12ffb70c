/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps of nodes: rules, marking, freezing, readers beside it all. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap-util.h"
#include "core/dirty.h"
#include "core/graph.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define SIZE (16 * MiB)
#define G    (64 * KiB) /* the default granularity */

static struct graph *g;
static struct node *n;
static struct blk *b;

static struct node *open_disk(const char *driver, const char *name,
                              uint64_t size)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:I}", "driver", driver,
                                       "node-name", name, "size",
                                       (json_int_t)size);
    struct node *opened = NULL;

    ck_assert_int_eq(graph_open(g, o, &opened, NULL), 0);
    return opened;
}

static struct blk *attach(struct node *to)
{
    struct blk *user = NULL;
    ck_assert_int_eq(blk_new(g, to, PERM_ALL, PERM_ALL, "test", &user, NULL),
                     0);
    return user;
}

static void setup(void)
{
    g = graph_new();
    n = open_disk("mem", "disk", SIZE);
    b = attach(n);
}

static void teardown(void)
{
    blk_free(b);
    graph_free(g);
}

/* --- Short forms --- */

static void add_to(struct node *to, const char *name, uint64_t granularity)
{
    ck_assert_int_eq(bitmap_add(g, to, name, granularity, false, false, NULL),
                     0);
}

static void add(const char *name, uint64_t granularity)
{
    add_to(n, name, granularity);
}

static void put(uint64_t offset, uint64_t bytes)
{
    static const char data[4 * MiB] = {1};
    ck_assert_uint_le(bytes, sizeof(data));
    ck_assert_int_eq(blk_pwrite(b, data, bytes, offset, 0), 0);
}

static uint64_t count_of(const char *name)
{
    struct bitmap *bm = bitmap_find(n, name);
    ck_assert_ptr_nonnull(bm);
    uint64_t count = bitmap_count(bm);
    bitmap_unref(bm);
    return count;
}

static bool dirty_at(const struct bitmap *bm, uint64_t offset)
{
    bool dirty;
    (void)bitmap_run(bm, offset, offset + 1, &dirty);
    return dirty;
}

/* Do many runs at once say what they say one by one? */
static void same_at_once(const struct bitmap *bm, uint64_t from, uint64_t end,
                         size_t most)
{
    uint64_t lengths[50];
    bool first;
    bool dirty;

    while (from < end) {
        size_t count = bitmap_runs(bm, from, end, true, &first, lengths, most);
        ck_assert_uint_gt(count, 0);
        for (size_t i = 0; i < count; i++, first = !first) {
            ck_assert_uint_eq(lengths[i], bitmap_run(bm, from, end, &dirty));
            ck_assert_int_eq(first, dirty);
            from += lengths[i];
        }
        ck_assert(count == most || from == end);
    }
    ck_assert_uint_eq(from, end);
}

/* Exactly the granules of [@offset, @offset + @bytes) are dirty. */
static void only(const char *name, uint64_t offset, uint64_t bytes)
{
    struct bitmap *bm = bitmap_find(n, name);
    ck_assert_ptr_nonnull(bm);
    uint64_t granularity = bitmap_granularity(bm);
    uint64_t from = align_down(offset, granularity);
    uint64_t to = min_u64(align_up(offset + bytes, granularity), node_size(n));
    bool dirty;

    if (bytes == 0) {
        from = to = 0;
    }
    if (from > 0) {
        ck_assert_uint_eq(bitmap_run(bm, 0, node_size(n), &dirty), from);
        ck_assert(!dirty);
    }
    if (to > from) {
        ck_assert_uint_eq(bitmap_run(bm, from, node_size(n), &dirty),
                          to - from);
        ck_assert(dirty);
    }
    if (to < node_size(n)) {
        ck_assert_uint_eq(bitmap_run(bm, to, node_size(n), &dirty),
                          node_size(n) - to);
        ck_assert(!dirty);
    }
    bitmap_unref(bm);
}

/* Member @i of the query, which must be of @name (NULL: of none). */
static json_t *info(json_t *list, size_t i, const char *name)
{
    json_t *entry = json_array_get(list, i);
    const char *is = json_string_value(json_object_get(entry, "name"));

    ck_assert_ptr_nonnull(entry);
    if (name) {
        ck_assert_pstr_eq(is, name);
    } else {
        ck_assert_ptr_null(is);
    }
    return entry;
}

static void says(json_t *entry, bool recording, bool busy, uint64_t count)
{
    ck_assert_int_eq(json_is_true(json_object_get(entry, "recording")),
                     recording);
    ck_assert_int_eq(json_is_true(json_object_get(entry, "busy")), busy);
    ck_assert(json_is_false(json_object_get(entry, "persistent")));
    ck_assert_int_eq(json_integer_value(json_object_get(entry, "count")),
                     (json_int_t)count);
    ck_assert_ptr_null(json_object_get(entry, "inconsistent"));
}

enum verb { FREEZE, ABDICATE, RECLAIM, SPOIL };

static int control(const char *name, enum verb verb, struct error **errp)
{
    struct bitmap *bm = NULL;

    graph_lock(g);
    graph_drain(g, n);
    int r = bitmap_lookup(n, name,
                          verb == FREEZE ? BITMAP_USE_CHANGE : BITMAP_USE_ANY,
                          &bm, errp);
    if (r == 0 && verb == FREEZE) {
        r = bitmap_freeze(bm, errp);
    } else if (r == 0 && verb == ABDICATE) {
        bitmap_abdicate(bm);
    } else if (r == 0 && verb == RECLAIM) {
        bitmap_reclaim(bm);
    } else if (r == 0) {
        bm->inconsistent = true;
    }
    graph_unlock(g);
    return r;
}

#define refused(call, code, text)                   \
    do {                                            \
        CLEANUP_ERROR struct error *err = NULL;     \
        struct error **errp = &err;                 \
        ck_assert_int_eq(call, -(code));            \
        ck_assert_str_eq(error_message(err), text); \
    } while (0)

/* --- Rules --- */

START_TEST(bad_new_bitmaps_are_refused)
{
    char name[BITMAP_NAME_MAX + 2];
    static const char granularity_text[] =
        "Granularity must be power of 2 and at least 512";

    memset(name, 'x', sizeof(name));
    name[sizeof(name) - 1] = '\0';
    ck_assert_int_eq(bitmap_add(g, n, name, 0, false, false, NULL), -EINVAL);
    name[sizeof(name) - 2] = '\0';
    ck_assert_int_eq(bitmap_add(g, n, name, 0, false, false, NULL), 0);
    refused(bitmap_add(g, n, "", 0, false, false, errp), EINVAL,
            "Bitmap name cannot be empty");
    refused(bitmap_add(g, n, "b", 256, false, false, errp), EINVAL,
            granularity_text);
    refused(bitmap_add(g, n, "b", 64000, false, false, errp), EINVAL,
            granularity_text);
    refused(bitmap_add(g, n, "b", (uint64_t)-65536, false, false, errp), EINVAL,
            granularity_text);
    refused(bitmap_add(g, n, "b", 4 * GiB, false, false, errp), EINVAL,
            "Granularity must be power of 2, at least 512 and at most 2 GiB");
    refused(bitmap_add(g, n, "b", 0, true, false, errp), ENOTSUP,
            "Can't store persistent bitmaps to disk: Operation not supported");
    ck_assert_ptr_null(bitmap_find(n, "b"));
    add("b", 512);
    add("large", 2 * GiB);
    refused(bitmap_add(g, n, "b", 0, false, false, errp), EEXIST,
            "Bitmap already exists: b");
    put(SIZE - 1, 1);
    ck_assert_uint_eq(count_of("b"), 512);
    ck_assert_uint_eq(count_of("large"), 2 * GiB);
}
END_TEST

START_TEST(what_is_not_there_is_not_found)
{
    static const char text[] = "Dirty bitmap 'b' not found";

    add("other", 0);
    ck_assert_ptr_null(bitmap_find(n, "b"));
    bitmap_unref(NULL);
    refused(bitmap_remove(g, n, "b", errp), ENOENT, text);
    refused(bitmap_clear(g, n, "b", errp), ENOENT, text);
    refused(bitmap_enable(g, n, "b", true, errp), ENOENT, text);
    struct bitmap *src = bitmap_find(n, "other");
    refused(bitmap_merge(g, n, "b", src, errp), ENOENT, text);
    bitmap_unref(src);
    refused(control("b", FREEZE, errp), ENOENT, text);
}
END_TEST

START_TEST(a_busy_bitmap_is_left_alone)
{
    static const char text[] =
        "Bitmap 'b' is currently in use by another operation and cannot be "
        "used";

    add("b", 0);
    add("c", 0);
    ck_assert_int_eq(control("b", FREEZE, NULL), 0);
    struct bitmap *bm = bitmap_find(n, "b");
    struct bitmap *c = bitmap_find(n, "c");
    refused(bitmap_remove(g, n, "b", errp), EBUSY, text);
    refused(bitmap_clear(g, n, "b", errp), EBUSY, text);
    refused(bitmap_enable(g, n, "b", false, errp), EBUSY, text);
    refused(bitmap_merge(g, n, "b", c, errp), EBUSY, text);
    refused(bitmap_merge(g, n, "c", bm, errp), EBUSY, text);
    refused(control("b", FREEZE, errp), EBUSY, text);
    refused(bitmap_add(g, n, "b", 0, false, false, errp), EEXIST,
            "Bitmap already exists: b");
    ck_assert_int_eq(control("b", RECLAIM, NULL), 0);
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    /* Operations of another kind. */
    bm->users = 1;
    refused(bitmap_remove(g, n, "b", errp), EBUSY, text);
    refused(control("b", FREEZE, errp), EBUSY, text);
    bm->users = 0;
    bitmap_unref(bm);
    bitmap_unref(c);
    ck_assert_int_eq(bitmap_remove(g, n, "b", NULL), 0);
}
END_TEST

START_TEST(an_inconsistent_bitmap_can_only_be_removed)
{
    static const char text[] = "Bitmap 'b' is inconsistent and cannot be used";

    add("b", 0);
    add("c", 0);
    struct bitmap *bm = bitmap_find(n, "b");
    struct bitmap *c = bitmap_find(n, "c");
    ck_assert(bitmap_readable(bm));
    ck_assert_int_eq(control("b", SPOIL, NULL), 0);
    ck_assert(!bitmap_readable(bm));
    refused(bitmap_clear(g, n, "b", errp), EINVAL, text);
    refused(bitmap_enable(g, n, "b", false, errp), EINVAL, text);
    refused(bitmap_merge(g, n, "b", c, errp), EINVAL, text);
    refused(bitmap_merge(g, n, "c", bm, errp), EINVAL, text);
    refused(control("b", FREEZE, errp), EINVAL, text);
    CLEANUP_JSON json_t *list = bitmap_query(n);
    ck_assert(
        json_is_true(json_object_get(info(list, 1, "b"), "inconsistent")));
    ck_assert_int_eq(bitmap_remove(g, n, "b", NULL), 0);
    bitmap_unref(bm);
    bitmap_unref(c);
}
END_TEST

/* --- Marking --- */

START_TEST(every_kind_of_change_marks_its_granules)
{
    add("b", 0);
    only("b", 0, 0);
    put(3 * G + 5, 1);
    only("b", 3 * G, G);
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    only("b", 0, 0);
    put(2 * G - 1, 2);
    only("b", G, 2 * G);
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    ck_assert_int_eq(blk_zero(b, 5 * G + 10, 3 * G, 0), 0);
    only("b", 5 * G, 4 * G);
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    ck_assert_int_eq(blk_discard(b, 8 * G, G), 0);
    only("b", 8 * G, G);

    /* What changes nothing marks nothing. */
    char buf[100];
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    ck_assert_int_eq(blk_pread(b, buf, sizeof(buf), 0, 0), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    put(0, 0);
    ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), SIZE, 0), -EINVAL);
    only("b", 0, 0);
    ck_assert_uint_eq(count_of("b"), 0);
}
END_TEST

START_TEST(a_disabled_bitmap_collects_nothing)
{
    ck_assert_int_eq(bitmap_add(g, n, "b", 0, false, true, NULL), 0);
    put(0, 1);
    only("b", 0, 0);
    ck_assert_int_eq(bitmap_enable(g, n, "b", true, NULL), 0);
    put(2 * G, 1);
    only("b", 2 * G, G);
    ck_assert_int_eq(bitmap_enable(g, n, "b", false, NULL), 0);
    put(3 * G, 1);
    only("b", 2 * G, G);
    CLEANUP_JSON json_t *list = bitmap_query(n);
    says(info(list, 0, "b"), false, false, G);

    /* Frozen it stays disabled, and so after it. */
    ck_assert_int_eq(control("b", FREEZE, NULL), 0);
    put(4 * G, 1);
    ck_assert_int_eq(control("b", RECLAIM, NULL), 0);
    put(5 * G, 1);
    only("b", 2 * G, G);
}
END_TEST

START_TEST(several_bitmaps_do_not_mind_one_another)
{
    add("fine", 512);
    put(1000, 1);
    add("rough", 1 * MiB);
    put(5 * MiB + 4096, 4096);
    ck_assert_uint_eq(count_of("fine"), 512 + 4096);
    only("rough", 5 * MiB, 1 * MiB);
    ck_assert_int_eq(bitmap_clear(g, n, "rough", NULL), 0);
    ck_assert_uint_eq(count_of("fine"), 512 + 4096);
    ck_assert_int_eq(bitmap_remove(g, n, "fine", NULL), 0);
    put(0, 1);
    only("rough", 0, 1 * MiB);

    add("third", 4096);
    CLEANUP_JSON json_t *names = bitmap_names_of_disk(n);
    ck_assert_uint_eq(json_array_size(names), 2);
    ck_assert_str_eq(json_string_value(json_array_get(names, 0)), "rough");
    ck_assert_str_eq(json_string_value(json_array_get(names, 1)), "third");
    CLEANUP_JSON json_t *list = bitmap_query(n);
    ck_assert_uint_eq(json_array_size(list), 2);
    says(info(list, 0, "third"), true, false, 0);
    says(info(list, 1, "rough"), true, false, 1 * MiB);
    ck_assert_int_eq(json_integer_value(json_object_get(info(list, 0, "third"),
                                                        "granularity")),
                     4096);
}
END_TEST

/* A driver that looks whether its range is dirty already. */
static struct bitmap *watched;
static _Atomic unsigned calls;

static void expect_dirty(uint64_t offset, uint64_t bytes)
{
    bool dirty;
    ck_assert_uint_eq(bitmap_run(watched, offset, offset + bytes, &dirty),
                      bytes);
    ck_assert(dirty);
    atomic_fetch_add(&calls, 1);
}

static int watch_preadv(struct node *w, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    (void)w;
    (void)offset;
    (void)bytes;
    (void)flags;
    for (int i = 0; i < cnt; i++) {
        memset(iov[i].iov_base, 0, iov[i].iov_len);
    }
    return 0;
}

static int watch_pwritev(struct node *w, uint64_t offset, uint64_t bytes,
                         const struct iovec *iov, int cnt, unsigned flags)
{
    (void)w;
    (void)iov;
    (void)cnt;
    (void)flags;
    expect_dirty(offset, bytes);
    return 0;
}

static int watch_zero(struct node *w, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    (void)w;
    (void)flags;
    expect_dirty(offset, bytes);
    return 0;
}

static int watch_discard(struct node *w, uint64_t offset, uint64_t bytes)
{
    (void)w;
    expect_dirty(offset, bytes);
    return 0;
}

static const struct driver watch_driver = {
    .name = "watch",
    .is_protocol = true,
    .preadv = watch_preadv,
    .pwritev = watch_pwritev,
    .zero = watch_zero,
    .discard = watch_discard,
};

static struct node *open_watch(void)
{
    struct node *w = NULL;

    graph_lock(g);
    ck_assert_int_eq(node_new(g, &watch_driver, "watch", n, &w, NULL), 0);
    w->flags.unmap = true;
    graph_unlock(g);
    return w;
}

static void close_watch(struct node *w)
{
    graph_lock(g);
    node_unref(w);
    graph_unlock(g);
}

START_TEST(bits_come_before_the_data)
{
    struct node *w = open_watch();
    struct blk *user = attach(w);
    char buf[5000] = {0};

    add_to(w, "b", 512);
    watched = bitmap_find(w, "b");
    ck_assert_int_eq(blk_pwrite(user, buf, sizeof(buf), 123, 0), 0);
    ck_assert_int_eq(blk_zero(user, 1 * MiB + 1, 1 * MiB, 0), 0);
    ck_assert_int_eq(blk_discard(user, 5 * MiB, 1 * MiB), 0);
    ck_assert_uint_ge(calls, 3);
    bitmap_unref(watched);
    blk_free(user);
    close_watch(w);
}
END_TEST

START_TEST(default_granularity_is_the_cluster_size_within_limits)
{
    static const struct {
        uint32_t cluster;
        uint64_t granularity;
    } cases[] = {
        {0, 64 * KiB},        {512, 4 * KiB},       {4 * KiB, 4 * KiB},
        {16 * KiB, 16 * KiB}, {64 * KiB, 64 * KiB}, {2 * MiB, 64 * KiB},
    };
    struct node *w = open_watch();

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        w->cluster_size = cases[i].cluster;
        add_to(w, "b", 0);
        struct bitmap *bm = bitmap_find(w, "b");
        ck_assert_uint_eq(bitmap_granularity(bm), cases[i].granularity);
        bitmap_unref(bm);
        ck_assert_int_eq(bitmap_remove(g, w, "b", NULL), 0);
    }
    close_watch(w);
    add("b", 0);
    struct bitmap *bm = bitmap_find(n, "b");
    ck_assert_uint_eq(bitmap_granularity(bm), G);
    ck_assert_str_eq(bitmap_name(bm), "b");
    bitmap_unref(bm);
}
END_TEST

/* --- Frozen --- */

START_TEST(freezing_keeps_the_bits_and_collects_apart)
{
    add("b", 0);
    put(1 * G, 1);
    ck_assert_int_eq(control("b", FREEZE, NULL), 0);
    put(7 * G, 1);
    put(1 * G, 1);

    struct bitmap *bm = bitmap_find(n, "b");
    ck_assert_uint_eq(bitmap_count(bm), G);
    ck_assert(hbitmap_get(bm->bits, 1 * G));
    ck_assert(!hbitmap_get(bm->bits, 7 * G));
    ck_assert_uint_eq(hbitmap_count(bm->successor), 2 * G);
    CLEANUP_JSON json_t *list = bitmap_query(n);
    ck_assert_uint_eq(json_array_size(list), 2);
    says(info(list, 0, NULL), true, false, 2 * G);
    says(info(list, 1, "b"), true, true, G);
    CLEANUP_JSON json_t *names = bitmap_names_of_disk(n);
    ck_assert_uint_eq(json_array_size(names), 1);

    /* A client that asks what has changed gets no less because of the job. */
    ck_assert(dirty_at(bm, 1 * G));
    ck_assert(dirty_at(bm, 7 * G));
    ck_assert(!dirty_at(bm, 6 * G));
    bitmap_unref(bm);
    ck_assert_int_eq(control("b", RECLAIM, NULL), 0);
}
END_TEST

START_TEST(success_leaves_what_was_written_meanwhile)
{
    add("b", 0);
    put(1 * G, 1);
    ck_assert_int_eq(control("b", FREEZE, NULL), 0);
    put(7 * G, 2 * G);
    ck_assert_int_eq(control("b", ABDICATE, NULL), 0);
    only("b", 7 * G, 2 * G);
    put(9 * G, 1);
    only("b", 7 * G, 3 * G);
    ck_assert_uint_eq(count_of("b"), 3 * G);

    /* And again, from there. */
    ck_assert_int_eq(control("b", FREEZE, NULL), 0);
    ck_assert_int_eq(control("b", ABDICATE, NULL), 0);
    only("b", 0, 0);
}
END_TEST

START_TEST(failure_keeps_everything)
{
    add("b", 0);
    put(6 * G, 1);
    ck_assert_int_eq(control("b", FREEZE, NULL), 0);
    put(7 * G, 2 * G);
    put(6 * G, 1);
    ck_assert_int_eq(control("b", RECLAIM, NULL), 0);
    only("b", 6 * G, 3 * G);
    ck_assert_uint_eq(count_of("b"), 3 * G);
    put(9 * G, 1);
    only("b", 6 * G, 4 * G);
    CLEANUP_JSON json_t *list = bitmap_query(n);
    ck_assert_uint_eq(json_array_size(list), 1);
    says(info(list, 0, "b"), true, false, 4 * G);
}
END_TEST

START_TEST(runs_of_a_frozen_bitmap_are_those_of_the_union)
{
    bool want[SIZE / 4096] = {false};
    unsigned seed = 7;

    add("b", 4096);
    for (unsigned i = 0; i < 1500; i++) {
        if (i == 700) {
            ck_assert_int_eq(control("b", FREEZE, NULL), 0);
        }
        unsigned at = (unsigned)rand_r(&seed) % ARRAY_SIZE(want);
        want[at] = true;
        put(at * UINT64_C(4096), 1);
    }
    struct bitmap *bm = bitmap_find(n, "b");
    uint64_t at = 0;
    while (at < SIZE) {
        bool dirty;
        uint64_t length = bitmap_run(bm, at, SIZE, &dirty);
        ck_assert_uint_gt(length, 0);
        ck_assert_uint_eq(length % 4096, 0);
        for (uint64_t i = at; i < at + length; i += 4096) {
            ck_assert_int_eq(want[i / 4096], dirty);
        }
        at += length;
        ck_assert(at == SIZE || want[at / 4096] != dirty);
    }
    ck_assert_uint_eq(at, SIZE);
    for (size_t most = 1; most <= 50; most += 7) {
        same_at_once(bm, 0, SIZE, most);
        same_at_once(bm, 12345, SIZE - 1, most);
        same_at_once(bm, 12345, SIZE + 100 * KiB, most); /* it has shrunk */
    }
    rwlock_wrlock(&bm->lock);
    uint64_t length;
    bool dirty;
    ck_assert_uint_eq(bitmap_runs(bm, 0, SIZE, true, &dirty, &length, 1), 0);
    rwlock_unlock(&bm->lock);
    bitmap_unref(bm);
    ck_assert_int_eq(control("b", ABDICATE, NULL), 0);
}
END_TEST

START_TEST(a_jobs_own_bitmap_has_no_name)
{
    graph_lock(g);
    graph_drain(g, n);
    struct bitmap *own = bitmap_new_anonymous(n, 4096);
    graph_unlock(g);
    ck_assert_ptr_nonnull(own);
    put(0, 1);
    ck_assert_uint_eq(bitmap_count(own), 4096);
    ck_assert_ptr_null(bitmap_name(own));
    CLEANUP_JSON json_t *list = bitmap_query(n);
    says(info(list, 0, NULL), true, false, 4096);
    CLEANUP_JSON json_t *names = bitmap_names_of_disk(n);
    ck_assert_uint_eq(json_array_size(names), 0);
    graph_lock(g);
    graph_drain(g, n);
    bitmap_drop(own);
    graph_unlock(g);
    put(G, 1);
    CLEANUP_JSON json_t *none = bitmap_query(n);
    ck_assert_uint_eq(json_array_size(none), 0);
}
END_TEST

/* --- Merging --- */

START_TEST(merge_adds_the_bits_of_another)
{
    struct node *second = open_disk("mem", "second", SIZE);
    struct blk *user = attach(second);

    add("b", 0);
    put(0, 1);
    add_to(second, "src", 4096);
    ck_assert_int_eq(blk_zero(user, G + 4096, 1, 0), 0);
    struct bitmap *src = bitmap_find(second, "src");
    ck_assert_int_eq(bitmap_merge(g, n, "b", src, NULL), 0);
    only("b", 0, 2 * G);
    ck_assert_uint_eq(bitmap_count(src), 4096);
    bitmap_unref(src);

    src = bitmap_find(n, "b");
    ck_assert_int_eq(bitmap_merge(g, n, "b", src, NULL), 0);
    only("b", 0, 2 * G);
    bitmap_unref(src);
    blk_free(user);
}
END_TEST

START_TEST(merge_needs_equal_sizes)
{
    struct node *second = open_disk("null-co", "second", 1000);

    add("b", 0);
    add_to(second, "src", 0);
    struct bitmap *src = bitmap_find(second, "src");
    refused(bitmap_merge(g, n, "b", src, errp), EINVAL,
            "Bitmaps are of different sizes (destination size is 16777216, "
            "source size is 1000) and can't be merged");
    bitmap_unref(src);
}
END_TEST

/* --- Size --- */

START_TEST(growth_is_dirty_in_enabled_bitmaps)
{
    add("b", 0);
    ck_assert_int_eq(bitmap_add(g, n, "off", 0, false, true, NULL), 0);
    add("frozen", 0);
    put(0, 1);
    ck_assert_int_eq(control("frozen", FREEZE, NULL), 0);
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    ck_assert_int_eq(blk_resize(b, SIZE + 3 * G - 5, NULL), 0);
    only("b", SIZE, 3 * G);
    only("off", 0, 0);
    ck_assert_uint_eq(count_of("frozen"), G);
    ck_assert_int_eq(control("frozen", ABDICATE, NULL), 0);
    only("frozen", SIZE, 3 * G);

    ck_assert_int_eq(blk_resize(b, SIZE + G + 1, NULL), 0);
    only("b", SIZE, 2 * G);
    ck_assert_uint_eq(count_of("b"), 2 * G);
    ck_assert_int_eq(blk_resize(b, SIZE / 2, NULL), 0);
    only("b", 0, 0);
    ck_assert_uint_eq(count_of("b"), 0);
}
END_TEST

START_TEST(past_the_end_everything_is_dirty)
{
    bool dirty;

    add("b", 0);
    struct bitmap *bm = bitmap_find(n, "b");
    ck_assert_int_eq(blk_resize(b, SIZE / 2, NULL), 0);
    /* A reader that has not heard of it. */
    ck_assert_uint_eq(bitmap_run(bm, 0, SIZE, &dirty), SIZE / 2);
    ck_assert(!dirty);
    ck_assert_uint_eq(bitmap_run(bm, SIZE / 2, SIZE, &dirty), SIZE / 2);
    ck_assert(dirty);
    for (size_t most = 1; most < 4; most++) {
        same_at_once(bm, 0, SIZE, most);
        same_at_once(bm, SIZE / 2 + 1, SIZE, most);
    }
    put(SIZE / 2 - 1, 1); /* it joins what is past the end */
    uint64_t dirty_from = SIZE / 2 - bitmap_granularity(bm);
    ck_assert_uint_eq(bitmap_run(bm, dirty_from, SIZE, &dirty),
                      SIZE - dirty_from);
    same_at_once(bm, 0, SIZE, 2);
    bitmap_unref(bm);
}
END_TEST

START_TEST(a_file_that_grows_by_writes_is_dirty_there)
{
    n->growable = true; /* as below a format */
    add("b", 0);
    ck_assert_int_eq(bitmap_add(g, n, "off", 0, false, true, NULL), 0);
    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(node_pwrite(n, "xx", 2, SIZE - 1, 0), 0);
    ck_assert_int_eq(node_pwrite(n, "yy", 2, SIZE + 2 * G, 0), 0);
    graph_unlock(g);
    ck_assert_uint_eq(node_size(n), SIZE + 2 * G + 2);

    struct bitmap *bm = bitmap_find(n, "b");
    ck_assert(dirty_at(bm, SIZE + 2 * G));
    bitmap_unref(bm);
    CLEANUP_JSON json_t *list = bitmap_query(n);
    says(info(list, 0, "off"), false, false, 0);
    says(info(list, 1, "b"), true, false, 4 * G);

    ck_assert_int_eq(control("b", FREEZE, NULL), 0);
    ck_assert_uint_eq(count_of("b"), 4 * G);
    ck_assert_int_eq(control("b", RECLAIM, NULL), 0);
    only("b", SIZE - G, 4 * G);
    ck_assert_int_eq(bitmap_enable(g, n, "off", true, NULL), 0);
    only("off", 0, 0);
}
END_TEST

/* --- Readers beside it --- */

START_TEST(a_removed_bitmap_stays_readable)
{
    add("b", 0);
    put(G, 1);
    struct bitmap *bm = bitmap_find(n, "b");
    ck_assert(!bitmap_removed(bm));
    ck_assert_int_eq(bitmap_remove(g, n, "b", NULL), 0);
    ck_assert(bitmap_removed(bm));
    ck_assert(dirty_at(bm, G));
    ck_assert(!dirty_at(bm, 0));
    put(0, 1);
    ck_assert(!dirty_at(bm, 0));

    /* Its name is free again, and the two have nothing in common. */
    add("b", 0);
    only("b", 0, 0);
    ck_assert_uint_eq(bitmap_count(bm), G);
    bitmap_unref(bm);
}
END_TEST

START_TEST(a_bitmap_outlives_its_node)
{
    struct node *second = open_disk("mem", "second", SIZE);

    add_to(second, "b", 0);
    struct bitmap *bm = bitmap_find(second, "b");
    ck_assert_int_eq(graph_close(g, second, NULL), 0);
    ck_assert(bitmap_removed(bm));
    ck_assert(!dirty_at(bm, 0));
    bitmap_unref(bm);
}
END_TEST

static _Atomic bool over;

static void *walk(void *arg)
{
    struct bitmap *bm = arg;

    while (!atomic_load(&over)) {
        for (uint64_t at = 0; at < SIZE;) {
            bool dirty;
            uint64_t length = bitmap_run(bm, at, SIZE, &dirty);
            ck_assert_uint_gt(length, 0);
            at += length;
            ck_assert_uint_le(at, SIZE);
        }
        (void)bitmap_count(bm);
        (void)bitmap_removed(bm);
        json_decref(bitmap_query(n));
    }
    bitmap_unref(bm);
    return NULL;
}

static void *scribble(void *arg)
{
    struct blk *user = arg;

    for (uint64_t i = 0; !atomic_load(&over); i++) {
        uint64_t at = i * 37 % (SIZE / 2 / 4096) * 4096;
        ck_assert_int_eq(blk_pwrite(user, "x", 1, at, 0), 0);
    }
    return NULL;
}

/* For the sanitizers: readers and writers while everything changes. */
START_TEST(readers_do_not_mind_what_control_sections_do)
{
    pthread_t threads[3];

    add("b", 4096);
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(
            thread_start(&threads[i], "walk", walk, bitmap_find(n, "b")), 0);
    }
    ck_assert_int_eq(thread_start(&threads[2], "scribble", scribble, b), 0);
    for (unsigned i = 0; i < 150; i++) {
        ck_assert_int_eq(control("b", FREEZE, NULL), 0);
        ck_assert_int_eq(control("b", i % 2 ? ABDICATE : RECLAIM, NULL), 0);
        ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
        ck_assert_int_eq(blk_resize(b, SIZE / 2 + i % 3 * 8 * MiB, NULL), 0);
    }
    ck_assert_int_eq(bitmap_remove(g, n, "b", NULL), 0);
    atomic_store(&over, true);
    for (unsigned i = 0; i < 3; i++) {
        thread_join(threads[i]);
    }
}
END_TEST

/* Every write that has returned before a freeze is in the bits, every one
 * that began after it is in the successor. */
static _Atomic uint64_t written;

static void *write_on(void *arg)
{
    struct blk *user = arg;

    for (uint64_t i = 0; i < SIZE / 4096; i++) {
        ck_assert_int_eq(blk_pwrite(user, "x", 1, i * 4096, 0), 0);
        atomic_store(&written, i + 1);
    }
    return NULL;
}

START_TEST(no_write_is_lost_between_two_backups)
{
    struct hbitmap *all = hbitmap_new(SIZE, 4096);
    pthread_t writer;

    add("b", 4096);
    struct bitmap *bm = bitmap_find(n, "b");
    ck_assert_int_eq(thread_start(&writer, "write", write_on, b), 0);
    for (unsigned i = 0; atomic_load(&written) < SIZE / 4096; i++) {
        uint64_t before = atomic_load(&written);
        ck_assert_int_eq(control("b", FREEZE, NULL), 0);
        hbitmap_merge(all, bm->bits); /* the backup */
        ck_assert_uint_ge(hbitmap_count(all), before * 4096);
        ck_assert_int_eq(control("b", i % 3 ? ABDICATE : RECLAIM, NULL), 0);
    }
    thread_join(writer);
    hbitmap_merge(all, bm->bits);
    ck_assert_uint_eq(hbitmap_count(all), SIZE);
    hbitmap_free(all);
    bitmap_unref(bm);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bitmap");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, bad_new_bitmaps_are_refused);
    tcase_add_test(tc, what_is_not_there_is_not_found);
    tcase_add_test(tc, a_busy_bitmap_is_left_alone);
    tcase_add_test(tc, an_inconsistent_bitmap_can_only_be_removed);
    tcase_add_test(tc, every_kind_of_change_marks_its_granules);
    tcase_add_test(tc, a_disabled_bitmap_collects_nothing);
    tcase_add_test(tc, several_bitmaps_do_not_mind_one_another);
    tcase_add_test(tc, bits_come_before_the_data);
    tcase_add_test(tc, default_granularity_is_the_cluster_size_within_limits);
    tcase_add_test(tc, freezing_keeps_the_bits_and_collects_apart);
    tcase_add_test(tc, success_leaves_what_was_written_meanwhile);
    tcase_add_test(tc, failure_keeps_everything);
    tcase_add_test(tc, runs_of_a_frozen_bitmap_are_those_of_the_union);
    tcase_add_test(tc, a_jobs_own_bitmap_has_no_name);
    tcase_add_test(tc, merge_adds_the_bits_of_another);
    tcase_add_test(tc, merge_needs_equal_sizes);
    tcase_add_test(tc, growth_is_dirty_in_enabled_bitmaps);
    tcase_add_test(tc, past_the_end_everything_is_dirty);
    tcase_add_test(tc, a_file_that_grows_by_writes_is_dirty_there);
    tcase_add_test(tc, a_removed_bitmap_stays_readable);
    tcase_add_test(tc, a_bitmap_outlives_its_node);
    tcase_add_test(tc, readers_do_not_mind_what_control_sections_do);
    tcase_add_test(tc, no_write_is_lost_between_two_backups);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
