/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bitmaps of many disks in one transaction.  No disk waits for the flushes of
 * another one: here each flush waits until all disks are in a flush.  What
 * fails on one disk is undone on the others.  If the undoing fails, too, their
 * bitmaps have after kill -9 what they had before, or are in use.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bitmap-util.h"
#include "core/graph.h"
#include "nbdelta/action.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "qcow2/bitmaps.h"

#define DISKS   12
#define WAIT_MS 20000

static struct {
    mutex_t lock;
    cond_t moved;
    bool on;
    unsigned inside;
    unsigned round;
    unsigned alone;     /* flushes that waited for the others in vain */
    bool met[DISKS][2]; /* by disk: in the drained section, outside of it */
} meet;

/* By disk: flushes until one fails, and all after it; 0: none. */
static _Atomic unsigned countdown[2];

static bool fails(const struct node *n)
{
    unsigned i = n->name[strlen("meet")] - '0';

    if (n->name[strlen("meet0")] != '\0' || i > 1 || countdown[i] == 0) {
        return false;
    }
    return --countdown[i] == 0 && ++countdown[i];
}

static int meeting_flush(struct node *n)
{
    if (fails(n)) {
        return -EIO;
    }
    /* How many there are outside depends on how long they take. */
    unsigned disk = (unsigned)strtoul(n->name + strlen("meet"), NULL, 10);
    bool *met = &meet.met[disk][!node_is_draining(n)];
    mutex_lock(&meet.lock);
    if (meet.on && !*met) {
        *met = true;
        unsigned round = meet.round;
        if (++meet.inside == DISKS) {
            meet.inside = 0;
            meet.round++;
            cond_broadcast(&meet.moved);
        }
        while (meet.round == round && meet.inside > 0) {
            if (!cond_wait_ms(&meet.moved, &meet.lock, WAIT_MS)) {
                meet.alone++;
                meet.on = false;
                meet.inside = 0;
                cond_broadcast(&meet.moved);
            }
        }
    }
    mutex_unlock(&meet.lock);
    return node_flush(node_child(n, CHILD_FILE));
}

static int pass_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    return node_preadv(node_child(n, CHILD_FILE), offset, bytes, iov, cnt,
                       flags);
}

static int pass_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    return node_pwritev(node_child(n, CHILD_FILE), offset, bytes, iov, cnt,
                        flags);
}

static const struct driver meeting_driver = {
    .name = "meeting",
    .is_filter = true,
    .preadv = pass_preadv,
    .pwritev = pass_pwritev,
    .flush = meeting_flush,
};

static struct graph *g;
static struct node *disks[DISKS];

static struct node *open_again(unsigned i)
{
    char file[16];
    char name[16];
    struct node *like;
    struct node *n;
    struct node *q;

    (void)snprintf(file, sizeof(file), "d%u.qcow2", i);
    (void)snprintf(name, sizeof(name), "meet%u", i);
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s}", "driver", "file",
                                       "filename", file);
    CLEANUP_JSON json_t *qo = json_pack("{s:s, s:s}", "driver", "qcow2", "file",
                                        name);
    ck_assert_int_eq(graph_open(g, o, &like, NULL), 0);
    graph_lock(g);
    ck_assert_int_eq(node_new(g, &meeting_driver, name, like, &n, NULL), 0);
    ck_assert_int_eq(node_attach(n, CHILD_FILE, like, "file",
                                 PERM_READ | PERM_WRITE, PERM_ALL, NULL),
                     0);
    node_refresh_limits(n);
    n->monitor_owned = true;
    graph_unlock(g);
    ck_assert_int_eq(graph_open(g, qo, &q, NULL), 0);
    return q;
}

static struct node *open_disk(unsigned i)
{
    CLEANUP_JSON json_t *size = json_pack("{s:i}", "size", 64 << 20);
    char file[16];

    (void)snprintf(file, sizeof(file), "d%u.qcow2", i);
    ck_assert_int_eq(image_create(file, "qcow2", size, NULL), 0);
    /* Room for what bitmaps need, as filters do not grow. */
    ck_assert_int_eq(truncate(file, 4 << 20), 0);
    return open_again(i);
}

static void begin(void)
{
    g = graph_new();
    for (unsigned i = 0; i < DISKS; i++) {
        disks[i] = open_disk(i);
    }
}

static void end(void)
{
    char file[16];

    graph_free(g);
    for (unsigned i = 0; i < DISKS; i++) {
        (void)snprintf(file, sizeof(file), "d%u.qcow2", i);
        (void)unlink(file);
    }
}

typedef int (*maker)(struct bitmap_ref ref, struct action **ap);

static int run_on(maker make, unsigned count)
{
    struct list list;
    struct action *a;

    list_init(&list);
    for (unsigned i = 0; i < count; i++) {
        ck_assert_int_eq(make((struct bitmap_ref){disks[i], "b"}, &a), 0);
        list_append(&list, &a->link);
    }
    return actions_run(g, &list, NULL);
}

static int run_all(maker make)
{
    memset(meet.met, 0, sizeof(meet.met));
    meet.on = true;
    int r = run_on(make, DISKS);
    meet.on = false;
    return r;
}

static int make_add(struct bitmap_ref ref, struct action **ap)
{
    return bitmap_add_action(ref, 0, true, false, ap, NULL);
}

static int make_clear(struct bitmap_ref ref, struct action **ap)
{
    return bitmap_clear_action(ref, ap, NULL);
}

static int make_remove(struct bitmap_ref ref, struct action **ap)
{
    return bitmap_remove_action(ref, ap, NULL);
}

START_TEST(disks_are_flushed_side_by_side)
{
    begin();
    ck_assert_int_eq(run_all(make_add), 0);
    ck_assert_int_eq(run_all(make_clear), 0);
    ck_assert_int_eq(run_all(make_remove), 0);
    ck_assert_uint_eq(meet.alone, 0);
    ck_assert_uint_eq(meet.round, 2 + 1 + 2);
    end();
}
END_TEST

/* --- Undoing --- */

static void copy_file(const char *from, const char *to)
{
    int in = open(from, O_RDONLY);
    int out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    char buf[65536];
    ssize_t len;

    ck_assert(in >= 0 && out >= 0);
    while ((len = read(in, buf, sizeof(buf))) > 0) {
        ck_assert_int_eq(write(out, buf, (size_t)len), len);
    }
    (void)close(in);
    (void)close(out);
}

/* Is the bitmap of the image, if it is there and usable, dirty there? */
static void expect_dirty(const char *image, uint64_t offset)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:b, s:{s:s, s:s}}", "driver",
                                       "qcow2", "read-only", 1, "file",
                                       "driver", "file", "filename", image);
    struct graph *other = graph_new();
    struct bitmap *bm;
    struct node *n;

    ck_assert_int_eq(graph_open(other, o, &n, NULL), 0);
    if (bitmap_lookup(n, "b", BITMAP_USE_READ, &bm, NULL) == 0) {
        ck_assert(hbitmap_all_set(bm->bits, offset, 65536));
    }
    graph_free(other);
}

static unsigned threads(void)
{
    DIR *d = opendir("/proc/self/task");
    unsigned count = 0;

    while (d && readdir(d)) {
        count++;
    }
    (void)closedir(d);
    return count;
}

static void write_at(uint64_t offset)
{
    struct blk *b;

    ck_assert_int_eq(blk_new(g, disks[0], PERM_READ | PERM_WRITE, PERM_ALL,
                             "test", &b, NULL),
                     0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, offset, 0), 0);
    blk_free(b);
}

/* The second disk's @second flush fails, and the first disk's @first.  False:
 * nothing has. */
static bool undo_one(maker make, bool bad, unsigned first, unsigned second)
{
    unsigned before = threads();
    struct bitmap *bm;

    g = graph_new();
    disks[0] = open_disk(0);
    disks[1] = open_disk(1);
    ck_assert_int_eq(run_on(make_add, 2), 0);
    write_at(8 << 20);
    ck_assert_int_eq(bitmap_lookup(disks[0], "b", BITMAP_USE_READ, &bm, NULL),
                     0);
    countdown[0] = first;
    countdown[1] = second;
    int r = run_on(make, 2);
    bool both = first == 0 || countdown[0] == 1;
    if (r == 0 || bad) { /* and in the close */
        countdown[0] = bad ? 1 + (first + second) % 6 : 0;
        graph_free(g);
    }
    countdown[0] = 0;
    countdown[1] = 0;
    if (r < 0 && !bad) {
        write_at(40 << 20);
        copy_file("d0.qcow2", "killed.qcow2");
        expect_dirty("killed.qcow2", 8 << 20);
        graph_free(g);
        (void)unlink("killed.qcow2");
    }
    if (r < 0) {
        expect_dirty("d0.qcow2", 8 << 20);
    }
    /* ThreadSanitizer starts a thread of its own at some time. */
#ifdef __SANITIZE_THREAD__
    ck_assert_uint_le(threads(), before + 1);
#else
    ck_assert_uint_eq(threads(), before);
#endif
    (void)unlink("d0.qcow2");
    (void)unlink("d1.qcow2");
    return r < 0 && both;
}

START_TEST(what_fails_on_one_disk_is_undone_on_the_others)
{
    static const maker makers[] = {make_clear, make_remove};
    maker make = makers[_i / 2];
    bool bad_close = _i % 2;

    for (unsigned second = 1; undo_one(make, bad_close, 0, second); second++) {
        for (unsigned first = 1; undo_one(make, bad_close, first, second);
             first++) {
        }
    }
}
END_TEST

/* It would be a good one, and empty. */
START_TEST(bitmaps_in_use_come_back_as_such)
{
    for (unsigned second = 1, r = 1; r != 0; second++) {
        static const unsigned char flags[4] = {0, 0, 0, 3};
        struct bitmap *bm;

        g = graph_new();
        disks[0] = open_disk(0);
        disks[1] = open_disk(1);
        ck_assert_int_eq(run_on(make_add, 2), 0);
        const struct qcow2 *q = disks[0]->state;
        off_t at = (off_t)q->bitmaps.ext.dir_offset + QCOW2_BITMAP_FLAGS_AT;
        graph_free(g);
        int fd = open("d0.qcow2", O_RDWR);
        ck_assert_int_eq(pwrite(fd, flags, sizeof(flags), at), sizeof(flags));
        (void)close(fd);
        g = graph_new();
        disks[0] = open_again(0);
        disks[1] = open_again(1);
        ck_assert_int_lt(
            bitmap_lookup(disks[0], "b", BITMAP_USE_READ, &bm, NULL), 0);
        countdown[1] = second;
        r = run_on(make_remove, 2) < 0;
        countdown[1] = 0;
        graph_free(g);
        g = graph_new();
        disks[0] = open_again(0);
        ck_assert_int_lt(
            bitmap_lookup(disks[0], "b", BITMAP_USE_READ, &bm, NULL), 0);
        graph_free(g);
        (void)unlink("d0.qcow2");
        (void)unlink("d1.qcow2");
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bitmap-disks");
    TCase *tc = tcase_create("disks");

    mutex_init(&meet.lock, LOCK_TEST, NULL);
    cond_init(&meet.moved);

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, disks_are_flushed_side_by_side);
    tcase_add_loop_test(tc, what_fails_on_one_disk_is_undone_on_the_others, 0,
                        4);
    tcase_add_test(tc, bitmaps_in_use_come_back_as_such);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
