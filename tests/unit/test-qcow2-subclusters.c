/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images with extended L2 entries, where they differ from others.
 *
 *  1. A reader sees both words of an entry of one moment, and never the backing
 *     file where the guest has written.
 *  2. A write copies what its subclusters need, and no more; bits of an entry
 *     say so.
 *  3. A request that fails leaves all others as they were.
 *  4. An entry that contradicts itself is an error to readers, and a repair
 *     keeps all that it does not contradict.
 *  5. Growing and shrinking in the middle of a cluster.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>

#define DISK_MAX (4 * MiB)
#include "power-cut.h"
#include "qcow2-check.h"
#include "qcow2/l2-entry.h"
#include "qcow2/l2.h"

#define CLUSTER (16 * KiB)
#define SUB     UINT64_C(512)
#define GUEST   (1 * MiB)
#define SHAPE \
    "{\"size\": 1048576, \"cluster_size\": 16384, \"extended_l2\": true}"

static struct graph *g;
static struct blk *b;
static struct qcow2 *s;

static void fill(const char *name, int byte)
{
    unsigned char *bytes = malloc(GUEST);
    FILE *f = fopen(name, "wb");

    ck_assert_ptr_nonnull(f);
    memset(bytes, byte, GUEST);
    ck_assert_uint_eq(fwrite(bytes, 1, GUEST, f), GUEST);
    (void)fclose(f);
    free(bytes);
}

static void make(const char *options)
{
    CLEANUP_JSON json_t *o = json_loads(options, 0, NULL);

    (void)unlink("disk.qcow2");
    ck_assert_int_eq(image_create("disk.qcow2", "qcow2", o, NULL), 0);
}

static void make_over(int byte)
{
    fill("lower.raw", byte);
    make("{\"size\": 1048576, \"cluster_size\": 16384, \"extended_l2\": true, "
         "\"backing_file\": \"lower.raw\", \"backing_fmt\": \"raw\"}");
}

static void start_with(bool read_only)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:b, s:{s:s, s:s}}",
                                       "driver", "qcow2", "discard", "unmap",
                                       "read-only", read_only, "file", "driver",
                                       "file", "filename", "disk.qcow2");
    struct node *n;

    g = graph_new();
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    unsigned perm = PERM_READ | (read_only ? 0 : PERM_WRITE | PERM_RESIZE);
    ck_assert_int_eq(blk_new(g, n, perm, PERM_ALL, "test", &b, NULL), 0);
    s = n->state;
}

static void start(void)
{
    start_with(false);
}

static unsigned char *slurp(uint64_t *size)
{
    FILE *f = fopen("disk.qcow2", "rb");
    struct stat st;

    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fstat(fileno(f), &st), 0);
    *size = (uint64_t)st.st_size;
    unsigned char *bytes = malloc(*size);
    ck_assert_uint_eq(fread(bytes, 1, *size, f), *size);
    (void)fclose(f);
    return bytes;
}

static void expect_sound(void)
{
    uint64_t size;
    CLEANUP_FREE unsigned char *bytes = slurp(&size);
    struct verdict v = check_image(&(struct image){bytes, size});

    ck_assert_uint_eq(v.corruptions, 0);
    ck_assert_uint_eq(v.leaks, 0);
}

static void stop(void)
{
    blk_free(b);
    graph_free(g);
}

static int write_compressed(const void *buf, uint64_t bytes, uint64_t offset)
{
    struct node *n = blk_node(b);
    struct tree *t = node_enter(n, false);
    int r = node_write_compressed(n, buf, bytes, offset);

    node_leave(t);
    return r;
}

/* --- 1. Both words of one moment --- */

static _Atomic bool done;
static struct qcow2_table shared_table;

static const struct qcow2_entry states[] = {
    {.word = UINT64_C(0x4000000000050000)},
    {.word = UINT64_C(0x8000000000070000), .alloc = UINT32_MAX},
    {.word = 0, .zero = UINT32_MAX},
    {.word = UINT64_C(0x8000000000030000), .alloc = 0xff, .zero = 0xf00},
};

static bool is_one(struct qcow2_entry e)
{
    for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
        if (e.word == states[i].word && e.alloc == states[i].alloc &&
            e.zero == states[i].zero) {
            return true;
        }
    }
    return false;
}

static void *load_all_the_time(void *opaque)
{
    const struct qcow2 *shape = opaque;

    while (!atomic_load_explicit(&done, memory_order_relaxed)) {
        if (!is_one(qcow2_entry_load(shape, &shared_table, 1))) {
            return (void *)(uintptr_t) "an entry is of two moments";
        }
    }
    return NULL;
}

START_TEST(an_entry_is_loaded_as_it_was_stored)
{
    struct qcow2 shape = {.extended = true};
    _Atomic uint64_t words[4] = {0};
    pthread_t threads[2];
    void *failed;

    shared_table.data = words;
    qcow2_entry_store(&shape, &shared_table, 1, states[0]);
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(
            pthread_create(&threads[i], NULL, load_all_the_time, &shape), 0);
    }
    for (unsigned i = 0; i < 2000000; i++) {
        qcow2_entry_store(&shape, &shared_table, 1,
                          states[i % ARRAY_SIZE(states)]);
    }
    atomic_store(&done, true);
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(pthread_join(threads[i], &failed), 0);
        ck_assert_msg(!failed, "%s", (char *)failed);
    }
}
END_TEST

static void *load_once(void *opaque)
{
    const struct qcow2 *shape = opaque;

    atomic_store(&done, true);
    return is_one(qcow2_entry_load(shape, &shared_table, 1))
               ? NULL
               : (void *)(uintptr_t) "an entry is of two moments";
}

/* The reader is given time to look between the two stores, and has to wait. */
START_TEST(an_entry_that_is_being_stored_is_waited_for)
{
    struct qcow2 shape = {.extended = true};
    _Atomic uint64_t words[4] = {0};
    pthread_t thread;
    void *failed;

    shared_table.data = words;
    qcow2_entry_store(&shape, &shared_table, 1, states[1]);
    atomic_fetch_add(&shared_table.changes, 1);
    atomic_store(&words[2], htobe64(states[2].word));
    ck_assert_int_eq(pthread_create(&thread, NULL, load_once, &shape), 0);
    while (!atomic_load(&done)) {
        (void)usleep(1000);
    }
    (void)usleep(50000);
    atomic_store(&words[3], htobe64((uint64_t)states[2].zero << 32));
    atomic_fetch_add(&shared_table.changes, 1);
    ck_assert_int_eq(pthread_join(thread, &failed), 0);
    ck_assert_msg(!failed, "%s", (char *)failed);
}
END_TEST

/* What the backing file has all over, and nobody writes. */
#define BELOW 0xbb

static void *read_all_the_time(void *opaque)
{
    const struct blk *mine = opaque;
    unsigned char buf[CLUSTER];

    while (!atomic_load_explicit(&done, memory_order_relaxed)) {
        if (blk_pread((struct blk *)(uintptr_t)mine, buf, CLUSTER, 0, 0) < 0) {
            return (void *)(uintptr_t) "a read has failed";
        }
        if (memchr(buf, BELOW, CLUSTER)) {
            return (void *)(uintptr_t) "a reader saw the backing file";
        }
    }
    return NULL;
}

static void change_one_cluster(void)
{
    unsigned char buf[CLUSTER];
    uint64_t at = rnd(CLUSTER / SUB) * SUB;
    uint64_t bytes = min_u64((1 + rnd(8)) * SUB, CLUSTER - at);

    memset(buf, 1 + (int)rnd(50), CLUSTER);
    switch (rnd(6)) {
    case 0:
    case 1:
        ck_assert_int_eq(write_compressed(buf, CLUSTER, 0), 0);
        break;
    case 2:
        ck_assert_int_eq(blk_zero(b, at, bytes, rnd(2) ? REQ_MAY_UNMAP : 0), 0);
        break;
    case 3:
        ck_assert_int_eq(blk_discard(b, 0, CLUSTER), 0);
        break;
    default:
        ck_assert_int_eq(blk_pwrite(b, buf, bytes, at, 0), 0);
    }
}

START_TEST(readers_never_see_the_backing_file_where_the_guest_wrote)
{
    unsigned char buf[CLUSTER] = {1};
    pthread_t threads[2];
    void *failed;

    make_over(BELOW);
    start();
    seed = 11;
    ck_assert_int_eq(blk_pwrite(b, buf, CLUSTER, 0, 0), 0);
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(
            pthread_create(&threads[i], NULL, read_all_the_time, b), 0);
    }
    for (unsigned i = 0; i < 1500; i++) {
        change_one_cluster();
        if (i % 100 == 99) {
            ck_assert_int_eq(blk_flush(b), 0);
        }
    }
    atomic_store(&done, true);
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(pthread_join(threads[i], &failed), 0);
        ck_assert_msg(!failed, "%s", (char *)failed);
    }
    stop();
    expect_sound();
}
END_TEST

/* --- 2. What is copied --- */

static uint32_t data_parts(uint64_t offset)
{
    struct qcow2_table *t;

    ck_assert_int_eq(qcow2_l2_get(s, offset, false, &t), 0);
    ck_assert_ptr_nonnull(t);
    uint32_t parts = qcow2_l2_data_parts(s, t, offset);
    qcow2_cache_put(s->l2, t);
    return parts;
}

/* The cluster has its data at @offset, and shows 0xbb everywhere else. */
static void expect_bytes(uint64_t cluster, uint64_t offset, uint64_t bytes,
                         int byte)
{
    unsigned char want[CLUSTER];
    unsigned char got[CLUSTER];

    memset(want, BELOW, CLUSTER);
    memset(want + offset, byte, bytes);
    ck_assert_int_eq(blk_pread(b, got, CLUSTER, cluster, 0), 0);
    ck_assert_int_eq(memcmp(got, want, CLUSTER), 0);
}

static const struct {
    uint64_t offset; /* in the cluster */
    uint64_t bytes;
    uint32_t parts; /* that have data then */
} fresh[] = {
    {4096, 4096, 0x0000ff00},
    {0, SUB, 0x00000001},
    {CLUSTER - SUB, SUB, 0x80000000},
    {SUB + 100, 7, 0x00000002},         /* the rest of one is copied */
    {SUB - 1, 2, 0x00000003},           /* of two */
    {3 * SUB + 5, 3 * SUB, 0x00000078}, /* and two between them */
    {0, CLUSTER, UINT32_MAX},
};

START_TEST(a_write_copies_no_more_than_its_subclusters)
{
    unsigned char buf[CLUSTER];

    make_over(BELOW);
    start();
    ck_assert_uint_eq(blk_node(b)->limits.zero_align, SUB);
    for (size_t i = 0; i < ARRAY_SIZE(fresh); i++) {
        uint64_t at = i * CLUSTER;

        memset(buf, 3, sizeof(buf));
        ck_assert_int_eq(
            blk_pwrite(b, buf, fresh[i].bytes, at + fresh[i].offset, 0), 0);
        ck_assert_uint_eq(data_parts(at), fresh[i].parts);
        expect_bytes(at, fresh[i].offset, fresh[i].bytes, 3);
        /* What was written is overwritten in place: nothing is added. */
        memset(buf, 4, sizeof(buf));
        ck_assert_int_eq(
            blk_pwrite(b, buf, fresh[i].bytes, at + fresh[i].offset, 0), 0);
        ck_assert_uint_eq(data_parts(at), fresh[i].parts);
        expect_bytes(at, fresh[i].offset, fresh[i].bytes, 4);
    }
    stop();
    expect_sound();
}
END_TEST

START_TEST(zeroes_and_discards_are_of_subclusters)
{
    static unsigned char zeroes[CLUSTER];
    unsigned char buf[CLUSTER];
    struct mapping m;

    make_over(BELOW);
    start();
    memset(buf, 3, sizeof(buf));
    ck_assert_int_eq(blk_pwrite(b, buf, 4 * SUB, 0, 0), 0);
    ck_assert_int_eq(blk_zero(b, SUB, SUB, 0), 0);
    ck_assert_uint_eq(data_parts(0), 0xd);
    ck_assert_int_eq(node_map(blk_node(b), SUB, CLUSTER, 0, &m), 0);
    node_map_put(blk_node(b), &m);
    ck_assert_int_eq(m.kind, MAP_ZERO);
    ck_assert_uint_eq(m.length, SUB);
    ck_assert_int_eq(blk_discard(b, 2 * SUB, SUB), 0);
    ck_assert_uint_eq(data_parts(0), 0x9);
    /* The cluster goes with its last data. */
    ck_assert_int_eq(blk_zero(b, 0, 4 * SUB, REQ_MAY_UNMAP), 0);
    ck_assert_int_eq(node_map(blk_node(b), 0, CLUSTER, 0, &m), 0);
    node_map_put(blk_node(b), &m);
    ck_assert_int_eq(m.kind, MAP_ZERO);
    ck_assert_uint_eq(m.length, 4 * SUB);
    ck_assert(!m.host_zero);
    ck_assert_int_eq(blk_pread(b, buf, 4 * SUB, 0, 0), 0);
    ck_assert_int_eq(memcmp(buf, zeroes, 4 * SUB), 0);
    /* A part of a compressed cluster is written. */
    memset(buf, 5, sizeof(buf));
    ck_assert_int_eq(write_compressed(buf, CLUSTER, CLUSTER), 0);
    ck_assert_int_eq(blk_discard(b, CLUSTER, SUB), 0);
    ck_assert_int_eq(blk_zero(b, CLUSTER + SUB, SUB, REQ_NO_FALLBACK),
                     -ENOTSUP);
    ck_assert_int_eq(blk_pread(b, zeroes, CLUSTER, CLUSTER, 0), 0);
    ck_assert_int_eq(memcmp(buf, zeroes, CLUSTER), 0);
    ck_assert_int_eq(blk_zero(b, CLUSTER + SUB, SUB, 0), 0);
    memset(buf + SUB, 0, SUB);
    ck_assert_int_eq(blk_pread(b, zeroes, CLUSTER, CLUSTER, 0), 0);
    ck_assert_int_eq(memcmp(buf, zeroes, CLUSTER), 0);
    ck_assert_uint_eq(data_parts(CLUSTER) & ~UINT32_C(2), ~UINT32_C(2));
    stop();
    expect_sound();
}
END_TEST

/* --- 3. A request fails --- */

#define REQUESTS 40

struct model {
    unsigned char bytes[GUEST];
    bool known[GUEST / SUB]; /* no request on it has failed */
};

static int random_request(struct model *m)
{
    unsigned char buf[2 * CLUSTER];
    uint64_t at = rnd(6 * CLUSTER / SUB) * SUB;
    uint64_t bytes = (1 + rnd(rnd(3) ? 6 : 40)) * SUB;
    unsigned what = (unsigned)rnd(8);
    int byte = 1 + (int)rnd(200);
    int r;

    if (what == 0) {
        at = align_down(at, CLUSTER);
        bytes = CLUSTER;
    }
    memset(buf, what < 5 ? byte : 0, sizeof(buf));
    bytes = min_u64(bytes, sizeof(buf));
    r = what == 0  ? write_compressed(buf, bytes, at)
        : what < 5 ? blk_pwrite(b, buf, bytes, at, 0)
        : what < 7 ? blk_zero(b, at, bytes, what == 5 ? REQ_MAY_UNMAP : 0)
                   : blk_flush(b);
    for (uint64_t i = 0; what < 7 && i < bytes; i += SUB) {
        m->known[(at + i) / SUB] = r == 0;
        memcpy(m->bytes + at + i, buf, SUB);
    }
    return r;
}

static void compare(const struct model *m)
{
    static unsigned char got[GUEST];

    ck_assert_int_eq(blk_pread(b, got, GUEST, 0, 0), 0);
    for (uint64_t i = 0; i < GUEST; i += SUB) {
        ck_assert_msg(!m->known[i / SUB] ||
                          memcmp(got + i, m->bytes + i, SUB) == 0,
                      "%" PRIu64 " is not what was written", i);
    }
}

/* The @k-th request of that kind to the file fails; false: there are not so
 * many. */
static bool fail_one(enum fault_kind kind, unsigned k)
{
    struct model *m = calloc(1, sizeof(*m));
    uint64_t size = load_new_image(SHAPE);
    bool failed = false;

    memset(m->known, true, sizeof(m->known));
    g = graph_new();
    struct node *n = open_recorded(g, size);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    seed = 5;
    rec_fail((struct fault){.kind = kind, .countdown = k, .error = -EIO});
    for (unsigned i = 0; i < REQUESTS; i++) {
        int r = random_request(m);

        ck_assert(r == 0 || r == -EIO);
        failed |= r < 0;
    }
    bool fired = rec.fault.countdown == 0;
    rec_fail((struct fault){0});
    compare(m);
    ck_assert_int_eq(blk_flush(b), 0);
    compare(m);
    stop();
    struct verdict v = check_image(&(struct image){rec.disk, DISK_MAX});
    ck_assert_uint_eq(v.corruptions, 0);
    ck_assert(failed || v.leaks == 0);
    forget_records();
    free(m);
    return fired;
}

START_TEST(a_request_that_fails_changes_nothing_else)
{
    unsigned k = 1;

    while (fail_one((enum fault_kind)_i, k)) {
        k++;
    }
    ck_assert_uint_gt(k, 3);
}
END_TEST

/* --- 4. Entries that contradict themselves --- */

static void put64(uint64_t at, uint64_t value)
{
    unsigned char be[8];
    FILE *f = fopen("disk.qcow2", "r+b");

    store_be64(be, value);
    ck_assert_int_eq(fseek(f, (long)at, SEEK_SET), 0);
    ck_assert_uint_eq(fwrite(be, 1, 8, f), 8);
    (void)fclose(f);
}

static uint64_t get64(uint64_t at)
{
    uint64_t size;
    CLEANUP_FREE unsigned char *bytes = slurp(&size);

    return load_be64(bytes + at);
}

static uint64_t first_entry(void)
{
    return get64(get64(40)) & UINT64_C(0x00fffffffffffe00);
}

static char lost[256];

static void note(const struct image_finding *f, void *opaque)
{
    size_t have = strlen(lost);

    (void)opaque;
    if (f->fault == IMAGE_LOST) {
        (void)snprintf(lost + have, sizeof(lost) - have,
                       "%" PRIu64 "+%" PRIu64 " ", f->guest, f->guest_bytes);
    }
}

static struct image_check check(enum image_repair how)
{
    const struct image_check_options o = {.repair = how, .found = note};
    CLEANUP_JSON json_t *file = json_pack("{s:s, s:s, s:b}", "driver", "file",
                                          "filename", "disk.qcow2", "read-only",
                                          how == IMAGE_REPAIR_NONE);
    struct graph *own = graph_new();
    struct image_check c;
    struct node *n;

    lost[0] = '\0';
    ck_assert_int_eq(graph_open(own, file, &n, NULL), 0);
    ck_assert_int_eq(image_check(own, n, "qcow2", &o, &c, NULL), 0);
    graph_close_all(own);
    graph_free(own);
    return c;
}

/* The cluster has data in parts 0 to 3, zeroes in 4 to 7. */
static const struct {
    uint64_t word; /* bits to flip in the first */
    bool no_place; /* make it 0 before */
    uint32_t alloc;
    uint32_t zero;
    uint64_t corruptions;
    bool readable;
    const char *lost;
    uint32_t data; /* parts that have data after the repair */
} broken[] = {
    {0, false, 0x0f, 0xf0, 0, true, "", 0x0f},
    {1, false, 0x0f, 0xf0, 1, true, "", 0x0f}, /* bit 0 is reserved */
    {0, false, 0x1f, 0xf0, 1, false, "2048+512 ", 0x0f},
    {0, false, 0xc03, 0xc01, 1, false, "0+512 5120+1024 ", 0x002},
    {0, true, 0x0f, 0xf0, 2, false, "0+2048 ", 0}, /* and its cluster leaks */
    {512, false, 0x0f, 0xf0, 2, false, "0+2048 ", 0},
    {UINT64_C(1) << 40, false, 0x0f, 0xf0, 2, true, "0+2048 ", 0},
    {512, false, 0, 0xf0, 2, false, "", 0}, /* it led to nothing of the guest */
};

/* What a repair must not change shows what it showed. */
static void expect_repaired(unsigned i)
{
    unsigned char got[CLUSTER];
    uint32_t gone = broken[i].alloc & ~broken[i].data;

    start();
    ck_assert_int_eq(blk_pread(b, got, CLUSTER, 0, 0), 0);
    for (unsigned p = 0; p < 32; p++) {
        bool zero = (broken[i].zero | gone) >> p & 1;
        int want = zero                      ? 0
                   : broken[i].data >> p & 1 ? (p < 4 ? 7 : -1)
                                             : BELOW;

        ck_assert_msg(want < 0 || got[p * SUB] == want,
                      "%u: part %u shows %d, not %d", i, p, got[p * SUB], want);
    }
    stop();
    expect_sound();
}

START_TEST(a_repair_keeps_what_an_entry_does_not_contradict)
{
    unsigned char buf[4 * SUB];
    unsigned i = (unsigned)_i;

    make_over(BELOW);
    start();
    memset(buf, 7, sizeof(buf));
    ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), 0, 0), 0);
    ck_assert_int_eq(blk_zero(b, sizeof(buf), sizeof(buf), 0), 0);
    stop();
    uint64_t at = first_entry();
    put64(at, (broken[i].no_place ? 0 : get64(at)) ^ broken[i].word);
    put64(at + 8, (uint64_t)broken[i].zero << 32 | broken[i].alloc);
    struct image_check c = check(IMAGE_REPAIR_NONE);
    ck_assert_uint_eq(c.corruptions + c.leaks, broken[i].corruptions);
    start_with(true);
    ck_assert_int_eq(blk_pread(b, buf, SUB, 0, 0) == 0, broken[i].readable);
    stop();
    (void)check(IMAGE_REPAIR_ALL);
    ck_assert_str_eq(lost, broken[i].lost);
    c = check(IMAGE_REPAIR_NONE);
    ck_assert_uint_eq(c.corruptions + c.leaks, 0);
    expect_repaired(i);
}
END_TEST

START_TEST(a_compressed_cluster_has_no_bits)
{
    unsigned char buf[CLUSTER];
    unsigned char got[CLUSTER];

    make_over(BELOW);
    start();
    memset(buf, 7, sizeof(buf));
    ck_assert_int_eq(write_compressed(buf, CLUSTER, 0), 0);
    stop();
    put64(first_entry() + 8, UINT64_C(0x0000000100000002));
    ck_assert_uint_eq(check(IMAGE_REPAIR_NONE).corruptions, 1);
    (void)check(IMAGE_REPAIR_ALL);
    ck_assert_str_eq(lost, "");
    ck_assert_uint_eq(get64(first_entry() + 8), 0);
    start();
    ck_assert_int_eq(blk_pread(b, got, CLUSTER, 0, 0), 0);
    ck_assert_int_eq(memcmp(got, buf, CLUSTER), 0);
    stop();
    /* Behind the end of the file it is lost, and shows no old backing file. */
    put64(first_entry(), UINT64_C(0x4000010000000000));
    (void)check(IMAGE_REPAIR_ALL);
    ck_assert_str_eq(lost, "0+16384 ");
    start();
    memset(buf, 0, CLUSTER);
    ck_assert_int_eq(blk_pread(b, got, CLUSTER, 0, 0), 0);
    ck_assert_int_eq(memcmp(got, buf, CLUSTER), 0);
    stop();
    expect_sound();
}
END_TEST

/* --- 5. Other sizes --- */

START_TEST(a_disk_grows_and_shrinks_in_the_middle_of_a_cluster)
{
    unsigned char buf[CLUSTER];

    make_over(BELOW);
    start();
    memset(buf, 7, sizeof(buf));
    for (uint64_t at = 0; at < GUEST; at += CLUSTER) {
        ck_assert_int_eq(blk_pwrite(b, buf, CLUSTER, at, 0), 0);
    }
    uint64_t cut = 20 * CLUSTER + 3 * SUB;
    ck_assert_int_eq(blk_resize(b, cut, NULL), 0);
    ck_assert_int_eq(blk_resize(b, GUEST, NULL), 0);
    for (uint64_t at = 0; at < GUEST; at += SUB) {
        ck_assert_int_eq(blk_pread(b, buf, SUB, at, 0), 0);
        ck_assert_int_eq(buf[0], at < cut ? 7 : 0);
        ck_assert_int_eq(buf[SUB - 1], at < cut ? 7 : 0);
    }
    stop();
    expect_sound();
    /* To many times the size, with one L1 table's worth of entries and more. */
    start();
    ck_assert_int_eq(blk_resize(b, 64 * GiB, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, buf, SUB, 64 * GiB - SUB, 0), 0);
    ck_assert_int_eq(blk_resize(b, cut, NULL), 0);
    stop();
    expect_sound();
    uint64_t size;
    free(slurp(&size));
    ck_assert_uint_lt(size, 2 * MiB); /* the room came back */
}
END_TEST

static const char *const preallocated[] = {
    "{\"size\": 1048576, \"cluster_size\": 16384, \"extended_l2\": true, "
    "\"preallocation\": \"metadata\"}",
    "{\"size\": 1048576, \"cluster_size\": 16384, \"extended_l2\": true, "
    "\"preallocation\": \"full\"}",
    "{\"size\": 1048576, \"cluster_size\": 16384, \"extended_l2\": true, "
    "\"backing_file\": \"lower.raw\", \"backing_fmt\": \"raw\", "
    "\"preallocation\": \"metadata\"}",
};

START_TEST(preallocated_subclusters_show_what_is_below)
{
    unsigned char got[4 * SUB];
    uint64_t before;
    uint64_t size;
    int below = _i == 2 ? BELOW : 0;

    fill("lower.raw", BELOW);
    make(preallocated[_i]);
    free(slurp(&before));
    ck_assert_uint_gt(before, GUEST);
    start();
    memset(got, 9, SUB);
    ck_assert_int_eq(blk_pwrite(b, got, SUB, SUB, 0), 0);
    ck_assert_int_eq(blk_pread(b, got, sizeof(got), 0, 0), 0);
    ck_assert_int_eq(got[0], below);
    ck_assert_int_eq(got[SUB], 9);
    ck_assert_int_eq(got[2 * SUB], below);
    stop();
    expect_sound();
    free(slurp(&size));
    ck_assert_uint_eq(size, before); /* it had a place already */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("qcow2-subclusters");
    TCase *t = tcase_create("extended-l2");

    tcase_set_timeout(t, 300);
    tcase_add_test(t, an_entry_is_loaded_as_it_was_stored);
    tcase_add_test(t, an_entry_that_is_being_stored_is_waited_for);
    tcase_add_test(t, readers_never_see_the_backing_file_where_the_guest_wrote);
    tcase_add_test(t, a_write_copies_no_more_than_its_subclusters);
    tcase_add_test(t, zeroes_and_discards_are_of_subclusters);
    tcase_add_loop_test(t, a_request_that_fails_changes_nothing_else, 0, 3);
    tcase_add_loop_test(t, a_repair_keeps_what_an_entry_does_not_contradict, 0,
                        (int)ARRAY_SIZE(broken));
    tcase_add_test(t, a_compressed_cluster_has_no_bits);
    tcase_add_test(t, a_disk_grows_and_shrinks_in_the_middle_of_a_cluster);
    tcase_add_loop_test(t, preallocated_subclusters_show_what_is_below, 0, 3);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed > 0;
}
