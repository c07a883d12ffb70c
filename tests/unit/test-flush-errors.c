/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Storage that tells an error once (core/flush.c, qcow2/copied.c).
 *
 *   campaign   each flush of each operation fails, once, and loses what was
 *              written before it.  Each guest is told, once; then it writes
 *              again what it had written since its last flush, and nothing is
 *              lost: neither that, nor what we had copied beside it.  Storage
 *              reads as if it had lost nothing, or as it was before
 *   rules      who is told when flushes run side by side, when users come and
 *              go, and when nodes are put above others
 */
#define DISK_MAX (2 * MiB)

#include <errno.h>
#include <inttypes.h>

#include "bitmap-util.h"
#include "core/driver.h"
#include "job/filter.h"
#include "nbdelta/blk.h"
#include "nbdelta/internal-snapshot.h"
#include "power-cut.h"
#include "qcow2-check.h"
#include "qcow2-guest.h"
#include "qcow2/bitmaps.h"

#define UNIT 512
#define UNITS \
    (MiB / UNIT) /* that the model knows, from the start of the disk */
#define SIZE (16 * MiB)
#define FAR  (9 * MiB) /* in another region of a bitmap */

/* --- The world of the campaign --- */

static struct {
    struct graph *g;
    struct node *n;
    struct blk *guest[2];
    unsigned char *before; /* what is durable when all begins */
    uint32_t unit[UNITS];
    uint32_t snapshot[UNITS];
} w;

static const char *const shapes[] = {
    "{\"size\": 16777216, \"cluster_size\": 4096}",
    "{\"size\": 16777216, \"cluster_size\": 16384, \"extended_l2\": true}",
};

#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static int put(unsigned guest, uint64_t u, uint32_t value, unsigned flags)
{
    unsigned char bytes[UNIT] = {0};

    store_be32(bytes, value);
    w.unit[u] = value;
    return blk_pwrite(w.guest[guest], bytes, UNIT, u * UNIT, flags);
}

static void write_first(void)
{
    static unsigned char bytes[UNITS * UNIT];

    for (uint64_t u = 0; u < UNITS; u++) {
        w.unit[u] = (uint32_t)u + 1;
        store_be32(bytes + u * UNIT, w.unit[u]);
    }
    ck_assert_int_eq(blk_pwrite(w.guest[0], bytes, sizeof(bytes), 0, 0), 0);
}

/* What the guests write before the operation, and again after it. */
static void write_all(void)
{
    ck_assert_int_eq(put(0, 9, 1009, 0), 0);
    ck_assert_int_eq(put(0, 301, 1301, 0), 0);
    ck_assert_int_eq(put(1, 430, 2030, 0), 0);
    ck_assert_int_eq(put(1, 12, 2012, 0), 0);
}

static int change(enum internal_verb verb, const char *name)
{
    const struct internal_options o = {.node = w.n, .verb = verb, .name = name};
    struct action *a;
    int r = snapshot_internal_action(&o, &a, NULL);

    return r < 0 ? r : action_run(w.g, a, NULL);
}

static struct blk *user_of(struct graph *g, struct node *n, unsigned perm)
{
    struct blk *b;

    ck_assert_int_eq(blk_new(g, n, perm, PERM_ALL, "test", &b, NULL), 0);
    return b;
}

/* All clusters are shared with a snapshot, and durable. */
static void set_up(const char *shape)
{
    w.g = graph_new();
    uint64_t size = load_new_image(shape);
    w.n = open_recorded(w.g, size);
    for (unsigned i = 0; i < 2; i++) {
        w.guest[i] = user_of(w.g, w.n, PERM_READ | PERM_WRITE | PERM_RESIZE);
    }
    ck_assert_int_eq(bitmap_add(w.g, w.n, "a", 4096, true, false, NULL), 0);
    write_first();
    ck_assert_int_eq(change(INTERNAL_MAKE, "s"), 0);
    memcpy(w.snapshot, w.unit, sizeof(w.unit));
    ck_assert_int_eq(bitmap_add(w.g, w.n, "b", 4096, true, false, NULL), 0);
    ck_assert_int_eq(blk_flush(w.guest[0]), 0);
    w.before = malloc(DISK_MAX);
    memcpy(w.before, rec.disk, DISK_MAX);
    for (unsigned i = 0; i < rec.count; i++) {
        free(rec.log[i].data);
    }
    rec.count = 0;
    write_all();
}

static void tear_down(void)
{
    blk_free(w.guest[0]);
    blk_free(w.guest[1]);
    graph_free(w.g);
    forget_records();
    free(w.before);
}

/* --- Operations.  They tell what they had to say, as a guest's flush. --- */

static int op_flush(void)
{
    return blk_flush(w.guest[0]);
}

static int op_own_flush(void)
{
    (void)qcow2_flush(w.n);
    return 0;
}

static int op_arm(void)
{
    char byte = 'x';

    for (unsigned i = 0; i < 4; i++) {
        if (blk_pwrite(w.guest[0], &byte, 1, FAR, 0) == 0) {
            return 0;
        }
    }
    ck_abort_msg("a write fails for good");
}

static int op_add(void)
{
    (void)bitmap_add(w.g, w.n, "c", 4096, true, false, NULL);
    return 0;
}

static int op_clear(void)
{
    (void)bitmap_clear(w.g, w.n, "a", NULL);
    return 0;
}

static int op_remove(void)
{
    (void)bitmap_remove(w.g, w.n, "b", NULL);
    return 0;
}

static int op_disable(void)
{
    (void)bitmap_enable(w.g, w.n, "a", false, NULL);
    return 0;
}

static int op_tighten(void)
{
    (void)bitmap_clear(w.g, w.n, "a", NULL);
    for (unsigned i = 0; i < 3; i++) {
        (void)qcow2_bitmaps_tighten(w.n->state);
    }
    return 0;
}

static int op_settle(void)
{
    (void)bitmap_clear(w.g, w.n, "a", NULL);
    graph_lock(w.g);
    graph_drain(w.g, w.n);
    (void)qcow2_bitmaps_settle(w.n->state);
    graph_unlock(w.g);
    return 0;
}

static int op_grow(void)
{
    (void)blk_resize(w.guest[0], 2 * SIZE, NULL);
    return 0;
}

static int op_shrink(void)
{
    (void)blk_resize(w.guest[0], SIZE / 2, NULL);
    return 0;
}

static int op_make(void)
{
    (void)change(INTERNAL_MAKE, "t");
    return 0;
}

static int op_drop(void)
{
    (void)change(INTERNAL_REMOVE, "s");
    return 0;
}

static int op_apply(void)
{
    if (change(INTERNAL_APPLY, "s") == 0) {
        memcpy(w.unit, w.snapshot, sizeof(w.unit));
    }
    return 0;
}

/* A user of the image's file is told what the guests of the image have to
 * know. */
static int op_other_user(void)
{
    struct blk *b = user_of(w.g, w.n->child[CHILD_FILE]->child, PERM_READ);

    (void)blk_flush(b);
    blk_free(b);
    return 0;
}

static int op_fua(void)
{
    (void)put(0, 9, 3009, REQ_FUA);
    return 0;
}

static const struct op {
    const char *name;
    int (*run)(void);
} ops[] = {
    {"flush", op_flush},     {"own-flush", op_own_flush},
    {"arm", op_arm},         {"add", op_add},
    {"clear", op_clear},     {"remove", op_remove},
    {"disable", op_disable}, {"tighten", op_tighten},
    {"settle", op_settle},   {"grow", op_grow},
    {"shrink", op_shrink},   {"make", op_make},
    {"drop", op_drop},       {"apply", op_apply},
    {"fua", op_fua},         {"other-user", op_other_user},
};

#define OPS (sizeof(ops) / sizeof(ops[0]))

/* --- The campaign --- */

static uint32_t see(const unsigned char *disk, uint64_t u)
{
    const struct guest_image image = {disk, DISK_MAX};
    uint64_t size = guest_unit_size(&image);
    uint64_t at = guest_look(&image, u * UNIT / size);

    return at == GUEST_NOTHING || at == GUEST_ZEROES || at == GUEST_UNREADABLE
               ? 0
               : load_be32(disk + at + u * UNIT % size);
}

static void check_cut(const struct op *op, unsigned k)
{
    for (unsigned i = 0; i < 2; i++) {
        CLEANUP_FREE unsigned char *disk = crashed_image_at(w.before,
                                                            rec.count);
        struct image image = {disk, DISK_MAX};

        ck_assert_uint_eq(check_image(&image).corruptions, 0);
        for (uint64_t u = 0; u < UNITS; u++) {
            ck_assert_msg(see(disk, u) == w.unit[u],
                          "%s, flush %u fails: unit %" PRIu64
                          " is %u after a power cut, not %u",
                          op->name, k, u, see(disk, u), w.unit[u]);
        }
    }
}

/* What the guests see; @all, or what they need not write again. */
static void check_reads(const struct op *op, unsigned k, bool all)
{
    static const uint64_t own[] = {9, 12, 301, 430};
    static unsigned char bytes[UNITS * UNIT];

    ck_assert_int_eq(blk_pread(w.guest[0], bytes, sizeof(bytes), 0, 0), 0);
    for (uint64_t u = 0; u < UNITS; u++) {
        bool is_own = u == own[0] || u == own[1] || u == own[2] || u == own[3];
        uint32_t has = load_be32(bytes + u * UNIT);

        ck_assert_msg((is_own && !all) || has == w.unit[u],
                      "%s, flush %u fails: unit %" PRIu64
                      " reads as %u, not %u",
                      op->name, k, u, has, w.unit[u]);
    }
}

/* Was there a flush @k? */
static bool run_one(const struct op *op, const char *shape, unsigned k,
                    int error, bool forgets)
{
    set_up(shape);
    if (forgets) {
        rec.flushed = malloc(DISK_MAX);
        memcpy(rec.flushed, w.before, DISK_MAX);
    }
    rec_fail((struct fault){FAULT_FLUSH, k, error, false, false});
    int said = op->run();
    bool hit = rec.fault.countdown == 0;
    rec_fail((struct fault){0});
    int want[2] = {hit && said == 0 ? error : 0, hit ? error : 0};
    for (unsigned i = 0; i < 2; i++) {
        int r = blk_flush(w.guest[i]);
        ck_assert_msg(r == want[i],
                      "%s, flush %u of it fails (%d): guest %u's flush says %d",
                      op->name, k, error, i, r);
    }
    check_reads(op, k, false);
    write_all();
    for (unsigned i = 0; i < 4; i++) { /* once, and not for ever */
        ck_assert_int_eq(blk_flush(w.guest[i % 2]), 0);
    }
    check_reads(op, k, true);
    check_cut(op, k);
    tear_down();
    return hit;
}

START_TEST(each_guest_is_told_of_each_flush_that_fails)
{
    const struct op *op = &ops[(unsigned)_i % OPS];
    unsigned mode = (unsigned)_i / OPS;
    const char *shape = shapes[mode % SHAPES];
    bool forgets = mode > 0;
    unsigned k = 1;

    seed = 1 + (uint64_t)_i;
    rec.fua = _i % 2;
    while (run_one(op, shape, k, k % 2 ? -EIO : -ENOSPC, forgets)) {
        k++;
        ck_assert_uint_lt(k, 100);
    }
    ck_assert_msg(k > 1, "%s has no flush", op->name);
}
END_TEST

/* --- Storage that a test leads --- */

static struct {
    mutex_t lock;
    cond_t moved;
    bool first_waits; /* the next flush does, and all others pass it */
    bool waiting;
    bool open;
    unsigned passed;
    int error; /* of the next flush, or write with FUA, that ends */
} led;

static int led_error(void)
{
    int r = led.error;

    led.error = 0;
    return r;
}

static int led_flush(struct node *n)
{
    int r = 0;

    (void)n;
    mutex_lock(&led.lock);
    if (led.first_waits) {
        led.first_waits = false;
        led.waiting = true;
        cond_broadcast(&led.moved);
        while (!led.open) {
            cond_wait(&led.moved, &led.lock);
        }
        r = led_error();
    } else if (!led.waiting) {
        r = led_error();
    }
    led.passed++;
    cond_broadcast(&led.moved);
    mutex_unlock(&led.lock);
    return r;
}

static int led_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                      const struct iovec *iov, int cnt, unsigned flags)
{
    (void)n;
    (void)offset;
    (void)bytes;
    (void)iov;
    (void)cnt;
    (void)flags;
    return 0;
}

static int led_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    struct flush_run run;

    (void)offset;
    (void)bytes;
    (void)iov;
    (void)cnt;
    if (!(flags & REQ_FUA)) {
        return 0;
    }
    node_flush_begin(n, &run);
    int r = led_error();
    node_flush_end(n, &run, r);
    return r;
}

static const struct driver led_driver = {
    .name = "led",
    .is_protocol = true,
    .flags_write = REQ_FUA,
    .preadv = led_preadv,
    .pwritev = led_pwritev,
    .flush = led_flush,
};

static struct graph *g;
static struct node *storage;
static struct blk *guest;

static void lead(void)
{
    CLEANUP_JSON json_t *mem = json_pack("{s:s, s:i}", "driver", "mem", "size",
                                         1 << 20);
    struct node *like;

    memset(&led, 0, sizeof(led));
    mutex_init(&led.lock, LOCK_TEST, NULL);
    cond_init(&led.moved);
    g = graph_new();
    ck_assert_int_eq(graph_open(g, mem, &like, NULL), 0);
    storage = new_recorder(g, &led_driver, "led", like);
    guest = user_of(g, storage, PERM_READ | PERM_WRITE);
}

static void stop_leading(void)
{
    blk_free(guest);
    drop(g, storage);
    graph_free(g);
    cond_destroy(&led.moved);
    mutex_destroy(&led.lock);
}

/* A flush of a user that the guest does not know. */
static int flush_elsewhere(int error)
{
    struct blk *b = user_of(g, storage, PERM_READ);

    led.error = error;
    int r = blk_flush(b);
    blk_free(b);
    return r;
}

/* --- Rules --- */

static void *flush_thread(void *opaque)
{
    *(int *)opaque = blk_flush(guest);
    return NULL;
}

/* Storage has the error for the flush that hangs; the other one passes it. */
START_TEST(a_flush_waits_for_others_that_may_have_its_error)
{
    struct blk *other;
    pthread_t threads[2];
    int r[2] = {1, 1};

    lead();
    other = guest;
    led.first_waits = true;
    led.error = -EIO;
    ck_assert_int_eq(pthread_create(&threads[0], NULL, flush_thread, &r[0]), 0);
    mutex_lock(&led.lock);
    while (!led.waiting) {
        cond_wait(&led.moved, &led.lock);
    }
    mutex_unlock(&led.lock);
    guest = user_of(g, storage, PERM_READ | PERM_WRITE);
    ck_assert_int_eq(pthread_create(&threads[1], NULL, flush_thread, &r[1]), 0);
    mutex_lock(&led.lock);
    while (led.passed == 0) {
        cond_wait(&led.moved, &led.lock);
    }
    led.open = true;
    cond_broadcast(&led.moved);
    mutex_unlock(&led.lock);
    (void)pthread_join(threads[0], NULL);
    (void)pthread_join(threads[1], NULL);
    ck_assert_int_eq(r[0], -EIO);
    ck_assert_int_eq(r[1], -EIO);
    ck_assert_int_eq(blk_flush(guest), 0);
    ck_assert_int_eq(blk_flush(other), 0);
    blk_free(other);
    stop_leading();
}
END_TEST

START_TEST(an_error_that_nobody_was_told_is_for_the_next_user)
{
    lead();
    blk_free(guest);
    led.error = -ENOSPC;
    ck_assert_int_eq(node_flush(storage), -ENOSPC);
    guest = user_of(g, storage, PERM_READ | PERM_WRITE);
    ck_assert_int_eq(blk_flush(guest), -ENOSPC);
    ck_assert_int_eq(blk_flush(guest), 0);
    blk_free(guest);
    guest = user_of(g, storage, PERM_READ | PERM_WRITE);
    ck_assert_int_eq(blk_flush(guest), 0);
    stop_leading();
}
END_TEST

/* It was told before, or between the two, or is told below the filter. */
START_TEST(a_filter_hides_no_error)
{
    struct node *filter;

    lead();
    for (unsigned i = 0; i < 3; i++) {
        if (i == 0) {
            ck_assert_int_eq(flush_elsewhere(-EIO), -EIO);
        }
        graph_lock(g);
        graph_drain(g, storage);
        ck_assert_int_eq(
            jobfilter_insert(&driver_commit_top, storage, NULL, &filter, NULL),
            0);
        graph_unlock(g);
        if (i > 0) {
            ck_assert_int_eq(flush_elsewhere(-EIO), -EIO);
        }
        if (i < 2) {
            ck_assert_int_eq(blk_flush(guest), -EIO);
            ck_assert_int_eq(blk_flush(guest), 0);
        }
        graph_lock(g);
        graph_drain(g, storage);
        jobfilter_remove(filter);
        graph_unlock(g);
        if (i == 2) {
            ck_assert_int_eq(blk_flush(guest), -EIO);
        }
        ck_assert_int_eq(blk_flush(guest), 0);
    }
    stop_leading();
}
END_TEST

/* Storage may have told a write with FUA of what it has lost.  That writer
 * knows of its own write only. */
START_TEST(a_write_with_fua_may_take_the_error)
{
    struct blk *other;
    char byte = 0;

    lead();
    other = user_of(g, storage, PERM_READ | PERM_WRITE);
    led.error = -EIO;
    ck_assert_int_eq(blk_pwrite(guest, &byte, 1, 0, REQ_FUA), -EIO);
    ck_assert_int_eq(blk_pwrite(guest, &byte, 1, 0, REQ_FUA), 0);
    ck_assert_int_eq(blk_flush(other), -EIO);
    ck_assert_int_eq(blk_flush(other), 0);
    ck_assert_int_eq(blk_flush(guest), -EIO);
    ck_assert_int_eq(blk_flush(guest), 0);
    blk_free(other);
    stop_leading();
}
END_TEST

/* A flush that makes room for a drain has told nothing. */
START_TEST(a_flush_that_begins_again_has_not_failed)
{
    lead();
    led.error = -ERESTART;
    ck_assert_int_eq(blk_flush(guest), 0);
    ck_assert_int_eq(blk_flush(guest), 0);
    stop_leading();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("flush-errors");
    TCase *tc = tcase_create("campaign");
    TCase *rules = tcase_create("rules");

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, each_guest_is_told_of_each_flush_that_fails, 0,
                        (int)(OPS * (SHAPES + 1)));
    suite_add_tcase(s, tc);
    tcase_add_test(rules, a_flush_waits_for_others_that_may_have_its_error);
    tcase_add_test(rules, an_error_that_nobody_was_told_is_for_the_next_user);
    tcase_add_test(rules, a_filter_hides_no_error);
    tcase_add_test(rules, a_write_with_fua_may_take_the_error);
    tcase_add_test(rules, a_flush_that_begins_again_has_not_failed);
    suite_add_tcase(s, rules);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
