/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Invariants of qcow2/alloc.c under power cuts.
 *
 * A protocol driver of this test records every write and flush below a qcow2
 * node while four clients do random requests, each in its own part of the disk:
 * so clusters are freed while others are flushed.  Then the power is cut, many
 * times: all writes before some flush have reached the disk, and of those after
 * it an arbitrary subset.  Each such image must have no reference that its
 * refcount does not cover, and must hold all data that was flushed.  So must
 * a raw data file alone.
 */
#include <check.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>

#include "core/opts.h"
#define DISK_MAX (16 * MiB)
#include "power-cut.h"
#include "qcow2-check.h"

/* --- What the disk must show after a crash --- */

#define GUEST (2 * MiB)
#define UNIT  512
#define UNITS (GUEST / UNIT)

#define CLIENTS 4
#define SHARE   (UNITS / CLIENTS)

/* Each unit of the guest holds a stamp; what a unit may show after a crash is
 * any stamp that no completed flush has covered, or the last one that one has:
 * a flush covers writes that were complete when it began. */
struct history {
    uint32_t stamp[64];
    unsigned done[64]; /* when the write was complete, in ticks */
    unsigned count;
};
static struct history units[UNITS];

/* Which came first, the end of a write or the beginning of a flush?  The log
 * does not tell: a write may end after its last record, and after a flush has
 * begun. */
static _Atomic unsigned ticks;

static struct {
    unsigned began; /* in ticks */
    unsigned done;  /* the log's length */
} flushes[LOG_MAX];
static _Atomic unsigned flush_count;

static unsigned log_length(void)
{
    mutex_lock(&rec.lock);
    unsigned count = rec.count;
    mutex_unlock(&rec.lock);
    return count;
}

static void stamp_units(uint64_t from, uint64_t count, uint32_t stamp)
{
    for (uint64_t u = from; u < from + count; u++) {
        struct history *h = &units[u];
        ck_assert_uint_lt(h->count, 64);
        h->stamp[h->count] = stamp;
        h->done[h->count++] = UINT_MAX;
    }
}

static void complete_units(uint64_t from, uint64_t count)
{
    unsigned now = atomic_fetch_add(&ticks, 1);

    for (uint64_t u = from; u < from + count; u++) {
        units[u].done[units[u].count - 1] = now;
    }
}

static int write_compressed(struct blk *b, const void *buf, uint64_t bytes,
                            uint64_t offset)
{
    struct node *n = blk_node(b);
    struct tree *t = node_enter(n, false);
    int r = node_write_compressed(n, buf, bytes, offset);

    node_leave(t);
    return r;
}

static void random_request(struct blk *b, uint64_t start, uint32_t stamp)
{
    uint64_t from = start + rnd(SHARE);
    uint64_t count = 1 + rnd(rnd(4) ? 16 : 256);
    unsigned kind = (unsigned)rnd(10);
    uint64_t cluster = max_u64(blk_node(b)->limits.pref / UNIT, 1);
    bool packed = kind < 2 && !rec.has_data && !rec.encrypted;

    if (packed) {
        from = align_down(from, cluster);
        count = align_up(count, cluster);
    }
    count = min_u64(count, start + SHARE - from);
    if (kind < 6) {
        CLEANUP_FREE unsigned char *buf = malloc(count * UNIT);
        for (uint64_t u = 0; u < count; u++) {
            memset(buf + u * UNIT, 0, UNIT);
            store_be32(buf + u * UNIT, stamp);
        }
        stamp_units(from, count, stamp);
        ck_assert_int_eq(
            packed ? write_compressed(b, buf, count * UNIT, from * UNIT)
                   : blk_pwrite(b, buf, count * UNIT, from * UNIT, 0),
            0);
        complete_units(from, count);
    } else if (kind < 9) {
        stamp_units(from, count, 0);
        ck_assert_int_eq(blk_zero(b, from * UNIT, count * UNIT,
                                  kind == 8 ? 0 : REQ_MAY_UNMAP),
                         0);
        complete_units(from, count);
    } else {
        unsigned began = atomic_fetch_add(&ticks, 1);

        ck_assert_int_eq(blk_flush(b), 0);
        unsigned i = atomic_fetch_add(&flush_count, 1);
        flushes[i].began = began;
        flushes[i].done = log_length();
    }
}

struct client {
    pthread_t thread;
    struct blk *b;
    uint64_t seed;
    unsigned number;
    unsigned requests;
};

static void *client_run(void *opaque)
{
    const struct client *c = opaque;

    seed = c->seed;
    for (unsigned i = 0; i < c->requests; i++) {
        random_request(c->b, c->number * SHARE, i * CLIENTS + c->number + 1);
    }
    return NULL;
}

static void run_clients(struct blk *b, unsigned requests)
{
    struct client clients[CLIENTS];

    for (unsigned i = 0; i < CLIENTS; i++) {
        clients[i] = (struct client){.b = b,
                                     .seed = seed * 1000 + i + 1,
                                     .number = i,
                                     .requests = requests / CLIENTS};
        ck_assert_int_eq(
            pthread_create(&clients[i].thread, NULL, client_run, &clients[i]),
            0);
    }
    for (unsigned i = 0; i < CLIENTS; i++) {
        ck_assert_int_eq(pthread_join(clients[i].thread, NULL), 0);
    }
}

static void spill(const char *name, const unsigned char *bytes, uint64_t len)
{
    FILE *f = fopen(name, "wb");

    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, len, f), len);
    (void)fclose(f);
}

/* What the guest sees after the crash. */
static void read_guest(const unsigned char *disk, unsigned char *guest)
{
    struct graph *g = graph_new();
    CLEANUP_JSON json_t *o =
        json_pack("{s:s, s:b, s:{s:s, s:s}}", "driver", "qcow2", "read-only", 1,
                  "file", "driver", "file", "filename", "crashed.qcow2");
    struct node *n;

    add_secret(g);
    add_key(o);
    spill("crashed.qcow2", disk, rec.has_data ? DATA_AT : DISK_MAX);
    if (rec.has_data) {
        spill("crashed.data", disk + DATA_AT, GUEST);
        (void)json_object_set_new(o, "data-file",
                                  json_pack("{s:s, s:s}", "driver", "file",
                                            "filename", "crashed.data"));
    }
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    ck_assert_int_eq(node_pread(n, guest, GUEST, 0, 0), 0);
    graph_free(g);
    (void)unlink("crashed.qcow2");
    (void)unlink("crashed.data");
}

static void check_guest(const unsigned char *guest, unsigned cut)
{
    unsigned flushed = 0;

    for (unsigned i = 0; i < flush_count; i++) {
        if (flushes[i].done <= cut) {
            flushed = (unsigned)max_u64(flushed, flushes[i].began);
        }
    }
    for (unsigned u = 0; u < UNITS; u++) {
        const struct history *h = &units[u];
        uint32_t seen = load_be32(guest + u * UNIT);
        uint32_t last = 0;
        bool found = false;
        for (unsigned i = 0; i < h->count; i++) {
            if (h->done[i] < flushed) {
                last = h->stamp[i];
            } else {
                found |= seen == h->stamp[i];
            }
        }
        ck_assert_msg(found || seen == last,
                      "unit %u shows stamp %u after a cut at %u, and not %u, "
                      "which was flushed",
                      u, seen, cut, last);
    }
}

static void check_data(const unsigned char *disk, unsigned cut, bool raw)
{
    CLEANUP_FREE unsigned char *guest = malloc(GUEST);

    read_guest(disk, guest);
    check_guest(guest, cut);
    if (raw) {
        check_guest(disk + DATA_AT, cut);
    }
}

static void run_campaign(const char *options, unsigned requests, unsigned cuts,
                         bool garbage)
{
    struct graph *g = graph_new();
    struct blk *b;

    memset(units, 0, sizeof(units));
    flush_count = 0;
    ticks = 0;
    rec.garbage = garbage;
    rec.has_data = strstr(options, "data_file");
    rec.encrypted = strstr(options, "encrypt");
    add_secret(g);
    uint64_t size = load_new_image(options);
    unsigned char *before = malloc(DISK_MAX);
    memcpy(before, rec.disk, DISK_MAX);
    struct node *n = open_recorded(g, size);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    run_clients(b, requests);
    blk_free(b);
    graph_free(g);
    for (unsigned i = 0; i < cuts; i++) {
        unsigned cut;
        unsigned char *disk = crashed_image(before, &cut);
        struct image image = {disk, DISK_MAX};
        struct verdict v = check_image(&image);
        ck_assert_msg(v.corruptions == 0,
                      "%" PRIu64 " uncovered references after a cut at %u "
                      "of %u",
                      v.corruptions, cut, rec.count);
        if (i % 8 == 0) {
            check_data(disk, cut, strstr(options, "data_file_raw"));
        }
        free(disk);
    }
    (void)unlink("guest.data");
    struct image last = {rec.disk, DISK_MAX};
    struct verdict v = check_image(&last);
    ck_assert_uint_eq(v.corruptions, 0);
    ck_assert_uint_eq(v.leaks, 0);
    free(before);
    forget_records();
}

START_TEST(small_clusters_survive_power_cuts)
{
    seed = 1;
    run_campaign("{\"size\": 2097152, \"cluster_size\": 512}", 120, 60, _i);
}
END_TEST

START_TEST(large_clusters_survive_power_cuts)
{
    seed = 2;
    run_campaign("{\"size\": 2097152, \"cluster_size\": 65536}", 400, 60, _i);
}
END_TEST

START_TEST(narrow_refcounts_survive_power_cuts)
{
    seed = 3;
    run_campaign("{\"size\": 2097152, \"cluster_size\": 4096, "
                 "\"refcount_bits\": 1}",
                 300, 60, _i);
}
END_TEST

START_TEST(wide_refcounts_with_a_growing_table_survive_power_cuts)
{
    seed = 4;
    run_campaign("{\"size\": 2097152, \"cluster_size\": 512, "
                 "\"refcount_bits\": 64}",
                 120, 60, _i);
}
END_TEST

START_TEST(a_data_file_survives_power_cuts)
{
    seed = 5;
    run_campaign("{\"size\": 2097152, \"cluster_size\": 4096, "
                 "\"data_file\": \"guest.data\"}",
                 300, 40, _i);
}
END_TEST

START_TEST(a_raw_data_file_survives_power_cuts)
{
    seed = 6;
    run_campaign("{\"size\": 2097152, \"cluster_size\": 65536, "
                 "\"data_file\": \"guest.data\", \"data_file_raw\": true}",
                 300, 40, false);
}
END_TEST

#define ENCRYPT                                                   \
    "\"encrypt\": {\"format\": \"luks\", \"key-secret\": \"s\", " \
    "\"iter-time\": 1}"

START_TEST(an_encrypted_image_survives_power_cuts)
{
    seed = 7;
    run_campaign("{\"size\": 2097152, \"cluster_size\": 4096, " ENCRYPT "}",
                 300, 40, _i);
}
END_TEST

START_TEST(an_encrypted_data_file_survives_power_cuts)
{
    seed = 8;
    run_campaign("{\"size\": 2097152, \"cluster_size\": 65536, "
                 "\"data_file\": \"guest.data\", " ENCRYPT "}",
                 300, 20, _i);
}
END_TEST

START_TEST(subclusters_survive_power_cuts)
{
    seed = 9;
    run_campaign("{\"size\": 2097152, \"cluster_size\": 16384, "
                 "\"extended_l2\": true}",
                 400, 60, _i);
}
END_TEST

START_TEST(subclusters_in_a_data_file_survive_power_cuts)
{
    seed = 10;
    run_campaign("{\"size\": 2097152, \"cluster_size\": 65536, "
                 "\"extended_l2\": true, \"data_file\": \"guest.data\"}",
                 300, 40, false);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qcow2-crash");
    TCase *tc = tcase_create("power-cut");

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, small_clusters_survive_power_cuts, 0, 2);
    tcase_add_loop_test(tc, large_clusters_survive_power_cuts, 0, 2);
    tcase_add_loop_test(tc, narrow_refcounts_survive_power_cuts, 0, 2);
    tcase_add_loop_test(
        tc, wide_refcounts_with_a_growing_table_survive_power_cuts, 0, 2);
    tcase_add_loop_test(tc, a_data_file_survives_power_cuts, 0, 2);
    tcase_add_test(tc, a_raw_data_file_survives_power_cuts);
    tcase_add_loop_test(tc, an_encrypted_image_survives_power_cuts, 0, 2);
    tcase_add_loop_test(tc, an_encrypted_data_file_survives_power_cuts, 0, 2);
    tcase_add_loop_test(tc, subclusters_survive_power_cuts, 0, 2);
    tcase_add_test(tc, subclusters_in_a_data_file_survive_power_cuts);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
