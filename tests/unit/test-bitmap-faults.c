/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The promise of persistent bitmaps when I/O fails.  Each operation that
 * changes bitmaps runs once for each of its writes and flushes, with an error
 * there.  A write that fails has happened or not.  A flush that fails has lost
 * what came before it.  Then the guest goes on and repeats what failed, and the
 * process is killed, the power is cut, or the image is closed.
 *
 * A bitmap that the image then calls valid has everything that was written
 * since it was last cleared with success.  After a close, each bitmap is valid
 * and exact.
 */
#define DISK_MAX (512 * KiB)

#include <errno.h>
#include <inttypes.h>

#include "bitmap-util.h"
#include "core/driver.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "power-cut.h"
#include "qcow2-check.h"
#include "qcow2/bitmaps.h"

#define SLOTS   96
#define SLOT    MiB
#define GRANULE 4096
#define UNIT    512
#define SIZE    (SLOTS * SLOT)
#define NAMES   3

static const char *const names[NAMES] = {"a", "bb", "ccc"};

/* What must, and what may be dirty in it, if it is there and valid. */
struct model {
    bool there;
    bool gone; /* it must not be there after a close */
    bool enabled;
    bool must[SLOTS];
    bool may[SLOTS];
};

static struct model models[NAMES];
static uint64_t disk_size;

/* --- Storage that fails --- */

enum what { WRITES = 1, FLUSHES = 2, ALL = 3 };

static struct {
    unsigned char *durable; /* what a power cut leaves for certain */
    unsigned sealed;        /* records before this are durable, or lost */
    enum what what;
    unsigned countdown; /* to the one that fails; 0: none */
    bool all_after;     /* and all that follow */
    bool hit;
    int error;
} storage;

static bool fails(enum what kind)
{
    if (!(kind & storage.what) || storage.countdown == 0) {
        return false;
    }
    if (storage.countdown > 1) {
        storage.countdown--;
        return false;
    }
    storage.countdown = storage.all_after;
    storage.hit = true;
    return true;
}

static int faulty_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                          const struct iovec *iov, int cnt, unsigned flags)
{
    if (!fails(WRITES)) {
        return rec_write(offset, bytes, iov, cnt, flags);
    }
    if (storage.error == EIO && rnd(2)) {
        (void)rec_write(offset, bytes, iov, cnt, 0);
    }
    (void)n;
    return -storage.error;
}

static void put_record(unsigned char *disk, const struct record *r)
{
    if (r->bytes > 0) {
        memcpy(disk + r->offset, r->data, r->bytes);
    }
}

static int flush_all(bool lost)
{
    for (unsigned i = storage.sealed; i < rec.count; i++) {
        if (!lost || rec.log[i].fua || rnd(2)) {
            put_record(storage.durable, &rec.log[i]);
        }
    }
    storage.sealed = rec.count;
    return lost ? -storage.error : 0;
}

static int faulty_flush(struct node *n)
{
    (void)n;
    return flush_all(fails(FLUSHES));
}

/* With FUA a write is a flush of its own.  An error that it meets may be one of
 * what was written before, too. */
static int faulty_fua_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                              const struct iovec *iov, int cnt, unsigned flags)
{
    struct flush_run run;

    if (!(flags & REQ_FUA)) {
        return faulty_pwritev(n, offset, bytes, iov, cnt, flags);
    }
    node_flush_begin(n, &run);
    bool lost = fails(FLUSHES);
    int r = faulty_pwritev(n, offset, bytes, iov, cnt, lost ? 0 : flags);
    if (lost) {
        r = flush_all(true);
    }
    node_flush_end(n, &run, r);
    return r;
}

static const struct driver faulty_driver = {
    .name = "faulty",
    .is_protocol = true,
    .limits = rec_limits,
    .preadv = rec_preadv,
    .pwritev = faulty_pwritev,
    .flush = faulty_flush,
};

static const struct driver faulty_fua_driver = {
    .name = "faulty-fua",
    .is_protocol = true,
    .flags_write = REQ_FUA,
    .limits = rec_limits,
    .preadv = rec_preadv,
    .pwritev = faulty_fua_pwritev,
    .flush = faulty_flush,
};

static struct node *open_faulty(struct graph *g)
{
    CLEANUP_JSON json_t *mem = json_pack("{s:s, s:I}", "driver", "mem", "size",
                                         (json_int_t)DISK_MAX);
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s}", "driver", "qcow2", "file",
                                       "rec");
    struct node *like;
    struct node *q;

    ck_assert_int_eq(graph_open(g, mem, &like, NULL), 0);
    struct node *n = new_recorder(
        g, rec.fua ? &faulty_fua_driver : &faulty_driver, "rec", like);
    ck_assert_int_eq(graph_open(g, o, &q, NULL), 0);
    drop(g, n);
    return q;
}

/* --- The guest --- */

static bool guest_writes(struct blk *b, unsigned slot)
{
    int r = -1;

    for (unsigned i = 0; i < NAMES; i++) {
        models[i].may[slot] = true;
    }
    for (unsigned i = 0; i < 4 && r < 0; i++) {
        r = slot % 3 ? blk_pwrite(b, "x", 1, slot * SLOT, 0)
                     : blk_zero(b, slot * SLOT, UNIT, REQ_MAY_UNMAP);
    }
    for (unsigned i = 0; r == 0 && i < NAMES; i++) {
        models[i].must[slot] |= models[i].enabled;
    }
    return r == 0;
}

/* --- Operations --- */

struct world {
    struct graph *g;
    struct node *n;
    struct blk *b;
};

static void cleared(unsigned i, bool enabled)
{
    memset(models[i].must, 0, sizeof(models[i].must));
    memset(models[i].may, 0, sizeof(models[i].may));
    models[i].there = true;
    models[i].enabled = enabled;
    models[i].gone = false;
}

static int op_write(struct world *w)
{
    return guest_writes(w->b, 40) ? 0 : -EIO;
}

static int op_clear(struct world *w)
{
    int r = bitmap_clear(w->g, w->n, names[0], NULL);

    if (r == 0) {
        cleared(0, models[0].enabled);
    }
    return r;
}

/* Also when it fails: what the image may have of it records. */
static int op_add(struct world *w)
{
    cleared(2, true);
    int r = bitmap_add(w->g, w->n, names[2], GRANULE, true, false, NULL);
    models[2].there = r == 0;
    models[2].gone = r < 0;
    return r;
}

/* As the checkpoint of a backup: it is in memory for a while. */
static int op_persist(struct world *w)
{
    const struct bitmap_ref ref = {w->n, names[2]};
    struct action *a;

    cleared(2, true);
    int r = bitmap_add(w->g, w->n, names[2], GRANULE, false, false, NULL);
    if (r == 0) {
        r = guest_writes(w->b, 41) ? 0 : -EIO;
    }
    if (r == 0) {
        ck_assert_int_eq(bitmap_persist_action(ref, &a, NULL), 0);
        r = action_run(w->g, a, NULL);
    }
    models[2].there = r == 0;
    models[2].gone = r < 0;
    return r;
}

static int op_remove(struct world *w)
{
    int r = bitmap_remove(w->g, w->n, names[1], NULL);

    models[1].there = r < 0;
    models[1].gone = r == 0;
    return r;
}

static int op_disable(struct world *w)
{
    int r = bitmap_enable(w->g, w->n, names[0], false, NULL);

    models[0].enabled = r < 0;
    return r;
}

/* Of a bitmap that the image calls enabled, all are wanted. */
static int op_enable(struct world *w)
{
    if (bitmap_enable(w->g, w->n, names[0], false, NULL) < 0) {
        return -EIO;
    }
    models[0].enabled = false;
    int r = bitmap_enable(w->g, w->n, names[0], true, NULL);
    models[0].enabled = r == 0;
    return r;
}

static int op_merge(struct world *w)
{
    struct bitmap *from = bitmap_find(w->n, names[1]);
    int r = bitmap_merge(w->g, w->n, names[0], from, NULL);

    bitmap_unref(from);
    for (unsigned i = 0; r == 0 && i < SLOTS; i++) {
        models[0].must[i] |= models[1].must[i];
        models[0].may[i] |= models[1].may[i];
    }
    return r;
}

static void resized(uint64_t size)
{
    for (unsigned i = 0; i < NAMES; i++) {
        for (uint64_t slot = disk_size / SLOT; slot < size / SLOT; slot++) {
            models[i].must[slot] = models[i].enabled;
            models[i].may[slot] = true;
        }
        for (uint64_t slot = size / SLOT; slot < SLOTS; slot++) {
            models[i].must[slot] = models[i].may[slot] = false;
        }
    }
    disk_size = size;
}

static int resize_to(struct world *w, uint64_t size)
{
    int r = blk_resize(w->b, size, NULL);

    if (r == 0) {
        resized(size);
    }
    return r;
}

static int op_grow(struct world *w)
{
    return resize_to(w, SIZE);
}

static int op_shrink(struct world *w)
{
    for (unsigned i = 0; i < NAMES; i++) { /* also when it fails at last */
        memset(&models[i].may[24], 1, SLOTS - 24);
    }
    return resize_to(w, 24 * SLOT);
}

static int op_tighten(struct world *w)
{
    int r = 0;

    for (unsigned i = 0; i < 3 && r == 0; i++) {
        r = qcow2_bitmaps_tighten(w->n->state);
    }
    return r;
}

static int op_settle(struct world *w)
{
    graph_lock(w->g);
    graph_drain(w->g, w->n);
    int r = qcow2_bitmaps_settle(w->n->state);
    graph_unlock(w->g);
    return r;
}

/* Two that are one: the second cannot be. */
static int op_undo(struct world *w)
{
    struct list list;
    struct action *a;

    list_init(&list);
    ck_assert_int_eq(
        bitmap_clear_action((struct bitmap_ref){w->n, names[0]}, &a, NULL), 0);
    list_append(&list, &a->link);
    ck_assert_int_eq(
        bitmap_remove_action((struct bitmap_ref){w->n, names[1]}, &a, NULL), 0);
    list_append(&list, &a->link);
    int r = actions_run(w->g, &list, NULL);
    if (r == 0) {
        cleared(0, true);
        models[1].there = false;
        models[1].gone = true;
    }
    return r;
}

static const struct op {
    const char *name;
    int (*run)(struct world *w);
} ops[] = {
    {"write", op_write},     {"tighten", op_tighten}, {"persist", op_persist},
    {"clear", op_clear},     {"add", op_add},         {"remove", op_remove},
    {"disable", op_disable}, {"enable", op_enable},   {"merge", op_merge},
    {"grow", op_grow},       {"shrink", op_shrink},   {"undo", op_undo},
    {"settle", op_settle},
};

#define OPS     (sizeof(ops) / sizeof(ops[0]))
#define OPS_FUA 3 /* the first ones: nothing else writes with FUA */

/* --- Reading an image --- */

struct entry {
    bool valid;
    bool enabled;
    uint64_t at;
};

/* The next extension of that kind from @at on, or 0. */
static uint64_t find_extension(const unsigned char *disk, uint64_t at,
                               uint32_t kind)
{
    while (load_be32(disk + at) != kind) {
        if (load_be32(disk + at) == QCOW2_EXT_END) {
            return 0;
        }
        at += 8 + align_up(load_be32(disk + at + 4), 8);
    }
    return at;
}

/* Of several that say the same, any one. */
static struct entry find_entry(const unsigned char *disk, const char *name)
{
    uint64_t at = find_extension(disk, load_be32(disk + 100),
                                 QCOW2_EXT_BITMAPS);
    uint64_t other = at ? find_extension(disk, at + 32, QCOW2_EXT_BITMAPS) : 0;

    if (at == 0 || !(load_be64(disk + 88) & 1)) {
        return (struct entry){0};
    }
    ck_assert(other == 0 || memcmp(disk + at, disk + other, 32) == 0);
    uint32_t count = load_be32(disk + at + 8);
    uint64_t entry = load_be64(disk + at + 24);
    for (uint32_t i = 0; i < count; i++) {
        uint16_t len = load_be16(disk + entry + 18);
        uint32_t flags = load_be32(disk + entry + 12);

        ck_assert_uint_lt(entry, DISK_MAX - 64);
        if (len == strlen(name) && memcmp(disk + entry + 24, name, len) == 0) {
            return (struct entry){!(flags & 1), flags & 2, entry};
        }
        entry += align_up(24U + len, 8);
    }
    return (struct entry){0};
}

static bool bit_at(const unsigned char *disk, uint64_t entry, uint64_t offset)
{
    unsigned cluster_bits = load_be32(disk + 20);
    uint64_t bit = offset / GRANULE;
    uint64_t slice = bit >> (cluster_bits + 3);
    uint64_t in_slice = bit & ((UINT64_C(8) << cluster_bits) - 1);
    uint64_t host = load_be64(disk + load_be64(disk + entry) + slice * 8);

    ck_assert_uint_lt(slice, load_be32(disk + entry + 8));
    if (host < 2) {
        return host;
    }
    ck_assert_uint_lt(host, DISK_MAX);
    return disk[host + in_slice / 8] >> in_slice % 8 & 1;
}

/* "" or what is wrong with a bitmap. */
static const char *judge(const unsigned char *disk, unsigned name, bool closed)
{
    const struct model *m = &models[name];
    struct entry e = find_entry(disk, names[name]);
    uint64_t size = load_be64(disk + 24);

    if (closed && m->there && !e.valid) {
        return "is not valid after a close";
    }
    if (closed && m->gone && e.at) {
        return "is there after a close";
    }
    if (closed && m->there && e.enabled != m->enabled) {
        return "has the wrong flag after a close";
    }
    for (unsigned slot = 0; e.valid && slot < size / SLOT; slot++) {
        bool bit = bit_at(disk, e.at, slot * SLOT);
        if (m->must[slot] && !bit) {
            return "lacks a write";
        }
        if (closed && !m->may[slot] && bit) {
            return "has too much after a close";
        }
    }
    return "";
}

/* --- The campaign --- */

enum end { KILL, CUT, CLOSE, ENDS };

/* In larger clusters the extension that leads to bitmaps is behind the names of
 * features, and so behind the first sector. */
static const char *layout = "{\"size\": 50331648, \"cluster_size\": 512}";

static void set_up(struct world *w)
{
    memset(models, 0, sizeof(models));
    disk_size = 48 * SLOT;
    w->g = graph_new();
    rec.garbage = false;
    (void)load_new_image(layout);
    memset(&storage, 0, sizeof(storage));
    storage.durable = malloc(DISK_MAX);
    memcpy(storage.durable, rec.disk, DISK_MAX);
    w->n = open_faulty(w->g);
    ck_assert_int_eq(blk_new(w->g, w->n, PERM_READ | PERM_WRITE | PERM_RESIZE,
                             PERM_ALL, "test", &w->b, NULL),
                     0);
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(
            bitmap_add(w->g, w->n, names[i], GRANULE, true, false, NULL), 0);
        cleared(i, true);
        ck_assert(guest_writes(w->b, 5 + 20 * i));
        ck_assert(guest_writes(w->b, 6 + 20 * i));
    }
}

static unsigned char *image_after(struct world *w, enum end end)
{
    unsigned char *disk = malloc(DISK_MAX);

    if (end == CLOSE) {
        blk_free(w->b);
        graph_free(w->g);
    }
    if (end == CUT) {
        memcpy(disk, storage.durable, DISK_MAX);
        for (unsigned i = storage.sealed; i < rec.count; i++) {
            if (rec.log[i].fua || rnd(2)) {
                put_record(disk, &rec.log[i]);
            }
        }
    } else {
        memcpy(disk, rec.disk, DISK_MAX);
    }
    if (end != CLOSE) { /* nothing of that is in what we have taken */
        blk_free(w->b);
        graph_free(w->g);
    }
    return disk;
}

static void tear_down(void)
{
    free(storage.durable);
    forget_records();
}

struct failure {
    enum what what;
    bool all_after;
    int error;
    bool to_the_end; /* the storage is bad until the guest has given up */
};

/* Was the fault hit? */
static bool try_one(const struct op *op, const struct failure *f, unsigned k,
                    enum end end, bool goes_on)
{
    struct world w;

    set_up(&w);
    storage.what = f->what;
    storage.all_after = f->all_after;
    storage.error = f->error;
    storage.countdown = k;
    int r = op->run(&w);
    bool hit = storage.hit;
    if (!f->to_the_end) {
        storage.countdown = 0;
    }
    for (unsigned i = 0; goes_on && i < 3; i++) {
        static const unsigned slots[] = {7, 20, 5};
        bool done = guest_writes(w.b, slots[i]);
        ck_assert(done || f->to_the_end);
        if (i == 1) {
            (void)blk_flush(w.b);
        }
    }
    storage.countdown = 0;
    unsigned char *disk = image_after(&w, end);
    struct image image = {disk, DISK_MAX};
    ck_assert_uint_eq(check_image(&image).corruptions, 0);
    if (end == CLOSE) {
        ck_assert_uint_eq(load_be64(disk + QCOW2_HDR_SIZE), disk_size);
    }
    for (unsigned i = 0; i < NAMES; i++) {
        const char *why = judge(disk, i, end == CLOSE);
        ck_assert_msg(why[0] == '\0',
                      "%s (%s): %s of I/O %u%s fails (error %d%s), then %s%s: "
                      "bitmap '%s' %s",
                      op->name, r < 0 ? "failed" : "done",
                      f->what == WRITES ? "a write" : "a flush", k,
                      f->all_after ? " and all after it" : "", f->error,
                      f->to_the_end ? ", and later" : "",
                      goes_on ? "writes, " : "",
                      end == KILL  ? "kill"
                      : end == CUT ? "power cut"
                                   : "close",
                      names[i], why);
    }
    free(disk);
    tear_down();
    return hit;
}

static const struct failure faults[] = {
    {WRITES, false, EIO, false},      {FLUSHES, false, EIO, false},
    {WRITES, true, EIO, false},       {FLUSHES, true, EIO, false},
    {WRITES, true, ENOSPC, false},    {ALL, true, EIO, false},
    {WRITES, true, EIO, true},        {FLUSHES, true, EIO, true},
    {WRITES, false, ERESTART, false},
};

/* A clear that has failed, and whose storage takes nothing any more: what the
 * last flush has lost is lost. */
static bool is_lost(const struct failure *f, enum end end, bool goes_on)
{
    return end == CUT && f->all_after && (!goes_on || f->to_the_end);
}

START_TEST(what_fails_loses_no_bit)
{
    const struct op *op = &ops[(unsigned)_i % OPS];

    rec.fua = (unsigned)_i >= OPS;

    for (unsigned i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        const struct failure *f = &faults[i];

        if (f->error == ERESTART && op->run != op_write) {
            continue;
        }
        for (unsigned k = 1, hit = 1; hit; k++) {
            hit = 0;
            for (unsigned how = 0; how < 2 * ENDS; how++) {
                enum end end = how % ENDS;
                bool goes_on = how < ENDS;
                seed = 1000 * k + how + 1;
                if (!goes_on && end != k % ENDS) {
                    continue; /* one after the other, for the sake of time */
                }
                if (!is_lost(f, end, goes_on)) {
                    hit |= try_one(op, f, k, end, goes_on);
                }
            }
            ck_assert_uint_lt(k, 200);
        }
    }
}
END_TEST

/* Without room the storage fails a flush, while the first sector has room. */
START_TEST(a_full_storage_is_no_full_sector)
{
    static const struct failure full = {FLUSHES, false, ENOSPC, false};
    static const struct op resizes[] = {{"grow", op_grow},
                                        {"shrink", op_shrink}};

    layout = "{\"size\": 50331648, \"cluster_size\": 4096}";
    rec.fua = _i / 2;
    for (unsigned k = 1, hit = 1; hit; k++) {
        hit = 0;
        for (enum end end = KILL; end < ENDS; end++) {
            seed = 1000 * k + end + 1;
            hit |= try_one(&resizes[_i % 2], &full, k, end, true);
        }
        ck_assert_uint_lt(k, 200);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bitmap-faults");
    TCase *tc = tcase_create("faults");

    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, what_fails_loses_no_bit, 0, (int)(OPS + OPS_FUA));
    suite_add_tcase(s, tc);
    tc = tcase_create("full");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, a_full_storage_is_no_full_sector, 0, 4);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
