/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk that grows or shrinks while the power fails, or while a request of the
 * resize fails: it has the old size or the new one, what is in both is as it
 * was, what has grown reads as zeroes, and no reference is without a count.
 */
#define DISK_MAX (4 * MiB)

#include "power-cut.h"
#include "qcow2-check.h"
#include "qcow2-guest.h"

#include <errno.h>
#include <inttypes.h>

#include "nbdelta/blk.h"
#include "nbdelta/graph.h"

#define SLOT (4 * KiB)
#define CUTS 40

static const struct shape {
    const char *options;
    uint64_t from; /* sizes of the disk */
    uint64_t to;
    bool garbage;
} shapes[] = {
    {"{\"size\": 1048576, \"cluster_size\": 512}", MiB, 200 * KiB, false},
    {"{\"size\": 1048576, \"cluster_size\": 512}", MiB, 200 * KiB, true},
    {"{\"size\": 1048576, \"cluster_size\": 512}", MiB, 8 * MiB, true},
    {"{\"size\": 1048576, \"cluster_size\": 4096, \"refcount_bits\": 64}", MiB,
     0, false},
    {"{\"size\": 1048576, \"cluster_size\": 4096, \"refcount_bits\": 1}", MiB,
     100 * KiB, true},
    {"{\"size\": 1048576, \"cluster_size\": 65536}", MiB, 300 * KiB, true},
    {"{\"size\": 1048576, \"cluster_size\": 512, \"compat\": \"0.10\"}", MiB,
     200 * KiB, false},
};
#define SHAPES ((int)(sizeof(shapes) / sizeof(shapes[0])))

static unsigned char stamp(uint64_t slot)
{
    return (unsigned char)(slot % 250 + 1);
}

static bool is_written(uint64_t slot)
{
    return slot % 3 != 1;
}

/* --- What an image has --- */

/* Are these bytes of the disk all @value?  What is nowhere is zero. */
static bool reads_as(const struct guest_image *g, uint64_t offset,
                     uint64_t bytes, unsigned char value)
{
    uint64_t unit = min_u64(guest_cluster_size(g), SLOT);

    for (uint64_t at = offset; at < offset + bytes; at += unit) {
        uint64_t cluster = at / guest_cluster_size(g);
        uint64_t in = at % guest_cluster_size(g);
        uint64_t host = guest_look(g, cluster);

        ck_assert_uint_ne(host, GUEST_UNREADABLE);
        for (uint64_t i = 0; i < unit; i++) {
            unsigned char is = host == GUEST_NOTHING || host == GUEST_ZEROES
                                   ? 0
                                   : g->bytes[host + in + i];
            if (is != value) {
                return false;
            }
        }
    }
    return true;
}

/* The size of the disk in this image, which is sound. */
static uint64_t check_resized(const struct shape *sh,
                              const unsigned char *bytes, unsigned at)
{
    struct guest_image g = {bytes, DISK_MAX};
    struct image image = {bytes, DISK_MAX};
    uint64_t size = load_be64(bytes + 24);
    struct verdict v = check_image(&image);

    ck_assert_msg(v.corruptions == 0,
                  "%" PRIu64 " uncovered references after %u", v.corruptions,
                  at);
    ck_assert(size == sh->from || size == sh->to);
    for (uint64_t slot = 0; slot < size / SLOT; slot++) {
        bool kept = (slot + 1) * SLOT <= min_u64(sh->from, sh->to);
        bool old = (slot + 1) * SLOT <= sh->from && is_written(slot);
        bool zero = reads_as(&g, slot * SLOT, SLOT, 0);

        ck_assert_msg((old && reads_as(&g, slot * SLOT, SLOT, stamp(slot))) ||
                          (zero && !(kept && old)),
                      "slot %" PRIu64 " of %" PRIu64 " bytes, after %u", slot,
                      size, at);
    }
    return size;
}

/* --- The resize --- */

struct world {
    struct graph *g;
    struct node *n;
    struct blk *b;
    unsigned char *before;
};

static void open_disk(struct world *w, uint64_t size)
{
    w->g = graph_new();
    w->n = open_recorded(w->g, size);
    ck_assert_int_eq(blk_new(w->g, w->n, PERM_READ | PERM_WRITE | PERM_RESIZE,
                             PERM_ALL, "test", &w->b, NULL),
                     0);
}

static void close_disk(struct world *w)
{
    blk_free(w->b);
    graph_free(w->g);
}

/* A disk with data, which is durable; nothing is recorded yet. */
static void begin(struct world *w, const struct shape *sh)
{
    unsigned char data[SLOT];

    rec.garbage = sh->garbage;
    rec.has_data = false;
    uint64_t size = load_new_image(sh->options);
    open_disk(w, size);
    for (uint64_t slot = 0; slot < sh->from / SLOT; slot++) {
        memset(data, stamp(slot), sizeof(data));
        if (is_written(slot)) {
            ck_assert_int_eq(blk_pwrite(w->b, data, SLOT, slot * SLOT, 0), 0);
        }
    }
    ck_assert_int_eq(blk_flush(w->b), 0);
    ck_assert_int_eq(blk_flush(w->b), 0);
    for (unsigned i = 0; i < rec.count; i++) {
        free(rec.log[i].data);
    }
    rec.count = 0;
    w->before = malloc(DISK_MAX);
    ck_assert_ptr_nonnull(w->before);
    memcpy(w->before, rec.disk, DISK_MAX);
}

static void end(struct world *w)
{
    free(w->before);
    forget_records();
}

START_TEST(no_power_cut_harms_a_disk_that_is_resized)
{
    const struct shape *sh = &shapes[_i];
    bool seen[2] = {false, false};
    struct world w;

    seed = 31 + (unsigned)_i;
    begin(&w, sh);
    ck_assert_int_eq(blk_resize(w.b, sh->to, NULL), 0);
    close_disk(&w);
    for (unsigned i = 0; i < CUTS; i++) {
        unsigned cut;
        unsigned char *disk = crashed_image(w.before, &cut);

        seen[check_resized(sh, disk, cut) == sh->to] = true;
        free(disk);
    }
    ck_assert(seen[0] && seen[1]);
    ck_assert_uint_eq(check_resized(sh, rec.disk, rec.count), sh->to);
    struct image last = {rec.disk, DISK_MAX};
    struct verdict v = check_image(&last);
    ck_assert_uint_eq(v.leaks, 0);
    end(&w);
}
END_TEST

/* Resize while the @k-th request fails.  False: there are not so many. */
static bool fail_at(const struct shape *sh, enum fault_kind kind, bool done,
                    unsigned k)
{
    struct world w;

    begin(&w, sh);
    rec_fail((struct fault){kind, k, -EIO, done, false});
    int r = blk_resize(w.b, sh->to, NULL);
    bool came = rec.fault.countdown == 0;
    rec_fail((struct fault){0});
    ck_assert(r == 0 || r == -EIO);
    uint64_t said = node_size(w.n);
    ck_assert_uint_eq(said, r == 0 ? sh->to : sh->from);
    close_disk(&w);
    (void)check_resized(sh, rec.disk, k);

    /* The next one goes through. */
    open_disk(&w, DISK_MAX);
    ck_assert_int_eq(blk_resize(w.b, sh->to, NULL), 0);
    close_disk(&w);
    ck_assert_uint_eq(check_resized(sh, rec.disk, k), sh->to);
    end(&w);
    return came;
}

START_TEST(no_failing_request_harms_a_disk_that_is_resized)
{
    static const enum fault_kind kinds[] = {FAULT_WRITE, FAULT_FLUSH,
                                            FAULT_READ};
    const struct shape *sh = &shapes[_i];
    unsigned failed = 0;

    for (unsigned kind = 0; kind < 3; kind++) {
        for (unsigned done = 0; done < 2; done++) {
            unsigned k = 1;
            /* Each of the first requests, then some. */
            while (fail_at(sh, kinds[kind], done, k)) {
                k += k < 6 ? 1 : k / 2;
                failed++;
            }
        }
    }
    ck_assert_uint_gt(failed, 4);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qcow2-resize");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, no_power_cut_harms_a_disk_that_is_resized, 0,
                        SHAPES);
    tcase_add_loop_test(tc, no_failing_request_harms_a_disk_that_is_resized, 0,
                        SHAPES);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
