/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bitmaps that an image stores in a broken way, in each way there is.  The
 * image opens and can be written.  The bitmap is shown as inconsistent, with
 * the reason, and is not trusted when the reason has gone.  Removing it leaves
 * a sound image, without leaks where its clusters were its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bitmap-util.h"
#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"
#include "nbdelta/size.h"
#include "qcow2-check.h"

#define NAME    "broken.qcow2"
#define SIZE    (256 * MiB)
#define CLUSTER 4096
#define FLAGS   12 /* in a directory entry */
#define IN_USE  1
#define AUTO    2

static int fd = -1;
static struct graph *g;
static struct node *n;

/* --- Bytes of the image --- */

static void get(uint64_t at, void *buf, size_t len)
{
    ck_assert_int_eq(pread(fd, buf, len, (off_t)at), (ssize_t)len);
}

static uint64_t get64(uint64_t at)
{
    unsigned char be[8];

    get(at, be, sizeof(be));
    return load_be64(be);
}

static uint32_t get32(uint64_t at)
{
    unsigned char be[4];

    get(at, be, sizeof(be));
    return load_be32(be);
}

/* What was there before, to be put back. */
static struct {
    uint64_t at;
    unsigned char old[64];
    size_t len;
} patches[8];
static unsigned patch_count;

static void put(uint64_t at, const void *bytes, size_t len)
{
    get(at, patches[patch_count].old, len);
    patches[patch_count].at = at;
    patches[patch_count++].len = len;
    ck_assert_int_eq(pwrite(fd, bytes, len, (off_t)at), (ssize_t)len);
}

static void put64(uint64_t at, uint64_t value)
{
    unsigned char be[8];

    store_be64(be, value);
    put(at, be, sizeof(be));
}

static void put32(uint64_t at, uint32_t value)
{
    unsigned char be[4];

    store_be32(be, value);
    put(at, be, sizeof(be));
}

/* Where the extension's data is. */
static uint64_t extension(void)
{
    uint64_t at = get32(100);

    while (get32(at) != 0x23852875) {
        ck_assert_uint_ne(get32(at), 0);
        at += 8 + align_up(get32(at + 4), 8);
    }
    return at + 8;
}

/* The directory entry @i; names have five bytes, so entries have 32. */
static uint64_t entry(unsigned i)
{
    return get64(extension() + 16) + i * 32;
}

static uint64_t table(unsigned i)
{
    return get64(entry(i));
}

/* --- The ways --- */

static void unknown_flags(void)
{
    put32(entry(0) + FLAGS, AUTO | 8);
}
static void unknown_type(void)
{
    put(entry(0) + 16, "\2", 1);
}
static void small_granularity(void)
{
    put(entry(0) + 17, "\10", 1);
}
static void large_granularity(void)
{
    put(entry(0) + 17, "\40", 1);
}
static void huge_granularity(void)
{
    put(entry(0) + 17, "\377", 1);
}
static void no_name(void) /* its bytes are extra data instead */
{
    put(entry(0) + 18, "\0\0\0\0\0\5", 6);
}
static void zero_in_name(void)
{
    put(entry(0) + 24 + 2, "\0", 1);
}
static void extra_data(void)
{
    put(entry(0) + 18, "\0\1\0\0\0\4", 6);
}
static void in_use(void)
{
    put32(entry(0) + FLAGS, AUTO | IN_USE);
}
static void short_table(void)
{
    put32(entry(0) + 8, 1);
}
static void long_table(void)
{
    put32(entry(0) + 8, UINT32_MAX);
}
static void table_outside(void)
{
    put64(entry(0), UINT64_C(1) << 40);
}
static void table_past_everything(void)
{
    put64(entry(0), UINT64_MAX - CLUSTER + 1);
}
static void no_table(void)
{
    put64(entry(0), 0);
}
static void misaligned_table(void)
{
    put64(entry(0), table(0) + 512);
}
static void reserved_bits(void)
{
    put64(table(0), get64(table(0)) | 2);
}
static void bits_outside(void)
{
    put64(table(0), UINT64_C(1) << 40);
}
static void misaligned_bits(void)
{
    put64(table(0), get64(table(0)) + 512);
}
static void bits_of_another(void)
{
    put64(table(0), get64(table(1)));
}
static void table_of_another(void)
{
    put64(entry(0), table(1));
}
static void bits_twice(void)
{
    put64(table(0) + 8, get64(table(0)));
}
static void bits_in_header(void)
{
    put64(table(0), get64(40)); /* the L1 table */
}
static void bits_in_l2(void)
{
    put64(table(0), get64(get64(40)) & UINT64_C(0x00fffffffffffe00));
}
static void bits_in_refcounts(void)
{
    put64(table(0), get64(get64(48)));
}
static void bits_in_directory(void)
{
    put64(table(0), get64(extension() + 16));
}
static void bits_are_free(void)
{
    put(get64(get64(48)) + get64(table(0)) / CLUSTER * 2, "\0\0", 2);
}
static void twins(void)
{
    put(entry(0) + 24, "other", 5);
}

static const struct way {
    void (*break_it)(void);
    const char *why;
    bool frees; /* its clusters are known to be its own */
    bool both;  /* the other one is hit, too */
} ways[] = {
    {unknown_flags, "it has unknown flags", .frees = false},
    {unknown_type, "it is of an unknown type", .frees = false},
    {small_granularity, "its granularity is out of range", .frees = false},
    {large_granularity, "its granularity is out of range", .frees = false},
    {huge_granularity, "its granularity is out of range", .frees = false},
    {no_name, "its name is no name", .frees = true},
    {zero_in_name, "its name is no name", .frees = true},
    {extra_data, "it has extra data that is not known", .frees = true},
    {in_use, "it is marked as in use: writes may lack in it", .frees = true},
    {short_table, "its table is of the wrong size", .frees = false},
    {long_table, "its table is of the wrong size", .frees = false},
    {table_outside, "its table is outside of the file", .frees = false},
    {table_past_everything, "its table is outside of the file", .frees = false},
    {no_table, "its table is outside of the file", .frees = false},
    {misaligned_table, "its table is outside of the file", .frees = false},
    {reserved_bits, "its table has bad entries", .frees = false},
    {bits_outside, "its table has bad entries", .frees = false},
    {misaligned_bits, "its table has bad entries", .frees = false},
    {bits_of_another, "its clusters belong to others, too", .both = true},
    {table_of_another, "its clusters belong to others, too", .both = true},
    {bits_twice, "its clusters belong to others, too", .frees = false},
    {bits_in_header, "its clusters belong to others, too", .frees = false},
    {bits_in_l2, "its clusters belong to others, too", .frees = false},
    {bits_in_refcounts, "its clusters belong to others, too", .frees = false},
    {bits_in_directory, "its clusters belong to others, too", .frees = false},
    {bits_are_free, "its clusters count as free", .frees = false},
    {twins, "another bitmap has the same name", .frees = true, .both = true},
};

/* --- The disk --- */

static void start(void)
{
    CLEANUP_JSON json_t *o = NULL;
    CLEANUP_ERROR struct error *err = NULL;

    ck_assert_int_eq(options_from_image(NAME, "qcow2", &o, NULL), 0);
    g = graph_new();
    int r = graph_open(g, o, &n, &err);
    ck_assert_msg(r == 0, "%s", err ? error_message(err) : "");
}

static void stop(void)
{
    graph_free(g);
    g = NULL;
}

static void write_at(uint64_t offset)
{
    struct blk *b;

    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, offset, 0), 0);
    blk_free(b);
}

/* Two bitmaps, with two table entries each; the first ones have clusters. */
static void make(void)
{
    CLEANUP_JSON json_t *o = json_pack("{s:I, s:i}", "size", (json_int_t)SIZE,
                                       "cluster_size", CLUSTER);

    ck_assert_int_eq(image_create(NAME, "qcow2", o, NULL), 0);
    fd = open(NAME, O_RDWR);
    ck_assert_int_ge(fd, 0);
    start();
    ck_assert_int_eq(bitmap_add(g, n, "other", 4096, true, false, NULL), 0);
    ck_assert_int_eq(bitmap_add(g, n, "first", 4096, true, false, NULL), 0);
    write_at(0);
    write_at(5 * MiB);
    stop();
    patch_count = 0;
    ck_assert_uint_eq(get32(extension()), 2);
    ck_assert_uint_gt(get64(table(0)), 1);
}

static void finish(void)
{
    (void)close(fd);
    (void)unlink(NAME);
}

/* The bitmap of that name as users see it, or NULL. */
static json_t *shown(const char *name)
{
    CLEANUP_JSON json_t *all = bitmap_query(n);

    for (size_t i = 0; i < json_array_size(all); i++) {
        json_t *info = json_array_get(all, i);
        if (strcmp(json_string_value(json_object_get(info, "name")), name) ==
            0) {
            return json_incref(info);
        }
    }
    return NULL;
}

/* The one that is broken: the oldest. */
static json_t *broken_one(void)
{
    CLEANUP_JSON json_t *all = bitmap_query(n);

    ck_assert_uint_ge(json_array_size(all), 1);
    return json_incref(json_array_get(all, json_array_size(all) - 1));
}

static void is_inconsistent(const json_t *info, const char *why)
{
    ck_assert(json_is_true(json_object_get(info, "inconsistent")));
    ck_assert(json_is_false(json_object_get(info, "recording")));
    ck_assert_str_eq(
        json_string_value(json_object_get(info, "inconsistent-reason")), why);
}

static struct verdict check(void)
{
    struct stat st;

    ck_assert_int_eq(fstat(fd, &st), 0);
    struct image image = {.size = (uint64_t)st.st_size};
    unsigned char *bytes = malloc(image.size + 8);
    get(0, bytes, image.size);
    image.bytes = bytes;
    struct verdict v = check_image(&image);
    free(bytes);
    return v;
}

/* Undo what was broken; what we have said of it stays. */
static void heal(void)
{
    uint64_t flags = entry(0) + FLAGS;

    while (patch_count > 0) {
        patch_count--;
        if (patches[patch_count].at == flags) {
            store_be32(patches[patch_count].old,
                       load_be32(patches[patch_count].old) |
                           (get32(flags) & IN_USE));
        }
        ck_assert_int_eq(pwrite(fd, patches[patch_count].old,
                                patches[patch_count].len,
                                (off_t)patches[patch_count].at),
                         (ssize_t)patches[patch_count].len);
    }
}

START_TEST(the_image_opens_and_says_why)
{
    const struct way *w = &ways[_i];

    make();
    w->break_it();
    start();
    CLEANUP_JSON json_t *info = broken_one();
    is_inconsistent(info, w->why);
    CLEANUP_JSON json_t *other = shown("other");
    ck_assert(w->both ==
              (bool)json_is_true(json_object_get(other, "inconsistent")));

    /* It is not used, and the other one is. */
    const char *name = json_string_value(json_object_get(info, "name"));
    ck_assert_int_eq(bitmap_clear(g, n, name, NULL), -EINVAL);
    ck_assert_uint_eq(get32(entry(0) + FLAGS) & IN_USE, w->break_it == in_use);
    write_at(100 * MiB);
    ck_assert_uint_eq(get32(entry(0) + FLAGS) & IN_USE, IN_USE);
    ck_assert_uint_eq(get32(entry(1) + FLAGS) & IN_USE, w->both);
    CLEANUP_JSON json_t *later = shown("other");
    if (!w->both) {
        ck_assert_int_eq(json_integer_value(json_object_get(later, "count")),
                         3 * 4096);
    }
    stop();
    finish();
}
END_TEST

START_TEST(what_has_missed_writes_is_not_trusted_once_it_is_sound)
{
    make();
    ways[_i].break_it();
    start();
    write_at(100 * MiB);
    stop();
    heal();
    start();
    CLEANUP_JSON json_t *info = shown("first");
    is_inconsistent(info, "it is marked as in use: writes may lack in it");
    stop();
    finish();
}
END_TEST

/* Opened and closed, but not written: it is what it was. */
START_TEST(what_has_missed_nothing_is_trusted_once_it_is_sound)
{
    make();
    ways[_i].break_it();
    start();
    stop();
    heal();
    start();
    CLEANUP_JSON json_t *info = shown("first");
    ck_assert(ways[_i].break_it == in_use ||
              !json_object_get(info, "inconsistent"));
    stop();
    finish();
}
END_TEST

START_TEST(removed_it_leaves_a_sound_image)
{
    const struct way *w = &ways[_i];

    make();
    ck_assert_uint_eq(check().leaks, 0);
    w->break_it();
    start();
    CLEANUP_JSON json_t *info = broken_one();
    const char *name = json_string_value(json_object_get(info, "name"));
    ck_assert_int_eq(bitmap_remove(g, n, name, NULL), 0);
    if (w->both && w->break_it != twins) {
        ck_assert_int_eq(bitmap_remove(g, n, "other", NULL), 0);
    }
    write_at(100 * MiB);
    stop();
    struct verdict v = check();
    ck_assert_uint_eq(v.corruptions, 0);
    ck_assert(!w->frees || v.leaks == 0);
    ck_assert(w->frees || v.leaks > 0 || w->break_it == bits_are_free);
    start();
    CLEANUP_JSON json_t *all = bitmap_query(n);
    ck_assert_uint_eq(json_array_size(all), w->both ? 0 : 1);
    stop();
    finish();
}
END_TEST

START_TEST(repaired_it_is_wholly_dirty_and_records)
{
    const struct way *w = &ways[_i];
    struct action *a;

    make();
    w->break_it();
    start();
    CLEANUP_JSON json_t *info = broken_one();
    const char *name = json_string_value(json_object_get(info, "name"));
    if (name[0] == '\0') { /* such a name cannot be given to a new one */
        stop();
        finish();
        return;
    }
    ck_assert_int_eq(
        bitmap_repair_action((struct bitmap_ref){n, name}, 0, &a, NULL), 0);
    /* Beside one that records, too, and is not cheated of a write. */
    ck_assert_int_eq(bitmap_add(g, n, "beside", 4096, false, false, NULL), 0);
    ck_assert_int_eq(action_run(g, a, NULL), 0);
    write_at(4096);
    struct bitmap *beside = bitmap_find(n, "beside");
    ck_assert_uint_eq(bitmap_count(beside), 4096);
    bitmap_unref(beside);
    stop();
    start();
    CLEANUP_JSON json_t *now = shown(name);
    ck_assert(!json_object_get(now, "inconsistent"));
    ck_assert(json_is_true(json_object_get(now, "recording")));
    ck_assert_int_eq(json_integer_value(json_object_get(now, "count")), SIZE);
    ck_assert_int_eq(
        bitmap_repair_action((struct bitmap_ref){n, name}, 0, &a, NULL), 0);
    ck_assert_int_eq(action_run(g, a, NULL), -EINVAL);
    stop();
    ck_assert_uint_eq(check().corruptions, 0);
    finish();
}
END_TEST

/* --- The directory as a whole --- */

static void no_bitmaps(void)
{
    put32(extension(), 0);
}
static void one_bitmap_more(void)
{
    put32(extension(), 3);
}
static void one_bitmap_less(void)
{
    put32(extension(), 1);
}
static void too_many_bitmaps(void)
{
    put32(extension(), 65536);
}
static void large_directory(void)
{
    put64(extension() + 8, 65 * MiB);
}
static void directory_outside(void)
{
    put64(extension() + 16, UINT64_C(1) << 40);
}
static void misaligned_directory(void)
{
    put64(extension() + 16, get64(extension() + 16) + 32);
}
static void long_name(void)
{
    put(entry(1) + 18, "\1\0", 2);
}
static void long_extra_data(void)
{
    put32(entry(0) + 20, UINT32_MAX);
}

static void (*const directories[])(void) = {
    no_bitmaps,           one_bitmap_more, one_bitmap_less,
    too_many_bitmaps,     large_directory, directory_outside,
    misaligned_directory, long_name,       long_extra_data,
};

START_TEST(a_broken_directory_is_void_for_good)
{
    make();
    directories[_i]();
    start();
    CLEANUP_JSON json_t *all = bitmap_query(n);
    ck_assert_uint_eq(json_array_size(all), 0);
    ck_assert_uint_eq(get64(88) & 1, 0); /* autoclear */
    write_at(100 * MiB);
    ck_assert_int_eq(bitmap_add(g, n, "first", 4096, true, false, NULL), 0);
    stop();
    start();
    CLEANUP_JSON json_t *after = bitmap_query(n);
    ck_assert_uint_eq(json_array_size(after), 1);
    stop();
    ck_assert_uint_eq(check().corruptions, 0);
    finish();
}
END_TEST

/* What memory an image can ask for is bounded. */
START_TEST(too_many_bits_are_not_loaded)
{
    CLEANUP_JSON json_t *o = json_pack("{s:I, s:i}", "size",
                                       (json_int_t)(64 * GiB) * 1024,
                                       "cluster_size", 2 << 20);
    CLEANUP_JSON json_t *info = NULL;

    ck_assert_int_eq(image_create(NAME, "qcow2", o, NULL), 0);
    fd = open(NAME, O_RDWR);
    start();
    ck_assert_int_eq(bitmap_add(g, n, "large", 8192, true, false, NULL),
                     -EINVAL); /* 1 GiB of bits */
    ck_assert_int_eq(bitmap_add(g, n, "large", 2 * GiB, true, false, NULL), 0);
    stop();
    uint64_t dir = get64(extension() + 16);
    put(dir + 17, "\15", 1); /* 8192 */
    put32(dir + 8, (64 * GiB) * 1024 / (8192 * UINT64_C(8) * (2 << 20)));
    start();
    info = shown("large");
    is_inconsistent(info, "it is too large");
    stop();
    finish();
}
END_TEST

/* As large as they may be, and as many as one likes; no larger by growth. */
START_TEST(what_could_be_added_is_usable)
{
    CLEANUP_JSON json_t *o = json_pack("{s:I}", "size", (json_int_t)(2 * TiB));
    struct blk *b;
    size_t i;
    json_t *bitmap;

    ck_assert_int_eq(image_create(NAME, "qcow2", o, NULL), 0);
    start();
    for (char name[] = "a"; name[0] <= 'f'; name[0]++) {
        ck_assert_int_eq(bitmap_add(g, n, name, 512, true, false, NULL), 0);
    }
    ck_assert_int_eq(blk_new(g, n, PERM_RESIZE, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(blk_resize(b, 2 * TiB + 512, NULL), -EFBIG);
    ck_assert_int_eq(blk_resize(b, 2 * TiB - 512, NULL), 0);
    ck_assert_int_eq(blk_resize(b, 2 * TiB, NULL), 0);
    blk_free(b);
    stop();
    start();
    CLEANUP_JSON json_t *after = bitmap_query(n);
    ck_assert_uint_eq(json_array_size(after), 6);
    json_array_foreach (after, i, bitmap) {
        ck_assert_ptr_null(json_object_get(bitmap, "inconsistent"));
    }
    stop();
    finish();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bitmap-quarantine");
    TCase *tc = tcase_create("quarantine");
    int count = ARRAY_SIZE(ways);

    tcase_add_loop_test(tc, the_image_opens_and_says_why, 0, count);
    tcase_add_loop_test(
        tc, what_has_missed_writes_is_not_trusted_once_it_is_sound, 0, count);
    tcase_add_loop_test(tc, what_has_missed_nothing_is_trusted_once_it_is_sound,
                        0, count);
    tcase_add_loop_test(tc, removed_it_leaves_a_sound_image, 0, count);
    tcase_add_loop_test(tc, repaired_it_is_wholly_dirty_and_records, 0, count);
    tcase_add_loop_test(tc, a_broken_directory_is_void_for_good, 0,
                        ARRAY_SIZE(directories));
    tcase_add_test(tc, too_many_bits_are_not_loaded);
    tcase_add_test(tc, what_could_be_added_is_usable);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
