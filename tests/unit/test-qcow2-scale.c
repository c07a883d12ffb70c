/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Tables of the largest size: what is written to them costs by what has
 * changed, however far apart that is, and a walk through them by their entries.
 */
#define DISK_MAX (128 * MiB)

#include "power-cut.h"

#include <errno.h>
#include <sys/resource.h>

#include "bitmap-util.h"
#include "qcow2/bitmaps.h"

#include "nbdelta/action.h"
#include "nbdelta/blk.h"
#include "nbdelta/graph.h"
#include "nbdelta/internal-snapshot.h"

/* The L1 table has 2^22 entries, 32 MiB: an L2 table is for 32 KiB. */
#define GUEST    (128 * GiB)
#define L2_SPAN  (32 * KiB)
#define L1_BYTES (GUEST / L2_SPAN * 8)

/* Bytes written to the L1 table since record @from. */
static uint64_t l1_written(unsigned from)
{
    uint64_t l1 = load_be64(rec.disk + 40);
    uint64_t bytes = 0;

    for (unsigned i = from; i < rec.count; i++) {
        const struct record *r = &rec.log[i];
        if (r->offset + r->bytes > l1 && r->offset < l1 + L1_BYTES) {
            bytes += r->bytes;
        }
    }
    return bytes;
}

static uint64_t l1_entry(uint64_t index)
{
    return load_be64(rec.disk + load_be64(rec.disk + 40) + index * 8);
}

START_TEST(far_entries_of_the_l1_table_are_written_alone)
{
    const uint64_t last = GUEST / L2_SPAN - 1;
    struct graph *g = graph_new();
    struct blk *b;

    uint64_t size =
        load_new_image("{\"size\": 137438953472, \"cluster_size\": 512}");
    ck_assert_uint_eq(load_be32(rec.disk + 36), L1_BYTES / 8);
    struct node *n = open_recorded(g, DISK_MAX);
    ck_assert_uint_lt(size, DISK_MAX / 2);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);

    unsigned from = rec.count;
    const uint64_t at[] = {0, 1, 70, 1000000, last};
    for (unsigned i = 0; i < 5; i++) {
        ck_assert_uint_eq(l1_entry(at[i]), 0);
        ck_assert_int_eq(blk_pwrite(b, "x", 1, at[i] * L2_SPAN, 0), 0);
    }
    ck_assert_int_eq(blk_flush(b), 0);
    for (unsigned i = 0; i < 5; i++) {
        ck_assert_uint_ne(l1_entry(at[i]), 0);
    }
    /* A page for the first entry in each of three, and the four sectors. */
    ck_assert_uint_le(l1_written(from), UINT64_C(3) * 4096 + 4 * 512);

    /* The same where a flush has failed: all of it is written by the next. */
    from = rec.count;
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 5 * L2_SPAN, 0), 0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, (last - 5) * L2_SPAN, 0), 0);
    rec_fail((struct fault){FAULT_WRITE, 1, -EIO, false, true});
    ck_assert_int_eq(blk_flush(b), -EIO);
    rec_fail((struct fault){0});
    ck_assert_int_eq(blk_pwrite(b, "x", 1, (last - 300) * L2_SPAN, 0), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_ne(l1_entry(5), 0);
    ck_assert_uint_ne(l1_entry(last - 5), 0);
    ck_assert_uint_ne(l1_entry(last - 300), 0);
    ck_assert_uint_le(l1_written(from), 3 * 4096);
    blk_free(b);
    graph_free(g);
    forget_records();
}
END_TEST

/* --- Bitmaps of 2^32 bits, of which few are set --- */

#define HUGE_DISK (64 * TiB)

static uint64_t page_faults(void)
{
    struct rusage u;

    ck_assert_int_eq(getrusage(RUSAGE_SELF, &u), 0);
    return (uint64_t)u.ru_minflt;
}

static uint64_t written_since(unsigned from)
{
    uint64_t bytes = 0;

    for (unsigned i = from; i < rec.count; i++) {
        bytes += rec.log[i].bytes;
    }
    return bytes;
}

static struct blk *open_huge(struct graph **g)
{
    struct blk *b;

    (void)load_new_image(
        "{\"size\": 70368744177664, \"cluster_size\": 2097152}");
    *g = graph_new();
    struct node *n = open_recorded(*g, DISK_MAX);
    ck_assert_int_eq(blk_new(*g, n, PERM_READ | PERM_WRITE | PERM_RESIZE,
                             PERM_ALL, "test", &b, NULL),
                     0);
    return b;
}

/* Nothing is done to all of the bits, or to all regions: neither in memory
 * (that would be up to 131072 pages for each bitmap) nor in the image (all bits
 * are 512 MiB).  What is written are tables and blocks, of one cluster each.
 * The pages are those of the copies of them. */
START_TEST(a_sparse_bitmap_costs_by_what_is_set)
{
    static const uint64_t sizes[] = {HUGE_DISK - 2 * GiB, HUGE_DISK - GiB,
                                     HUGE_DISK / 2};
    struct graph *g;
    struct blk *b = open_huge(&g);
    struct node *n = blk_node(b);

    unsigned from = rec.count;
    uint64_t before = page_faults();
    ck_assert_int_eq(bitmap_add(g, n, "a", 16 * KiB, true, false, NULL), 0);
    ck_assert_int_eq(bitmap_add(g, n, "b", 16 * KiB, true, false, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 5 * TiB, 0), 0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, HUGE_DISK - GiB, 0), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        ck_assert_int_eq(blk_resize(b, sizes[i], NULL), 0);
    }
    ck_assert_int_eq(bitmap_clear(g, n, "a", NULL), 0);
    ck_assert_int_eq(bitmap_clear(g, n, "b", NULL), 0);
    ck_assert_uint_lt(written_since(from), 100 * MiB);
#ifndef __SANITIZE_THREAD__ /* it has pages of its own for each of ours */
    ck_assert_uint_lt(page_faults() - before, 60000);
#else
    (void)before;
#endif
    blk_free(b);
    graph_free(g);
    forget_records();
}
END_TEST

/* What is armed too much is made exact with a write for each 64 KiB, not for
 * each of the 2^18 regions of a slice. */
START_TEST(tightening_writes_regions_together)
{
    const uint64_t region = 4 * MiB;
    struct graph *g;
    struct blk *b = open_huge(&g);
    struct node *n = blk_node(b);

    ck_assert_int_eq(bitmap_add(g, n, "a", 64 * KiB, true, false, NULL), 0);
    for (unsigned i = 0; i < 16; i++) { /* each arms as many as all before */
        ck_assert_int_eq(blk_discard(b, region << i, region / 2), 0);
    }
    ck_assert_int_eq(qcow2_bitmaps_tighten(n->state), 0);
    unsigned from = rec.count;
    ck_assert_int_eq(qcow2_bitmaps_tighten(n->state), 0);
    ck_assert_uint_lt(rec.count - from, 100);
    ck_assert_uint_lt(written_since(from), 3 * MiB);
    blk_free(b);
    graph_free(g);
    forget_records();
}
END_TEST

static void change(struct node *n, enum internal_verb verb)
{
    const struct internal_options o = {.node = n, .verb = verb, .name = "s"};
    struct action *a;

    ck_assert_int_eq(snapshot_internal_action(&o, &a, NULL), 0);
    ck_assert_int_eq(action_run(n->graph, a, NULL), 0);
}

static struct blk *start(struct graph **g)
{
    struct blk *b;

    *g = graph_new();
    struct node *n = open_recorded(*g, rec.top);
    ck_assert_int_eq(
        blk_new(*g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    return b;
}

static void stop(struct graph *g, struct blk *b)
{
    blk_free(b);
    graph_free(g);
}

/* All entries of the first L2 table lead to compressed bytes in one cluster. */
static void compress_all(void)
{
    const uint64_t mask = UINT64_C(0x00fffffffffffe00);
    uint64_t l1 = load_be64(rec.disk + 40);
    uint64_t l2 = load_be64(rec.disk + l1) & mask;
    uint64_t host = load_be64(rec.disk + l2) & mask;

    for (uint64_t i = 1; i < 2 * MiB / 8; i++) {
        store_be64(rec.disk + l2 + i * 8, host | UINT64_C(1) << 62);
    }
}

/* 131072 entries with subclusters, or 262144 compressed ones, which are all
 * alike.  If each were compared with all that follow, this would take minutes.
 */
START_TEST(a_snapshot_of_large_tables_looks_at_each_entry_once)
{
    static const char *const options[] = {
        "{\"size\": 2199023255552, \"cluster_size\": 2097152, "
        "\"extended_l2\": true}",
        "{\"size\": 549755813888, \"cluster_size\": 2097152, "
        "\"refcount_bits\": 64}"};
    struct graph *g;

    (void)load_new_image(options[_i]);
    struct blk *b = start(&g);
    for (uint64_t i = 0; i < (_i ? 1 : 8); i++) {
        ck_assert_int_eq(blk_pwrite(b, "x", 1, i * 256 * GiB, 0), 0);
    }
    stop(g, b);
    if (_i) {
        compress_all();
    }
    b = start(&g);
    change(blk_node(b), INTERNAL_MAKE);
    if (_i == 0) { /* else there are fewer counts than references */
        ck_assert_int_eq(blk_pwrite(b, "y", 1, 0, 0), 0);
        change(blk_node(b), INTERNAL_APPLY);
        change(blk_node(b), INTERNAL_REMOVE);
    }
    stop(g, b);
    forget_records();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qcow2-scale");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, far_entries_of_the_l1_table_are_written_alone);
    tcase_add_test(tc, a_sparse_bitmap_costs_by_what_is_set);
    tcase_add_test(tc, tightening_writes_regions_together);
    tcase_add_loop_test(tc, a_snapshot_of_large_tables_looks_at_each_entry_once,
                        0, 2);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
