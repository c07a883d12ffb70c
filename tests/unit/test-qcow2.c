/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The qcow2 driver against a model in memory: random requests over cluster
 * sizes, refcount widths and backing files; after each round the disk equals
 * the model, and the image on disk has no corruption and no leak.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/graph.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "qcow2-check.h"
#include "qcow2/alloc.h"
#include "qcow2/qcow2.h"

#define DISK  (3 * MiB + 512)
#define LOWER (2 * MiB)

static uint64_t seed = 42;
static uint64_t rnd(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % below;
}

static void create(const char *name, const char *format, json_t *options)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = image_create(name, format, options, &err);
    json_decref(options);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

static int open_image(struct graph *g, const char *name, bool read_only,
                      struct blk **b, struct error **errp)
{
    CLEANUP_JSON json_t *o =
        json_pack("{s:s, s:b, s:s, s:{s:s, s:s}}", "driver", "qcow2",
                  "read-only", (int)read_only, "discard", "unmap", "file",
                  "driver", "file", "filename", name);
    unsigned perm = read_only ? PERM_READ
                              : PERM_READ | PERM_WRITE | PERM_RESIZE;
    struct node *n;
    int r = graph_open(g, o, &n, errp);
    return r < 0 ? r : blk_new(g, n, perm, PERM_ALL, "test", b, errp);
}

static struct blk *must_open(struct graph *g, const char *name, bool read_only)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct blk *b = NULL;
    ck_assert_msg(open_image(g, name, read_only, &b, &err) == 0, "%s",
                  error_message(err));
    return b;
}

static unsigned char *slurp(const char *name, uint64_t *size)
{
    FILE *f = fopen(name, "rb");
    ck_assert_ptr_nonnull(f);
    (void)fseek(f, 0, SEEK_END);
    *size = (uint64_t)ftell(f);
    rewind(f);
    unsigned char *bytes = malloc(*size);
    ck_assert_uint_eq(fread(bytes, 1, *size, f), *size);
    (void)fclose(f);
    return bytes;
}

static void expect_sound(const char *name)
{
    uint64_t size;
    CLEANUP_FREE unsigned char *bytes = slurp(name, &size);
    struct image image = {bytes, size};
    struct verdict v = check_image(&image);
    ck_assert_uint_eq(v.corruptions, 0);
    ck_assert_uint_eq(v.leaks, 0);
}

static void expect_equal(struct blk *b, const unsigned char *model,
                         uint64_t size)
{
    CLEANUP_FREE unsigned char *got = malloc(size);
    ck_assert_int_eq(blk_pread(b, got, size, 0, 0), 0);
    for (uint64_t at = 0; at < size; at += 512) {
        ck_assert_msg(memcmp(got + at, model + at, min_u64(512, size - at)) ==
                          0,
                      "the disk differs from the model at %" PRIu64, at);
    }
}

static void write_compressed(struct blk *b, const void *buf, uint64_t bytes,
                             uint64_t offset)
{
    struct node *n = blk_node(b);
    struct tree *t = node_enter(n, false);

    ck_assert_int_eq(node_write_compressed(n, buf, bytes, offset), 0);
    node_leave(t);
}

/* Some that can be packed, and some that cannot.  Long runs pack soonest. */
static void fill(unsigned char *at, uint64_t bytes, bool packs)
{
    for (uint64_t i = 0; i < bytes; i++) {
        at[i] = (unsigned char)(packs && i / 512 % 7 ? 'x' : rnd(256));
    }
}

/* What the disk lies over, and where its data are. */
enum setting { ALONE, BACKED, DATA_FILE, DATA_FILE_BACKED, RAW_DATA_FILE };

static void expect_size(const char *name, uint64_t want)
{
    uint64_t size;

    free(slurp(name, &size));
    ck_assert_uint_eq(size, want);
}

/* A raw data file reads as the disk, at any time. */
static void expect_raw(const unsigned char *model)
{
    uint64_t size;
    CLEANUP_FREE unsigned char *bytes = slurp("disk.data", &size);

    ck_assert_uint_eq(size, DISK);
    ck_assert_msg(memcmp(bytes, model, DISK) == 0,
                  "the data file differs from the model");
}

/* One random request on the disk and on the model. */
static void random_request(struct blk *b, unsigned char *model, uint64_t size,
                           bool packs)
{
    uint64_t offset = rnd(size);
    uint64_t bytes = min_u64(1 + rnd(rnd(3) ? 9000 : 400000), size - offset);

    uint64_t cluster = blk_node(b)->limits.pref;

    switch (rnd(packs ? 10 : 8)) {
    case 8:
    case 9:
        offset = align_down(offset, cluster);
        bytes = min_u64(align_up(bytes, cluster), size - offset);
        fill(model + offset, bytes, rnd(4));
        write_compressed(b, model + offset, bytes, offset);
        break;
    case 0:
        ck_assert_int_eq(blk_zero(b, offset, bytes, 0), 0);
        memset(model + offset, 0, bytes);
        break;
    case 1:
        ck_assert_int_eq(blk_zero(b, offset, bytes, REQ_MAY_UNMAP), 0);
        memset(model + offset, 0, bytes);
        break;
    case 2: /* either outcome is right: take what the disk says */
        ck_assert_int_eq(blk_discard(b, offset, bytes), 0);
        ck_assert_int_eq(blk_pread(b, model + offset, bytes, offset, 0), 0);
        break;
    case 3:
        ck_assert_int_eq(blk_flush(b), 0);
        break;
    default:
        fill(model + offset, bytes, false);
        ck_assert_int_eq(
            blk_pwrite(b, model + offset, bytes, offset, rnd(16) ? 0 : REQ_FUA),
            0);
    }
}

/* Of an image with subclusters. */
#define EXTENDED 3

static void run_model(uint64_t cluster, unsigned refcount_bits,
                      unsigned version, enum setting setting)
{
    bool backing = setting == BACKED || setting == DATA_FILE_BACKED;
    bool data = setting >= DATA_FILE;
    unsigned char *model = calloc(1, DISK);
    json_t *o = json_pack("{s:I, s:I, s:i, s:s}", "size", (json_int_t)DISK,
                          "cluster_size", (json_int_t)cluster, "refcount_bits",
                          (int)refcount_bits, "compat",
                          version == 2 ? "0.10" : "1.1");
    if (version == EXTENDED) {
        (void)json_object_set_new(o, "extended_l2", json_true());
    }
    if (backing) {
        create("lower.raw", "raw",
               json_pack("{s:I}", "size", (json_int_t)LOWER));
        for (uint64_t i = 0; i < LOWER; i++) {
            model[i] = (unsigned char)rnd(256);
        }
        FILE *f = fopen("lower.raw", "r+b");
        ck_assert_uint_eq(fwrite(model, 1, LOWER, f), LOWER);
        (void)fclose(f);
        (void)json_object_set_new(o, "backing_file", json_string("lower.raw"));
        (void)json_object_set_new(o, "backing_fmt", json_string("raw"));
    }
    if (data) {
        (void)json_object_set_new(o, "data_file", json_string("disk.data"));
        (void)json_object_set_new(o, "data_file_raw",
                                  json_boolean(setting == RAW_DATA_FILE));
    }
    create("disk.qcow2", "qcow2", o);
    for (int round = 0; round < 3; round++) {
        struct graph *g = graph_new();
        struct blk *b = must_open(g, "disk.qcow2", false);
        for (int i = 0; i < 60; i++) {
            random_request(b, model, DISK, !data);
            if (setting == RAW_DATA_FILE && i % 4 == 0) {
                expect_raw(model);
            }
        }
        expect_equal(b, model, DISK);
        blk_free(b);
        graph_free(g);
        expect_sound("disk.qcow2");
        if (data) { /* it ends with the disk, not with a cluster */
            expect_size("disk.data", DISK);
        }
        g = graph_new();
        b = must_open(g, "disk.qcow2", true);
        expect_equal(b, model, DISK);
        blk_free(b);
        graph_free(g);
    }
    (void)unlink("disk.qcow2");
    (void)unlink("disk.data");
    (void)unlink("lower.raw");
    free(model);
}

static const struct {
    uint64_t cluster;
    unsigned bits;
    unsigned version; /* 0: as we like it */
} shapes[] = {
    {512, 16, 0},          {512, 1, 0},          {1024, 64, 0},
    {4096, 2, 0},          {4096, 16, 2},        {65536, 16, 0},
    {65536, 4, 0},         {65536, 8, 0},        {65536, 32, 0},
    {262144, 16, 2},       {2097152, 16, 0},     {2097152, 64, 0},
    {16384, 16, EXTENDED}, {65536, 2, EXTENDED}, {2097152, 16, EXTENDED},
};

START_TEST(random_requests_match_a_model)
{
    run_model(shapes[_i].cluster, shapes[_i].bits, shapes[_i].version, ALONE);
}
END_TEST

START_TEST(random_requests_over_a_shorter_backing_file_match_a_model)
{
    run_model(shapes[_i].cluster, shapes[_i].bits, shapes[_i].version, BACKED);
}
END_TEST

/* In turn: a data file, one over a backing file, a raw one. */
START_TEST(random_requests_with_a_data_file_match_a_model)
{
    static const uint64_t clusters[] = {512, 4096, 65536, 2097152};

    run_model(clusters[_i / 3], 16, 0, DATA_FILE + _i % 3);
}
END_TEST

START_TEST(random_requests_to_subclusters_in_a_data_file_match_a_model)
{
    static const uint64_t clusters[] = {16384, 65536};

    run_model(clusters[_i / 3], 16, EXTENDED, DATA_FILE + _i % 3);
}
END_TEST

START_TEST(growing_keeps_data_and_hides_a_longer_backing_file)
{
    CLEANUP_ERROR struct error *err = NULL;
    unsigned char buf[4096];
    memset(buf, 0x5a, sizeof(buf));
    create("lower.qcow2", "qcow2",
           json_pack("{s:I}", "size", (json_int_t)(8 * MiB)));
    struct graph *g = graph_new();
    struct blk *b = must_open(g, "lower.qcow2", false);
    for (uint64_t at = 0; at < 8 * MiB; at += 64 * KiB) {
        ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), at, 0), 0);
    }
    blk_free(b);
    graph_free(g);
    create("disk.qcow2", "qcow2",
           json_pack("{s:I, s:I, s:s, s:s}", "size", (json_int_t)(1 * MiB),
                     "cluster_size", (json_int_t)512, "backing_file",
                     "lower.qcow2", "backing_fmt", "qcow2"));
    g = graph_new();
    b = must_open(g, "disk.qcow2", false);
    /* From 32 L1 entries to many: the table moves. */
    ck_assert_msg(blk_resize(b, 64 * MiB, &err) == 0, "%s", error_message(err));
    ck_assert_uint_eq(blk_size(b), 64 * MiB);
    for (uint64_t at = 0; at < 8 * MiB; at += 64 * KiB) {
        ck_assert_int_eq(blk_pread(b, buf, sizeof(buf), at, 0), 0);
        ck_assert_int_eq(buf[0], at < 1 * MiB ? 0x5a : 0);
    }
    ck_assert_int_eq(blk_pwrite(b, buf, 512, 64 * MiB - 512, 0), 0);
    blk_free(b);
    graph_free(g);
    expect_sound("disk.qcow2");
}
END_TEST

/* --- Zeroes that only the backing file, which is not open, would show --- */

#define LAYER (1 * MiB)

static struct blk *open_alone(struct graph *g, const char *name)
{
    CLEANUP_JSON json_t *o = json_pack(
        "{s:s, s:s, s:n, s:{s:s, s:s}}", "driver", "qcow2", "discard", "unmap",
        "backing", "file", "driver", "file", "filename", name);
    struct blk *b;
    struct node *n;

    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    ck_assert_int_eq(blk_new(g, n, PERM_READ | PERM_WRITE | PERM_RESIZE,
                             PERM_ALL, "test", &b, NULL),
                     0);
    return b;
}

static void name_backing(const char *name)
{
    struct graph *g = graph_new();
    struct blk *b = open_alone(g, name);
    struct node *n = blk_node(b);

    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(n->drv->image->change_backing(n, "lower.raw", "raw", NULL),
                     0);
    graph_unlock(g);
    blk_free(b);
    graph_free(g);
}

static const struct {
    uint64_t offset;
    uint64_t bytes;
    bool discard; /* holds only if a backing file is named */
} zeroed[] = {
    {0, 64 * KiB, false},
    {128 * KiB, 4096, false},            /* part of a cluster */
    {256 * KiB - 512, 1024, false},      /* parts of two */
    {320 * KiB + 512, 128 * KiB, false}, /* and one between them */
    {512 * KiB, 64 * KiB, true},
    {LAYER - 512, 512, false},
};

static void zero_all(struct blk *b, bool named, unsigned flags)
{
    for (size_t i = 0; i < ARRAY_SIZE(zeroed); i++) {
        int r = zeroed[i].discard && named
                    ? blk_discard(b, zeroed[i].offset, zeroed[i].bytes)
                    : blk_zero(b, zeroed[i].offset, zeroed[i].bytes, flags);
        ck_assert_int_eq(r, 0);
    }
}

static void expect_zeroed(const char *name)
{
    static unsigned char got[LAYER];
    struct graph *g = graph_new();
    struct blk *b = must_open(g, name, true);

    ck_assert_int_eq(blk_pread(b, got, LAYER, 0, 0), 0);
    for (size_t i = 0; i < ARRAY_SIZE(zeroed); i++) {
        for (uint64_t at = 0; at < zeroed[i].bytes; at++) {
            ck_assert_msg(got[zeroed[i].offset + at] == 0,
                          "zeroes at %" PRIu64 " are not stored",
                          zeroed[i].offset);
        }
    }
    ck_assert_int_eq(got[LAYER - 64 * KiB - 1], 9); /* it is there at all */
    blk_free(b);
    graph_free(g);
}

static void make_lower(uint64_t size)
{
    unsigned char *nines = malloc(size);
    FILE *f = fopen("lower.raw", "wb");

    memset(nines, 9, size);
    ck_assert_uint_eq(fwrite(nines, 1, size, f), size);
    (void)fclose(f);
    free(nines);
}

/* The image names its backing file before or after; in version 3 and 2; with
 * leave to unmap and without. */
START_TEST(zeroes_are_stored_while_the_backing_file_is_not_open)
{
    bool named = _i & 1;
    bool old = _i & 2;
    unsigned flags = _i & 4 ? REQ_MAY_UNMAP : 0;
    json_t *o = json_pack("{s:i, s:s}", "size", (int)LAYER, "compat",
                          old ? "0.10" : "1.1");

    make_lower(LAYER);
    if (named) {
        (void)json_object_set_new(o, "backing_file", json_string("lower.raw"));
        (void)json_object_set_new(o, "backing_fmt", json_string("raw"));
    }
    create("disk.qcow2", "qcow2", o);
    struct graph *g = graph_new();
    struct blk *b = open_alone(g, "disk.qcow2");
    zero_all(b, named && !old, flags);
    blk_free(b);
    graph_free(g);
    if (!named) {
        name_backing("disk.qcow2");
    }
    expect_zeroed("disk.qcow2");
    expect_sound("disk.qcow2");
    (void)unlink("disk.qcow2");
    (void)unlink("lower.raw");
}
END_TEST

START_TEST(growing_hides_a_backing_file_that_is_not_open)
{
    CLEANUP_ERROR struct error *err = NULL;
    unsigned char buf[4096];

    make_lower(2 * LAYER);
    create("disk.qcow2", "qcow2",
           json_pack("{s:i, s:s, s:s}", "size", (int)LAYER, "backing_file",
                     "lower.raw", "backing_fmt", "raw"));
    struct graph *g = graph_new();
    struct blk *b = open_alone(g, "disk.qcow2");
    ck_assert_int_eq(blk_resize(b, 2 * LAYER, NULL), 0);
    blk_free(b);
    graph_free(g);
    g = graph_new();
    b = must_open(g, "disk.qcow2", true);
    for (uint64_t at = 0; at < 2 * LAYER; at += 64 * KiB) {
        ck_assert_int_eq(blk_pread(b, buf, sizeof(buf), at, 0), 0);
        ck_assert_int_eq(buf[0], at < LAYER ? 9 : 0);
    }
    blk_free(b);
    graph_free(g);
    (void)unlink("disk.qcow2");
    /* Where a part of a cluster would have to be zero it is refused. */
    create("disk.qcow2", "qcow2",
           json_pack("{s:i, s:s, s:s}", "size", (int)LAYER - 512,
                     "backing_file", "lower.raw", "backing_fmt", "raw"));
    g = graph_new();
    b = open_alone(g, "disk.qcow2");
    ck_assert_int_eq(blk_resize(b, 2 * LAYER, &err), -ENOTSUP);
    ck_assert_uint_eq(blk_size(b), LAYER - 512);
    blk_free(b);
    graph_free(g);
    (void)unlink("disk.qcow2");
    (void)unlink("lower.raw");
}
END_TEST

static struct blk *open_with(struct graph *g, const char *name,
                             const char *discard)
{
    CLEANUP_JSON json_t *o = json_pack(
        "{s:s, s:s, s:{s:s, s:s, s:s}}", "driver", "qcow2", "discard", discard,
        "file", "driver", "file", "filename", name, "discard", discard);
    struct blk *b;
    struct node *n;

    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    ck_assert_int_eq(blk_new(g, n, PERM_READ | PERM_WRITE | PERM_RESIZE,
                             PERM_ALL, "test", &b, NULL),
                     0);
    return b;
}

static uint64_t file_end(const char *name)
{
    uint64_t size;

    free(slurp(name, &size));
    return size;
}

/* The file is cut behind what is left: data, tables and refcount blocks of
 * what went go, also without discard; a new disk of that size, which is filled,
 * is no smaller. */
START_TEST(a_disk_that_shrinks_gives_its_room_back)
{
    static const uint64_t clusters[] = {512, 4096, 65536};
    uint64_t cluster = clusters[_i % 3];
    const char *discard = _i < 3 ? "unmap" : "ignore";
    static unsigned char buf[4 * MiB];
    static unsigned char got[4 * MiB];
    uint64_t most = 0;

    memset(buf, 0x77, sizeof(buf));
    for (int round = 0; round < 2; round++) {
        uint64_t size = round ? 4 * MiB : 1 * MiB;
        create("disk.qcow2", "qcow2",
               json_pack("{s:I, s:I}", "size", (json_int_t)size, "cluster_size",
                         (json_int_t)cluster));
        struct graph *g = graph_new();
        struct blk *b = open_with(g, "disk.qcow2", discard);
        ck_assert_int_eq(blk_pwrite(b, buf, size, 0, 0), 0);
        if (round) {
            ck_assert_int_eq(blk_resize(b, 1 * MiB, NULL), 0);
            ck_assert_uint_le(file_end("disk.qcow2"), most);
            /* And it is a disk. */
            ck_assert_int_eq(blk_resize(b, 4 * MiB, NULL), 0);
            ck_assert_int_eq(blk_pwrite(b, buf, 1 * MiB, 3 * MiB, 0), 0);
            ck_assert_int_eq(blk_pread(b, got, 4 * MiB, 0, 0), 0);
            for (uint64_t at = 0; at < 4 * MiB; at += 512) {
                bool old = at < 1 * MiB || at >= 3 * MiB;
                ck_assert_int_eq(got[at], old ? 0x77 : 0);
            }
            ck_assert_int_eq(blk_resize(b, 1 * MiB, NULL), 0);
        }
        blk_free(b);
        graph_free(g);
        /* Tables that moved when they grew may have left a few clusters. */
        most = round ? most : file_end("disk.qcow2") + 64 * cluster;
        ck_assert_uint_le(file_end("disk.qcow2"), most);
        expect_sound("disk.qcow2");
        (void)unlink("disk.qcow2");
    }
}
END_TEST

START_TEST(what_is_cut_off_does_not_come_back)
{
    unsigned char buf[4096];
    unsigned char zero[4096] = {0};

    create("disk.qcow2", "qcow2",
           json_pack("{s:I}", "size", (json_int_t)(4 * MiB)));
    struct graph *g = graph_new();
    struct blk *b = must_open(g, "disk.qcow2", false);
    memset(buf, 0x77, sizeof(buf));
    for (uint64_t at = 0; at < 4 * MiB; at += sizeof(buf)) {
        ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), at, 0), 0);
    }
    /* In the middle of a cluster. */
    ck_assert_int_eq(blk_resize(b, 1 * MiB + 4096, NULL), 0);
    ck_assert_uint_eq(blk_size(b), 1 * MiB + 4096);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(blk_resize(b, 4 * MiB, NULL), 0);
    for (uint64_t at = 0; at < 4 * MiB; at += sizeof(buf)) {
        unsigned char got[4096];
        ck_assert_int_eq(blk_pread(b, got, sizeof(got), at, 0), 0);
        ck_assert_mem_eq(got, at <= 1 * MiB ? buf : zero, sizeof(got));
    }
    blk_free(b);
    graph_free(g);
    expect_sound("disk.qcow2");
}
END_TEST

static void patch(const char *name, long at, const void *bytes, size_t len)
{
    FILE *f = fopen(name, "r+b");
    ck_assert_int_eq(fseek(f, at, SEEK_SET), 0);
    ck_assert_uint_eq(fwrite(bytes, 1, len, f), len);
    (void)fclose(f);
}

static void expect_refused(bool read_only, int code, const char *words)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct graph *g = graph_new();
    struct blk *b = NULL;
    int r = open_image(g, "disk.qcow2", read_only, &b, &err);
    ck_assert_int_eq(r, code);
    ck_assert_msg(strstr(error_message(err), words), "'%s' lacks '%s'",
                  error_message(err), words);
    graph_free(g);
}

static void new_disk(void)
{
    (void)unlink("disk.qcow2");
    create("disk.qcow2", "qcow2",
           json_pack("{s:I}", "size", (json_int_t)(1 * MiB)));
}

static void expect_header_refused(long at, uint64_t value, size_t len, int code,
                                  const char *words)
{
    unsigned char be[8];
    store_be64(be, value);
    new_disk();
    patch("disk.qcow2", at, be + 8 - len, len);
    expect_refused(true, code, words);
}

/* Subclusters would be smaller than a sector. */
static void expect_extended_refused(int cluster)
{
    unsigned char be[8];
    (void)unlink("disk.qcow2");
    create("disk.qcow2", "qcow2",
           json_pack("{s:I, s:i}", "size", (json_int_t)(1 * MiB),
                     "cluster_size", cluster));
    store_be64(be, 16);
    patch("disk.qcow2", 72, be, 8);
    expect_refused(true, -EINVAL, "16 KiB");
}

START_TEST(bad_headers_are_refused_by_what_is_wrong)
{
    expect_header_refused(4, 4, 4, -ENOTSUP, "version 4");
    expect_header_refused(20, 8, 4, -EINVAL, "cluster size: 2^8");
    expect_header_refused(20, 22, 4, -EINVAL, "cluster size: 2^22");
    expect_header_refused(24, UINT64_MAX, 8, -EFBIG, "too large");
    expect_header_refused(24, 1024 * GiB, 8, -EINVAL, "L1 table is too small");
    expect_header_refused(32, 1, 4, -ENOTSUP, "convert");
    expect_header_refused(32, 2, 4, -EINVAL, "LUKS header");
    expect_header_refused(32, 3, 4, -ENOTSUP, "encryption method 3");
    expect_header_refused(36, UINT32_MAX, 4, -EFBIG, "L1 table is too large");
    expect_header_refused(40, 0x30001, 8, -EINVAL, "offset 0x30001");
    expect_header_refused(48, 7, 8, -EINVAL, "reference count table");
    expect_header_refused(56, 0, 4, -EINVAL, "no reference count table");
    expect_header_refused(56, UINT32_MAX, 4, -EFBIG, "too large");
    expect_header_refused(96, 7, 4, -EINVAL, "more than 64 bits");
    expect_header_refused(100, 90, 4, -EINVAL, "header length 90");
    expect_header_refused(104, 7, 1, -ENOTSUP, "compression type 7");
    expect_header_refused(104, 1, 1, -EINVAL, "contradict");
    expect_header_refused(72, 4, 8, -EINVAL, "'data-file' is required");
    expect_header_refused(88, 2, 8, -EINVAL, "requires a data file");
    expect_extended_refused(8192);
    expect_header_refused(72, UINT64_C(1) << 40, 8, -ENOTSUP,
                          "Unsupported qcow2 feature(s)");
}
END_TEST

START_TEST(unknown_features_are_refused_by_their_name)
{
    /* Rename "corrupt bit" (incompatible 1) to bit 9 in the image's table. */
    static const unsigned char row[] = "\0\x09"
                                       "time travel";
    unsigned char be[8];
    new_disk();
    patch("disk.qcow2", 112 + 8 + 48, row, sizeof(row));
    store_be64(be, UINT64_C(1) << 9);
    patch("disk.qcow2", 72, be, 8);
    expect_refused(true, -ENOTSUP, "time travel");
}
END_TEST

START_TEST(images_that_cannot_be_written_right_open_read_only)
{
    static const struct {
        long at;
        unsigned char byte;
        int code;
        const char *words;
    } t[] = {
        {79, 2, -EUCLEAN, "corrupt"},
        {63, 1, -EUCLEAN, "internal snapshots"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
        new_disk();
        patch("disk.qcow2", t[i].at, &t[i].byte, 1);
        expect_refused(false, t[i].code, t[i].words);
        struct graph *g = graph_new();
        blk_free(must_open(g, "disk.qcow2", true));
        graph_free(g);
    }
}
END_TEST

START_TEST(a_cluster_that_claims_to_be_metadata_is_never_written)
{
    struct graph *g = graph_new();
    unsigned char be[8];
    char buf[512] = {1};
    uint64_t size;

    new_disk();
    struct blk *b = must_open(g, "disk.qcow2", false);
    ck_assert_int_eq(blk_pwrite(b, buf, 512, 0, 0), 0);
    blk_free(b);
    graph_free(g);
    CLEANUP_FREE unsigned char *bytes = slurp("disk.qcow2", &size);
    uint64_t l1 = load_be64(bytes + 40);
    uint64_t l2 = load_be64(bytes + l1) & QCOW2_OFFSET_MASK;
    store_be64(be, l1 | QCOW2_COPIED);
    patch("disk.qcow2", (long)l2, be, 8);
    g = graph_new();
    b = must_open(g, "disk.qcow2", false);
    ck_assert_int_eq(blk_pread(b, buf, 512, 64 * KiB, 0), 0);
    ck_assert_int_eq(blk_pwrite(b, buf, 512, 0, 0), -EIO);
    blk_free(b);
    graph_free(g);
    expect_refused(false, -EUCLEAN, "corrupt");
}
END_TEST

START_TEST(freed_clusters_are_used_again_after_a_flush)
{
    CLEANUP_FREE unsigned char *buf = malloc(1 * MiB);
    struct graph *g = graph_new();
    uint64_t size;

    memset(buf, 3, 1 * MiB);
    new_disk();
    struct blk *b = must_open(g, "disk.qcow2", false);
    for (int i = 0; i < 20; i++) {
        ck_assert_int_eq(blk_pwrite(b, buf, 1 * MiB, 0, 0), 0);
        ck_assert_int_eq(blk_zero(b, 0, 1 * MiB, REQ_MAY_UNMAP), 0);
        ck_assert_int_eq(blk_flush(b), 0);
    }
    blk_free(b);
    graph_free(g);
    free(slurp("disk.qcow2", &size));
    ck_assert_uint_lt(size, 3 * MiB);
    expect_sound("disk.qcow2");
}
END_TEST

struct hammer {
    struct blk *b;
    unsigned id;
};

/* Each thread owns every fourth 1000-byte stripe: they share clusters, and
 * the clusters come and go under them. */
static void *hammer(void *arg)
{
    const struct hammer *h = arg;
    unsigned char buf[1000];

    for (unsigned i = 0; i < 400; i++) {
        uint64_t at = (i * 7 % 250 * 4 + h->id) * 1000;
        memset(buf, (int)(h->id * 50 + i % 50), sizeof(buf));
        if (blk_pwrite(h->b, buf, sizeof(buf), at, 0) != 0 ||
            (i % 50 == 0 && blk_flush(h->b) != 0) ||
            (i % 10 == 0 &&
             blk_discard(h->b, 1 * MiB + i * 512 * h->id, 65536) != 0)) {
            return arg;
        }
        unsigned char back[1000];
        if (blk_pread(h->b, back, sizeof(back), at, 0) != 0 ||
            memcmp(back, buf, sizeof(buf)) != 0) {
            return arg;
        }
    }
    return NULL;
}

START_TEST(threads_on_shared_clusters_see_their_own_writes)
{
    pthread_t threads[4];
    struct hammer h[4];
    struct graph *g = graph_new();

    (void)unlink("disk.qcow2");
    create("disk.qcow2", "qcow2",
           json_pack("{s:I, s:I}", "size", (json_int_t)(4 * MiB),
                     "cluster_size", (json_int_t)4096));
    struct blk *b = must_open(g, "disk.qcow2", false);
    for (unsigned i = 0; i < 4; i++) {
        h[i] = (struct hammer){b, i};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, hammer, &h[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        void *failed;
        ck_assert_int_eq(pthread_join(threads[i], &failed), 0);
        ck_assert_ptr_null(failed);
    }
    blk_free(b);
    graph_free(g);
    expect_sound("disk.qcow2");
}
END_TEST

START_TEST(refcounts_of_all_widths_round_trip)
{
    unsigned char block[64];
    for (unsigned order = 0; order <= 6; order++) {
        uint64_t max = order == 6 ? UINT64_MAX
                                  : (UINT64_C(1) << (1U << order)) - 1;
        uint64_t entries = sizeof(block) * 8 >> order;
        memset(block, 0, sizeof(block));
        for (uint64_t i = 0; i < entries; i += 2) {
            qcow2_refcount_store(block, order, i, max);
        }
        for (uint64_t i = 0; i < entries; i++) {
            ck_assert_uint_eq(qcow2_refcount_load(block, order, i),
                              i % 2 ? 0 : max);
        }
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qcow2");
    TCase *tc = tcase_create("driver");

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, random_requests_match_a_model, 0,
                        (int)ARRAY_SIZE(shapes));
    tcase_add_loop_test(
        tc, random_requests_over_a_shorter_backing_file_match_a_model, 0,
        (int)ARRAY_SIZE(shapes));
    tcase_add_loop_test(tc, random_requests_with_a_data_file_match_a_model, 0,
                        12);
    tcase_add_loop_test(
        tc, random_requests_to_subclusters_in_a_data_file_match_a_model, 0, 6);
    tcase_add_test(tc, growing_keeps_data_and_hides_a_longer_backing_file);
    tcase_add_loop_test(
        tc, zeroes_are_stored_while_the_backing_file_is_not_open, 0, 8);
    tcase_add_test(tc, growing_hides_a_backing_file_that_is_not_open);
    tcase_add_loop_test(tc, a_disk_that_shrinks_gives_its_room_back, 0, 6);
    tcase_add_test(tc, what_is_cut_off_does_not_come_back);
    tcase_add_test(tc, bad_headers_are_refused_by_what_is_wrong);
    tcase_add_test(tc, unknown_features_are_refused_by_their_name);
    tcase_add_test(tc, images_that_cannot_be_written_right_open_read_only);
    tcase_add_test(tc, a_cluster_that_claims_to_be_metadata_is_never_written);
    tcase_add_test(tc, freed_clusters_are_used_again_after_a_flush);
    tcase_add_test(tc, threads_on_shared_clusters_see_their_own_writes);
    tcase_add_test(tc, refcounts_of_all_widths_round_trip);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
