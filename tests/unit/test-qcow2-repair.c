/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A repair that is cut off leaves an image that is no worse.
 *
 * Words of an image's metadata get other values.  The repair is recorded; then
 * the power is cut at all its moments (power-cut.h), and each of its writes
 * fails once.  What could be read before reads the same in all these images,
 * what could not reads as zeroes or still not at all, and another repair makes
 * each of them sound.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>

#define DISK_MAX (4 * MiB)
#include "core/opts.h"
#include "power-cut.h"
#include "qcow2-check.h"
#include "qcow2-guest.h"

#define GUEST   (512 * KiB)
#define UNIT    512 /* a cluster, or a subcluster */
#define SHOWN   (GUEST / UNIT)
#define CRASHES 60

static const uint64_t mask = UINT64_C(0x00fffffffffffe00);
static uint64_t cluster; /* bytes */
static uint64_t file_bytes;
static uint64_t damaged_bytes; /* of the file before any repair */
static bool over_another;      /* it names a backing file */

static void compare_guests(const unsigned char *before,
                           const unsigned char *after, const char *when)
{
    const struct guest_image was = {before, damaged_bytes};
    const struct guest_image grown = {after, DISK_MAX};
    const struct guest_image is = {after, damaged_bytes};

    for (uint64_t u = 0; u < SHOWN; u++) {
        uint64_t old = guest_look(&was, u);
        uint64_t new = guest_look(&grown, u);
        bool same = old == new;

        if (old == GUEST_UNREADABLE) {
            same = guest_look(&is, u) == GUEST_UNREADABLE ||
                   new == GUEST_ZEROES ||
                   (new == GUEST_NOTHING && !over_another);
        } else if (old > GUEST_UNREADABLE && new > GUEST_UNREADABLE) {
            same = guest_is_table(&was, old) ||
                   memcmp(before + old, after + new, UNIT) == 0;
        }
        ck_assert_msg(same,
                      "%s: unit %" PRIu64 " was 0x%" PRIx64 ", is 0x%" PRIx64,
                      when, u, old, new);
    }
}

/* --- Images --- */

static void write_some(void)
{
    struct graph *g = graph_new();
    struct node *q = open_recorded(g, file_bytes);
    unsigned char buf[8 * UNIT];
    struct blk *b;

    ck_assert_int_eq(blk_new(g, q, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
    for (unsigned i = 0; i < 40; i++) {
        uint64_t at = rnd(SHOWN - 8) * UNIT;
        uint64_t bytes = (1 + rnd(8)) * UNIT;

        memset(buf, 1 + (int)i, sizeof(buf));
        ck_assert_int_eq(rnd(5) ? blk_pwrite(b, buf, bytes, at, 0)
                                : blk_zero(b, at, bytes, 0),
                         0);
    }
    blk_free(b);
    graph_close_all(g);
    graph_free(g);
    file_bytes = rec.top;
}

static bool is_here(uint64_t host)
{
    return guest_is_place(&(struct guest_image){rec.disk, file_bytes}, host);
}

/* Words that are not the header's: L1, refcount table, one of their tables. */
static uint64_t pick_word(void)
{
    uint64_t l1 = load_be64(rec.disk + 40);
    uint64_t table = load_be64(rec.disk + 48);
    uint64_t entry = l1 + rnd(load_be32(rec.disk + 36)) * 8;
    uint64_t l2 = load_be64(rec.disk + entry) & mask;
    uint64_t block = load_be64(rec.disk + table);

    switch (rnd(8)) {
    case 0:
        return entry;
    case 1:
        return table;
    case 2:
        return is_here(block) ? block + rnd(512 / 8) * 8 : entry;
    default:
        return is_here(l2) ? l2 + rnd(512 / 8) * 8 : entry;
    }
}

static void damage(void)
{
    uint64_t l1 = load_be64(rec.disk + 40);
    const uint64_t values[] = {
        0,
        l1 | UINT64_C(1) << 63,
        load_be64(rec.disk + l1),
        load_be64(rec.disk + 48),
        UINT64_C(0x8000000000300000),
        align_up(file_bytes, cluster) + (1 + rnd(20)) * cluster, /* behind */
        UINT64_C(0x8000000000000001),
        UINT64_C(0x123),
    };

    for (unsigned i = 0; i < 1 + rnd(4); i++) {
        uint64_t at = pick_word();
        uint64_t value = rnd(3) ? values[rnd(ARRAY_SIZE(values))]
                                : load_be64(rec.disk + at) ^ UINT64_C(1)
                                                                 << rnd(62);

        store_be64(rec.disk + at, value & ~(UINT64_C(1) << 62));
    }
}

/* The last finding, for a test that fails. */
static char last[512];

static void note(const struct image_finding *f, void *opaque)
{
    (void)opaque;
    (void)snprintf(last, sizeof(last), "%s", f->text);
    if (getenv("TELL")) {
        printf("%s\n", last);
    }
}

static int repair(struct image_check *c)
{
    const struct image_check_options o = {.repair = IMAGE_REPAIR_ALL,
                                          .found = note};
    CLEANUP_JSON json_t *mem = json_pack("{s:s, s:I}", "driver", "mem", "size",
                                         (json_int_t)file_bytes);
    struct graph *g = graph_new();
    struct node *like;

    ck_assert_int_eq(graph_open(g, mem, &like, NULL), 0);
    struct node *file = new_recorder(g, &recorder_driver, "rec", like);
    int r = image_check(g, file, "qcow2", &o, c, NULL);
    drop(g, file);
    graph_close_all(g);
    graph_free(g);
    return r;
}

/* --- The tests --- */

static void expect_sound(const unsigned char *damaged, const char *when)
{
    const struct image im = {rec.disk, rec.top};
    struct image_check c;

    rec_fail((struct fault){0});
    file_bytes = align_up(rec.top, cluster);
    ck_assert_int_eq(repair(&c), 0);
    ck_assert_msg(c.corruptions == 0 && c.leaks == 0, "%s: %s", when, last);
    compare_guests(damaged, rec.disk, when);
    struct verdict v = check_image(&(struct image){im.bytes, rec.top});
    ck_assert_uint_eq(v.corruptions, 0);
    ck_assert_uint_eq(v.leaks, 0);
}

static void forget_log(void)
{
    for (unsigned i = 0; i < rec.count; i++) {
        free(rec.log[i].data);
    }
    rec.count = 0;
}

/* Make one damaged image, every other one with subclusters; its bytes are to be
 * freed. */
static unsigned char *damaged_image(uint64_t number)
{
    unsigned char *bytes = malloc(DISK_MAX);

    ck_assert_ptr_nonnull(bytes);
    seed = number * 7919 + 1;
    cluster = number % 2 ? 16384 : 512;
    file_bytes = load_new_image(
        number % 2 ? "{\"size\": 524288, \"cluster_size\": 16384, "
                     "\"extended_l2\": true}"
                   : "{\"size\": 524288, \"cluster_size\": 512}");
    write_some();
    forget_log();
    over_another = rnd(2);
    if (over_another) {
        store_be64(rec.disk + load_be32(rec.disk + 100), 0); /* no extensions */
        store_be64(rec.disk + 8, 500);
        store_be32(rec.disk + 16, 4);
    }
    damage();
    damaged_bytes = file_bytes;
    memcpy(bytes, rec.disk, DISK_MAX);
    return bytes;
}

START_TEST(power_cuts_leave_it_no_worse)
{
    CLEANUP_FREE unsigned char *damaged = damaged_image((uint64_t)_i);
    struct image_check c;
    unsigned cut;

    ck_assert_int_eq(repair(&c), 0);
    compare_guests(damaged, rec.disk, "repaired");
    for (unsigned i = 0; i < CRASHES; i++) {
        CLEANUP_FREE unsigned char *after = crashed_image(damaged, &cut);
        CLEANUP_FREE char *when = NULL;

        ck_assert_int_gt(asprintf(&when, "cut at %u", cut), 0);
        compare_guests(damaged, after, when);
    }
    expect_sound(damaged, "repaired twice");
    forget_records();
}
END_TEST

/* The @k-th request of that kind fails; false: there are not so many. */
static bool fail_one(const unsigned char *damaged, uint64_t top,
                     enum fault_kind kind, unsigned k)
{
    CLEANUP_FREE char *when = NULL;
    struct image_check c;

    ck_assert_int_gt(asprintf(&when, "%s %u failed",
                              kind == FAULT_WRITE   ? "write"
                              : kind == FAULT_FLUSH ? "flush"
                                                    : "read",
                              k),
                     0);
    forget_log();
    memcpy(rec.disk, damaged, DISK_MAX);
    rec.top = top;
    file_bytes = top;
    rec_fail((struct fault){.kind = kind, .countdown = k, .error = -EIO});
    int r = repair(&c);
    ck_assert(r == 0 || r == -EIO);
    compare_guests(damaged, rec.disk, when);
    expect_sound(damaged, when);
    return r != 0;
}

START_TEST(requests_that_fail_leave_it_no_worse)
{
    CLEANUP_FREE unsigned char *damaged = damaged_image((uint64_t)_i);
    uint64_t top = rec.top;

    for (unsigned kind = FAULT_WRITE; kind <= FAULT_READ; kind++) {
        for (unsigned k = 1; fail_one(damaged, top, kind, k); k++) {
            ck_assert_uint_lt(k, 10000);
        }
    }
    forget_records();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qcow2-repair");
    TCase *t = tcase_create("crash");

    tcase_add_loop_test(t, power_cuts_leave_it_no_worse, 0, 15);
    tcase_add_loop_test(t, requests_that_fail_leave_it_no_worse, 0, 4);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed > 0;
}
