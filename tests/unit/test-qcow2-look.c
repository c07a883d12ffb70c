/* SPDX-License-Identifier: BSD-3-Clause */
/* What an L2 table says, run by run, of tables of all kinds of entries in any
 * order: qcow2_l2_look_many() against a list of what was put into the table. */
#include <check.h>
#include <stdlib.h>

#include "nbdelta/bytes.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"

#define BITS    12
#define CLUSTER (UINT64_C(1) << BITS)
#define ENTRIES 512U
#define MOST    40

static struct qcow2 s;
static uint64_t words[ENTRIES]; /* as on disk */
static struct qcow2_table table = {.data = words};

/* What was put. */
static struct entry {
    enum qcow2_kind kind;
    uint64_t word;
} list[ENTRIES];

static void setup(uint32_t version, bool extended)
{
    s.version = version;
    s.extended = extended;
    s.cluster_bits = BITS;
    s.cluster_size = CLUSTER;
    s.sub_bits = extended ? BITS - 5 : BITS;
    s.l2_bits = qcow2_l2_bits(BITS, extended);
    srandom(version + extended);
}

static uint64_t below(uint64_t n)
{
    return (uint64_t)random() % n;
}

static bool has_place(enum qcow2_kind kind)
{
    return kind == QCOW2_KIND_NORMAL || kind == QCOW2_KIND_ZERO_ALLOC;
}

static struct entry random_entry(void)
{
    static const enum qcow2_kind kinds[] = {
        QCOW2_KIND_UNALLOCATED, QCOW2_KIND_NORMAL, QCOW2_KIND_COMPRESSED,
        QCOW2_KIND_ZERO_PLAIN, QCOW2_KIND_ZERO_ALLOC};
    struct entry e = {.kind = kinds[below(s.version < 3 ? 3 : 5)]};
    uint64_t copied = below(4) ? UINT64_C(1) << 63 : 0;

    if (e.kind == QCOW2_KIND_COMPRESSED) {
        e.word = UINT64_C(1) << 62 | (1 + below(1000000));
    } else if (has_place(e.kind)) {
        e.word = copied | (1 + below(1000)) * CLUSTER;
    }
    e.word |= e.kind == QCOW2_KIND_ZERO_PLAIN ||
              e.kind == QCOW2_KIND_ZERO_ALLOC;
    return e;
}

/* Half of the entries continue the one before. */
static void fill(void)
{
    for (unsigned i = 0; i < ENTRIES; i++) {
        if (i > 0 && below(2)) {
            list[i] = list[i - 1];
            list[i].word += has_place(list[i].kind) ? CLUSTER : 0;
        } else {
            list[i] = random_entry();
        }
        words[i] = htobe64(list[i].word);
    }
}

/* Do the two entries that begin with @i belong together? */
static bool is_one_run(unsigned i)
{
    return list[i].kind == list[i + 1].kind &&
           (!has_place(list[i].kind) ||
            list[i].word + CLUSTER == list[i + 1].word);
}

static void check_run(const struct qcow2_at *at, uint64_t offset,
                      uint64_t bytes)
{
    unsigned i = (unsigned)(offset / CLUSTER);
    uint64_t end = (i + 1) * CLUSTER;

    while (end < offset + bytes && is_one_run((unsigned)(end / CLUSTER) - 1)) {
        end += CLUSTER;
    }
    ck_assert_int_eq(at->kind, list[i].kind);
    ck_assert_uint_eq(at->bytes, min_u64(end - offset, bytes));
    ck_assert_int_eq(at->copied, list[i].word >> 63);
    ck_assert(!at->wrong && !at->contradicts);
    if (has_place(at->kind)) {
        ck_assert_uint_eq(at->host, (list[i].word & QCOW2_OFFSET_MASK) +
                                        offset % CLUSTER);
    }
}

/* What is behind the table is not looked at. */
static void look_anywhere(void)
{
    const uint64_t span = qcow2_l2_span(&s);
    uint64_t offset = below(span);
    uint64_t bytes = 1 + below(2 * span);
    unsigned most = 1 + (unsigned)below(MOST);
    struct qcow2_at at[MOST];
    unsigned n = qcow2_l2_look_many(&s, &table, offset, bytes, at, most);

    bytes = min_u64(bytes, span - offset);
    ck_assert(n > 0 && n <= most);
    for (unsigned i = 0; i < n; i++) {
        check_run(&at[i], offset, bytes);
        offset += at[i].bytes;
        bytes -= at[i].bytes;
    }
    ck_assert(n == most || bytes == 0);
}

START_TEST(runs_are_what_was_put)
{
    setup((uint32_t)_i, false);
    for (int round = 0; round < 500; round++) {
        fill();
        for (int i = 0; i < 20; i++) {
            look_anywhere();
        }
    }
}
END_TEST

START_TEST(a_place_where_none_can_be_is_told)
{
    struct qcow2_at at[3];

    setup(3, false);
    words[0] = htobe64(5 * CLUSTER);
    words[1] = htobe64(6 * CLUSTER + 512);
    words[2] = 0;
    ck_assert_uint_eq(qcow2_l2_look_many(&s, &table, 0, 3 * CLUSTER, at, 3), 3);
    ck_assert(!at[0].wrong && at[1].wrong && !at[2].wrong);
}
END_TEST

/* Entries with subclusters: at once as one by one. */
START_TEST(parts_are_told_one_after_the_other)
{
    setup(3, true);
    for (int round = 0; round < 2000; round++) {
        for (unsigned i = 0; i < ENTRIES; i += 2) {
            uint64_t alloc = below(2) ? (uint64_t)random() : UINT32_MAX;
            uint64_t zero = (below(2) ? (uint64_t)random() : 0) & ~alloc;

            words[i] = htobe64((1 + below(4)) * CLUSTER);
            words[i + 1] = htobe64(zero << 32 | (alloc & UINT32_MAX));
        }
        uint64_t offset = below(qcow2_l2_span(&s));
        struct qcow2_at at[MOST], one;
        unsigned n = qcow2_l2_look_many(&s, &table, offset, 8 * CLUSTER, at,
                                        MOST);
        uint64_t end = min_u64(offset + 8 * CLUSTER, qcow2_l2_span(&s));

        for (unsigned i = 0; i < n; i++) {
            qcow2_l2_look(&s, &table, offset, end - offset, &one);
            ck_assert_int_eq(at[i].kind, one.kind);
            ck_assert_uint_eq(at[i].bytes, one.bytes);
            ck_assert_uint_eq(at[i].host, one.host);
            offset += one.bytes;
        }
        ck_assert(n == MOST || offset == end);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("qcow2-look");
    TCase *tc = tcase_create("all");

    tcase_add_loop_test(tc, runs_are_what_was_put, 2, 4);
    tcase_add_test(tc, a_place_where_none_can_be_is_told);
    tcase_add_test(tc, parts_are_told_one_after_the_other);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
