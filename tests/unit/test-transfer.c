/* SPDX-License-Identifier: BSD-3-Clause */
/* Transfers: what the set has and nothing else, zeroes over a backing file,
 * what files share, the tap, failures of each end, stop and speed. */
#include "nbdelta/transfer.h"

#include "../unit/job-util.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/image.h"

#define CLUSTER (64 * KiB)

struct bench {
    struct graph *g;
    struct node *src;
    struct node *dst;
    struct transfer *t;
};

/* What a tap was told of each 512 bytes. */
struct told {
    mutex_t lock;
    uint64_t size;
    unsigned char *times;
    bool *zero;
    char *bytes;
    int error; /* what it answers with */
};

static int tap(void *opaque, uint64_t offset, uint64_t bytes, const void *buf)
{
    struct told *told = opaque;

    ck_assert(range_inside(offset, bytes, told->size));
    mutex_lock(&told->lock);
    for (uint64_t at = offset; at < offset + bytes; at++) {
        told->times[at]++;
        told->zero[at] = !buf;
    }
    if (buf) {
        memcpy(told->bytes + offset, buf, bytes);
    }
    mutex_unlock(&told->lock);
    return told->error;
}

static void told_init(struct told *told, uint64_t size)
{
    *told = (struct told){
        .size = size,
        .times = calloc(size, 1),
        .zero = calloc(size, 1),
        .bytes = calloc(size, 1),
    };
    mutex_init(&told->lock, LOCK_TEST, NULL);
}

static void told_free(struct told *told)
{
    mutex_destroy(&told->lock);
    free(told->times);
    free(told->zero);
    free(told->bytes);
}

/* Exactly [offset, offset + bytes), once, with the bytes of @disk; clears. */
static void ck_told(struct told *told, uint64_t offset, uint64_t bytes,
                    const char *disk)
{
    for (uint64_t at = 0; at < told->size; at++) {
        bool in = at >= offset && at < offset + bytes;
        char byte = (char)(told->zero[at] ? 0 : told->bytes[at]);

        /* An assertion for each byte would take its time. */
        if (told->times[at] != in || (in && byte != disk[at])) {
            ck_abort_msg("byte %llu was told %u times, as %d",
                         (unsigned long long)at, told->times[at], byte);
        }
        told->times[at] = 0;
    }
}

static void setup(struct bench *b, uint64_t size)
{
    memset(b, 0, sizeof(*b));
    b->g = graph_new();
    b->src = disk_new(b->g, "src", size);
    b->dst = disk_new(b->g, "dst", size);
}

static void begin(struct bench *b, const struct transfer_options *o)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = transfer_new(b->g, b->src, b->dst, o, &b->t, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

static void run(struct bench *b)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = transfer_run(b->t, NULL, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

static void teardown(struct bench *b)
{
    transfer_free(b->t);
    graph_free(b->g);
}

static void ck_progress(struct bench *b, uint64_t total, uint64_t written,
                        uint64_t zero)
{
    struct transfer_progress p;

    transfer_progress(b->t, &p);
    ck_assert_uint_eq(p.total, total);
    ck_assert_uint_eq(p.done, written + zero);
    ck_assert_uint_eq(p.written, written);
    ck_assert_uint_eq(p.zero, zero);
}

START_TEST(all_of_an_odd_disk_is_moved_and_told_once)
{
    uint64_t size = 50 * CLUSTER + 12345;
    struct told told;
    struct bench b;

    told_init(&told, size);
    setup(&b, size);
    disk_fill(b.src, 30 * CLUSTER);
    disk_write(b.src, size - 1, 7, 1);
    disk_write(b.dst, 0, 9, size);
    begin(&b, &(struct transfer_options){.tap = tap, .opaque = &told});
    transfer_add(b.t, 0, size);
    run(&b);
    CLEANUP_FREE char *disk = disk_read(b.src);
    ck_disk_is(b.dst, disk);
    ck_told(&told, 0, size, disk);
    ck_assert(told.zero[40 * CLUSTER]);
    ck_progress(&b, size, 30 * CLUSTER + 12345, 20 * CLUSTER);
    teardown(&b);
    told_free(&told);
}
END_TEST

START_TEST(what_is_not_in_the_set_stays)
{
    uint64_t size = 20 * CLUSTER;
    struct told told;
    struct bench b;
    uint64_t start;
    uint64_t bytes;

    told_init(&told, size);
    setup(&b, size);
    disk_fill(b.src, size);
    disk_write(b.dst, 0, 9, size);
    begin(&b, &(struct transfer_options){.tap = tap, .opaque = &told});
    ck_assert(!transfer_next(b.t, 0, &start, &bytes));
    transfer_add(b.t, 5 * CLUSTER + 100, 2 * CLUSTER); /* of three */
    transfer_add(b.t, 5 * CLUSTER, 0);
    ck_assert(transfer_next(b.t, 0, &start, &bytes));
    ck_assert_uint_eq(start, 5 * CLUSTER);
    ck_assert_uint_eq(bytes, 3 * CLUSTER);
    ck_assert(!transfer_next(b.t, 8 * CLUSTER, &start, &bytes));
    run(&b);
    CLEANUP_FREE char *disk = disk_read(b.src);
    ck_told(&told, 5 * CLUSTER, 3 * CLUSTER, disk);
    memset(disk, 9, 5 * CLUSTER);
    memset(disk + 8 * CLUSTER, 9, 12 * CLUSTER);
    ck_disk_is(b.dst, disk);
    ck_progress(&b, 3 * CLUSTER, 3 * CLUSTER, 0);
    run(&b); /* there is nothing left */
    ck_assert_int_eq(told.times[5 * CLUSTER], 0);
    teardown(&b);
    told_free(&told);
}
END_TEST

START_TEST(zeroes_of_an_untouched_target_are_told_and_not_written)
{
    uint64_t size = 20 * CLUSTER;
    struct told told;
    struct bench b;

    told_init(&told, size);
    setup(&b, size);
    disk_write(b.src, 19 * CLUSTER, 7, CLUSTER);
    /* These are data, for the source. */
    disk_write(b.src, 0, 0, 2 * CLUSTER);
    begin(&b, &(struct transfer_options){
                  .target_zero = true, .tap = tap, .opaque = &told});
    transfer_add(b.t, 0, size);
    run(&b);
    CLEANUP_FREE char *disk = disk_read(b.src);
    ck_disk_is(b.dst, disk);
    ck_told(&told, 0, size, disk);
    ck_assert(told.zero[0]);
    ck_assert_int_eq(trap_of(b.dst)->writes, 1);
    teardown(&b);
    told_free(&told);
}
END_TEST

/* The source may be far away: each question costs a way there and back. */
START_TEST(what_is_alike_is_asked_for_once)
{
    uint64_t size = 400 * CLUSTER;
    struct bench b;

    setup(&b, size);
    disk_write(b.src, 0, 7, 200 * CLUSTER);
    disk_write(b.src, 300 * CLUSTER, 8, 100 * CLUSTER);
    begin(&b, &(struct transfer_options){.max_chunk = CLUSTER});
    transfer_add(b.t, 0, size);
    run(&b);
    CLEANUP_FREE char *disk = disk_read(b.src);
    ck_disk_is(b.dst, disk);
    ck_assert_int_le(trap_of(b.src)->looks, 4);
    teardown(&b);
}
END_TEST

/* --- A real image --- */

static struct node *open_image(struct graph *g, const char *name, bool write)
{
    CLEANUP_JSON json_t *o = json_pack(
        "{s:s,s:b,s:s,s:{s:s,s:s}}", "driver", "qcow2", "read-only", !write,
        "discard", "unmap", "file", "driver", "file", "filename", name);
    CLEANUP_ERROR struct error *err = NULL;
    struct node *n;

    int r = graph_open(g, o, &n, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    return n;
}

static void make_image(const char *name, uint64_t size, const char *backing,
                       const char *compression)
{
    CLEANUP_JSON json_t *o = json_pack("{s:I,s:s}", "size", (json_int_t)size,
                                       "compression_type", compression);
    CLEANUP_ERROR struct error *err = NULL;

    if (backing) {
        json_object_set_new(o, "backing_file", json_string(backing));
        json_object_set_new(o, "backing_fmt", json_string("qcow2"));
    }
    int r = image_create(name, "qcow2", o, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

/* All of it through a front door. */
static void ck_node_is(struct graph *g, struct node *n, const char *expected,
                       uint64_t size)
{
    CLEANUP_FREE char *now = malloc(size);
    struct blk *b;

    ck_assert_int_eq(blk_new(g, n, PERM_READ, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(blk_pread(b, now, size, 0, 0), 0);
    blk_free(b);
    ck_assert_mem_eq(now, expected, size);
}

struct layers {
    uint64_t zero;
    uint64_t data;
    uint64_t below;
    uint64_t packed;
};

static int count_layers(const struct extent *e, void *opaque)
{
    struct layers *l = opaque;

    if (e->depth > 0) {
        l->below += e->length;
    } else if (e->flags & EXTENT_ZERO) {
        l->zero += e->length;
    } else {
        l->data += e->length;
        l->packed += e->flags & EXTENT_COMPRESSED ? e->length : 0;
    }
    return 0;
}

static struct layers layers_of(struct node *n)
{
    struct layers l = {0};
    struct tree *t = node_enter(n, false);

    ck_assert_int_eq(node_extents(n, 0, node_size(n), 0, count_layers, &l), 0);
    node_leave(t);
    return l;
}

static void fill_image(const char *name, int byte, uint64_t size)
{
    struct graph *g = graph_new();
    struct node *n = open_image(g, name, true);
    CLEANUP_FREE char *bytes = malloc(size);
    struct blk *b;

    memset(bytes, byte, size);
    ck_assert_int_eq(blk_new(g, n, PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, bytes, size, 0, 0), 0);
    blk_free(b);
    graph_free(g);
}

/* Of the odd disk the image has 511 bytes more. */
START_TEST(zeroes_hide_what_the_backing_file_has)
{
    uint64_t size = 20 * CLUSTER + 1;
    uint64_t whole = 20 * CLUSTER + 512;
    struct bench b;

    make_image("parent.qcow2", whole, NULL, "zlib");
    fill_image("parent.qcow2", 9, whole);
    make_image("child.qcow2", whole, "parent.qcow2", "zlib");
    b = (struct bench){.g = graph_new()};
    b.src = disk_new(b.g, "src", size);
    disk_write(b.src, 0, 3, 4 * CLUSTER);
    b.dst = open_image(b.g, "child.qcow2", true);
    ck_assert_int_eq(
        transfer_new(b.g, b.src, b.dst,
                     &(struct transfer_options){.target_zero = true}, &b.t,
                     NULL),
        -EINVAL);
    begin(&b, &(struct transfer_options){.workers = 3});
    transfer_add(b.t, 2 * CLUSTER, 6 * CLUSTER);
    transfer_add(b.t, 20 * CLUSTER, 1);
    run(&b);
    CLEANUP_FREE char *expected = malloc(whole);
    memset(expected, 9, whole);
    memset(expected + 2 * CLUSTER, 3, 2 * CLUSTER);
    memset(expected + 4 * CLUSTER, 0, 4 * CLUSTER);
    memset(expected + 20 * CLUSTER, 0, 512);
    ck_node_is(b.g, b.dst, expected, whole);
    struct layers l = layers_of(b.dst);
    ck_assert_uint_eq(l.data, 2 * CLUSTER);
    ck_assert_uint_eq(l.zero, 4 * CLUSTER + 512);
    ck_assert_uint_eq(l.below, 14 * CLUSTER);
    ck_progress(&b, 6 * CLUSTER + 1, 2 * CLUSTER, 4 * CLUSTER + 1);
    teardown(&b);
    (void)unlink("parent.qcow2");
    (void)unlink("child.qcow2");
}
END_TEST

/* --- Sharing --- */

static struct node *open_mem(struct graph *g, const char *name, uint64_t size)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:I}", "driver", "mem",
                                       "node-name", name, "size",
                                       (json_int_t)size);
    struct node *n;

    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    return n;
}

/* An image in memory. */
static struct node *format_mem(struct graph *g, uint64_t size)
{
    CLEANUP_JSON json_t *o = json_pack("{s:I}", "size", (json_int_t)size);
    CLEANUP_JSON json_t *file = json_string("file");
    CLEANUP_JSON json_t *open = json_pack("{s:s, s:s}", "driver", "qcow2",
                                          "file", "file");
    CLEANUP_ERROR struct error *err = NULL;
    struct image_nodes left = {0};
    struct node *n;

    (void)open_mem(g, "file", 0);
    int r = image_format(g, "qcow2", file, o, &left, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    image_release(g, &left);
    r = graph_open(g, open, &n, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    return n;
}

static void write_node(struct graph *g, struct node *n, uint64_t at, int byte,
                       uint64_t bytes)
{
    CLEANUP_FREE char *buf = malloc(bytes);
    struct blk *b;

    memset(buf, byte, bytes);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, buf, bytes, at, 0), 0);
    blk_free(b);
}

/*
 * Clusters that the image has not yet, and others that it overwrites; the last
 * one is cut off by the end of the disk, and is written.  A cluster that has
 * nothing but zeroes is not looked at, so it stays data.
 */
static void move_shared(struct bench *b, const struct transfer_options *o,
                        uint64_t shared, uint64_t zero)
{
    uint64_t size = 20 * CLUSTER + 512;
    struct transfer_progress p;

    *b = (struct bench){.g = graph_new()};
    b->src = open_mem(b->g, "src", size);
    b->dst = format_mem(b->g, size);
    write_node(b->g, b->src, 0, 5, size);
    write_node(b->g, b->src, 7 * CLUSTER, 0, CLUSTER);
    write_node(b->g, b->dst, 3 * CLUSTER - 1, 9, 4 * CLUSTER);
    begin(b, o);
    transfer_add(b->t, 0, size);
    run(b);
    transfer_progress(b->t, &p);
    ck_assert_uint_eq(p.shared, shared);
    ck_assert_uint_eq(p.read, size - shared);
    ck_assert_uint_eq(p.zero, zero);
    ck_assert_uint_eq(p.written, size - zero);
    CLEANUP_FREE char *expected = malloc(size);
    memset(expected, 5, size);
    memset(expected + 7 * CLUSTER, 0, CLUSTER);
    ck_node_is(b->g, b->dst, expected, size);
    teardown(b);
}

START_TEST(whole_clusters_are_shared_when_that_is_wanted)
{
    struct bench b;

    move_shared(&b, &(struct transfer_options){.share = true}, 20 * CLUSTER, 0);
    move_shared(&b, &(struct transfer_options){.share = false}, 0, CLUSTER);
}
END_TEST

START_TEST(what_is_told_or_compressed_is_read)
{
    struct told told;
    struct bench b;

    told_init(&told, 20 * CLUSTER + 512);
    move_shared(
        &b,
        &(struct transfer_options){.share = true, .tap = tap, .opaque = &told},
        0, CLUSTER);
    told_free(&told);
    move_shared(&b, &(struct transfer_options){.share = true, .compress = true},
                0, CLUSTER);
}
END_TEST

START_TEST(what_cannot_be_shared_is_written)
{
    uint64_t size = 20 * CLUSTER;
    struct transfer_progress p;
    struct bench b;

    setup(&b, size); /* filters that do something: nobody passes them by */
    disk_fill(b.src, size);
    begin(&b, &(struct transfer_options){.share = true});
    transfer_add(b.t, 0, size);
    run(&b);
    CLEANUP_FREE char *disk = disk_read(b.src);
    ck_disk_is(b.dst, disk);
    transfer_progress(b.t, &p);
    ck_assert_uint_eq(p.shared, 0);
    ck_assert_uint_eq(p.written, size);
    teardown(&b);
}
END_TEST

START_TEST(data_are_compressed_when_that_is_wanted)
{
    static const char *const kinds[] = {"zlib", "zstd"};
    uint64_t size = 40 * CLUSTER + 512;
    struct bench b = {.g = graph_new()};

    make_image("packed.qcow2", size, NULL, kinds[_i]);
    b.src = disk_new(b.g, "src", size);
    disk_fill(b.src, size);
    disk_write(b.src, 10 * CLUSTER, 0, 5 * CLUSTER);
    b.dst = open_image(b.g, "packed.qcow2", true);
    begin(&b, &(struct transfer_options){
                  .workers = 4, .compress = true, .target_zero = true});
    transfer_add(b.t, 0, size);
    run(&b);
    CLEANUP_FREE char *disk = disk_read(b.src);
    ck_node_is(b.g, b.dst, disk, size);
    struct layers l = layers_of(b.dst);
    ck_assert_uint_eq(l.packed, l.data);
    ck_assert_uint_eq(l.data, size - 5 * CLUSTER);
    teardown(&b);
    (void)unlink("packed.qcow2");
}
END_TEST

/* --- Dirty maps --- */

/* Stands for an export that was opened with x-dirty-bitmap: of each @period
 * bytes the first @dirty are. */
static struct {
    uint64_t period;
    uint64_t dirty;
    int error;
    _Atomic int asked;
} server;

static int dirty_map(struct node *n, uint64_t offset, uint64_t bytes,
                     unsigned flags, struct mapping *m)
{
    uint64_t in = offset % server.period;
    uint64_t left = in < server.dirty ? server.dirty - in : server.period - in;

    (void)flags;
    server.asked++;
    m->kind = MAP_DATA;
    m->file = n;
    m->host = offset;
    m->length = min_u64(bytes, left);
    m->no_data = in < server.dirty;
    return server.error;
}

static const struct driver driver_dirty = {
    .name = "nbd",
    .is_protocol = true,
    .map = dirty_map,
};

static struct node *dirty_new(struct bench *b, uint64_t period, uint64_t dirty)
{
    struct node *n;

    server.period = period;
    server.dirty = dirty;
    server.error = 0;
    server.asked = 0;
    graph_lock(b->g);
    ck_assert_int_eq(node_new(b->g, &driver_dirty, "dirty", b->src, &n, NULL),
                     0);
    n->options = json_pack("{s:s}", "x-dirty-bitmap", "qemu:dirty-bitmap:x");
    n->monitor_owned = true;
    graph_unlock(b->g);
    return n;
}

START_TEST(what_is_dirty_is_moved)
{
    uint64_t size = 40 * CLUSTER + 777;
    struct told told;
    struct bench b;

    told_init(&told, size);
    setup(&b, size);
    disk_fill(b.src, size);
    begin(&b, &(struct transfer_options){.tap = tap, .opaque = &told});
    struct node *view = dirty_new(&b, 64 * CLUSTER, 30 * CLUSTER + 1);
    ck_assert_int_eq(transfer_add_dirty(b.t, view, NULL), 0);
    run(&b);
    CLEANUP_FREE char *disk = disk_read(b.src);
    ck_told(&told, 0, 31 * CLUSTER, disk);
    ck_progress(&b, 31 * CLUSTER, 31 * CLUSTER, 0);
    teardown(&b);
    told_free(&told);
}
END_TEST

START_TEST(the_end_of_the_disk_may_be_dirty)
{
    uint64_t size = 4 * CLUSTER + 777;
    uint64_t start;
    uint64_t bytes;
    struct bench b;

    setup(&b, size);
    begin(&b, &(struct transfer_options){0});
    struct node *view = dirty_new(&b, 2 * CLUSTER, 1);
    ck_assert_int_eq(transfer_add_dirty(b.t, view, NULL), 0);
    ck_assert(transfer_next(b.t, 3 * CLUSTER, &start, &bytes));
    ck_assert_uint_eq(start, 4 * CLUSTER);
    ck_assert_uint_eq(bytes, 777);
    ck_progress(&b, 2 * CLUSTER + 777, 0, 0);
    teardown(&b);
}
END_TEST

static struct node *vast_new(struct graph *g, uint64_t size)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s,s:I}", "driver", "null-co", "size",
                                       (json_int_t)size);
    struct node *n;

    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    return n;
}

START_TEST(five_million_extents_are_walked)
{
    uint64_t size = UINT64_C(2500000) * 2 * CLUSTER;
    struct transfer_progress p;
    struct bench b = {.g = graph_new()};

    b.src = vast_new(b.g, size);
    b.dst = vast_new(b.g, size);
    begin(&b, &(struct transfer_options){0});
    struct node *view = dirty_new(&b, 2 * CLUSTER, CLUSTER);
    ck_assert_int_eq(transfer_add_dirty(b.t, view, NULL), 0);
    transfer_progress(b.t, &p);
    ck_assert_uint_eq(p.total, size / 2);
    teardown(&b);
}
END_TEST

/* One question for a unit that is dirty, however small the pieces are. */
START_TEST(a_map_that_is_finer_than_units_costs_no_more)
{
    uint64_t size = 64 * CLUSTER;
    struct transfer_progress p;
    struct bench b;

    setup(&b, size);
    begin(&b, &(struct transfer_options){0});
    struct node *view = dirty_new(&b, 2, 1);
    ck_assert_int_eq(transfer_add_dirty(b.t, view, NULL), 0);
    transfer_progress(b.t, &p);
    ck_assert_uint_eq(p.total, size);
    ck_assert_int_le(server.asked, 64);
    teardown(&b);
}
END_TEST

START_TEST(a_dirty_map_that_cannot_be_read_fails)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct bench b;

    setup(&b, 4 * CLUSTER);
    begin(&b, &(struct transfer_options){0});
    struct node *view = dirty_new(&b, 2 * CLUSTER, CLUSTER);
    server.error = -ENOTCONN;
    ck_assert_int_eq(transfer_add_dirty(b.t, view, &err), -ENOTCONN);
    ck_assert_ptr_nonnull(strstr(error_message(err), "dirty map"));
    /* What says nothing of dirt must not pass for a clean disk. */
    ck_assert_int_eq(transfer_add_dirty(b.t, b.dst, NULL), -EINVAL);
    server.error = 0;
    atomic_store(&view->size, 8 * CLUSTER);
    ck_assert_int_eq(transfer_add_dirty(b.t, view, NULL), -EINVAL);
    atomic_store(&view->size, 4 * CLUSTER);
    transfer_stop(b.t);
    ck_assert_int_eq(transfer_add_dirty(b.t, view, NULL), -ECANCELED);
    teardown(&b);
}
END_TEST

/* --- Failures --- */

static void ck_fails(struct bench *b, int r, enum transfer_end end,
                     const char *what)
{
    CLEANUP_ERROR struct error *err = NULL;
    enum transfer_end which = TRANSFER_TAP;

    ck_assert_int_eq(transfer_run(b->t, &which, &err), r);
    ck_assert_int_eq(which, end);
    ck_assert_msg(strstr(error_message(err), what) != NULL, "%s",
                  error_message(err));
}

START_TEST(a_failure_says_which_end_it_was_and_can_be_tried_again)
{
    uint64_t size = 20 * CLUSTER + 1;
    struct told told;
    struct bench b;

    told_init(&told, size);
    setup(&b, size);
    disk_fill(b.src, size);
    begin(&b, &(struct transfer_options){
                  .workers = 2, .tap = tap, .opaque = &told});
    transfer_add(b.t, 0, size);
    trap_of(b.src)->read_error = -EILSEQ;
    ck_fails(&b, -EILSEQ, TRANSFER_SOURCE, "cannot read");
    trap_of(b.src)->read_error = 0;
    trap_of(b.dst)->write_error = -ENOSPC;
    ck_fails(&b, -ENOSPC, TRANSFER_TARGET, "cannot write");
    ck_told(&told, 0, 0, NULL);
    ck_progress(&b, size, 0, 0);
    trap_of(b.dst)->write_error = 0;
    trap_of(b.dst)->flush_error = -EDQUOT;
    ck_fails(&b, -EDQUOT, TRANSFER_TARGET, "cannot write");
    CLEANUP_FREE char *disk = disk_read(b.src);
    trap_of(b.dst)->flush_error = 0;
    run(&b);
    ck_told(&told, 0, size, disk);
    ck_disk_is(b.dst, disk);
    teardown(&b);
    told_free(&told);
}
END_TEST

START_TEST(a_tap_that_fails_ends_it)
{
    uint64_t size = 20 * CLUSTER;
    struct transfer_progress p;
    struct told told;
    struct bench b;

    told_init(&told, size);
    setup(&b, size);
    if (_i == 0) { /* or zeroes */
        disk_fill(b.src, size);
    }
    told.error = -EOVERFLOW;
    begin(&b,
          &(struct transfer_options){
              .workers = 1, .max_chunk = CLUSTER, .tap = tap, .opaque = &told});
    transfer_add(b.t, 0, size);
    ck_fails(&b, -EOVERFLOW, TRANSFER_TAP, "copied");
    transfer_progress(b.t, &p);
    ck_assert_uint_eq(p.done, 0);
    teardown(&b);
    told_free(&told);
}
END_TEST

static void ck_refused(struct bench *b, struct node *source,
                       struct node *target, const struct transfer_options *o,
                       int r)
{
    ck_assert_int_eq(transfer_new(b->g, source, target, o, &b->t, NULL), r);
    ck_assert_ptr_null(b->t);
}

START_TEST(ends_that_do_not_fit_are_refused)
{
    struct bench b;

    setup(&b, 4 * CLUSTER);
    struct node *other = disk_new(b.g, "other", 4 * CLUSTER + 512);
    ck_refused(&b, b.src, other, &(struct transfer_options){0}, -EINVAL);
    ck_refused(&b, b.src, b.src, &(struct transfer_options){0}, -EINVAL);
    ck_refused(&b, b.src, node_child(b.src, CHILD_FILE),
               &(struct transfer_options){0}, -EINVAL);
    ck_refused(&b, b.src, b.dst, &(struct transfer_options){.compress = true},
               -ENOTSUP);
    begin(&b, &(struct transfer_options){0});
    struct transfer *first = b.t;
    b.t = NULL;
    ck_refused(&b, b.src, b.dst, &(struct transfer_options){0}, -EBUSY);
    transfer_free(first);
    begin(&b, &(struct transfer_options){0}); /* it has let go of them */
    run(&b);
    teardown(&b);
}
END_TEST

/* --- Stop and speed --- */

static void *run_it(void *opaque)
{
    struct bench *b = opaque;

    return (void *)(intptr_t)transfer_run(b->t, NULL, NULL);
}

static int ended(pthread_t thread)
{
    void *r;

    ck_assert_int_eq(pthread_join(thread, &r), 0);
    return (int)(intptr_t)r;
}

START_TEST(stop_ends_it_after_what_is_in_hand)
{
    uint64_t size = 200 * CLUSTER;
    struct transfer_progress p;
    pthread_t thread;
    struct bench b;

    setup(&b, size);
    disk_fill(b.src, size);
    begin(&b, &(struct transfer_options){.workers = 4, .max_chunk = CLUSTER});
    transfer_add(b.t, 0, size);
    trap_gate(trap_of(b.src), true);
    ck_assert_int_eq(thread_start(&thread, "test", run_it, &b), 0);
    trap_wait(trap_of(b.src), 4);
    transfer_stop(b.t);
    transfer_stop(b.t);
    trap_gate(trap_of(b.src), false);
    ck_assert_int_eq(ended(thread), -ECANCELED);
    transfer_progress(b.t, &p);
    ck_assert_uint_le(p.done, 4 * CLUSTER);
    ck_assert_int_eq(transfer_run(b.t, NULL, NULL), -ECANCELED);
    teardown(&b);
}
END_TEST

/* A thread that waits for the next hour sees that there is no limit any more,
 * or that it shall end. */
START_TEST(speed_can_be_changed_while_it_runs)
{
    uint64_t size = 64 * CLUSTER;
    struct transfer_progress p;
    pthread_t thread;
    struct bench b;

    setup(&b, size);
    disk_fill(b.src, size);
    begin(&b, &(struct transfer_options){.workers = 4, .speed = 16});
    transfer_add(b.t, 0, size);
    ck_assert_int_eq(thread_start(&thread, "test", run_it, &b), 0);
    do {
        nap();
        transfer_progress(b.t, &p);
    } while (p.done == 0);
    ck_assert_uint_eq(p.done, CLUSTER);
    if (_i == 0) {
        transfer_set_speed(b.t, 0);
        ck_assert_int_eq(ended(thread), 0);
        ck_progress(&b, size, size, 0);
    } else {
        transfer_stop(b.t);
        ck_assert_int_eq(ended(thread), -ECANCELED);
        ck_progress(&b, size, CLUSTER, 0);
    }
    teardown(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("transfer");
    TCase *tc = tcase_create("transfer");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, all_of_an_odd_disk_is_moved_and_told_once);
    tcase_add_test(tc, what_is_not_in_the_set_stays);
    tcase_add_test(tc, zeroes_of_an_untouched_target_are_told_and_not_written);
    tcase_add_test(tc, what_is_alike_is_asked_for_once);
    tcase_add_test(tc, zeroes_hide_what_the_backing_file_has);
    tcase_add_test(tc, whole_clusters_are_shared_when_that_is_wanted);
    tcase_add_test(tc, what_is_told_or_compressed_is_read);
    tcase_add_test(tc, what_cannot_be_shared_is_written);
    tcase_add_loop_test(tc, data_are_compressed_when_that_is_wanted, 0, 2);
    tcase_add_test(tc, what_is_dirty_is_moved);
    tcase_add_test(tc, the_end_of_the_disk_may_be_dirty);
    tcase_add_test(tc, five_million_extents_are_walked);
    tcase_add_test(tc, a_map_that_is_finer_than_units_costs_no_more);
    tcase_add_test(tc, a_dirty_map_that_cannot_be_read_fails);
    tcase_add_test(tc, a_failure_says_which_end_it_was_and_can_be_tried_again);
    tcase_add_loop_test(tc, a_tap_that_fails_ends_it, 0, 2);
    tcase_add_test(tc, ends_that_do_not_fit_are_refused);
    tcase_add_test(tc, stop_ends_it_after_what_is_in_hand);
    tcase_add_loop_test(tc, speed_can_be_changed_while_it_runs, 0, 2);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
