/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writes that allocate and must not wait (qcow2/write-nowait.c).
 *
 *   done      new clusters, several pieces, old data from memory, all at once
 *   refused   each reason to wait: -EAGAIN, and nothing is left of the try:
 *             no byte, no count, no range, no pin, no ticket; what was never
 *             written reads as zeroes still.  Then the same write succeeds
 *   broken    the k-th I/O fails, or finds no room: nothing leaks, and the
 *             write that is done again succeeds
 *   crowd     threads, flushes, drains and snapshots side by side
 */
#include <check.h>
#include <time.h>

#include "bitmap-util.h"
#include "nbdelta/internal-snapshot.h"
#include "qcow2-check.h"
#include "qcow2/alloc.h"
#include "qcow2/copied.h"
#include "qcow2/l2.h"
#include "small-disk.h"

#define CLUSTER UINT64_C(4096)
#define SIZE    (2 * MiB)
#define COUNT   (SIZE / CLUSTER)
#define SHAPE   "{\"size\": 2097152, \"cluster_size\": 4096}"

static struct graph *g;
static struct blk *b;
static struct qcow2 *s;
static char model[SIZE];

static void open_disk(uint64_t size)
{
    g = graph_new();
    struct node *n = small_open(g, size);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    s = n->state;
}

static void close_disk(void)
{
    blk_free(b);
    graph_free(g);
}

static int put(int byte, uint64_t offset, uint64_t bytes, unsigned flags)
{
    static _Thread_local char buf[SIZE];

    memset(buf, byte, bytes);
    int r = blk_pwrite(b, buf, bytes, offset, flags);
    if (r == 0) {
        memset(model + offset, byte, bytes);
    }
    return r;
}

static void expect_model(void)
{
    static char seen[SIZE];

    ck_assert_int_eq(blk_pread(b, seen, SIZE, 0, 0), 0);
    for (uint64_t i = 0; i < SIZE; i++) {
        ck_assert_msg(seen[i] == model[i], "byte %d instead of %d at %u",
                      seen[i], model[i], (unsigned)i);
    }
}

/* A disk whose cluster 0 has data: its tables are in memory and have room. */
static void start(void)
{
    uint64_t blocks = small_load(SHAPE, false);

    memset(model, 0, sizeof(model));
    small.capacity = SMALL_COUNT;
    open_disk(blocks * SMALL_BLOCK);
    ck_assert_int_eq(put(1, 0, CLUSTER, 0), 0);
}

static void stop(void)
{
    struct image image = {small.bytes, SMALL_MAX};

    expect_model();
    close_disk();
    struct verdict v = check_image(&image);
    ck_assert_uint_eq(v.corruptions, 0);
    ck_assert_uint_eq(v.leaks, 0);
}

/* --- What a try may leave --- */

struct trace {
    uint64_t counts[COUNT * 2];
    uint64_t virgin;
    uint64_t used; /* blocks of the file */
};

static void look(struct trace *t)
{
    mutex_lock(&s->meta);
    for (uint64_t i = 0; i < COUNT * 2; i++) {
        ck_assert_int_eq(qcow2_refcount_get(s, i, &t->counts[i]), 0);
    }
    t->virgin = s->virgin;
    mutex_unlock(&s->meta);
    t->used = small.used;
}

static void expect_no_pins(void)
{
    struct qcow2_table *t;

    ck_assert_int_eq(qcow2_l2_get(s, 0, true, &t), 0);
    ck_assert_uint_eq(t->pins, 1);
    qcow2_cache_put(s->l2, t);
}

static void expect_nothing_held(void)
{
    struct range_req req;

    ck_assert(range_trylock(&s->range, &req, 0, SIZE, true));
    range_unlock(&s->range, &req);
    ck_assert(mutex_trylock(&s->meta));
    mutex_unlock(&s->meta);
    ck_assert_uint_eq(atomic_load(&s->users[0]), 0);
    ck_assert_uint_eq(atomic_load(&s->users[1]), 0);
}

static void expect_trace(const struct trace *before)
{
    static struct trace now;

    look(&now);
    for (uint64_t i = 0; i < COUNT * 2; i++) {
        ck_assert_msg(now.counts[i] == before->counts[i],
                      "cluster %u counts %u instead of %u", (unsigned)i,
                      (unsigned)now.counts[i], (unsigned)before->counts[i]);
    }
    ck_assert_uint_eq(now.virgin, before->virgin);
    ck_assert_uint_eq(now.used, before->used);
}

/* The write is refused as long as something is so, and changes nothing. */
static void expect_refusal(uint64_t offset, uint64_t bytes)
{
    static struct trace before;

    look(&before);
    ck_assert_int_eq(put(9, offset, bytes, REQ_NOWAIT), -EAGAIN);
    expect_trace(&before);
}

/* And then it is not. */
static void expect_success(uint64_t offset, uint64_t bytes)
{
    ck_assert_int_eq(put(9, offset, bytes, REQ_NOWAIT), 0);
    expect_nothing_held();
    expect_no_pins();
    expect_model();
}

/* --- Done --- */

START_TEST(it_allocates_at_once)
{
    start();
    uint64_t used = small.used;
    ck_assert_int_eq(put(2, 7 * CLUSTER + 512, 512, REQ_NOWAIT), 0);
    ck_assert_uint_eq(small.used, used + 1); /* the rest of it is a hole */
    ck_assert_int_eq(put(3, 7 * CLUSTER + 1536, 512, REQ_NOWAIT), 0);
    ck_assert_int_eq(put(4, 8 * CLUSTER, 4 * CLUSTER, REQ_NOWAIT), 0);
    ck_assert_int_eq(put(5, 12 * CLUSTER - 1, 2 * CLUSTER, REQ_NOWAIT), 0);
    expect_nothing_held();
    expect_no_pins();
    ck_assert_int_eq(blk_flush(b), 0);
    stop();
}
END_TEST

/* New, there, new in zeroes, there in another order, freed and used again. */
static void mix(void)
{
    ck_assert_int_eq(put(2, 3 * CLUSTER, CLUSTER, 0), 0);
    ck_assert_int_eq(put(3, 2 * CLUSTER, CLUSTER, 0), 0);
    ck_assert_int_eq(put(4, 5 * CLUSTER, 2 * CLUSTER, 0), 0);
    ck_assert_int_eq(blk_zero(b, 5 * CLUSTER, CLUSTER, REQ_MAY_UNMAP), 0);
    memset(model + 5 * CLUSTER, 0, CLUSTER);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(blk_flush(b), 0); /* out of limbo */
}

#define MIX_AT    (CLUSTER + 512)
#define MIX_BYTES (5 * CLUSTER)

START_TEST(it_writes_pieces_of_all_kinds)
{
    start();
    mix();
    expect_success(MIX_AT, MIX_BYTES);
    stop();
}
END_TEST

static int change_snapshot(enum internal_verb verb)
{
    const struct internal_options o = {
        .node = blk_node(b), .verb = verb, .name = "s"};
    struct action *a;
    int r = snapshot_internal_action(&o, &a, NULL);

    return r < 0 ? r : action_run(g, a, NULL);
}

START_TEST(old_data_that_are_in_memory_are_copied)
{
    start();
    ck_assert_int_eq(put(2, 0, 8 * CLUSTER, 0), 0);
    ck_assert_int_eq(change_snapshot(INTERNAL_MAKE), 0);
    expect_refusal(CLUSTER, 512); /* its table is shared */
    ck_assert_int_eq(put(3, CLUSTER, 512, 0), 0);
    size_t notes = atomic_load(&s->copied.count);
    expect_success(3 * CLUSTER + 1024, CLUSTER);
    ck_assert_uint_eq(atomic_load(&s->copied.count), notes + 2);
    ck_assert_int_eq(blk_flush(b), 0);
    stop();
}
END_TEST

/* --- Refused --- */

START_TEST(tables_that_are_not_in_memory)
{
    start();
    uint64_t size = node_size(s->file);
    close_disk();
    open_disk(size);
    ck_assert_int_eq(put(9, CLUSTER, CLUSTER, REQ_NOWAIT), -EAGAIN);
    char byte;
    ck_assert_int_eq(blk_pread(b, &byte, 1, 0, 0), 0); /* the L2 table is */
    expect_refusal(CLUSTER, CLUSTER);
    ck_assert_int_eq(put(9, CLUSTER, CLUSTER, 0), 0);
    expect_success(2 * CLUSTER, CLUSTER);
    stop();
}
END_TEST

static struct {
    mutex_t lock;
    cond_t moved;
    int step;
} held;

static void held_step(int to, int until)
{
    mutex_lock(&held.lock);
    held.step = to > held.step ? to : held.step;
    cond_broadcast(&held.moved);
    while (held.step < until) {
        cond_wait(&held.moved, &held.lock);
    }
    mutex_unlock(&held.lock);
}

static void *hold_meta(void *arg)
{
    (void)arg;
    mutex_lock(&s->meta);
    held_step(1, 2);
    mutex_unlock(&s->meta);
    return NULL;
}

START_TEST(a_lock_that_is_held)
{
    static struct trace before;
    pthread_t t;

    start();
    mutex_init(&held.lock, LOCK_TEST, NULL);
    cond_init(&held.moved);
    held.step = 0;
    look(&before);
    ck_assert_int_eq(thread_start(&t, "holder", hold_meta, NULL), 0);
    held_step(0, 1);
    ck_assert_int_eq(put(9, CLUSTER, CLUSTER, REQ_NOWAIT), -EAGAIN);
    held_step(2, 2);
    thread_join(t);
    expect_trace(&before);
    expect_success(CLUSTER, CLUSTER);
    stop();
    mutex_destroy(&held.lock);
    cond_destroy(&held.moved);
}
END_TEST

START_TEST(a_range_that_is_held)
{
    struct range_req req;

    start();
    range_lock(&s->range, &req, 2 * CLUSTER, CLUSTER, true);
    expect_refusal(CLUSTER, 2 * CLUSTER);
    ck_assert_int_eq(put(9, 3 * CLUSTER, CLUSTER, REQ_NOWAIT), 0);
    range_unlock(&s->range, &req);
    expect_success(CLUSTER, 2 * CLUSTER);
    stop();
}
END_TEST

static void set_hint(uint64_t cluster)
{
    mutex_lock(&s->meta);
    s->free_hint = cluster;
    mutex_unlock(&s->meta);
}

START_TEST(free_clusters_that_have_to_be_searched_for)
{
    start();
    uint64_t hint = s->free_hint;
    uint64_t end = UINT64_C(1) << s->refblock_bits;
    set_hint(end); /* a block that is not there yet */
    expect_refusal(CLUSTER, CLUSTER);
    set_hint(hint);
    expect_success(CLUSTER, CLUSTER);
    stop();
}
END_TEST

START_TEST(a_bitmap_that_has_to_be_armed)
{
    start();
    ck_assert_int_eq(bitmap_add(g, blk_node(b), "b", 65536, true, false, NULL),
                     0);
    expect_refusal(CLUSTER, CLUSTER);
    ck_assert_int_eq(put(2, 2 * CLUSTER, CLUSTER, 0), 0);
    expect_success(CLUSTER, CLUSTER);
    stop();
}
END_TEST

START_TEST(a_flush_that_is_due)
{
    start();
    mutex_lock(&s->meta);
    s->freed_clusters += GiB;
    mutex_unlock(&s->meta);
    expect_refusal(CLUSTER, CLUSTER);
    mutex_lock(&s->meta);
    s->freed_clusters -= GiB;
    mutex_unlock(&s->meta);
    expect_success(CLUSTER, CLUSTER);
    stop();
}
END_TEST

START_TEST(more_pieces_than_are_kept)
{
    start();
    for (uint64_t i = 2; i < 24; i += 2) {
        ck_assert_int_eq(put(2, i * CLUSTER, CLUSTER, 0), 0);
    }
    expect_refusal(CLUSTER, 20 * CLUSTER);
    expect_success(CLUSTER, 6 * CLUSTER);
    stop();
}
END_TEST

/* The file answers the k-th read or write with -EAGAIN; how often that was
 * passed on. */
static int refuse_each(bool shared)
{
    static struct trace before;
    int refused = 0;

    for (unsigned k = 1, more = 1; more; k++) {
        start();
        mix();
        if (shared) { /* and an L2 table of its own */
            ck_assert_int_eq(change_snapshot(INTERNAL_MAKE), 0);
            ck_assert_int_eq(put(5, 20 * CLUSTER, CLUSTER, 0), 0);
        }
        look(&before);
        small.shy_at = k;
        int r = put(9, MIX_AT, MIX_BYTES, REQ_NOWAIT);
        more = small.shy_at == 0;
        small.shy_at = 0;
        if (r < 0) {
            ck_assert_int_eq(r, -EAGAIN);
            expect_trace(&before);
            expect_model();
            refused++;
        }
        expect_success(MIX_AT, MIX_BYTES);
        if (shared) {
            ck_assert_int_eq(change_snapshot(INTERNAL_REMOVE), 0);
        }
        stop();
    }
    return refused;
}

START_TEST(storage_that_would_wait)
{
    ck_assert_int_eq(refuse_each(true), 2); /* old data, and the first write */
    ck_assert_int_eq(refuse_each(false), 1);
}
END_TEST

/* --- Broken --- */

START_TEST(storage_that_fails)
{
    int failed = 0;

    for (unsigned k = 1, more = 1; more; k++) {
        start();
        mix();
        small.fail_at = k;
        int r = put(9, MIX_AT, MIX_BYTES, REQ_NOWAIT);
        more = small.fail_at == 0;
        small.fail_at = 0;
        ck_assert_int_eq(r, more ? -EIO : 0);
        failed += more;
        expect_nothing_held();
        expect_no_pins();
        expect_success(MIX_AT, MIX_BYTES);
        stop();
    }
    ck_assert_int_ge(failed, 3);
}
END_TEST

/* With so many blocks; and with clusters in limbo, which are room, too. */
static void write_in(uint64_t blocks, bool limbo)
{
    start();
    mix();
    ck_assert_int_eq(put(6, 100 * CLUSTER, 8 * CLUSTER, 0), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    if (limbo) {
        ck_assert_int_eq(blk_zero(b, 100 * CLUSTER, 8 * CLUSTER, REQ_MAY_UNMAP),
                         0);
        memset(model + 100 * CLUSTER, 0, 8 * CLUSTER);
    }
    small.capacity = small.used + blocks;
    int r = put(9, MIX_AT, MIX_BYTES, REQ_NOWAIT);
    if (r == -EAGAIN) {
        expect_model();
        r = put(9, MIX_AT, MIX_BYTES, 0);
    }
    ck_assert_int_eq(r, limbo || blocks >= 40 ? 0 : -ENOSPC);
    expect_nothing_held();
    expect_no_pins();
    small.capacity = SMALL_COUNT;
    expect_success(MIX_AT, MIX_BYTES);
    stop();
}

START_TEST(storage_that_is_full)
{
    for (uint64_t blocks = 0; blocks < 24; blocks++) {
        write_in(blocks, true);
    }
    for (uint64_t blocks = 0; blocks < 8; blocks++) {
        write_in(blocks, false);
    }
    write_in(60, false);
}
END_TEST

/* --- Crowd --- */

#define GUESTS 4
#define TURNS  400

static struct {
    _Atomic unsigned at_once; /* writes that did not wait */
    _Atomic bool over;
} crowd;

/* Each has every GUESTS-th block of 512 bytes, so all share clusters. */
static void *guest(void *arg)
{
    unsigned mine = *(unsigned *)arg;
    unsigned random = mine + 1;

    for (unsigned i = 0; i < TURNS; i++) {
        uint64_t block = (uint64_t)rand_r(&random) % (SIZE / 512 / GUESTS);
        uint64_t offset = (block * GUESTS + mine) * 512;
        int byte = 1 + (int)(i % 100);
        int r = put(byte, offset, 512, REQ_NOWAIT);

        atomic_fetch_add(&crowd.at_once, r == 0);
        ck_assert(r == 0 || r == -EAGAIN);
        if (r < 0) {
            ck_assert_int_eq(put(byte, offset, 512, 0), 0);
        }
    }
    return NULL;
}

static void *disturb(void *arg)
{
    unsigned turn = 0;

    (void)arg;
    while (!atomic_load(&crowd.over)) {
        ck_assert_int_eq(blk_flush(b), 0);
        graph_lock(g);
        graph_drain(g, blk_node(b));
        graph_unlock(g);
        if (++turn % 8 == 0) {
            ck_assert_int_eq(change_snapshot(INTERNAL_MAKE), 0);
            ck_assert_int_eq(change_snapshot(INTERNAL_REMOVE), 0);
        }
    }
    return NULL;
}

START_TEST(all_at_once)
{
    static unsigned numbers[GUESTS] = {0, 1, 2, 3};
    pthread_t guests[GUESTS];
    pthread_t other;

    start();
    atomic_store(&crowd.at_once, 0);
    atomic_store(&crowd.over, false);
    ck_assert_int_eq(thread_start(&other, "disturb", disturb, NULL), 0);
    for (unsigned i = 0; i < GUESTS; i++) {
        ck_assert_int_eq(thread_start(&guests[i], "guest", guest, &numbers[i]),
                         0);
    }
    for (unsigned i = 0; i < GUESTS; i++) {
        thread_join(guests[i]);
    }
    atomic_store(&crowd.over, true);
    thread_join(other);
    ck_assert_uint_gt(atomic_load(&crowd.at_once), 0);
    expect_nothing_held();
    stop();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        it_allocates_at_once,
        it_writes_pieces_of_all_kinds,
        old_data_that_are_in_memory_are_copied,
        tables_that_are_not_in_memory,
        a_lock_that_is_held,
        a_range_that_is_held,
        free_clusters_that_have_to_be_searched_for,
        a_bitmap_that_has_to_be_armed,
        a_flush_that_is_due,
        more_pieces_than_are_kept,
        storage_that_would_wait,
        storage_that_fails,
        storage_that_is_full,
        all_at_once,
    };
    Suite *suite = suite_create("qcow2-nowait");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        tcase_add_test(tc, tests[i]);
    }
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
