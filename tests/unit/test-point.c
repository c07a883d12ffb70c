/* SPDX-License-Identifier: BSD-3-Clause */
/* Points in time: what is read of them, what they may cost a guest, and what
 * is left when they end. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "../unit/bitmap-util.h"
#include "../unit/job-util.h"
#include "copy/copy-before-write.h"
#include "nbdelta/point.h"

#define CLUSTER (4 * KiB)
#define SIZE    (32 * CLUSTER)

static struct graph *g;
static struct node *src;
static struct blk *guest;
static char *then;
static char dir[] = "scratch";
static _Atomic int losses;

/* The file system of all scratch: so large, and so much of it is free. */
static uint64_t fs_size = 1024 * MiB;
static _Atomic uint64_t fs_free = 1024 * MiB;

/* In place of libc's. */
int fstatvfs(int fd, struct statvfs *fs)
{
    (void)fd;
    *fs = (struct statvfs){
        .f_frsize = 4096,
        .f_blocks = fs_size / 4096,
        .f_bfree = fs_size / 4096,
        .f_bavail = atomic_load(&fs_free) / 4096,
    };
    return 0;
}

static void setup(uint64_t size)
{
    losses = 0;
    g = graph_new();
    src = disk_new(g, "src", size);
    disk_fill(src, size);
    then = disk_read(src);
    ck_assert_int_eq(blk_new(g, src, PERM_ALL, PERM_ALL, "guest", &guest, NULL),
                     0);
    ck_assert(mkdir(dir, 0700) == 0 || errno == EEXIST);
}

static void teardown(void)
{
    ck_assert_ptr_eq(blk_node(guest), src); /* as it was */
    blk_free(guest);
    graph_free(g);
    free(then);
    ck_assert_int_eq(rmdir(dir), 0); /* which is empty */
}

static void note_loss(void *opaque)
{
    (void)opaque;
    losses++;
}

static struct point_options options(void)
{
    return (struct point_options){
        .node = src,
        .scratch = dir,
        .max_delay_ms = 60000, /* slow machines */
        .lost = note_loss,
    };
}

static int begin(const struct point_options *o, struct point **pp,
                 struct error **errp)
{
    struct action *a;
    int r = point_action(g, o, pp, &a, errp);

    return r < 0 ? r : action_run(g, a, errp);
}

static struct point *must_begin(const struct point_options *o)
{
    struct error *err = NULL;
    struct point *p;
    int r = begin(o, &p, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    return p;
}

static struct blk *past_of(struct point *p)
{
    struct blk *b;

    ck_assert_int_eq(blk_new(g, point_node(p), PERM_READ | PERM_WRITE, PERM_ALL,
                             "past", &b, NULL),
                     0);
    return b;
}

static int put(int byte, uint64_t bytes, uint64_t offset)
{
    char *buf = malloc(bytes);
    memset(buf, byte, bytes);
    int r = blk_pwrite(guest, buf, bytes, offset, 0);
    free(buf);
    return r;
}

static void ck_past(struct blk *past, uint64_t offset, uint64_t bytes)
{
    char *now = malloc(bytes);
    ck_assert_int_eq(blk_pread(past, now, bytes, offset, 0), 0);
    ck_assert_mem_eq(now, then + offset, bytes);
    free(now);
}

static int peek(struct blk *past, uint64_t offset)
{
    char buf[10];
    return blk_pread(past, buf, 10, offset, 0);
}

static uint64_t member(const struct point *p, const char *a, const char *b)
{
    json_t *o = point_query(p);
    const json_t *v = json_object_get(o, a);
    uint64_t n = (uint64_t)json_integer_value(b ? json_object_get(v, b) : v);
    json_decref(o);
    return n;
}

/* One that can be waited for. */
struct write {
    pthread_t t;
    uint64_t offset;
    int r;
};

static void *write_thread(void *opaque)
{
    struct write *w = opaque;
    w->r = put('t', CLUSTER, w->offset);
    return NULL;
}

static void write_later(struct write *w, uint64_t offset)
{
    w->offset = offset;
    ck_assert_int_eq(thread_start(&w->t, "write", write_thread, w), 0);
}

START_TEST(the_past_is_kept_in_memory_then_in_a_file)
{
    uint64_t size = 40 * MiB;

    setup(size);
    const struct point_options o = options();
    struct point *p = must_begin(&o);
    struct blk *past = past_of(p);
    ck_past(past, 0, size);
    ck_assert_uint_eq(member(p, "pulled", NULL), size);
    ck_assert_int_eq(put(200, 10, 5 * CLUSTER - 5), 0);
    ck_assert_uint_eq(member(p, "scratch", "bytes"), 2 * CLUSTER);
    json_t *q = point_query(p);
    ck_assert_str_eq(json_string_value(json_object_get(
                         json_object_get(q, "scratch"), "where")),
                     "memory");
    json_decref(q);
    for (uint64_t at = 0; at < size; at += MiB) {
        ck_assert_int_eq(put(201, MiB - 7, at), 0);
    }
    ck_past(past, 0, size);
    ck_assert_uint_eq(member(p, "scratch", "bytes"), size);
    ck_assert_uint_eq(member(p, "copied", NULL), size);
    q = point_query(p);
    ck_assert_str_eq(json_string_value(json_object_get(
                         json_object_get(q, "scratch"), "where")),
                     "file");
    json_decref(q);
    /* Space that is given back is used again, and has nothing old in it. */
    ck_assert_int_eq(blk_discard(past, 0, size / 2), 0);
    ck_assert_uint_eq(member(p, "scratch", "bytes"), size / 2);
    ck_assert_uint_eq(member(p, "left", NULL), size / 2);
    ck_past(past, size / 2, size / 2);
    ck_assert_ptr_null(point_lost_why(p));
    blk_free(past);
    point_end(p);
    teardown();
}
END_TEST

START_TEST(since_a_bitmap_and_what_it_had)
{
    setup(SIZE);
    ck_assert_int_eq(bitmap_add(g, src, "c1", 4096, false, false, NULL), 0);
    ck_assert_int_eq(put('n', 100, 3 * CLUSTER + 500), 0);
    ck_assert_int_eq(put('n', 5000, 9 * CLUSTER), 0);
    free(then);
    then = disk_read(src);
    struct point_options o = options();
    o.since = "c1";
    o.context = "backup-src";
    struct point *p = must_begin(&o);
    struct blk *past = past_of(p);
    struct bitmap *bm = bitmap_find(point_node(p), "backup-src");
    ck_assert_ptr_nonnull(bm);
    ck_assert_uint_eq(bitmap_count(bm), 3 * 4096);
    ck_assert_int_eq(put('x', SIZE, 0), 0);
    ck_assert_uint_eq(bitmap_count(bm), 3 * 4096);
    ck_assert_uint_eq(bitmap_granularity(bm), 4096);
    bitmap_unref(bm);
    ck_assert_uint_eq(member(p, "scratch", "bytes"), 3 * CLUSTER);
    ck_past(past, 3 * CLUSTER, CLUSTER);
    ck_past(past, 9 * CLUSTER, 2 * CLUSTER);
    ck_assert_int_eq(peek(past, 0), -EACCES);
    blk_free(past);
    point_end(p);
    /* It has collected all the while. */
    bm = bitmap_find(src, "c1");
    ck_assert_uint_eq(bitmap_count(bm), SIZE);
    bitmap_unref(bm);
    teardown();
}
END_TEST

/* Between prepare and act: a write, and with @another a new bitmap c1. */
static void prepare_then_act(bool another)
{
    struct point_options o;
    struct action *a;
    struct point *p;
    struct list actions;

    setup(SIZE);
    o = options();
    o.since = "c1";
    o.context = "backup-src";
    list_init(&actions);
    ck_assert_int_eq(bitmap_add(g, src, "c1", CLUSTER, false, false, NULL), 0);
    ck_assert_int_eq(put('n', 100, CLUSTER), 0);
    ck_assert_int_eq(point_action(g, &o, &p, &a, NULL), 0);
    ck_assert_int_eq(actions_add(&actions, a, NULL), 0);
    if (another) {
        ck_assert_int_eq(bitmap_remove(g, src, "c1", NULL), 0);
        ck_assert_int_eq(bitmap_add(g, src, "c1", CLUSTER, false, false, NULL),
                         0);
    }
    ck_assert_int_eq(put('m', 100, 5 * CLUSTER), 0);
    free(then);
    then = disk_read(src);
    ck_assert_int_eq(actions_run(g, &actions, NULL), 0);
    ck_assert_int_eq(put('x', SIZE, 0), 0);

    struct blk *past = past_of(p);
    struct bitmap *bm = bitmap_find(point_node(p), "backup-src");
    ck_assert_uint_eq(bitmap_count(bm), (another ? 1 : 2) * CLUSTER);
    bitmap_unref(bm);
    ck_past(past, 5 * CLUSTER, CLUSTER);
    if (!another) {
        ck_past(past, CLUSTER, CLUSTER);
    }
    blk_free(past);
    point_end(p);
    teardown();
}

START_TEST(the_instant_is_that_of_the_act)
{
    prepare_then_act(false);
}
END_TEST

START_TEST(another_bitmap_of_that_name_counts)
{
    prepare_then_act(true);
}
END_TEST

START_TEST(a_full_scratch_loses_the_point_and_no_write)
{
    setup(SIZE);
    struct point_options o = options();
    o.quota = 3 * CLUSTER + 1;
    o.max_delay_ms = 3000;
    struct point *p = must_begin(&o);
    struct blk *past = past_of(p);
    for (unsigned i = 0; i < 3; i++) {
        ck_assert_int_eq(put('x', 10, i * CLUSTER), 0);
    }
    ck_past(past, 0, SIZE);
    ck_assert_ptr_null(point_lost_why(p));
    uint64_t start = now_ns();
    ck_assert_int_eq(put('x', 10, 5 * CLUSTER), 0);
    ck_assert_uint_ge(now_ns() - start, UINT64_C(3000000000));
    ck_assert_str_eq(point_lost_why(p), "quota");
    ck_assert_int_eq(losses, 1);
    ck_assert_int_eq(put('x', SIZE, 0), 0);
    ck_assert_int_eq(losses, 1);
    ck_assert_uint_le(member(p, "scratch", "bytes"), o.quota);
    /* Also what is kept: it is one point or none. */
    ck_assert_int_eq(peek(past, 0), -EIO);
    ck_assert_int_eq(peek(past, 20 * CLUSTER), -EIO);
    blk_free(past);
    point_end(p);
    teardown();
}
END_TEST

#define MEMORY (16 * MiB) /* of scratch, before the file */

static void keep_free(uint64_t before, uint64_t kept)
{
    setup(MEMORY + SIZE);
    fs_size = 100 * MiB;
    atomic_store(&fs_free, before);
    struct point_options o = options();
    o.keep_free = true;
    o.max_delay_ms = 3000;
    struct point *p = must_begin(&o);
    struct blk *past = past_of(p);
    ck_assert_uint_eq(member(p, "scratch", "keep-free"), kept);
    /* Others have taken the rest: nothing can go from memory to the file. */
    atomic_store(&fs_free, kept);
    for (uint64_t at = 0; at < MEMORY; at += CLUSTER) {
        ck_assert_int_eq(put('x', CLUSTER, at), 0);
    }
    ck_assert_ptr_null(point_lost_why(p));
    ck_past(past, 0, MEMORY + SIZE);
    ck_assert_int_eq(put('x', 10, MEMORY + 5 * CLUSTER), 0);
    ck_assert_str_eq(point_lost_why(p), "quota");
    blk_free(past);
    point_end(p);
    teardown();
}

START_TEST(scratch_leaves_a_tenth_of_its_file_system_free)
{
    keep_free(50 * MiB, 10 * MiB);
}
END_TEST

START_TEST(or_half_of_what_was_free)
{
    keep_free(8 * MiB, 4 * MiB);
}
END_TEST

START_TEST(a_write_waits_for_room_that_a_reader_makes)
{
    struct write w;

    setup(SIZE);
    struct point_options o = options();
    o.quota = 2 * CLUSTER;
    struct point *p = must_begin(&o);
    struct blk *past = past_of(p);
    ck_assert_int_eq(put('x', 2 * CLUSTER, 0), 0);
    write_later(&w, 5 * CLUSTER);
    for (int i = 0; i < 30; i++) {
        nap();
    }
    ck_past(past, 0, CLUSTER);
    ck_assert_int_eq(blk_discard(past, 0, CLUSTER), 0);
    thread_join(w.t);
    ck_assert_int_eq(w.r, 0);
    ck_assert_ptr_null(point_lost_why(p));
    ck_past(past, CLUSTER, SIZE - CLUSTER);
    ck_assert_uint_eq(member(p, "scratch", "bytes"), 2 * CLUSTER);
    ck_assert_uint_gt(member(p, "delay", "max-ns"), 0);
    ck_assert_uint_eq(member(p, "discarded", NULL), CLUSTER);
    blk_free(past);
    point_end(p);
    teardown();
}
END_TEST

START_TEST(a_drain_does_not_wait_for_room)
{
    struct write w;

    setup(SIZE);
    struct point_options o = options();
    o.quota = CLUSTER;
    struct point *p = must_begin(&o);
    ck_assert_int_eq(put('x', CLUSTER, 0), 0);
    write_later(&w, 5 * CLUSTER);
    for (int i = 0; i < 30; i++) {
        nap();
    }
    uint64_t start = now_ns();
    point_end(p);
    ck_assert_uint_lt(now_ns() - start, UINT64_C(30) * 1000000000);
    thread_join(w.t);
    ck_assert_int_eq(w.r, 0);
    teardown();
}
END_TEST

START_TEST(a_drain_loses_no_point)
{
    struct write w;

    setup(SIZE);
    struct point_options o = options();
    o.quota = CLUSTER;
    struct point *p = must_begin(&o);
    struct blk *past = past_of(p);
    ck_assert_int_eq(put('x', CLUSTER, 0), 0);
    write_later(&w, 5 * CLUSTER);
    for (int i = 0; i < 10; i++) {
        nap();
        struct blk *another = past_of(p); /* which drains */
        blk_free(another);
    }
    ck_assert_ptr_null(point_lost_why(p));
    ck_assert_int_eq(blk_discard(past, 0, CLUSTER), 0);
    thread_join(w.t);
    ck_assert_int_eq(w.r, 0);
    ck_assert_ptr_null(point_lost_why(p));
    ck_past(past, CLUSTER, SIZE - CLUSTER);
    blk_free(past);
    point_end(p);
    teardown();
}
END_TEST

START_TEST(or_the_write_fails_where_that_was_asked_for)
{
    setup(SIZE);
    struct point_options o = options();
    o.quota = CLUSTER;
    o.max_delay_ms = 3000;
    o.break_guest_write = true;
    struct point *p = must_begin(&o);
    struct blk *past = past_of(p);
    ck_assert_int_eq(put('x', 10, 0), 0);
    ck_assert_int_eq(put('x', 10, CLUSTER), -ENOSPC);
    ck_assert_ptr_null(point_lost_why(p));
    ck_past(past, 0, SIZE);
    ck_assert_int_eq(blk_discard(past, 0, CLUSTER), 0);
    ck_assert_int_eq(put('x', 10, CLUSTER), 0);
    ck_past(past, CLUSTER, SIZE - CLUSTER);
    ck_assert_int_eq(losses, 0);
    blk_free(past);
    point_end(p);
    teardown();
}
END_TEST

START_TEST(slow_copies_lose_the_point)
{
    struct write w;

    setup(SIZE);
    struct point_options o = options();
    o.max_delay_ms = 50;
    struct point *p = must_begin(&o);
    struct blk *past = past_of(p);
    trap_gate(trap_of(src), true);
    write_later(&w, 0);
    while (!point_lost_why(p)) {
        nap();
    }
    ck_assert_str_eq(point_lost_why(p), "timeout");
    trap_gate(trap_of(src), false);
    thread_join(w.t);
    ck_assert_int_eq(w.r, 0);
    ck_assert_int_eq(peek(past, 20 * CLUSTER), -EIO);
    blk_free(past);
    point_end(p);
    teardown();
}
END_TEST

START_TEST(an_error_of_the_disk_loses_the_point)
{
    setup(SIZE);
    const struct point_options o = options();
    struct point *p = must_begin(&o);
    trap_of(src)->read_error = -EIO;
    ck_assert_int_eq(put('x', 10, 0), 0);
    ck_assert_str_eq(point_lost_why(p), "read-error");
    ck_assert_int_eq(losses, 1);
    point_end(p);
    teardown();
}
END_TEST

START_TEST(an_error_of_the_scratch_loses_the_point)
{
    struct rlimit old;

    setup(20 * MiB);
    const struct point_options o = options();
    struct point *p = must_begin(&o);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    (void)signal(SIGXFSZ, SIG_IGN);
    const struct rlimit tight = {CLUSTER, old.rlim_max};
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &tight), 0);
    ck_assert_int_eq(put('x', 20 * MiB, 0), 0);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    ck_assert_str_eq(point_lost_why(p), "scratch-error");
    point_end(p);
    teardown();
}
END_TEST

START_TEST(what_was_read_once_is_not_kept)
{
    setup(SIZE);
    struct point_options o = options();
    o.once = true;
    struct point *p = must_begin(&o);
    struct blk *past = past_of(p);
    ck_assert_int_eq(put('x', 2 * CLUSTER, 0), 0);
    ck_past(past, 0, 2 * CLUSTER + 100);
    ck_assert_uint_eq(member(p, "scratch", "bytes"), 0);
    ck_assert_int_eq(peek(past, 0), -EACCES);
    ck_past(past, 2 * CLUSTER, 100); /* a part of one was not all of it */
    ck_past(past, 2 * CLUSTER, SIZE - 2 * CLUSTER);
    ck_assert_int_eq(put('x', SIZE, 0), 0);
    ck_assert_uint_eq(member(p, "scratch", "bytes"), 0);
    ck_assert_uint_eq(member(p, "left", NULL), 0);
    blk_free(past);
    point_end(p);
    teardown();
}
END_TEST

START_TEST(points_of_one_node_end_in_any_order)
{
    for (int round = 0; round < 2; round++) {
        setup(SIZE);
        const struct point_options o = options();
        struct point *a = must_begin(&o);
        struct blk *past_a = past_of(a);
        char *then_a = then;
        ck_assert_int_eq(put('x', 7 * CLUSTER, 100), 0);
        then = disk_read(src);
        struct point *b = must_begin(&o);
        struct blk *past_b = past_of(b);
        ck_assert_int_eq(put('y', 9 * CLUSTER, CLUSTER), 0);
        ck_past(past_b, 0, SIZE);
        char *then_b = then;
        then = then_a;
        ck_past(past_a, 0, SIZE);
        blk_free(round ? past_a : past_b);
        point_end(round ? a : b);
        ck_assert_int_eq(put('z', SIZE, 0), 0);
        then = round ? then_b : then_a;
        ck_past(round ? past_b : past_a, 0, SIZE);
        blk_free(round ? past_b : past_a);
        point_end(round ? b : a);
        free(round ? then_a : then_b);
        teardown();
    }
}
END_TEST

static int count_nodes(struct node *n, void *opaque)
{
    (void)n;
    ++*(int *)opaque;
    return 0;
}

START_TEST(together_or_not_at_all)
{
    struct error *err = NULL;
    struct list actions;
    struct point *p[2];
    struct action *a;
    int before = 0;
    int after = 0;

    setup(SIZE);
    struct node *other = disk_new(g, "other", SIZE);
    (void)graph_each(g, count_nodes, &before);
    for (int round = 0; round < 2; round++) {
        struct point_options o = options();
        list_init(&actions);
        ck_assert_int_eq(point_action(g, &o, &p[0], &a, NULL), 0);
        ck_assert_int_eq(actions_add(&actions, a, NULL), 0);
        o.node = other;
        o.since = round == 0 ? "none" : NULL;
        ck_assert_int_eq(point_action(g, &o, &p[1], &a, NULL), 0);
        ck_assert_int_eq(actions_add(&actions, a, NULL), 0);
        int r = actions_run(g, &actions, &err);
        ck_assert_int_eq(r, round == 0 ? -ENOENT : 0);
        if (round == 0) {
            ck_assert_ptr_nonnull(strstr(error_message(err), "none"));
            error_free(err);
            ck_assert_ptr_eq(blk_node(guest), src);
            (void)graph_each(g, count_nodes, &after);
            ck_assert_int_eq(before, after);
        }
    }
    point_end(p[0]);
    point_end(p[1]);
    point_end(NULL);
    teardown();
}
END_TEST

START_TEST(a_bad_directory_is_named_at_once)
{
    struct error *err = NULL;
    struct point *p;

    setup(SIZE);
    struct point_options o = options();
    o.scratch = "no/such/dir";
    ck_assert_int_eq(begin(&o, &p, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(error_message(err), "'no/such/dir'"));
    error_free(err);
    teardown();
}
END_TEST

static int touch(const char *name)
{
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    ck_assert_int_ge(fd, 0);
    return fd;
}

START_TEST(left_overs_are_removed_and_nothing_else)
{
    setup(SIZE);
    (void)close(touch("scratch/.nbdelta-scratch-dead"));
    int alive = touch("scratch/.nbdelta-scratch-alive");
    ck_assert_int_eq(flock(alive, LOCK_EX), 0);
    (void)close(touch("scratch/other"));
    ck_assert_int_eq(symlink("other", "scratch/.nbdelta-scratch-link"), 0);
    const struct point_options o = options();
    struct point *p = must_begin(&o);
    ck_assert_int_ne(access("scratch/.nbdelta-scratch-dead", F_OK), 0);
    ck_assert_int_eq(unlink("scratch/.nbdelta-scratch-alive"), 0);
    ck_assert_int_eq(unlink("scratch/.nbdelta-scratch-link"), 0);
    ck_assert_int_eq(unlink("scratch/other"), 0);
    (void)close(alive);
    point_end(p);
    teardown();
}
END_TEST

struct racer {
    struct point *p;
    struct blk *past;
    unsigned seed;
    _Atomic bool *stop;
};

static void *guest_thread(void *opaque)
{
    struct racer *r = opaque;

    for (int i = 0; i < 150; i++) {
        uint64_t offset = (uint64_t)rand_r(&r->seed) % SIZE;
        uint64_t most = min_u64(SIZE - offset, 3 * CLUSTER);
        ck_assert_int_eq(
            put(100 + i, 1 + (uint64_t)rand_r(&r->seed) % most, offset), 0);
    }
    return NULL;
}

/* Reads the upper half, and says that it needs the lower one no more. */
static void *reader_thread(void *opaque)
{
    struct racer *r = opaque;

    while (!atomic_load(r->stop)) {
        uint64_t offset = SIZE / 2 + (uint64_t)rand_r(&r->seed) % (SIZE / 2);
        ck_past(r->past, offset, min_u64(SIZE - offset, 5 * CLUSTER));
        offset = (uint64_t)rand_r(&r->seed) % (SIZE / 2);
        ck_assert_int_eq(blk_discard(r->past, offset,
                                     min_u64(SIZE / 2 - offset, 2 * CLUSTER)),
                         0);
        json_decref(point_query(r->p));
    }
    return NULL;
}

START_TEST(guests_readers_and_discards_race)
{
    _Atomic bool stop = false;
    struct racer r[4];
    pthread_t t[4];

    setup(SIZE);
    const struct point_options o = options();
    struct point *p = must_begin(&o);
    struct blk *past = past_of(p);
    for (unsigned i = 0; i < 4; i++) {
        r[i] = (struct racer){p, past, i + 1, &stop};
        ck_assert_int_eq(thread_start(&t[i], "r",
                                      i < 2 ? guest_thread : reader_thread,
                                      &r[i]),
                         0);
    }
    thread_join(t[0]);
    thread_join(t[1]);
    atomic_store(&stop, true);
    thread_join(t[2]);
    thread_join(t[3]);
    ck_past(past, SIZE / 2, SIZE / 2);
    ck_assert_ptr_null(point_lost_why(p));
    blk_free(past);
    point_end(p);
    teardown();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        the_past_is_kept_in_memory_then_in_a_file,
        since_a_bitmap_and_what_it_had,
        the_instant_is_that_of_the_act,
        another_bitmap_of_that_name_counts,
        a_full_scratch_loses_the_point_and_no_write,
        scratch_leaves_a_tenth_of_its_file_system_free,
        or_half_of_what_was_free,
        a_write_waits_for_room_that_a_reader_makes,
        a_drain_does_not_wait_for_room,
        a_drain_loses_no_point,
        or_the_write_fails_where_that_was_asked_for,
        slow_copies_lose_the_point,
        an_error_of_the_disk_loses_the_point,
        an_error_of_the_scratch_loses_the_point,
        what_was_read_once_is_not_kept,
        points_of_one_node_end_in_any_order,
        together_or_not_at_all,
        a_bad_directory_is_named_at_once,
        left_overs_are_removed_and_nothing_else,
        guests_readers_and_discards_race,
    };
    return run_suite("point", tests, ARRAY_SIZE(tests));
}
