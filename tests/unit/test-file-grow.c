/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Blocks ahead for a file that grows (drivers/file-grow.c).  Whatever is
 * reserved, a file has the size and the bytes that it would have without that;
 * and once it is closed, resized or opened again, no more blocks than it needs.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include "job-util.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/image.h"

#define CLUSTER   (64 * KiB)
#define CLUSTERS  128
#define DISK_SIZE (64 * MiB)

static struct graph *g;
static struct node *n;
static struct blk *b;
static char name[40];

static void start(void)
{
    CLEANUP_JSON json_t *o = json_pack("{s:I}", "size", (json_int_t)DISK_SIZE);
    CLEANUP_JSON json_t *how = NULL;

    strcpy(name, "/tmp/test-file-grow-XXXXXX");
    int fd = mkstemp(name);
    ck_assert_int_ge(fd, 0);
    (void)close(fd);
    ck_assert_int_eq(image_create(name, "qcow2", o, NULL), 0);
    how = json_pack("{s:s, s:{s:s, s:s, s:s}}", "driver", "qcow2", "file",
                    "driver", "file", "filename", name, "node-name", "f");
    g = graph_new();
    ck_assert_int_eq(graph_open(g, how, &n, NULL), 0);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
}

static void stop(void)
{
    blk_free(b);
    graph_free(g);
}

static struct stat look(void)
{
    struct stat st;

    ck_assert_int_eq(stat(name, &st), 0);
    return st;
}

static uint64_t blocks(void)
{
    return (uint64_t)look().st_blocks * 512;
}

static bool is_ext4(void)
{
    struct statfs fs;

    return statfs(name, &fs) == 0 && fs.f_type == EXT4_SUPER_MAGIC;
}

/* @bytes of each cluster, the clusters in an order of their own. */
static void fill(uint64_t bytes)
{
    static char buf[CLUSTER];

    for (unsigned i = 0; i < CLUSTERS; i++) {
        unsigned at = i * 37 % CLUSTERS;

        memset(buf, 1 + (int)at, bytes);
        ck_assert_int_eq(blk_pwrite(b, buf, bytes, at * CLUSTER, 0), 0);
    }
}

static void compare(uint64_t bytes)
{
    static char buf[CLUSTER];

    for (unsigned i = 0; i < CLUSTERS; i++) {
        ck_assert_int_eq(blk_pread(b, buf, CLUSTER, i * CLUSTER, 0), 0);
        for (uint64_t k = 0; k < CLUSTER; k++) {
            if ((unsigned char)buf[k] != (k < bytes ? 1 + i : 0)) {
                ck_abort_msg("cluster %u, byte %u", i, (unsigned)k);
            }
        }
    }
}

/* Full clusters: blocks are reserved while they come, and not after that. */
START_TEST(without_holes)
{
    start();
    fill(CLUSTER);
    uint64_t size = (uint64_t)look().st_size;
    ck_assert_uint_lt(size, (CLUSTERS + 16) * CLUSTER);
    if (is_ext4()) {
        ck_assert_uint_gt(blocks(), size + MiB);
        ck_assert_uint_lt(blocks(), 2 * size + MiB);
    }
    compare(CLUSTER);
    stop();
    ck_assert_uint_eq((uint64_t)look().st_size, size);
    ck_assert_uint_le(blocks(), size + 64 * KiB);
    ck_assert_int_eq(unlink(name), 0);
}
END_TEST

/* A bit of each cluster: the holes stay holes. */
START_TEST(with_holes)
{
    start();
    fill(4096);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_lt(blocks(), (uint64_t)look().st_size / 2);
    compare(4096);
    stop();
    ck_assert_int_eq(unlink(name), 0);
}
END_TEST

static int reopen(bool read_only)
{
    const struct node_flags to = {.read_only = read_only, .locking = true};
    struct node *f = graph_find(g, "f");

    graph_lock(g);
    graph_drain(g, n);
    int r = f->drv->reopen->prepare(f, &to, NULL);
    if (r == 0) {
        f->flags.read_only = read_only;
        f->drv->reopen->commit(f);
    }
    graph_unlock(g);
    return r;
}

START_TEST(given_back_when_it_is_opened_again)
{
    start();
    fill(CLUSTER);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(reopen(true), 0);
    ck_assert_uint_le(blocks(), (uint64_t)look().st_size + 64 * KiB);
    ck_assert_int_eq(reopen(false), 0);
    compare(CLUSTER);
    stop();
    ck_assert_int_eq(unlink(name), 0);
}
END_TEST

START_TEST(given_back_when_it_is_resized)
{
    start();
    fill(CLUSTER);
    uint64_t size = (uint64_t)look().st_size;
    struct node *f = graph_find(g, "f");
    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(node_resize(f, size + MiB, NULL), 0);
    graph_unlock(g);
    ck_assert_uint_le(blocks(), size + 64 * KiB);
    compare(CLUSTER);
    stop();
    ck_assert_int_eq(unlink(name), 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        without_holes,
        with_holes,
        given_back_when_it_is_opened_again,
        given_back_when_it_is_resized,
    };
    return run_suite("file-grow", tests, sizeof(tests) / sizeof(tests[0]));
}
