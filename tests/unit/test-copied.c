/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Old data that is copied beside a guest's writes, or copied up from the
 * backing file without any, and storage that forgets:
 * a flush fails, and all that was written since the last good one reads as it
 * was before (qcow2/copied.c).
 *
 * A guest writes at random, over bytes that were copied and over its own.  It
 * may find anything where it wrote since its last good flush, and nothing else
 * has changed.  Then it writes the same again.  What was flushed is there after
 * kill -9.  Where storage has forgotten nothing, nothing at all has changed.
 */
#define DISK_MAX (4 * MiB)

#include <errno.h>
#include <inttypes.h>

#include "bitmap-util.h"
#include "core/copy-up.h"
#include "nbdelta/blk.h"
#include "nbdelta/internal-snapshot.h"
#include "power-cut.h"

#define SIZE   (192 * KiB) /* of the disk */
#define ROUNDS 8
#define OPS    12 /* in a row, at most */

enum old { OLD_BACKING, OLD_SHARED, OLD_PACKED, OLD_ZEROES };

static const struct shape {
    const char *options;
    enum old old;
    unsigned unit; /* the guest's */
    bool garbage;  /* what was never written does not read as zeroes */
} shapes[] = {
    {"{\"size\": 196608, \"cluster_size\": 16384}", OLD_BACKING, 1, true},
    {"{\"size\": 196608, \"cluster_size\": 4096}", OLD_SHARED, 1, false},
    {"{\"size\": 196608, \"cluster_size\": 16384}", OLD_PACKED, 1, false},
    {"{\"size\": 196608, \"cluster_size\": 65536}", OLD_ZEROES, 1, true},
    {"{\"size\": 196608, \"cluster_size\": 32768, \"extended_l2\": true}",
     OLD_SHARED, 1, false},
    {"{\"size\": 196608, \"cluster_size\": 32768, \"extended_l2\": true}",
     OLD_BACKING, 1, true},
    {"{\"size\": 196608, \"cluster_size\": 16384, \"encrypt\": "
     "{\"format\": \"luks\", \"key-secret\": \"s\", \"iter-time\": 1}}",
     OLD_SHARED, 512, false},
    {"{\"size\": 196608, \"cluster_size\": 16384, \"data_file\": \"d\"}",
     OLD_BACKING, 1, true},
};

#define SHAPES ((int)(sizeof(shapes) / sizeof(shapes[0])))
#define SEEDS  3

struct op {
    uint64_t offset;
    uint64_t bytes;
    unsigned char value; /* 0: zeroes */
    unsigned flags;
};

static struct world {
    const struct shape *shape;
    struct graph *g;
    struct node *n;
    struct blk *b;
    unsigned char has[SIZE];
    bool own[SIZE]; /* the guest has to write it again */
    struct op ops[ROUNDS * OPS];
    unsigned count; /* of ops since the last good flush */
} w;

static void open_disk(uint64_t file_bytes)
{
    bool backed = w.shape->old == OLD_BACKING;

    w.g = graph_new();
    add_secret(w.g);
    if (backed) {
        CLEANUP_JSON json_t *o = json_pack("{s:s, s:i, s:s}", "driver", "mem",
                                           "size", SIZE - 5 * 512, "node-name",
                                           "base");
        struct node *base;
        struct blk *b;

        ck_assert_int_eq(graph_open(w.g, o, &base, NULL), 0);
        ck_assert_int_eq(
            blk_new(w.g, base, PERM_WRITE, PERM_ALL, "base", &b, NULL), 0);
        unsigned char bytes[512];
        for (uint64_t at = 0; at < SIZE - 5 * 512; at += 512) {
            memset(bytes, (int)(1 + at / 512 % 250), sizeof(bytes));
            ck_assert_int_eq(blk_pwrite(b, bytes, 512, at, 0), 0);
        }
        blk_free(b);
    }
    w.n = open_recorded_with(w.g, file_bytes, backed ? "backing" : NULL,
                             "base");
    ck_assert_int_eq(
        blk_new(w.g, w.n, PERM_READ | PERM_WRITE, PERM_ALL, "b", &w.b, NULL),
        0);
}

static void close_disk(void)
{
    blk_free(w.b);
    graph_free(w.g);
}

static void make_snapshot(void)
{
    const struct internal_options o = {
        .node = w.n, .verb = INTERNAL_MAKE, .name = "s"};
    struct action *a;

    ck_assert_int_eq(snapshot_internal_action(&o, &a, NULL), 0);
    ck_assert_int_eq(action_run(w.g, a, NULL), 0);
}

static void write_old(void)
{
    for (uint64_t at = 0; at < SIZE; at++) {
        w.has[at] = (unsigned char)(1 + at / 512 % 250);
    }
    switch (w.shape->old) {
    case OLD_BACKING:
        memset(w.has + SIZE - 5 * 512, 0, 5 * 512);
        break;
    case OLD_SHARED:
        ck_assert_int_eq(blk_pwrite(w.b, w.has, SIZE, 0, 0), 0);
        make_snapshot();
        break;
    case OLD_PACKED:
        ck_assert_int_eq(node_write_compressed(w.n, w.has, SIZE, 0), 0);
        break;
    case OLD_ZEROES:
        memset(w.has, 0, SIZE);
        ck_assert_int_eq(blk_zero(w.b, 0, SIZE, REQ_MAY_UNMAP), 0);
        break;
    }
}

static void begin(const struct shape *shape)
{
    memset(&w, 0, sizeof(w));
    w.shape = shape;
    rec.garbage = shape->garbage;
    rec.has_data = strstr(shape->options, "data_file");
    rec.encrypted = strstr(shape->options, "encrypt");
    uint64_t size = load_new_image(shape->options);
    (void)unlink("d");
    if (rec.has_data) {
        rec.top = DISK_MAX;
        size = DATA_AT;
    }
    open_disk(size);
    write_old();
    ck_assert_int_eq(blk_flush(w.b), 0);
    rec.flushed = malloc(DISK_MAX);
    ck_assert_ptr_nonnull(rec.flushed);
    memcpy(rec.flushed, rec.disk, DISK_MAX);
}

static int run_op(const struct op *op)
{
    static unsigned char bytes[SIZE];

    memset(w.has + op->offset, op->value, op->bytes);
    memset(w.own + op->offset, true, op->bytes);
    memset(bytes, op->value, op->bytes);
    return op->value ? blk_pwrite(w.b, bytes, op->bytes, op->offset, 0)
                     : blk_zero(w.b, op->offset, op->bytes, op->flags);
}

/* Give the image a part of what it leaves to its backing file. */
static void copy_some_up(void)
{
    static unsigned char bytes[SIZE];
    uint64_t offset = rnd(SIZE / w.shape->unit) * w.shape->unit;
    uint64_t most = min_u64(SIZE - offset, 40000) / w.shape->unit;
    uint64_t len = (1 + rnd(most)) * w.shape->unit;
    bool zero = true;

    ck_assert_int_eq(blk_pread(w.b, bytes, len, offset, 0), 0);
    for (uint64_t i = 0; i < len; i++) {
        zero = zero && bytes[i] == 0;
    }
    struct tree *t = node_enter(w.n, false);
    ck_assert_int_eq(node_copy_up(w.n, offset, len, zero ? NULL : bytes, 0), 0);
    node_leave(t);
}

static void run_some(void)
{
    for (uint64_t n = 1 + rnd(OPS); n > 0; n--) {
        struct op *op = &w.ops[w.count++];
        uint64_t units = SIZE / w.shape->unit;
        uint64_t first = rnd(units);
        uint64_t most = min_u64(units - first,
                                (rnd(4) ? 3000 : 70000) / w.shape->unit + 1);

        *op = (struct op){
            .offset = first * w.shape->unit,
            .bytes = (1 + rnd(most)) * w.shape->unit,
            .value = (unsigned char)rnd(5) ? (unsigned char)rnd(256) : 0,
            .flags = rnd(2) ? REQ_MAY_UNMAP : 0,
        };
        ck_assert_int_eq(run_op(op), 0);
        if (rnd(2)) {
            copy_some_up();
        }
    }
}

/* @all, or except where the guest has written. */
static void check(const char *when, bool all)
{
    static unsigned char bytes[SIZE];

    ck_assert_int_eq(blk_pread(w.b, bytes, SIZE, 0, 0), 0);
    for (uint64_t at = 0; at < SIZE; at++) {
        ck_assert_msg((w.own[at] && !all) || bytes[at] == w.has[at],
                      "%s: byte %" PRIu64 " reads as %u, not %u", when, at,
                      bytes[at], w.has[at]);
    }
}

/* The flush, or what is copied again, fails; perhaps twice.  Then the guest
 * does all of it again. */
static void lose(void)
{
    bool writes = rnd(4) == 0;
    bool told = false;

    rec.keeps = rnd(2);
    for (uint64_t n = 1 + rnd(2); n > 0; n--) {
        rec_fail((struct fault){.kind = FAULT_FLUSH,
                                .countdown = 1 + (unsigned)rnd(3),
                                .error = -EIO});
        told |= blk_flush(w.b) < 0;
        rec_fail((struct fault){0});
    }
    if (told && writes) {
        rec_fail((struct fault){.kind = FAULT_WRITE,
                                .countdown = 1 + (unsigned)rnd(4),
                                .error = -ENOSPC});
        (void)blk_flush(w.b);
        rec_fail((struct fault){0});
        (void)blk_flush(w.b); /* it may be told of that */
    }
    if (!told) {
        return; /* it has fewer flushes */
    }
    check("after a flush that failed", rec.keeps);
    for (unsigned i = 0; i < w.count && !rec.keeps; i++) {
        ck_assert_int_eq(run_op(&w.ops[i]), 0);
    }
}

/* What is on disk, as kill -9 leaves it. */
static void check_disk(void)
{
    unsigned char *disk = malloc(DISK_MAX);

    ck_assert_ptr_nonnull(disk);
    memcpy(disk, rec.flushed, DISK_MAX);
    close_disk();
    memcpy(rec.disk, disk, DISK_MAX);
    memcpy(rec.flushed, disk, DISK_MAX);
    free(disk);
    open_disk(rec.has_data ? DATA_AT : rec.top);
    check("after kill -9", true);
}

static void flush(void)
{
    ck_assert_int_eq(blk_flush(w.b), 0);
    memset(w.own, false, sizeof(w.own));
    w.count = 0;
    check("after a flush", true);
    for (unsigned i = 0; i < rec.count; i++) {
        free(rec.log[i].data);
    }
    rec.count = 0;
}

START_TEST(storage_that_forgets_costs_nothing_but_what_a_guest_is_told)
{
    seed = 1 + (uint64_t)_i;
    rec.fua = _i / SHAPES % 2;
    begin(&shapes[_i % SHAPES]);
    for (unsigned round = 0; round < ROUNDS; round++) {
        run_some();
        if (rnd(3)) {
            lose();
        }
        if (rnd(3)) {
            flush();
        }
        if (rnd(6) == 0 && w.count == 0) {
            check_disk();
        }
        if (w.shape->old == OLD_SHARED && rnd(4) == 0 && w.count == 0) {
            close_disk();
            open_disk(rec.has_data ? DATA_AT : rec.top);
        }
    }
    flush();
    check_disk();
    close_disk();
    forget_records();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("copied");
    TCase *tc = tcase_create("forgetful");

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(
        tc, storage_that_forgets_costs_nothing_but_what_a_guest_is_told, 0,
        SHAPES * SEEDS);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
