/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The promise of persistent bitmaps, under power cuts: a granule whose data
 * differs from what it was when a bitmap was last cleared has its bit set in
 * the image, whatever subset of the unflushed writes is there.
 *
 * And so when storage fails now and then, in all that is done: a command has
 * its effect on the bitmap or, failing, none; or the image says that it is in
 * use.
 *
 * Four clients write, each in slots of its own, and flush: clusters are freed
 * during a flush.  The first one gives the commands, while the others rest: so
 * it is known what a bitmap that was cleared then stands for.
 *
 * The bitmaps are read by code of this test; and a driver that does not arm
 * must be caught, or the campaign shows nothing.
 */
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>

#include "bitmap-util.h"
#include "core/dirty.h"
#include "core/driver.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "power-cut.h"
#include "qcow2-check.h"
#include "qcow2/bitmaps.h"

/* A client writes one unit in each slot of its own. */
#define SLOTS  2048
#define SLOT   (64 * KiB)
#define GUEST  (SLOTS * SLOT)
#define UNIT   512
#define NAMES  4
#define EVENTS 400
#define STAMPS 64

#define CLIENTS 4
#define SHARE   (SLOTS / CLIENTS)

struct history {
    uint32_t stamp[STAMPS];
    unsigned count;
    unsigned begin; /* the log's length before the last one */
    unsigned end;   /* and after it */
};

/* A bitmap from when it was cleared until the next such moment. */
struct life {
    unsigned name;
    unsigned from; /* the log's length when that was done */
    unsigned to;   /* and when the next thing began */
    uint32_t *base;
    bool ghost; /* a command has failed: it need not be there */
};

#define UNKNOWN UINT32_MAX /* after a write, or its flush, that has failed */

/* Held by the threads that use the disk, for writing by the one that gives
 * commands. */
static pthread_rwlock_t rest =
    PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static struct history slots[SLOTS];
static struct life lives[2 * EVENTS];
static bool faults; /* storage fails */
static unsigned life_count;
static struct life *alive[NAMES];
static const char *const names[NAMES] = {"a", "bb", "ccc", "dddd"};

static unsigned log_length(void)
{
    mutex_lock(&rec.lock);
    unsigned count = rec.count;
    mutex_unlock(&rec.lock);
    return count;
}

static uint32_t stamp_of(unsigned slot)
{
    const struct history *h = &slots[slot];

    return h->count ? h->stamp[h->count - 1] : 0;
}

/* What a crash can bring back, if a flush has failed, no bitmap has to tell. */
static uint32_t lasting_stamp(unsigned slot)
{
    const struct history *h = &slots[slot];
    uint32_t stamp = stamp_of(slot);

    mutex_lock(&rec.lock);
    for (unsigned i = h->begin; h->count > 0 && i < rec.count; i++) {
        if (rec.log[i].bytes > 0) {
            continue;
        }
        if (rec.log[i].failed) {
            stamp = UNKNOWN;
        }
        if (i >= h->end) {
            break;
        }
    }
    mutex_unlock(&rec.lock);
    return stamp;
}

static void end_life(unsigned name)
{
    if (alive[name]) {
        alive[name]->to = log_length();
        alive[name] = NULL;
    }
}

static struct life *new_life(unsigned name)
{
    ck_assert_uint_lt(life_count, ARRAY_SIZE(lives));
    struct life *l = &lives[life_count++];

    *l = (struct life){name, log_length(), UINT_MAX,
                       malloc(SLOTS * sizeof(uint32_t)), false};
    return l;
}

static void begin_life(unsigned name)
{
    struct life *l = new_life(name);

    for (unsigned i = 0; i < SLOTS; i++) {
        l->base[i] = lasting_stamp(i);
    }
    alive[name] = l;
}

/* What was to change it has failed; meanwhile there was no promise. */
static void go_on_with_life(unsigned name, const struct life *before)
{
    struct life *l = new_life(name);

    memcpy(l->base, before->base, SLOTS * sizeof(uint32_t));
    l->ghost = before->ghost;
    alive[name] = l;
}

/* One in a few things meets an error. */
static void maybe_fail(void)
{
    static const int errors[] = {-EIO, -ENOSPC, -ERESTART};
    struct fault f = {
        .kind = rnd(2) ? FAULT_WRITE : FAULT_FLUSH,
        .countdown = 1 + (unsigned)rnd(6),
        .error = errors[rnd(ARRAY_SIZE(errors))],
        .done = rnd(2),
        .from = rnd(3) == 0,
    };

    if (f.error == -ERESTART) { /* done again without an end, otherwise */
        f.from = false;
    }
    if (faults && rnd(4) == 0) {
        rec_fail(f);
    }
}

static void ck_good(int r)
{
    ck_assert_msg(r == 0 || faults, "%s", strerror(-r));
}

static void write_slot(struct blk *b, unsigned slot, uint32_t stamp)
{
    unsigned char buf[UNIT] = {0};
    struct history *h = &slots[slot];
    uint64_t offset = slot * SLOT;

    if (h->count == STAMPS) {
        return;
    }
    store_be32(buf, stamp);
    h->begin = log_length();
    int r = stamp ? blk_pwrite(b, buf, UNIT, offset, 0)
                  : blk_zero(b, offset, UNIT, REQ_MAY_UNMAP);
    ck_good(r);
    h->stamp[h->count++] = r < 0 ? UNKNOWN : stamp;
    h->end = log_length();
}

static void freeze(struct graph *g, struct node *n, unsigned name, int what)
{
    struct bitmap *bm;

    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(bitmap_lookup(n, names[name], BITMAP_USE_ANY, &bm, NULL),
                     0);
    if (what == 0) {
        ck_assert_int_eq(bitmap_freeze(bm, NULL), 0);
    } else if (what == 1) {
        bitmap_abdicate(bm);
    } else {
        bitmap_reclaim(bm);
    }
    graph_unlock(g);
}

/* A backup job's use of a bitmap, while the guest writes. */
static void backup(struct graph *g, struct node *n, struct blk *b,
                   unsigned name, uint32_t stamp)
{
    bool success = rnd(2);

    rec_fail((struct fault){0}); /* it is not told of what fails */
    freeze(g, n, name, 0);
    if (success) {
        /* Once it succeeds, it stands for the state of the beginning. */
        struct life *before = alive[name];
        begin_life(name);
        struct life *after = alive[name];
        write_slot(b, (unsigned)rnd(SLOTS), stamp);
        before->to = log_length();
        after->from = before->to;
    } else {
        write_slot(b, (unsigned)rnd(SLOTS), stamp);
    }
    freeze(g, n, name, success ? 1 : 2);
}

static const uint64_t granularities[] = {512, 4096, 65536, 1 << 20};

/* As the checkpoint of a backup: it is in memory for a while. */
static void add_late(struct graph *g, struct node *n, struct blk *b,
                     unsigned name, uint32_t stamp)
{
    const struct bitmap_ref ref = {n, names[name]};
    struct action *a;

    int r = bitmap_add(g, n, names[name], granularities[name], false, false,
                       NULL);
    ck_good(r);
    if (r < 0) {
        return;
    }
    begin_life(name);
    struct life *l = alive[name];
    l->from = UINT_MAX;
    for (unsigned i = (unsigned)rnd(3); i > 0; i--) {
        write_slot(b, (unsigned)rnd(SLOTS), stamp);
    }
    ck_assert_int_eq(bitmap_persist_action(ref, &a, NULL), 0);
    r = action_run(g, a, NULL);
    ck_good(r);
    if (r == 0) {
        l->from = log_length();
    } else {
        alive[name] = NULL;
        ck_assert_int_eq(bitmap_remove(g, n, names[name], NULL), 0);
    }
}

static void change_life(struct graph *g, struct node *n, unsigned name)
{
    struct life *before = alive[name];
    unsigned what = (unsigned)rnd(3);
    int r;

    if (before && what == 0) {
        return;
    }
    if (before) {
        before->to = log_length();
        r = what == 1 ? bitmap_clear(g, n, names[name], NULL)
                      : bitmap_remove(g, n, names[name], NULL);
    } else {
        r = bitmap_add(g, n, names[name], granularities[name], true, false,
                       NULL);
    }
    ck_good(r);
    if (r == 0 && before && what == 2) {
        alive[name] = NULL;
    } else if (r == 0) {
        begin_life(name);
    } else if (before) {
        go_on_with_life(name, before);
        alive[name]->ghost |= what == 2;
    }
}

/* Near each other, and anywhere. */
static unsigned random_slot(unsigned client)
{
    return client * SHARE + (unsigned)(rnd(3) ? rnd(16) : rnd(SHARE));
}

static void random_write(struct blk *b, unsigned client, uint32_t stamp)
{
    switch (rnd(10)) {
    case 0:
        ck_good(blk_flush(b));
        break;
    case 1:
    case 2:
        write_slot(b, random_slot(client), 0);
        break;
    default:
        write_slot(b, random_slot(client), stamp);
    }
}

static void random_command(struct graph *g, struct node *n, struct blk *b,
                           uint32_t stamp)
{
    unsigned name = (unsigned)rnd(NAMES);

    switch (rnd(4)) {
    case 0:
        if (!alive[name]) {
            add_late(g, n, b, name, stamp);
        }
        break;
    case 1:
        change_life(g, n, name);
        break;
    case 2:
        ck_good(qcow2_bitmaps_tighten(n->state));
        break;
    case 3:
        if (alive[name]) {
            backup(g, n, b, name, stamp);
        }
    }
}

struct client {
    pthread_t thread;
    struct blk *b;
    uint64_t seed;
    unsigned number;
};

static void *client_run(void *opaque)
{
    const struct client *c = opaque;

    seed = c->seed;
    for (unsigned i = 0; i < EVENTS; i++) {
        ck_assert_int_eq(pthread_rwlock_rdlock(&rest), 0);
        random_write(c->b, c->number, i + 1);
        ck_assert_int_eq(pthread_rwlock_unlock(&rest), 0);
    }
    return NULL;
}

static void run_clients(struct graph *g, struct node *n, struct blk *b)
{
    struct client clients[CLIENTS];

    for (unsigned i = 1; i < CLIENTS; i++) {
        clients[i] = (struct client){.b = b, .seed = seed * 100 + i};
        clients[i].number = i;
        ck_assert_int_eq(
            pthread_create(&clients[i].thread, NULL, client_run, &clients[i]),
            0);
    }
    for (unsigned i = 0; i < EVENTS; i++) {
        bool command = rnd(5) == 0;

        ck_assert_int_eq(command ? pthread_rwlock_wrlock(&rest)
                                 : pthread_rwlock_rdlock(&rest),
                         0);
        maybe_fail();
        if (command) {
            random_command(g, n, b, i + 1);
        } else {
            random_write(b, 0, i + 1);
        }
        rec_fail((struct fault){0});
        ck_assert_int_eq(pthread_rwlock_unlock(&rest), 0);
    }
    for (unsigned i = 1; i < CLIENTS; i++) {
        ck_assert_int_eq(pthread_join(clients[i].thread, NULL), 0);
    }
}

/* --- Reading an image --- */

static uint64_t be64_at(const unsigned char *disk, uint64_t at)
{
    ck_assert_uint_le(at + 8, DISK_MAX);
    return load_be64(disk + at);
}

static bool is_in_use(const unsigned char *disk, uint64_t entry)
{
    return load_be32(disk + entry + 12) & 1;
}

/* The directory entry of @name, or 0; its length in *len. */
static uint64_t find_entry(const unsigned char *disk, const char *name)
{
    uint64_t at = load_be32(disk + 100);

    if (!(load_be64(disk + 88) & 1)) {
        return 0;
    }
    while (load_be32(disk + at) != 0x23852875) {
        ck_assert_uint_ne(load_be32(disk + at), 0);
        at += 8 + align_up(load_be32(disk + at + 4), 8);
    }
    uint32_t count = load_be32(disk + at + 8);
    uint64_t entry = load_be64(disk + at + 24);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t extra = load_be32(disk + entry + 20);
        uint16_t len = load_be16(disk + entry + 18);

        ck_assert_uint_lt(entry, DISK_MAX - 64);
        ck_assert(faults || !is_in_use(disk, entry));
        if (len == strlen(name) &&
            memcmp(disk + entry + 24 + extra, name, len) == 0) {
            return entry;
        }
        entry += align_up(24 + extra + len, 8);
    }
    return 0;
}

static bool bit_at(const unsigned char *disk, uint64_t entry, uint64_t offset)
{
    unsigned cluster_bits = load_be32(disk + 20);
    uint64_t bit = offset >> disk[entry + 17];
    uint64_t slice = bit >> (cluster_bits + 3);
    uint64_t in_slice = bit & ((UINT64_C(8) << cluster_bits) - 1);
    uint64_t host = be64_at(disk, be64_at(disk, entry) + slice * 8);

    if (host < 2) {
        return host;
    }
    ck_assert_uint_lt(host, DISK_MAX);
    return disk[host + in_slice / 8] >> in_slice % 8 & 1;
}

/* Most of it are zeroes. */
static void spill(const char *name, const unsigned char *disk)
{
    static const unsigned char hole[SLOT];
    FILE *f = fopen(name, "wb");

    ck_assert_ptr_nonnull(f);
    for (uint64_t at = 0; at < rec.top; at += SLOT) {
        if (memcmp(disk + at, hole, SLOT) != 0) {
            ck_assert_int_eq(fseeko(f, (off_t)at, SEEK_SET), 0);
            ck_assert_uint_eq(fwrite(disk + at, 1, SLOT, f), SLOT);
        }
    }
    (void)fflush(f);
    ck_assert_int_eq(ftruncate(fileno(f), DISK_MAX), 0);
    (void)fclose(f);
}

/* What the guest would find. */
static unsigned char *read_guest(const unsigned char *disk)
{
    unsigned char *guest = calloc(SLOTS, UNIT);
    struct graph *g = graph_new();
    CLEANUP_JSON json_t *o =
        json_pack("{s:s, s:b, s:{s:s, s:s}}", "driver", "qcow2", "read-only", 1,
                  "file", "driver", "file", "filename", "crashed.qcow2");
    struct node *n;

    spill("crashed.qcow2", disk);
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    for (uint64_t i = 0; i < SLOTS; i++) {
        ck_assert_int_eq(node_pread(n, guest + i * UNIT, UNIT, i * SLOT, 0), 0);
    }
    graph_free(g);
    (void)unlink("crashed.qcow2");
    return guest;
}

/* How many changes lack their bit; *seen counts changes that have it. */
static unsigned count_lost(const unsigned char *disk, unsigned cut,
                           unsigned *seen)
{
    CLEANUP_FREE unsigned char *guest = read_guest(disk);
    unsigned lost = 0;

    for (unsigned i = 0; i < life_count; i++) {
        const struct life *l = &lives[i];
        if (cut < l->from || cut >= l->to) {
            continue;
        }
        uint64_t entry = find_entry(disk, names[l->name]);
        if (entry ? is_in_use(disk, entry) : l->ghost) {
            continue;
        }
        ck_assert_msg(entry != 0, "bitmap '%s' is gone after a cut at %u",
                      names[l->name], cut);
        for (unsigned slot = 0; slot < SLOTS; slot++) {
            if (l->base[slot] != UNKNOWN &&
                load_be32(guest + slot * UNIT) != l->base[slot]) {
                bool bit = bit_at(disk, entry, slot * SLOT);
                *seen += bit;
                lost += !bit;
            }
        }
    }
    return lost;
}

/* --- The campaign --- */

static int no_arming(struct node *n, struct bitmap *bm, uint64_t offset,
                     uint64_t bytes, bool nowait)
{
    (void)n;
    (void)bm;
    (void)offset;
    (void)bytes;
    (void)nowait;
    return 0;
}

#define MORE_CUTS 10

static unsigned run_campaign(const char *options, unsigned cuts, bool arms)
{
    struct driver_bitmaps bitmaps = *driver_qcow2.bitmaps;
    struct driver careless = driver_qcow2;
    struct graph *g = graph_new();
    unsigned lost = 0;
    unsigned seen = 0;
    struct blk *b;

    memset(slots, 0, sizeof(slots));
    memset(alive, 0, sizeof(alive));
    life_count = 0;
    rec.garbage = false;
    uint64_t size = load_new_image(options);
    unsigned char *before = malloc(DISK_MAX);
    memcpy(before, rec.disk, DISK_MAX);
    struct node *n = open_recorded(g, size);
    bitmaps.arm = no_arming;
    careless.bitmaps = &bitmaps;
    if (!arms) {
        n->drv = &careless;
    }
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    run_clients(g, n, b);
    for (unsigned i = 0; i < NAMES; i++) {
        end_life(i);
    }
    blk_free(b);
    graph_free(g);
    /* How many bits there are to be seen depends on how far the clients came
     * before storage failed: more cuts make up for a bad start. */
    unsigned enough = faults ? 20 : 100;
    for (unsigned i = 0;
         i < cuts || (arms && seen <= enough && i < MORE_CUTS * cuts); i++) {
        unsigned cut;
        unsigned char *disk = crashed_image(before, &cut);
        struct image image = {disk, DISK_MAX};

        ck_assert_uint_eq(check_image(&image).corruptions, 0);
        lost += count_lost(disk, cut, &seen);
        free(disk);
    }
    ck_assert(!arms || seen > (faults ? 0 : enough)); /* worth the effort */
    for (unsigned i = 0; i < life_count; i++) {
        free(lives[i].base);
    }
    free(before);
    forget_records();
    return lost;
}

static const char *const shapes[] = {
    "{\"size\": 134217728, \"cluster_size\": 65536}",
    "{\"size\": 134217728, \"cluster_size\": 4096}",
    "{\"size\": 134217728, \"cluster_size\": 512}",
};

START_TEST(no_power_cut_loses_a_bit)
{
    seed = 11 + (unsigned)_i;
    rec.fua = _i % 2;
    ck_assert_uint_eq(run_campaign(shapes[_i % 3], 20, true), 0);
}
END_TEST

START_TEST(nor_does_storage_that_fails)
{
    seed = 1001 + (unsigned)_i;
    rec.fua = _i % 2 == 0;
    faults = true;
    ck_assert_uint_eq(run_campaign(shapes[_i % 3], 8, true), 0);
    faults = false;
}
END_TEST

START_TEST(without_arming_bits_are_lost)
{
    seed = 11 + (unsigned)_i;
    rec.fua = _i % 2;
    ck_assert_uint_gt(run_campaign(shapes[_i % 3], 10, false), 0);
}
END_TEST

/* What was cut off is changed as long as the old size counts. */
START_TEST(a_disk_that_shrinks_loses_no_bit_before_it_is_smaller)
{
    struct graph *g = graph_new();
    unsigned seen = 0;
    struct blk *b;

    seed = 21;
    memset(slots, 0, sizeof(slots));
    life_count = 0;
    uint64_t size = load_new_image(shapes[0]);
    unsigned char *before = malloc(DISK_MAX);
    memcpy(before, rec.disk, DISK_MAX);
    struct node *n = open_recorded(g, size);
    ck_assert_int_eq(blk_new(g, n, PERM_READ | PERM_WRITE | PERM_RESIZE,
                             PERM_ALL, "test", &b, NULL),
                     0);
    ck_assert_int_eq(bitmap_add(g, n, names[0], 65536, true, false, NULL), 0);
    write_slot(b, SLOTS - 1, 1);
    ck_assert_int_eq(bitmap_clear(g, n, names[0], NULL), 0);
    begin_life(0);
    ck_assert_int_eq(blk_resize(b, GUEST / 2, NULL), 0);
    blk_free(b);
    graph_free(g);
    for (unsigned i = 0; i < 100; i++) {
        unsigned cut;
        unsigned char *disk = crashed_image(before, &cut);
        if (load_be64(disk + 24) == GUEST) {
            ck_assert_uint_eq(count_lost(disk, cut, &seen), 0);
        }
        free(disk);
    }
    ck_assert_uint_gt(seen, 0);
    free(lives[0].base);
    free(before);
    forget_records();
}
END_TEST

static bool is_dirty(struct node *n, uint64_t offset)
{
    struct bitmap *bm = bitmap_find(n, names[0]);
    bool dirty = false;

    ck_assert_ptr_nonnull(bm);
    (void)bitmap_run(bm, offset, offset + 1, &dirty);
    bitmap_unref(bm);
    return dirty;
}

/* From the k-th write on all fail.  Has the end changed then? */
static bool shrink_in_vain(unsigned k)
{
    struct graph *g = graph_new();
    struct blk *b;
    char byte;

    uint64_t size = load_new_image(shapes[0]);
    struct node *n = open_recorded(g, size);
    ck_assert_int_eq(blk_new(g, n, PERM_READ | PERM_WRITE | PERM_RESIZE,
                             PERM_ALL, "test", &b, NULL),
                     0);
    ck_assert_int_eq(bitmap_add(g, n, names[0], 65536, true, false, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, GUEST - 1, 0), 0);
    ck_assert_int_eq(bitmap_clear(g, n, names[0], NULL), 0);
    rec_fail((struct fault){FAULT_WRITE, k, -EIO, false, true});
    int r = blk_resize(b, GUEST / 2, NULL);
    rec_fail((struct fault){0});
    bool changed = false;
    if (r < 0) {
        ck_assert_uint_eq(blk_size(b), GUEST);
        ck_assert_int_eq(blk_pread(b, &byte, 1, GUEST - 1, 0), 0);
        changed = byte != 'x';
        ck_assert(!changed || is_dirty(n, GUEST - 1));
    }
    blk_free(b);
    graph_free(g);
    forget_records();
    return changed;
}

START_TEST(a_disk_that_does_not_shrink_has_a_dirty_end)
{
    unsigned changed = 0;

    for (unsigned k = 1; k <= 12; k++) {
        changed += shrink_in_vain(k);
    }
    ck_assert_uint_gt(changed, 0);
}
END_TEST

static struct blk *late; /* it writes while a slice is made exact */

static void *write_late(void *opaque)
{
    (void)opaque;
    ck_assert_int_eq(blk_pwrite(late, "y", 1, GUEST / 2, 0), 0);
    return NULL;
}

static void let_it_write(void)
{
    pthread_t t;

    rec.before_write = NULL;
    ck_assert_int_eq(pthread_create(&t, NULL, write_late, NULL), 0);
    ck_assert_int_eq(pthread_join(t, NULL), 0);
}

/* A guest arms a region between the look at the bits and the switch to a
 * cluster with them.  The image as it is then has its bit. */
START_TEST(a_slice_that_is_armed_meanwhile_stays_as_it_is)
{
    struct graph *g = graph_new();

    uint64_t size = load_new_image(shapes[0]);
    struct node *n = open_recorded(g, size);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &late, NULL),
        0);
    ck_assert_int_eq(bitmap_add(g, n, names[0], 65536, true, false, NULL), 0);
    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(bitmap_mark_ahead(n, 0, GUEST), 0);
    graph_unlock(g);
    ck_assert_int_eq(qcow2_bitmaps_tighten(n->state), 0); /* it was touched */
    rec.before_write = let_it_write;
    ck_assert_int_eq(qcow2_bitmaps_tighten(n->state), 0);
    ck_assert_ptr_null(rec.before_write);
    ck_assert(is_dirty(n, GUEST / 2));

    unsigned char *disk = malloc(DISK_MAX); /* no write is lost */
    ck_assert_ptr_nonnull(disk);
    memcpy(disk, rec.disk, DISK_MAX);
    blk_free(late);
    graph_free(g);
    memcpy(rec.disk, disk, DISK_MAX);
    free(disk);
    g = graph_new();
    n = open_recorded(g, rec.top);
    ck_assert(is_dirty(n, GUEST / 2));
    graph_free(g);
    forget_records();
}
END_TEST

/* How often the first touches of @count far regions flush, with so many
 * bitmaps. */
static unsigned count_flushes(const char *level, unsigned count,
                              unsigned bitmaps)
{
    struct graph *g = graph_new();
    unsigned flushes = 0;
    struct blk *b;

    rec.garbage = false;
    uint64_t size = load_new_image("{\"size\": 1099511627776}");
    struct node *n = open_recorded_with(g, size, "bitmap-durability", level);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    for (unsigned i = 0; i < bitmaps; i++) {
        const char name[] = {(char)('a' + i), '\0'};
        ck_assert_int_eq(bitmap_add(g, n, name, 65536, true, false, NULL), 0);
    }
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 0, 0), 0); /* clusters of bits */
    unsigned from = rec.count;
    for (uint64_t i = 1; i <= count; i++) {
        ck_assert_int_eq(blk_pwrite(b, "x", 1, i * 8 * MiB, 0), 0);
    }
    for (unsigned i = from; i < rec.count; i++) {
        flushes += rec.log[i].bytes == 0;
    }
    blk_free(b);
    graph_free(g);
    forget_records();
    return flushes;
}

START_TEST(arming_flushes_seldom_and_with_process_never)
{
    ck_assert_uint_eq(count_flushes("process", 100, 1), 0);
    unsigned flushes = count_flushes("power", 900, 1);
    ck_assert_uint_ge(flushes, 1);
    /* 7200 MiB were touched, each region for the first time. */
    ck_assert_uint_lt(flushes, 7200 / 64);
    /* Many bitmaps share them. */
    ck_assert_uint_le(count_flushes("power", 900, 16), flushes + 1);
}
END_TEST

/* Guests wait for what they have written, then. */
START_TEST(storage_with_fua_is_not_flushed_to_arm)
{
    rec.fua = true;
    ck_assert_uint_eq(count_flushes("power", 900, 1), 0);
    ck_assert_uint_eq(count_flushes("power", 900, 16), 0);
}
END_TEST

START_TEST(nor_while_guests_wait_for_a_new_bitmap)
{
    struct graph *g = graph_new();
    unsigned between =
        0; /* flushes, of the first and the last write with FUA */
    unsigned pending = 0;
    unsigned fuas = 0;
    struct action *a;
    struct blk *b;

    rec.fua = true;
    uint64_t size = load_new_image(shapes[0]);
    struct node *n = open_recorded(g, size);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(bitmap_add(g, n, "old", 65536, true, false, NULL), 0);
    ck_assert_int_eq(bitmap_add(g, n, "new", 65536, false, false, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 5 * SLOT, 0), 0);
    ck_assert_int_eq(
        bitmap_persist_action((struct bitmap_ref){n, "new"}, &a, NULL), 0);
    unsigned from = rec.count;
    ck_assert_int_eq(action_run(g, a, NULL), 0);
    for (unsigned i = from; i < rec.count; i++) {
        if (rec.log[i].bytes == 0) {
            pending += fuas > 0;
        } else if (rec.log[i].fua) {
            between += pending;
            pending = 0;
            fuas++;
        }
    }
    /* The bits with the table, the directory, the header. */
    ck_assert_uint_ge(fuas, 3);
    ck_assert_uint_eq(between, 0);
    /* What was freed meanwhile is free in the image when guests go on. */
    ck_assert_uint_ge(pending, 1);
    /* It begins armed where the old one is. */
    from = rec.count;
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 5 * SLOT + 512, 0), 0);
    ck_assert_uint_eq(rec.count, from + 1);
    blk_free(b);
    graph_free(g);
    forget_records();
}
END_TEST

/* A power cut that takes back what was written before it began would be a
 * change that it does not have. */
START_TEST(what_is_older_than_a_bitmap_is_durable_before_it_counts)
{
    struct graph *g = graph_new();
    struct bitmap *bm;
    bool flushed = false;
    struct blk *b;

    rec.fua = true;
    uint64_t size = load_new_image(shapes[0]);
    struct node *n = open_recorded(g, size);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 5 * SLOT, 0), 0);
    ck_assert_int_eq(bitmap_store_ahead(n, true, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, "y", 1, 5 * SLOT, 0), 0);
    unsigned from = rec.count;
    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(bitmap_add_locked(n, "a", 65536, true, false, &bm, NULL),
                     0);
    ck_assert_int_eq(bitmap_store(n, NULL), 0);
    graph_unlock(g);
    for (unsigned i = from; i < rec.count; i++) {
        flushed |= rec.log[i].bytes == 0;
    }
    ck_assert(flushed);
    blk_free(b);
    graph_free(g);
    forget_records();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bitmap-crash");
    TCase *tc = tcase_create("power-cut");

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, no_power_cut_loses_a_bit, 0, 6);
    tcase_add_loop_test(tc, nor_does_storage_that_fails, 0, 3);
    tcase_add_loop_test(tc, without_arming_bits_are_lost, 0, 3);
    tcase_add_test(tc, arming_flushes_seldom_and_with_process_never);
    tcase_add_test(tc, storage_with_fua_is_not_flushed_to_arm);
    tcase_add_test(tc, nor_while_guests_wait_for_a_new_bitmap);
    tcase_add_test(tc, what_is_older_than_a_bitmap_is_durable_before_it_counts);
    suite_add_tcase(s, tc);
    tc = tcase_create("shrink");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, a_disk_that_shrinks_loses_no_bit_before_it_is_smaller);
    tcase_add_test(tc, a_disk_that_does_not_shrink_has_a_dirty_end);
    suite_add_tcase(s, tc);
    tc = tcase_create("tighten");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, a_slice_that_is_armed_meanwhile_stays_as_it_is);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
