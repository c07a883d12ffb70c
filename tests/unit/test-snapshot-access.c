/* SPDX-License-Identifier: BSD-3-Clause */
/* copy-before-write and snapshot-access as nodes of their own: what is read of
 * the past, what is copied for it, and what a failure does. */
#include "../unit/bitmap-util.h"
#include "../unit/job-util.h"

#define CLUSTER (64 * KiB)
#define SIZE    (32 * CLUSTER)

static struct graph *g;
static struct node *src;
static struct node *dst;
static struct blk *guest; /* on the filter */
static struct blk *past;
static char *then;

static int open_node(const char *json, struct node **np, struct error **errp)
{
    json_t *o = json_loads(json, 0, NULL);
    struct node *n;

    ck_assert_ptr_nonnull(o);
    int r = graph_open(g, o, np ? np : &n, errp);
    json_decref(o);
    return r;
}

static struct blk *must_attach(const char *name, unsigned perm)
{
    struct error *err = NULL;
    struct blk *b;
    int r = blk_new(g, graph_find(g, name), perm, PERM_ALL, name, &b, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    return b;
}

static void must_open(const char *json)
{
    struct error *err = NULL;
    int r = open_node(json, NULL, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
}

/* A disk with data; @options are more of the filter's, with a comma first. */
static void disks(void)
{
    g = graph_new();
    src = disk_new(g, "src", SIZE);
    dst = disk_new(g, "dst", SIZE);
    disk_fill(src, SIZE);
    then = disk_read(src);
}

static void keep(const char *options)
{
    char *text;

    ck_assert_int_gt(asprintf(&text,
                              "{\"driver\": \"copy-before-write\", "
                              "\"node-name\": \"cbw\", \"file\": \"src\", "
                              "\"target\": \"dst\"%s}",
                              options),
                     0);
    must_open(text);
    free(text);
    guest = must_attach("cbw", PERM_ALL);
    must_open("{\"driver\": \"snapshot-access\", \"node-name\": \"past\", "
              "\"file\": \"cbw\", \"discard\": \"unmap\"}");
    past = must_attach("past", PERM_READ | PERM_WRITE);
    atomic_store(&trap_of(dst)->writes, 0);
    atomic_store(&trap_of(src)->reads, 0);
}

static void done(void)
{
    blk_free(past);
    blk_free(guest);
    graph_free(g);
    free(then);
}

static void ck_past_is_then(uint64_t offset, uint64_t bytes)
{
    char *now = malloc(bytes);
    ck_assert_int_eq(blk_pread(past, now, bytes, offset, 0), 0);
    ck_assert_mem_eq(now, then + offset, bytes);
    free(now);
}

static int put(int byte, uint64_t bytes, uint64_t offset)
{
    char *buf = malloc(bytes);
    memset(buf, byte, bytes);
    int r = blk_pwrite(guest, buf, bytes, offset, 0);
    free(buf);
    return r;
}

START_TEST(the_past_is_read_while_a_guest_goes_on)
{
    disks();
    keep("");
    ck_past_is_then(0, SIZE);
    ck_assert_int_eq(trap_of(dst)->writes, 0); /* reading copies nothing */
    for (unsigned round = 0; round < 10; round++) {
        disk_scribble(guest, round, 10);
        ck_past_is_then(0, SIZE);
        ck_past_is_then(round * 1000 + 1, 3 * CLUSTER - 77);
    }
    done();
}
END_TEST

struct racer {
    unsigned seed;
    _Atomic bool *stop;
};

static void *guest_thread(void *opaque)
{
    const struct racer *r = opaque;
    disk_scribble(guest, r->seed, 150);
    return NULL;
}

static int ignore_extent(const struct extent *e, void *opaque)
{
    (void)e;
    (void)opaque;
    return 0;
}

static void *reader_thread(void *opaque)
{
    struct racer *r = opaque;

    while (!atomic_load(r->stop)) {
        uint64_t offset = (uint64_t)rand_r(&r->seed) % SIZE;
        uint64_t most = min_u64(SIZE - offset, 5 * CLUSTER);
        ck_past_is_then(offset, most);
        ck_assert_int_eq(
            blk_extents(past, offset, most, 0, ignore_extent, NULL), 0);
    }
    return NULL;
}

static void race(const char *options)
{
    _Atomic bool stop = false;
    struct racer r[4];
    pthread_t t[4];

    disks();
    keep(options);
    for (unsigned i = 0; i < 4; i++) {
        r[i] = (struct racer){i + 1, &stop};
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
    ck_past_is_then(0, SIZE);
    done();
}

START_TEST(readers_and_guests_race)
{
    race("");
    race(", \"cbw-timeout\": 100");
}
END_TEST

struct read_bytes {
    char buf[10];
    int r;
};

static void *read_thread(void *opaque)
{
    struct read_bytes *r = opaque;
    r->r = blk_pread(past, r->buf, sizeof(r->buf), 0, 0);
    return NULL;
}

START_TEST(a_reader_holds_up_no_guest)
{
    struct read_bytes r;
    pthread_t t;

    disks();
    keep("");
    ck_assert_int_eq(put('x', 1, 0), 0);
    /* The reader stands at the gate. */
    trap_gate(trap_of(dst), true);
    ck_assert_int_eq(thread_start(&t, "past", read_thread, &r), 0);
    trap_wait(trap_of(dst), 1);
    ck_assert_int_eq(put('y', 1, 0), 0);
    trap_gate(trap_of(dst), false);
    thread_join(t);
    ck_assert_int_eq(r.r, 0);
    ck_assert_mem_eq(r.buf, then, sizeof(r.buf));
    done();
}
END_TEST

/* A reader has seen that a block is still in the source, and stands at the
 * source's gate.  Then a guest writes to the block.  Returns what the reader
 * gets. */
static int overtake_reader(const char *options, int write_error)
{
    struct read_bytes r = {0};
    pthread_t t;

    disks();
    keep(options);
    trap_of(src)->most = 1;
    trap_gate(trap_of(src), true);
    ck_assert_int_eq(thread_start(&t, "past", read_thread, &r), 0);
    trap_wait(trap_of(src), 1);
    trap_of(dst)->write_error = write_error;
    ck_assert_int_eq(put('x', CLUSTER, 0), 0);
    trap_gate(trap_of(src), false);
    thread_join(t);
    if (r.r == 0) {
        ck_assert_mem_eq(r.buf, then, sizeof(r.buf));
    }
    done();
    return r.r;
}

START_TEST(what_changes_while_it_is_read_is_read_again)
{
    ck_assert_int_eq(overtake_reader("", 0), 0);
    ck_assert_int_eq(
        overtake_reader(", \"on-cbw-error\": \"break-snapshot\"", -EIO),
        -EACCES);
}
END_TEST

START_TEST(only_what_the_bitmap_has_is_kept)
{
    char buf[10];

    disks();
    ck_assert_int_eq(bitmap_add(g, src, "b", CLUSTER, false, false, NULL), 0);
    struct blk *b = must_attach("src", PERM_ALL);
    ck_assert_int_eq(blk_pwrite(b, "new", 3, 5 * CLUSTER + 10, 0), 0);
    blk_free(b);
    free(then);
    then = disk_read(src);
    keep(", \"bitmap\": {\"node\": \"src\", \"name\": \"b\"}");
    ck_assert_int_eq(put('x', 4 * CLUSTER, 0), 0);
    ck_assert_int_eq(put('x', 100, 6 * CLUSTER), 0);
    ck_assert_int_eq(trap_of(dst)->writes, 0);
    ck_assert_int_eq(blk_pread(past, buf, 10, 0, 0), -EACCES);
    ck_assert_int_eq(blk_pread(past, buf, 10, 6 * CLUSTER - 5, 0), -EACCES);
    ck_assert_int_eq(blk_extents(past, 0, SIZE, 0, ignore_extent, NULL),
                     -EACCES);
    ck_past_is_then(5 * CLUSTER, CLUSTER);
    ck_assert_int_eq(put('x', 100, 5 * CLUSTER), 0);
    ck_assert_int_eq(trap_of(dst)->writes, 1);
    ck_past_is_then(5 * CLUSTER, CLUSTER);
    done();
}
END_TEST

START_TEST(what_is_discarded_is_kept_no_more)
{
    char buf[10];

    disks();
    keep("");
    ck_assert_int_eq(put('x', 1, 0), 0);
    ck_assert_int_eq(trap_of(dst)->writes, 1);
    /* Whole clusters only: of these, the second. */
    ck_assert_int_eq(blk_discard(past, 10, 2 * CLUSTER + 10), 0);
    ck_past_is_then(0, CLUSTER);
    ck_past_is_then(2 * CLUSTER, CLUSTER);
    ck_assert_int_eq(blk_pread(past, buf, 10, CLUSTER, 0), -EACCES);
    ck_assert_int_eq(put('x', CLUSTER, CLUSTER), 0);
    ck_assert_int_eq(trap_of(dst)->writes, 1);
    /* The first is in the target, where it takes space until now. */
    ck_assert_int_eq(blk_discard(past, 0, CLUSTER), 0);
    ck_assert_int_eq(blk_pread(past, buf, 10, 0, 0), -EACCES);
    char *left = disk_read(dst);
    ck_assert_int_eq(left[4096], 0);
    free(left);
    /* The guest's disk has nothing to do with it. */
    left = disk_read(src);
    ck_assert_int_eq(left[0], 'x');
    ck_assert_int_eq(left[4096], then[4096]);
    free(left);
    done();
}
END_TEST

START_TEST(the_past_does_not_change)
{
    disks();
    keep("");
    ck_assert_int_eq(blk_pwrite(past, "x", 1, 0, 0), -ENOTSUP);
    ck_assert_int_eq(blk_zero(past, 0, CLUSTER, 0), -ENOTSUP);
    ck_past_is_then(0, CLUSTER);
    done();
}
END_TEST

static void fail_guest(_Atomic int *where)
{
    disks();
    keep("");
    atomic_store(where == NULL ? &trap_of(src)->read_error
                               : &trap_of(dst)->write_error,
                 -EIO);
    ck_assert_int_eq(put('x', 10, 100), -EIO);
    atomic_store(&trap_of(src)->read_error, 0);
    ck_past_is_then(0, SIZE);
    atomic_store(&trap_of(dst)->write_error, 0);
    ck_assert_int_eq(put('x', 10, 100), 0);
    ck_past_is_then(0, SIZE);
    char *now = disk_read(src);
    ck_assert_int_eq(now[105], 'x');
    free(now);
    done();
}

START_TEST(a_failure_fails_the_write_and_the_past_stays)
{
    _Atomic int target = 0;
    fail_guest(NULL);
    fail_guest(&target);
}
END_TEST

START_TEST(or_it_breaks_the_snapshot_and_the_write_goes_on)
{
    char buf[10];

    disks();
    keep(", \"on-cbw-error\": \"break-snapshot\"");
    ck_past_is_then(0, SIZE);
    trap_of(dst)->write_error = -EIO;
    ck_assert_int_eq(put('x', 10, 100), 0);
    trap_of(dst)->write_error = 0;
    /* All of it, for ever. */
    ck_assert_int_eq(blk_pread(past, buf, 10, 20 * CLUSTER, 0), -EACCES);
    ck_assert_int_eq(blk_extents(past, 0, SIZE, 0, ignore_extent, NULL),
                     -EACCES);
    int writes = trap_of(dst)->writes;
    ck_assert_int_eq(put('x', 10, 10 * CLUSTER), 0);
    ck_assert_int_eq(trap_of(dst)->writes, writes); /* for what? */
    done();
}
END_TEST

START_TEST(time_is_limited_and_the_write_fails)
{
    disks();
    keep(", \"cbw-timeout\": 1");
    trap_gate(trap_of(dst), true);
    uint64_t begin = now_ns();
    ck_assert_int_eq(put('x', 10, 100), -ETIMEDOUT);
    ck_assert_uint_ge(now_ns() - begin, 1000000000);
    ck_past_is_then(0, SIZE);
    trap_gate(trap_of(dst), false);
    /* The copy that was left ends, and was not in vain. */
    struct blk *drains = must_attach("src", PERM_READ);
    blk_free(drains);
    ck_assert_int_eq(trap_of(dst)->writes, 1);
    ck_assert_int_eq(put('x', 10, 100), 0);
    ck_assert_int_eq(trap_of(dst)->writes, 1);
    ck_past_is_then(0, SIZE);
    done();
}
END_TEST

static void *open_gate_later(void *opaque)
{
    for (int i = 0; i < 200; i++) {
        nap();
    }
    trap_gate(opaque, false);
    return NULL;
}

START_TEST(time_is_limited_and_the_snapshot_breaks)
{
    char buf[10];
    pthread_t t;

    disks();
    keep(", \"cbw-timeout\": 1, \"on-cbw-error\": \"break-snapshot\"");
    trap_gate(trap_of(dst), true);
    ck_assert_int_eq(put('x', 10, 100), 0);
    ck_assert_int_eq(blk_pread(past, buf, 10, 20 * CLUSTER, 0), -EACCES);
    /* Nobody waits any more, but closing waits for what is under way. */
    ck_assert_int_eq(put('x', 10, CLUSTER), 0);
    ck_assert_int_eq(thread_start(&t, "gate", open_gate_later, trap_of(dst)),
                     0);
    blk_free(past);
    past = NULL;
    ck_assert_int_eq(graph_close(g, graph_find(g, "past"), NULL), 0);
    ck_assert_int_eq(trap_of(dst)->waiting, 0);
    thread_join(t);
    done();
}
END_TEST

/* The count of bits without a name, as in query-named-block-nodes. */
static uint64_t count_of(const char *node, size_t index)
{
    json_t *info = node_query(g, graph_find(g, node));
    json_t *bits = json_array_get(json_object_get(info, "dirty-bitmaps"),
                                  index);
    uint64_t count =
        (uint64_t)json_integer_value(json_object_get(bits, "count"));

    ck_assert_ptr_nonnull(bits);
    ck_assert_ptr_null(json_object_get(bits, "name"));
    json_decref(info);
    return count;
}

START_TEST(queries_show_the_bits_that_qemu_shows)
{
    disks();
    keep("");
    ck_assert_int_eq(put('x', 3 * CLUSTER, 0), 0);
    ck_assert_int_eq(blk_discard(past, 10 * CLUSTER, 2 * CLUSTER), 0);
    ck_assert_int_eq(put('x', 1, 10 * CLUSTER), 0);
    ck_assert_uint_eq(count_of("cbw", 2), SIZE - 5 * CLUSTER); /* to do */
    ck_assert_uint_eq(count_of("cbw", 0), SIZE - 2 * CLUSTER); /* readable */
    ck_assert_uint_eq(count_of("cbw", 1), 4 * CLUSTER);        /* written */
    done();
}
END_TEST

struct sum {
    uint64_t zero;
    uint64_t data;
};

static int add_extent(const struct extent *e, void *opaque)
{
    struct sum *s = opaque;

    *(e->flags & EXTENT_ZERO ? &s->zero : &s->data) += e->length;
    return 0;
}

START_TEST(status_tells_of_the_past)
{
    struct sum s = {0, 0};

    g = graph_new();
    src = disk_new(g, "src", SIZE);
    dst = disk_new(g, "dst", SIZE);
    disk_fill(src, SIZE / 2);
    then = disk_read(src);
    keep("");
    ck_assert_int_eq(put('x', SIZE / 4, SIZE / 2 - SIZE / 8), 0);
    ck_assert_int_eq(blk_zero(guest, 0, SIZE / 8, REQ_MAY_UNMAP), 0);
    ck_assert_int_eq(blk_extents(past, 0, SIZE, 0, add_extent, &s), 0);
    ck_assert_uint_eq(s.data, SIZE / 2);
    ck_assert_uint_eq(s.zero, SIZE / 2);
    ck_past_is_then(0, SIZE);
    done();
}
END_TEST

START_TEST(it_is_put_below_a_node_in_use)
{
    struct error *err = NULL;
    struct blk *other;

    disks();
    must_open("{\"driver\": \"raw\", \"node-name\": \"top\", "
              "\"file\": \"src\"}");
    guest = must_attach("top", PERM_ALL);
    must_open("{\"driver\": \"copy-before-write\", \"node-name\": \"cbw\", "
              "\"file\": \"src\", \"target\": \"dst\"}");
    ck_assert_int_eq(put('a', 10, 0), 0);
    then[0] = 'a';
    memset(then, 'a', 10);
    json_t *list = json_loads("[{\"driver\": \"raw\", \"node-name\": \"top\", "
                              "\"file\": \"cbw\"}]",
                              0, NULL);
    int r = graph_reopen(g, list, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    json_decref(list);
    must_open("{\"driver\": \"snapshot-access\", \"node-name\": \"past\", "
              "\"file\": \"cbw\"}");
    past = must_attach("past", PERM_READ);
    ck_assert_int_eq(put('b', 10, 0), 0);
    ck_past_is_then(0, SIZE);
    /* Nobody writes past it as long as it is used. */
    ck_assert_int_eq(
        blk_new(g, src, PERM_WRITE, PERM_ALL, "other", &other, &err), -EBUSY);
    error_free(err);
    blk_free(past);
    past = NULL;
    ck_assert_int_eq(graph_close(g, graph_find(g, "past"), NULL), 0);
    list = json_loads("[{\"driver\": \"raw\", \"node-name\": \"top\", "
                      "\"file\": \"src\"}]",
                      0, NULL);
    ck_assert_int_eq(graph_reopen(g, list, NULL), 0);
    json_decref(list);
    ck_assert_int_eq(graph_close(g, graph_find(g, "cbw"), NULL), 0);
    ck_assert_int_eq(put('c', 10, 0), 0);
    done();
}
END_TEST

START_TEST(growing_is_fine_and_cutting_off_is_not)
{
    struct error *err = NULL;

    g = graph_new();
    src = disk_new(g, "src", SIZE);
    dst = disk_new(g, "dst", SIZE);
    then = disk_read(src);
    must_open("{\"driver\": \"mem\", \"node-name\": \"m\", \"size\": 65536}");
    must_open("{\"driver\": \"copy-before-write\", \"node-name\": \"cbw\", "
              "\"file\": \"m\", \"target\": \"dst\"}");
    guest = must_attach("cbw", PERM_ALL);
    ck_assert_int_eq(blk_resize(guest, 4096, &err), -EBUSY);
    ck_assert_ptr_nonnull(strstr(error_message(err), "point in time"));
    error_free(err);
    ck_assert_int_eq(blk_resize(guest, 2 * SIZE, NULL), 0);
    ck_assert_int_eq(put('x', CLUSTER, SIZE), 0);
    must_open("{\"driver\": \"snapshot-access\", \"node-name\": \"past\", "
              "\"file\": \"cbw\"}");
    past = must_attach("past", PERM_READ);
    char buf[10];
    ck_assert_int_eq(blk_pread(past, buf, 10, 0, 0), 0);
    ck_assert_int_eq(blk_pread(past, buf, 10, SIZE, 0), -EACCES);
    done();
}
END_TEST

START_TEST(a_file_child_that_is_cut_off_harms_nobody)
{
    char buf[10];

    disks();
    keep("");
    blk_free(guest);
    guest = NULL;
    /* Below all of it, past the filter, which nobody uses for the moment. */
    blk_free(past);
    past = NULL;
    ck_assert_int_eq(graph_close(g, graph_find(g, "past"), NULL), 0);
    graph_lock(g);
    graph_drain(g, src);
    ck_assert_int_eq(
        node_resize(node_child(src, CHILD_FILE), 3 * CLUSTER + 100, NULL), 0);
    node_refresh_above(node_child(src, CHILD_FILE));
    graph_unlock(g);
    guest = must_attach("cbw", PERM_ALL);
    must_open("{\"driver\": \"snapshot-access\", \"node-name\": \"past\", "
              "\"file\": \"cbw\"}");
    past = must_attach("past", PERM_READ);
    ck_assert_int_eq(put('x', 10, 3 * CLUSTER), -EIO);
    ck_assert_int_eq(put('x', 10, 2 * CLUSTER), 0);
    ck_past_is_then(0, 3 * CLUSTER);
    ck_assert_int_eq(blk_pread(past, buf, 10, 3 * CLUSTER + 95, 0), -EINVAL);
    done();
}
END_TEST

START_TEST(bad_options_are_named)
{
    static const struct {
        const char *options;
        const char *text;
    } bad[] = {
        {"\"driver\": \"copy-before-write\", \"file\": \"src\"",
         "'target' is missing"},
        {"\"driver\": \"copy-before-write\", \"target\": \"dst\"",
         "'file' is missing"},
        {"\"driver\": \"copy-before-write\", \"file\": \"src\", "
         "\"target\": \"src\"",
         "part of the chain of the target 'src'"},
        {"\"driver\": \"copy-before-write\", \"file\": \"src\", "
         "\"target\": \"small\"",
         "The target 'small' is smaller than node 'src'"},
        {"\"driver\": \"copy-before-write\", \"file\": \"src\", "
         "\"target\": \"dst\", \"on-cbw-error\": \"panic\"",
         "on-cbw-error"},
        {"\"driver\": \"copy-before-write\", \"file\": \"src\", "
         "\"target\": \"dst\", \"cbw-timeout\": -1",
         "cbw-timeout"},
        {"\"driver\": \"copy-before-write\", \"file\": \"src\", "
         "\"target\": \"dst\", \"bitmap\": {\"node\": \"src\"}",
         "bitmap.name"},
        {"\"driver\": \"copy-before-write\", \"file\": \"src\", "
         "\"target\": \"dst\", \"bitmap\": {\"node\": \"src\", "
         "\"name\": \"none\"}",
         "none"},
        {"\"driver\": \"copy-before-write\", \"file\": \"src\", "
         "\"target\": \"dst\", \"bitmap\": {\"node\": \"small\", "
         "\"name\": \"b\"}",
         "Bitmap 'b' has another size"},
        {"\"driver\": \"copy-before-write\", \"file\": \"src\", "
         "\"target\": \"dst\", \"other\": 1",
         "other"},
        {"\"driver\": \"snapshot-access\", \"file\": \"src\"",
         "Node 'src' (trap) keeps no snapshot"},
    };
    g = graph_new();
    src = disk_new(g, "src", SIZE);
    dst = disk_new(g, "dst", SIZE);
    must_open("{\"driver\": \"mem\", \"node-name\": \"small\", "
              "\"size\": 65536}");
    ck_assert_int_eq(
        bitmap_add(g, graph_find(g, "small"), "b", CLUSTER, false, false, NULL),
        0);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct error *err = NULL;
        char *text;
        ck_assert_int_gt(asprintf(&text, "{%s}", bad[i].options), 0);
        ck_assert_int_lt(open_node(text, NULL, &err), 0);
        ck_assert_msg(strstr(error_message(err), bad[i].text) != NULL, "%s: %s",
                      bad[i].options, error_message(err));
        error_free(err);
        free(text);
    }
    graph_free(g);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        the_past_is_read_while_a_guest_goes_on,
        readers_and_guests_race,
        a_reader_holds_up_no_guest,
        what_changes_while_it_is_read_is_read_again,
        only_what_the_bitmap_has_is_kept,
        what_is_discarded_is_kept_no_more,
        the_past_does_not_change,
        a_failure_fails_the_write_and_the_past_stays,
        or_it_breaks_the_snapshot_and_the_write_goes_on,
        time_is_limited_and_the_write_fails,
        time_is_limited_and_the_snapshot_breaks,
        status_tells_of_the_past,
        queries_show_the_bits_that_qemu_shows,
        it_is_put_below_a_node_in_use,
        growing_is_fine_and_cutting_off_is_not,
        a_file_child_that_is_cut_off_harms_nobody,
        bad_options_are_named,
    };
    return run_suite("snapshot-access", tests, ARRAY_SIZE(tests));
}
