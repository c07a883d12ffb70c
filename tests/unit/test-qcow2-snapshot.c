/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Internal snapshots against a model: random requests of a guest, snapshots
 * that are made, applied and removed in between, and what each disk must show.
 *
 *   power cuts       what is in the snapshot table is whole, and no count is
 *                    lower than its references
 *   failing requests the k-th write or flush of a change fails: the change has
 *                    happened, or nothing has
 *   a busy guest     a snapshot shows all requests up to one instant, and none
 *                    after it
 */
#include <check.h>
#include <inttypes.h>
#include <pthread.h>

#define DISK_MAX (8 * MiB)
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/internal-snapshot.h"
#include "power-cut.h"
#include "qcow2-check.h"
#include "qcow2-guest.h"

#define GUEST (1 * MiB)
#define UNIT  512
#define UNITS (GUEST / UNIT)
#define KEPT  64 /* snapshots that the model remembers */

struct disk {
    uint32_t unit[UNITS];
};

static struct disk now;
static struct disk kept[KEPT]; /* by the number in the snapshot's name */
static unsigned next_name;

/* --- Changing --- */

static int change(struct node *n, enum internal_verb verb, const char *name)
{
    const struct internal_options o = {.node = n, .verb = verb, .name = name};
    struct action *a;
    int r = snapshot_internal_action(&o, &a, NULL);

    return r < 0 ? r : action_run(n->graph, a, NULL);
}

static uint32_t snapshot_count(const unsigned char *disk)
{
    return load_be32(disk + 60);
}

/* The entry of snapshot @i, and its name, which is a number. */
static const unsigned char *entry(const unsigned char *disk, uint32_t i,
                                  unsigned *number)
{
    const unsigned char *e = disk + load_be64(disk + 64);
    char text[16] = "";

    for (; i > 0; i--) {
        e += align_up(40 + load_be32(e + 36) + (uint64_t)load_be16(e + 12) +
                          load_be16(e + 14),
                      8);
    }
    ck_assert_uint_lt(load_be16(e + 14), sizeof(text));
    memcpy(text, e + 40 + load_be32(e + 36) + load_be16(e + 12),
           load_be16(e + 14));
    *number = (unsigned)strtoul(text, NULL, 10);
    ck_assert_uint_lt(*number, KEPT);
    return e;
}

static int make_one(struct node *n)
{
    char name[16];

    (void)snprintf(name, sizeof(name), "%u", next_name);
    ck_assert_uint_lt(next_name, KEPT);
    kept[next_name++] = now;
    return change(n, INTERNAL_MAKE, name);
}

static int remove_one(struct node *n)
{
    char name[16];
    unsigned number;
    uint32_t count = snapshot_count(rec.disk);

    if (count == 0) {
        return 0;
    }
    (void)entry(rec.disk, (uint32_t)rnd(count), &number);
    (void)snprintf(name, sizeof(name), "%u", number);
    return change(n, INTERNAL_REMOVE, name);
}

/* The disk becomes one of the snapshots. */
static int apply_one(struct node *n)
{
    char name[16];
    unsigned number;
    uint32_t count = snapshot_count(rec.disk);

    if (count == 0) {
        return 0;
    }
    (void)entry(rec.disk, (uint32_t)rnd(count), &number);
    (void)snprintf(name, sizeof(name), "%u", number);
    int r = change(n, INTERNAL_APPLY, name);
    if (r == 0) {
        now = kept[number];
    }
    return r;
}

static void random_request(struct blk *b, uint32_t stamp)
{
    uint64_t from = rnd(UNITS);
    uint64_t count = min_u64(1 + rnd(rnd(4) ? 24 : 400), UNITS - from);
    unsigned kind = (unsigned)rnd(8);

    if (kind < 6) {
        CLEANUP_FREE unsigned char *buf = calloc(count, UNIT);
        for (uint64_t u = 0; u < count; u++) {
            store_be32(buf + u * UNIT, stamp);
            now.unit[from + u] = stamp;
        }
        ck_assert_int_eq(blk_pwrite(b, buf, count * UNIT, from * UNIT, 0), 0);
        return;
    }
    memset(now.unit + from, 0, count * sizeof(now.unit[0]));
    ck_assert_int_eq(
        blk_zero(b, from * UNIT, count * UNIT, kind == 6 ? 0 : REQ_MAY_UNMAP),
        0);
}

/* --- Looking --- */

/* What unit @u of a disk shows whose L1 table the header of @disk names. */
static uint32_t see(const unsigned char *disk, uint64_t u)
{
    const struct guest_image g = {disk, DISK_MAX};
    uint64_t size = guest_unit_size(&g);
    uint64_t at = guest_look(&g, u * UNIT / size);

    ck_assert_uint_ne(at, GUEST_UNREADABLE);
    return at == GUEST_NOTHING || at == GUEST_ZEROES
               ? 0
               : load_be32(disk + at + u * UNIT % size);
}

/* The guest's bytes of an encrypted image, which the driver has to decode. */
static unsigned char *decode(const unsigned char *disk)
{
    struct graph *g = graph_new();
    CLEANUP_JSON json_t *o =
        json_pack("{s:s, s:b, s:{s:s, s:s}}", "driver", "qcow2", "read-only", 1,
                  "file", "driver", "file", "filename", "crashed.qcow2");
    unsigned char *bytes = malloc(GUEST);
    FILE *f = fopen("crashed.qcow2", "wb");
    struct node *n;

    ck_assert(bytes && f);
    ck_assert_uint_eq(fwrite(disk, 1, DISK_MAX, f), DISK_MAX);
    (void)fclose(f);
    add_secret(g);
    add_key(o);
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    ck_assert_int_eq(node_pread(n, bytes, GUEST, 0, 0), 0);
    graph_free(g);
    (void)unlink("crashed.qcow2");
    return bytes;
}

static void check_disk(const unsigned char *disk, const struct disk *want,
                       const char *what, unsigned cut)
{
    CLEANUP_FREE unsigned char *bytes = rec.encrypted ? decode(disk) : NULL;

    for (uint64_t u = 0; u < UNITS; u++) {
        uint32_t seen = bytes ? load_be32(bytes + u * UNIT) : see(disk, u);
        ck_assert_msg(seen == want->unit[u],
                      "%s: unit %" PRIu64 " shows %u, not %u (cut at %u)", what,
                      u, seen, want->unit[u], cut);
    }
}

/* All snapshots of the image; its header is used as a place to work. */
static void check_snapshots(unsigned char *disk, unsigned cut)
{
    unsigned char l1[12];

    memcpy(l1, disk + 36, sizeof(l1));
    for (uint32_t i = 0; i < snapshot_count(disk); i++) {
        unsigned number;
        const unsigned char *e = entry(disk, i, &number);

        memcpy(disk + 36, e + 8, 4);
        memcpy(disk + 40, e, 8);
        check_disk(disk, &kept[number], "a snapshot", cut);
    }
    memcpy(disk + 36, l1, sizeof(l1));
}

static void check_flags(const unsigned char *disk)
{
    const struct image image = {disk, DISK_MAX};
    struct verdict v = check_image(&image);

    ck_assert_msg(v.unmarked == 0, "%" PRIu64 " without COPIED", v.unmarked);
}

static void check_refs(const unsigned char *disk, bool leaks, unsigned cut)
{
    const struct image image = {disk, DISK_MAX};
    struct verdict v = check_image(&image);

    ck_assert_msg(v.corruptions == 0, "%" PRIu64 " corruptions, cut at %u",
                  v.corruptions, cut);
    ck_assert_msg(leaks || v.leaks == 0, "%" PRIu64 " leaks", v.leaks);
    if (!leaks) {
        check_flags(disk);
    }
}

/* --- Opening --- */

static struct graph *graph;
static struct blk *guest;

static struct node *open_image(uint64_t size)
{
    graph = graph_new();
    add_secret(graph);
    struct node *n = open_recorded(graph, size);

    ck_assert_int_eq(
        blk_new(graph, n, PERM_ALL, PERM_ALL, "test", &guest, NULL), 0);
    return n;
}

static void close_image(void)
{
    blk_free(guest);
    graph_free(graph);
}

static void new_model(void)
{
    memset(&now, 0, sizeof(now));
    next_name = 0;
}

/* --- Power cuts --- */

static void check_crash(const unsigned char *before, unsigned cut)
{
    CLEANUP_FREE unsigned char *disk = crashed_image_at(before, cut);

    check_refs(disk, true, cut);
    check_snapshots(disk, cut);
}

/* Cut the power at random, and where the header has just been written. */
static void cut_power(const unsigned char *before, unsigned cuts)
{
    for (unsigned i = 0; i < cuts; i++) {
        check_crash(before, (unsigned)rnd(rec.count + 1));
    }
    for (unsigned i = 0; i < rec.count; i++) {
        const struct record *r = &rec.log[i];

        for (unsigned k = rec.encrypted ? 3 : 0;
             k < 4 && r->bytes > 0 && r->offset < 72; k++) {
            check_crash(before, i + 1);
        }
    }
}

static void run_campaign(const char *options, unsigned requests, unsigned cuts)
{
    new_model();
    rec.encrypted = strstr(options, "encrypt");
    uint64_t size = load_new_image(options);
    CLEANUP_FREE unsigned char *before = malloc(DISK_MAX);

    memcpy(before, rec.disk, DISK_MAX);
    struct node *n = open_image(size);
    for (unsigned i = 0; i < requests; i++) {
        random_request(guest, i + 1);
        if (i % 12 == 5) {
            ck_assert_int_eq(make_one(n), 0);
        }
        if (i % 16 == 15) {
            ck_assert_int_eq(remove_one(n), 0);
        }
        if (i % 20 == 11) {
            ck_assert_int_eq(apply_one(n), 0);
        }
        if (i % 40 == 20) {
            ck_assert_int_eq(blk_flush(guest), 0);
        }
    }
    close_image();
    cut_power(before, cuts);
    check_refs(rec.disk, false, rec.count);
    check_disk(rec.disk, &now, "the disk", rec.count);
    check_snapshots(rec.disk, rec.count);
    ck_assert_uint_gt(snapshot_count(rec.disk), 0);
    forget_records();
}

START_TEST(snapshots_survive_power_cuts)
{
    static const char *const options[] = {
        "{\"size\": 1048576, \"cluster_size\": 512}",
        "{\"size\": 1048576, \"cluster_size\": 4096, \"refcount_bits\": 8}",
        "{\"size\": 1048576, \"cluster_size\": 65536}",
        "{\"size\": 1048576, \"cluster_size\": 4096, \"compat\": \"0.10\"}",
        "{\"size\": 1048576, \"cluster_size\": 16384, \"extended_l2\": true}",
        "{\"size\": 1048576, \"cluster_size\": 16384, \"extended_l2\": true, "
        "\"encrypt\": {\"format\": \"luks\", \"key-secret\": \"s\", "
        "\"iter-time\": 1}}",
    };

    seed = 1 + (uint64_t)_i;
    run_campaign(options[_i], 70, _i == 5 ? 4 : 40);
}
END_TEST

/* --- Requests that fail --- */

static void check_after_failure(uint64_t size, uint32_t had, int r,
                                enum internal_verb verb)
{
    uint32_t has = verb == INTERNAL_MAKE     ? had + 1
                   : verb == INTERNAL_REMOVE ? had - 1
                                             : had;
    struct node *n;

    ck_assert_uint_eq(snapshot_count(rec.disk), r == 0 ? has : had);
    /* The guest goes on, and so do snapshots. */
    n = blk_node(guest);
    random_request(guest, 1000);
    ck_assert_int_eq(make_one(n), 0);
    random_request(guest, 1001);
    close_image();
    check_refs(rec.disk, true, 0);
    check_flags(rec.disk);
    check_disk(rec.disk, &now, "the disk", 0);
    check_snapshots(rec.disk, 0);
    (void)size;
}

/* Request @k of the kind fails in a change.  False: there were not so many. */
static bool run_failure(enum internal_verb verb, enum fault_kind kind,
                        unsigned k, bool done)
{
    new_model();
    /* Of small tables there are many, so all kinds of them are read late. */
    uint64_t size = load_new_image(
        kind == FAULT_READ ? "{\"size\": 1048576, \"cluster_size\": 512, "
                             "\"refcount_bits\": 64}"
        : k % 2            ? "{\"size\": 1048576, \"cluster_size\": 4096}"
                           : "{\"size\": 1048576, \"cluster_size\": 16384, "
                             "\"extended_l2\": true}");
    struct node *n = open_image(size);

    seed = 77;
    for (unsigned i = 0; i < 20; i++) {
        random_request(guest, i + 1);
        if (i % 7 == 5) {
            ck_assert_int_eq(make_one(n), 0);
        }
    }
    if (kind == FAULT_READ) { /* nothing is in memory then */
        close_image();
        n = open_image(rec.top);
    }
    uint32_t had = snapshot_count(rec.disk);
    rec_fail((struct fault){
        .kind = kind, .countdown = k, .error = -EIO, .done = done});
    int r = verb == INTERNAL_MAKE     ? make_one(n)
            : verb == INTERNAL_REMOVE ? remove_one(n)
                                      : apply_one(n);
    bool failed = rec.fault.countdown == 0;
    rec_fail((struct fault){0});
    check_after_failure(size, had, r, verb);
    forget_records();
    return failed;
}

/* The guest goes on after each, so no failed read is taken for corruption.  A
 * read that fails has brought nothing, so the last cases are of writes and
 * flushes that were done all the same. */
START_TEST(a_request_that_fails_leaves_all_or_nothing)
{
    static const enum fault_kind kinds[] = {FAULT_WRITE, FAULT_FLUSH,
                                            FAULT_READ};
    enum internal_verb verb = (enum internal_verb)(_i % 3);
    enum fault_kind kind = kinds[_i / 3 % 3];
    unsigned k = 1;

    while (run_failure(verb, kind, k, _i / 9)) {
        k++;
    }
    ck_assert_uint_gt(k, kind == FAULT_READ ? 2 : 3);
}
END_TEST

/* --- Snapshots of another size, and bitmaps --- */

#define LARGE (5 * MiB) /* three clusters of bits, in place of one */

static uint64_t disk_size(const unsigned char *disk)
{
    return load_be64(disk + 24);
}

/* The directory's only entry. */
static const unsigned char *bitmap_entry(const unsigned char *disk)
{
    uint64_t at = load_be32(disk + 100);

    while (load_be32(disk + at) != 0x23852875) {
        ck_assert_uint_ne(load_be32(disk + at), 0);
        at += 8 + align_up(load_be32(disk + at + 4), 8);
    }
    ck_assert_uint_eq(load_be32(disk + at + 8), 1);
    return disk + load_be64(disk + at + 24);
}

/* The bitmap has the length of the disk, and all bits if that is @full. */
static void check_bitmap(const unsigned char *disk, uint64_t full, unsigned cut)
{
    const unsigned char *e = bitmap_entry(disk);
    const unsigned char *table = disk + load_be64(e);
    uint64_t size = disk_size(disk);

    ck_assert_msg(load_be32(e + 8) == div_up(size, 512 * 8 * 512),
                  "%u clusters of bits for %" PRIu64 " bytes, cut at %u",
                  load_be32(e + 8), size, cut);
    for (uint64_t g = 0; g < size / 512 && size == full; g++) {
        uint64_t slice = load_be64(table + g / 4096 * 8);

        ck_assert_msg(slice == 1 || (slice > 1 &&
                                     disk[slice + g % 4096 / 8] & 1U << g % 8),
                      "bit %" PRIu64 " is not set, cut at %u", g, cut);
    }
}

/* A disk of one size with a snapshot of the other, and a bitmap.  @before,
 * unless NULL: the image as it was first. */
static struct node *open_resized(bool large, unsigned char *before)
{
    new_model();
    uint64_t bytes =
        load_new_image(large ? "{\"size\": 5242880, \"cluster_size\": 512}"
                             : "{\"size\": 1048576, \"cluster_size\": 512}");
    if (before) {
        memcpy(before, rec.disk, DISK_MAX);
    }
    struct node *n = open_image(bytes);
    struct action *a;

    for (unsigned i = 0; i < 6; i++) {
        random_request(guest, i + 1);
    }
    ck_assert_int_eq(make_one(n), 0);
    ck_assert_int_eq(blk_resize(guest, large ? GUEST : LARGE, NULL), 0);
    ck_assert_int_eq(bitmap_add_action((struct bitmap_ref){n, "b"}, 512, true,
                                       false, &a, NULL),
                     0);
    ck_assert_int_eq(action_run(graph, a, NULL), 0);
    for (unsigned i = 6; i < 12; i++) {
        random_request(guest, i + 1);
    }
    ck_assert_int_eq(blk_flush(guest), 0);
    return n;
}

static void check_sizes(const unsigned char *disk, const struct disk *old,
                        bool large, unsigned cut)
{
    uint64_t want = large ? LARGE : GUEST;

    check_refs(disk, true, cut);
    check_bitmap(disk, want, cut);
    check_disk(disk, disk_size(disk) == want ? &kept[0] : old, "the disk", cut);
}

START_TEST(a_disk_and_its_bitmaps_get_the_size_of_a_snapshot_at_once)
{
    bool large = _i;

    seed = 5 + (uint64_t)_i;
    CLEANUP_FREE unsigned char *before = malloc(DISK_MAX);
    struct node *n = open_resized(large, before);
    struct disk old = now;
    unsigned first = rec.count;
    unsigned seen[2] = {0};

    ck_assert_int_eq(change(n, INTERNAL_APPLY, "0"), 0);
    ck_assert_uint_eq(blk_size(guest), large ? LARGE : GUEST);
    close_image();
    for (unsigned cut = first; cut <= rec.count; cut++) {
        for (unsigned k = 0; k < 3; k++) {
            CLEANUP_FREE unsigned char *disk = crashed_image_at(before, cut);

            check_sizes(disk, &old, large, cut);
            seen[disk_size(disk) == (large ? LARGE : GUEST)]++;
        }
    }
    ck_assert_uint_gt(seen[0], 0);
    ck_assert_uint_gt(seen[1], 0);
    check_refs(rec.disk, false, rec.count);
    check_sizes(rec.disk, &old, large, rec.count);
    forget_records();
}
END_TEST

/* Request @k fails while the snapshot is applied, and then it is done again. */
static bool run_resize_failure(bool large, enum fault_kind kind, unsigned k,
                               bool done)
{
    struct node *n = open_resized(large, NULL);

    rec_fail((struct fault){
        .kind = kind, .countdown = k, .error = -EIO, .done = done});
    int r = change(n, INTERNAL_APPLY, "0");
    bool failed = rec.fault.countdown == 0;
    rec_fail((struct fault){0});
    ck_assert_uint_eq(blk_size(guest), (r == 0) == large ? LARGE : GUEST);
    ck_assert_uint_eq(disk_size(rec.disk), blk_size(guest));
    if (r < 0) {
        check_disk(rec.disk, &now, "the disk", 0);
    }
    random_request(guest, 100);
    ck_assert_int_eq(change(n, INTERNAL_APPLY, "0"), 0);
    close_image();
    check_sizes(rec.disk, &now, large, 0);
    forget_records();
    return failed;
}

START_TEST(a_size_that_cannot_be_switched_is_the_old_one)
{
    bool large = _i & 1;
    unsigned k = 1;

    seed = 9;
    while (run_resize_failure(large, _i & 2 ? FAULT_FLUSH : FAULT_WRITE, k,
                              !large)) {
        k++;
    }
    ck_assert_uint_gt(k, 3);
}
END_TEST

/* --- Counts that do not fit --- */

START_TEST(a_count_that_does_not_fit_is_found_before_anything_changes)
{
    new_model();
    uint64_t size = load_new_image("{\"size\": 1048576, \"cluster_size\": "
                                   "4096, \"refcount_bits\": 1}");
    struct node *n = open_image(size);

    ck_assert_int_eq(make_one(n), 0); /* an empty disk shares nothing */
    random_request(guest, 1);
    ck_assert_int_eq(blk_flush(guest), 0);
    unsigned writes = rec.count;
    ck_assert_int_eq(make_one(n), -EOVERFLOW);
    for (unsigned i = writes; i < rec.count; i++) {
        ck_assert_uint_eq(rec.log[i].bytes, 0);
    }
    close_image();
    check_refs(rec.disk, false, 0);
    forget_records();
}
END_TEST

/* --- Counts that are too low --- */

/* The count of a cluster, of 16 bits in clusters of 4096 bytes. */
static unsigned char *count_of(unsigned cluster)
{
    uint64_t table = load_be64(rec.disk + 48);

    ck_assert_uint_lt(cluster, 2048);
    return rec.disk + load_be64(rec.disk + table) + cluster * 2UL;
}

/* Dropping a disk would free what another one refers to. */
static void check_refused(enum internal_verb verb)
{
    struct node *n = open_image(rec.top);
    unsigned writes = rec.count;

    ck_assert_int_eq(change(n, verb, "0"), -EUCLEAN);
    for (unsigned i = writes; i < rec.count; i++) {
        ck_assert_uint_eq(rec.log[i].bytes, 0);
    }
    close_image();
}

START_TEST(a_count_that_is_too_low_is_found_before_anything_changes)
{
    unsigned lowered = 0;

    new_model();
    seed = 3;
    struct node *n = open_image(
        load_new_image("{\"size\": 1048576, \"cluster_size\": 4096}"));
    for (unsigned i = 0; i < 24; i++) {
        random_request(guest, i + 1);
        if (i % 8 == 7) {
            ck_assert_int_eq(make_one(n), 0);
        }
    }
    close_image();
    for (unsigned c = 0; c < rec.top / 4096; c++) {
        unsigned char *at = count_of(c);
        unsigned had = load_be16(at);

        if (had > 1 && ++lowered % 8 == 0) {
            store_be16(at, (uint16_t)(had - 1));
            check_refused(lowered % 16 ? INTERNAL_REMOVE : INTERNAL_APPLY);
            store_be16(at, (uint16_t)had);
        }
    }
    ck_assert_uint_gt(lowered, 32);
    n = open_image(rec.top);
    ck_assert_int_eq(change(n, INTERNAL_REMOVE, "0"), 0);
    close_image();
    check_refs(rec.disk, false, 0);
    check_snapshots(rec.disk, 0);
    forget_records();
}
END_TEST

/* Begin the change.  The guest writes after each step that is not the last. */
static int begin_with_writes(struct node *n, struct internal_change *c,
                             uint32_t stamp)
{
    int r;

    do {
        struct tree *t = node_enter(n, false);
        r = n->drv->snapshots->begin(n, c, NULL);
        node_leave(t);
        for (unsigned i = 0; r > 0 && i < 4; i++) {
            random_request(guest, stamp++);
        }
        /* The second flush writes what the first one has let go. */
        ck_assert_int_eq(blk_flush(guest), 0);
        ck_assert_int_eq(blk_flush(guest), 0);
    } while (r > 0);
    return r;
}

/* The change is not made after all. */
static void end_change(struct node *n, struct internal_change *c)
{
    int r;

    do {
        struct tree *t = node_enter(n, false);
        r = n->drv->snapshots->end(n, c, false);
        node_leave(t);
    } while (r > 0);
    ck_assert_int_eq(r, 0);
}

/* References that the guest changes while they are counted are followed. */
START_TEST(a_guest_that_writes_meanwhile_makes_no_count_too_low)
{
    struct internal_change c = {.verb = INTERNAL_REMOVE, .name = "1"};
    uint32_t stamp = 1;

    new_model();
    seed = 4;
    struct node *n = open_image(
        load_new_image("{\"size\": 1048576, \"cluster_size\": 512}"));
    for (; stamp < 30; stamp++) {
        random_request(guest, stamp);
        if (stamp % 8 == 7) {
            ck_assert_int_eq(make_one(n), 0);
        }
    }
    ck_assert_int_eq(begin_with_writes(n, &c, stamp), 0);
    end_change(n, &c);
    json_decref(c.info);
    close_image();
    check_refs(rec.disk, false, 0);
    check_disk(rec.disk, &now, "the disk", 0);
    check_snapshots(rec.disk, 0);
    forget_records();
}
END_TEST

/* A disk without data could have a snapshot, but then the guest writes, and one
 * bit cannot count what is new twice. */
START_TEST(a_guest_in_the_way_of_a_snapshot_keeps_its_clusters_alone)
{
    static const char *const options[] = {
        "{\"size\": 1048576, \"cluster_size\": 512, \"refcount_bits\": 1}",
        "{\"size\": 1048576, \"cluster_size\": 4096, \"refcount_bits\": 1}",
        "{\"size\": 1048576, \"cluster_size\": 16384, \"refcount_bits\": 1, "
        "\"extended_l2\": true}",
    };
    struct internal_change c = {.verb = INTERNAL_MAKE, .name = "0"};

    new_model();
    seed = 5 + (uint64_t)_i;
    struct node *n = open_image(load_new_image(options[_i]));
    (void)begin_with_writes(n, &c, 1);
    /* The disk has come to its end: all that is new is below. */
    for (uint32_t i = 100; i < 106; i++) {
        random_request(guest, i);
    }
    end_change(n, &c);
    random_request(guest, 200);
    close_image();
    check_refs(rec.disk, false, 0);
    check_disk(rec.disk, &now, "the disk", 0);
    forget_records();
}
END_TEST

/* --- What the disk has alone again --- */

/* Memory has COPIED from before the snapshot; the disk has it again, too. */
START_TEST(a_disk_without_snapshots_has_its_clusters_alone)
{
    new_model();
    uint64_t size =
        load_new_image("{\"size\": 1048576, \"cluster_size\": 4096}");
    struct node *n = open_image(size);

    seed = 3;
    for (unsigned i = 0; i < 6; i++) {
        random_request(guest, i + 1);
    }
    ck_assert_int_eq(make_one(n), 0);
    if (_i) {
        random_request(guest, 7);
        ck_assert_int_eq(apply_one(n), 0);
    }
    ck_assert_int_eq(remove_one(n), 0);
    close_image();
    check_refs(rec.disk, false, 0);
    check_disk(rec.disk, &now, "the disk", 0);
    forget_records();
}
END_TEST

/* --- A guest that writes meanwhile --- */

#define CLIENTS 2
#define SHARE   (UNITS / CLIENTS)

struct client {
    pthread_t thread;
    unsigned number;
    _Atomic bool *stop;
    uint32_t done;
};

/* The unit that request @i writes, of a client's own. */
static uint64_t unit_of(uint32_t i)
{
    return i * UINT64_C(2654435761) % SHARE;
}

static void *write_on(void *opaque)
{
    struct client *c = opaque;
    unsigned char buf[UNIT] = {0};

    while (!atomic_load(c->stop)) {
        uint32_t i = ++c->done;

        store_be32(buf, i);
        ck_assert_int_eq(blk_pwrite(guest, buf, UNIT,
                                    (c->number * SHARE + unit_of(i)) * UNIT, 0),
                         0);
    }
    return NULL;
}

/* Has the client's part of the disk all requests up to one, and no other? */
static void check_instant(const unsigned char *disk, const struct client *c)
{
    CLEANUP_FREE uint32_t *want = calloc(SHARE, sizeof(*want));
    uint32_t last = 0;

    for (uint64_t u = 0; u < SHARE; u++) {
        last = (uint32_t)max_u64(last, see(disk, c->number * SHARE + u));
    }
    ck_assert_uint_le(last, c->done);
    for (uint32_t i = 1; i <= last; i++) {
        want[unit_of(i)] = i;
    }
    for (uint64_t u = 0; u < SHARE; u++) {
        ck_assert_uint_eq(see(disk, c->number * SHARE + u), want[u]);
    }
}

static void check_instants(unsigned char *disk, const struct client *clients)
{
    for (uint32_t i = 0; i < snapshot_count(disk); i++) {
        unsigned number;
        const unsigned char *e = entry(disk, i, &number);

        memcpy(disk + 36, e + 8, 4);
        memcpy(disk + 40, e, 8);
        for (unsigned k = 0; k < CLIENTS; k++) {
            check_instant(disk, &clients[k]);
        }
    }
}

START_TEST(a_snapshot_is_one_instant_of_a_busy_guest)
{
    struct client clients[CLIENTS];
    _Atomic bool stop = false;

    new_model();
    uint64_t size =
        load_new_image(_i ? "{\"size\": 1048576, \"cluster_size\": 512}"
                          : "{\"size\": 1048576, \"cluster_size\": 65536}");
    struct node *n = open_image(size);

    seed = 5;
    for (unsigned i = 0; i < CLIENTS; i++) {
        clients[i] = (struct client){.number = i, .stop = &stop};
        ck_assert_int_eq(
            pthread_create(&clients[i].thread, NULL, write_on, &clients[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        ck_assert_int_eq(make_one(n), 0);
        if (i % 3 == 2) {
            ck_assert_int_eq(remove_one(n), 0);
        }
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < CLIENTS; i++) {
        ck_assert_int_eq(pthread_join(clients[i].thread, NULL), 0);
    }
    close_image();
    check_refs(rec.disk, false, 0);
    ck_assert_uint_eq(snapshot_count(rec.disk), 6);
    for (unsigned k = 0; k < CLIENTS; k++) {
        check_instant(rec.disk, &clients[k]);
    }
    check_instants(rec.disk, clients);
    forget_records();
}
END_TEST

static void add_case(Suite *s, const char *name, const TTest *test, int count)
{
    TCase *tc = tcase_create(name);

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, test, 0, count);
    suite_add_tcase(s, tc);
}

int main(void)
{
    Suite *s = suite_create("qcow2-snapshot");

    add_case(s, "power-cut", snapshots_survive_power_cuts, 6);
    add_case(s, "failure", a_request_that_fails_leaves_all_or_nothing, 15);
    add_case(s, "sizes",
             a_disk_and_its_bitmaps_get_the_size_of_a_snapshot_at_once, 2);
    add_case(s, "size-failure", a_size_that_cannot_be_switched_is_the_old_one,
             4);
    add_case(s, "counts",
             a_count_that_does_not_fit_is_found_before_anything_changes, 1);
    add_case(s, "low-counts",
             a_count_that_is_too_low_is_found_before_anything_changes, 1);
    add_case(s, "counting",
             a_guest_that_writes_meanwhile_makes_no_count_too_low, 1);
    add_case(s, "in-the-way",
             a_guest_in_the_way_of_a_snapshot_keeps_its_clusters_alone, 3);
    add_case(s, "alone", a_disk_without_snapshots_has_its_clusters_alone, 2);
    add_case(s, "busy", a_snapshot_is_one_instant_of_a_busy_guest, 2);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
