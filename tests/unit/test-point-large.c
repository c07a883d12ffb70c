/* SPDX-License-Identifier: BSD-3-Clause */
/* Points of large disks: what they cost, and that no bit is lost on the way
 * from one to the next while guests write. */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../unit/bitmap-util.h"
#include "../unit/job-util.h"
#include "core/dirty.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/point.h"

static struct graph *g;
static struct node *src;
static struct blk *guest;
static char dir[] = "scratch";

static void setup(struct node *n)
{
    src = n;
    ck_assert_int_eq(blk_new(g, src, PERM_ALL, PERM_ALL, "guest", &guest, NULL),
                     0);
    ck_assert(mkdir(dir, 0700) == 0 || errno == EEXIST);
}

static void teardown(void)
{
    blk_free(guest);
    graph_close_all(g);
    graph_free(g);
    (void)rmdir(dir);
}

/* A point with what has changed since @since, and the next bitmap @next, in one
 * transaction, as backup-begin has it. */
static struct point *begin(const char *since, const char *next, bool whole)
{
    struct point_options o = {
        .node = src,
        .since = since,
        .whole = whole,
        .context = since ? "changed" : NULL,
        .scratch = dir,
        .max_delay_ms = 60000,
    };
    struct error *err = NULL;
    struct list actions;
    struct action *a;
    struct point *p;

    list_init(&actions);
    ck_assert_int_eq(point_action(g, &o, &p, &a, NULL), 0);
    ck_assert_int_eq(actions_add(&actions, a, NULL), 0);
    if (next) {
        ck_assert_int_eq(bitmap_add_action((struct bitmap_ref){src, next}, 512,
                                           false, false, &a, NULL),
                         0);
        ck_assert_int_eq(actions_add(&actions, a, NULL), 0);
    }
    int r = actions_run(g, &actions, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    return p;
}

static uint64_t copied(const struct point *p)
{
    json_t *o = point_query(p);
    uint64_t n = (uint64_t)json_integer_value(json_object_get(o, "copied"));

    json_decref(o);
    return n;
}

static uint64_t left(const struct point *p)
{
    json_t *o = point_query(p);
    uint64_t n = (uint64_t)json_integer_value(json_object_get(o, "left"));

    json_decref(o);
    return n;
}

/* --- What a large disk costs --- */

#define LARGE (64 * TiB)
#define UNIT  (64 * KiB) /* of a point of it: 128 MiB of bits for a set */

/* The thread sanitizer's own memory is several times what it watches. */
#ifdef __SANITIZE_THREAD__
#define SHADOW 16
#else
#define SHADOW 1
#endif

/* Bytes that this process has: of addresses (0), in memory (1). */
static uint64_t in_use(unsigned which)
{
    FILE *f = fopen("/proc/self/statm", "r");
    char text[128];
    char *at = text;
    uint64_t pages = 0;

    ck_assert_ptr_nonnull(f);
    ck_assert_ptr_nonnull(fgets(text, sizeof(text), f));
    (void)fclose(f);
    for (unsigned i = 0; i <= which; i++) {
        pages = strtoul(at, &at, 10);
    }
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t resident(void)
{
    return in_use(1);
}

static struct node *large_disk(void)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:I, s:b, s:s}", "driver",
                                       "null-co", "size", (json_int_t)LARGE,
                                       "read-zeroes", 1, "node-name", "large");
    struct error *err = NULL;
    struct node *n;

    g = graph_new();
    int r = graph_open(g, o, &n, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    return n;
}

/* Every second granule is dirty, so no word of the bits is plain. */
static struct bitmap *dense_bitmap(const char *name)
{
    ck_assert_int_eq(bitmap_add(g, src, name, 64 * KiB, false, false, NULL), 0);
    struct bitmap *bm = bitmap_find(src, name);
    unsigned char bytes[64 * KiB];

    memset(bytes, 0x55, sizeof(bytes));
    for (uint64_t at = 0; at < LARGE / (64 * KiB); at += sizeof(bytes) * 8) {
        hbitmap_import(bm->bits, at, sizeof(bytes) * 8, bytes);
    }
    return bm;
}

START_TEST(a_large_disk_costs_no_memory)
{
    char buf[4 * KiB] = "x";

    setup(large_disk());
    uint64_t before = resident();
    struct point *p = begin(NULL, NULL, false);
    ck_assert_uint_lt(resident(), before + 4 * MiB * SHADOW);
    ck_assert_uint_eq(left(p), LARGE);
    /* Guests wait for little more than they write, at any size. */
    ck_assert_int_eq(blk_pwrite(guest, buf, sizeof(buf), LARGE - 8 * KiB, 0),
                     0);
    ck_assert_uint_eq(copied(p), UNIT);
    ck_assert_uint_lt(resident(), before + 4 * MiB * SHADOW);
    point_end(p);
    teardown();
}
END_TEST

/* With vm.overcommit_memory=2, say.  Sanitizers and valgrind need more. */
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
START_TEST(where_memory_is_not_promised_units_are_larger)
{
    const char *preloaded = getenv("LD_PRELOAD");
    char buf[4 * KiB] = "x";
    struct rlimit before;

    if (preloaded && strstr(preloaded, "vgpreload")) {
        return;
    }
    setup(large_disk());
    ck_assert_int_eq(getrlimit(RLIMIT_AS, &before), 0);
    const struct rlimit low = {in_use(0) + 200 * MiB, before.rlim_max};
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &low), 0);
    struct point *p = begin(NULL, NULL, false);
    ck_assert_uint_eq(left(p), LARGE);
    ck_assert_int_eq(blk_pwrite(guest, buf, sizeof(buf), LARGE - 8 * KiB, 0),
                     0);
    ck_assert_uint_gt(copied(p), UNIT);
    ck_assert_uint_le(copied(p), 1 * MiB);
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &before), 0);
    point_end(p);
    teardown();
}
END_TEST
#endif

START_TEST(nor_does_an_increment_whatever_is_dirty)
{
    char buf[4 * KiB] = "x";

    setup(large_disk());
    struct bitmap *bm = dense_bitmap("c1");
    uint64_t before = resident();
    struct point *p = begin("c1", NULL, false);
    struct bitmap *changed = bitmap_find(point_node(p), "changed");
    ck_assert_uint_lt(resident(), before + 16 * MiB * SHADOW);
    ck_assert_uint_eq(left(p), LARGE / 2);
    ck_assert_uint_eq(bitmap_count(changed), LARGE / 2);
    /* A granule that was clean, and one that was dirty. */
    ck_assert_int_eq(blk_pwrite(guest, buf, sizeof(buf), 64 * KiB, 0), 0);
    ck_assert_uint_eq(copied(p), 0);
    ck_assert_int_eq(blk_pwrite(guest, buf, sizeof(buf), 128 * KiB, 0), 0);
    ck_assert_uint_eq(copied(p), UNIT);
    ck_assert_uint_eq(bitmap_count(changed), LARGE / 2);
    ck_assert_uint_eq(bitmap_count(bm), LARGE / 2 + 64 * KiB);
    ck_assert_uint_lt(resident(), before + 16 * MiB * SHADOW);
    bitmap_unref(changed);
    bitmap_unref(bm);
    point_end(p);
    teardown();
}
END_TEST

START_TEST(nor_does_a_merge_into_a_bitmap_of_few_bits)
{
    setup(large_disk());
    struct bitmap *bm = dense_bitmap("c1");
    ck_assert_int_eq(bitmap_add(g, src, "sum", 64 * KiB, false, true, NULL), 0);
    struct bitmap *sum = bitmap_find(src, "sum");
    uint64_t before = resident();
    hbitmap_set(sum->bits, 64 * KiB, 1); /* no other has it */
    ck_assert_int_eq(bitmap_merge(g, src, "sum", bm, NULL), 0);
    ck_assert_int_eq(bitmap_merge(g, src, "sum", bm, NULL), 0);
    ck_assert_uint_lt(resident(), before + 16 * MiB * SHADOW);
    ck_assert_uint_eq(bitmap_count(sum), LARGE / 2 + 64 * KiB);
    ck_assert_int_eq(bitmap_clear(g, src, "c1", NULL), 0);
    ck_assert_uint_eq(bitmap_count(bm), 0);
    ck_assert_uint_eq(bitmap_count(sum), LARGE / 2 + 64 * KiB);
    bitmap_unref(sum);
    bitmap_unref(bm);
    teardown();
}
END_TEST

/* --- Increments while guests write --- */

/* Bits that fill some pages; guests write to a little of the disk that each of
 * them is about. */
#define DISK    (272 * MiB)
#define WINDOW  (16 * KiB)
#define WINDOWS 64
#define GUESTS  2
#define NIGHTS  12

static _Atomic bool morning;

static uint64_t window_at(uint64_t i)
{
    return i * (DISK / WINDOWS);
}

static void *write_guest(void *arg)
{
    uint64_t seed = 4711 + *(const unsigned *)arg;
    char buf[3 * 512];

    for (uint64_t i = 0; !atomic_load(&morning); i++) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        uint64_t at = window_at(seed % WINDOWS) + seed / 64 % (WINDOW - 1536);
        memset(buf, (int)(seed >> 40), sizeof(buf));
        ck_assert_int_eq(
            blk_pwrite(guest, buf, 1 + (seed >> 20) % sizeof(buf), at, 0), 0);
        if (i % 64 == 0) {
            nap();
        }
    }
    return NULL;
}

/* Bring the copy up to date with what has changed, and compare. */
static void take_increment(struct point *p, char *mine)
{
    struct bitmap *changed = bitmap_find(point_node(p), "changed");
    CLEANUP_FREE char *now = malloc(WINDOW);
    struct blk *past;

    ck_assert_int_eq(
        blk_new(g, point_node(p), PERM_READ, PERM_ALL, "past", &past, NULL), 0);
    for (uint64_t i = 0; i < WINDOWS; i++) {
        uint64_t from = window_at(i);
        char *to = mine + i * WINDOW;

        ck_assert_int_eq(blk_pread(past, now, WINDOW, from, 0), 0);
        for (uint64_t at = 0; at < WINDOW;) {
            bool dirty = true;
            uint64_t len = changed ? bitmap_run(changed, from + at,
                                                from + WINDOW, &dirty)
                                   : WINDOW;
            if (dirty) {
                memcpy(to + at, now + at, len);
            }
            at += len;
        }
        ck_assert_mem_eq(to, now, WINDOW);
    }
    blk_free(past);
    bitmap_unref(changed);
}

START_TEST(no_bit_is_lost_from_one_increment_to_the_next)
{
    unsigned numbers[GUESTS];
    pthread_t guests[GUESTS];
    char last[8] = "";
    char *mine = calloc(WINDOWS, WINDOW);
    char *first = calloc(WINDOWS, WINDOW);
    char *all = calloc(WINDOWS, WINDOW);

    g = graph_new();
    setup(disk_new(g, "src", DISK));
    atomic_store(&morning, false);
    for (unsigned i = 0; i < GUESTS; i++) {
        numbers[i] = i;
        ck_assert_int_eq(
            thread_start(&guests[i], "guest", write_guest, &numbers[i]), 0);
    }
    for (unsigned night = 0; night < NIGHTS; night++) {
        char next[8];

        (void)snprintf(next, sizeof(next), "c%u", night);
        struct point *p = begin(night ? last : NULL, next, true);
        take_increment(p, mine);
        if (night == 0) {
            memcpy(first, mine, WINDOWS * WINDOW);
        } else { /* while the other goes on; c0 has its bits taken each night */
            struct point *old = begin("c0", NULL, true);
            memcpy(all, first, WINDOWS * WINDOW);
            take_increment(old, all);
            point_end(old);
        }
        point_end(p);
        memcpy(last, next, sizeof(last));
    }
    atomic_store(&morning, true);
    for (unsigned i = 0; i < GUESTS; i++) {
        thread_join(guests[i]);
    }
    free(mine);
    free(first);
    free(all);
    teardown();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_large_disk_costs_no_memory,
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
        where_memory_is_not_promised_units_are_larger,
#endif
        nor_does_an_increment_whatever_is_dirty,
        nor_does_a_merge_into_a_bitmap_of_few_bits,
        no_bit_is_lost_from_one_increment_to_the_next,
    };
    return run_suite("point-large", tests, ARRAY_SIZE(tests));
}
