/* SPDX-License-Identifier: BSD-3-Clause */
/* The filter compress: nothing of a cluster is lost, whoever writes parts. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/graph.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"

#define CLUSTER (64 * KiB)
#define SIZE    (5 * CLUSTER + 512) /* the last cluster is cut */
#define SECTOR  512
#define WRITERS 4

static const char name[] = "compress.qcow2";

struct disk {
    struct graph *g;
    struct node *n;
    struct blk *b;
};

static struct disk disk_open(void)
{
    CLEANUP_JSON json_t *how = json_pack("{s:I}", "size", (json_int_t)SIZE);
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:{s:s, s:s, s:{s:s, s:s}}}",
                                       "driver", "compress", "file", "driver",
                                       "qcow2", "discard", "unmap", "file",
                                       "driver", "file", "filename", name);
    CLEANUP_ERROR struct error *err = NULL;
    struct disk d = {.g = graph_new()};

    (void)unlink(name);
    ck_assert_int_eq(image_create(name, "qcow2", how, NULL), 0);
    ck_assert_msg(graph_open(d.g, o, &d.n, &err) == 0, "%s",
                  error_message(err));
    ck_assert_int_eq(blk_new(d.g, d.n, PERM_ALL, PERM_ALL, "test", &d.b, NULL),
                     0);
    return d;
}

static void disk_close(struct disk *d)
{
    blk_free(d->b);
    graph_free(d->g);
    (void)unlink(name);
}

static void put(struct disk *d, char *shadow, int byte, uint64_t offset,
                uint64_t bytes)
{
    memset(shadow + offset, byte, bytes);
    ck_assert_int_eq(blk_pwrite(d->b, shadow + offset, bytes, offset, 0), 0);
}

static void ck_reads(struct disk *d, const char *shadow)
{
    char *buf = malloc(SIZE);

    ck_assert_int_eq(blk_pread(d->b, buf, SIZE, 0, 0), 0);
    ck_assert_int_eq(memcmp(buf, shadow, SIZE), 0);
    free(buf);
}

static int add_packed(const struct extent *e, void *opaque)
{
    if (e->flags & EXTENT_COMPRESSED) {
        *(uint64_t *)opaque += e->length;
    }
    return 0;
}

static uint64_t packed(struct disk *d)
{
    uint64_t sum = 0;

    ck_assert_int_eq(blk_extents(d->b, 0, SIZE, 0, add_packed, &sum), 0);
    return sum;
}

START_TEST(what_is_written_is_packed)
{
    struct disk d = disk_open();
    char *shadow = calloc(1, SIZE);

    put(&d, shadow, 1, 100, 7);                     /* a part */
    put(&d, shadow, 2, CLUSTER - 10, CLUSTER + 20); /* of three */
    put(&d, shadow, 3, 5 * CLUSTER, 512);           /* the end */
    put(&d, shadow, 4, 5 * CLUSTER - 3, 5);
    ck_reads(&d, shadow);
    ck_assert_uint_eq(packed(&d), 5 * CLUSTER + 512 - CLUSTER);
    /* Zeroes and discards go by the clusters, too. */
    ck_assert_int_eq(blk_zero(d.b, 50, 2 * CLUSTER, REQ_MAY_UNMAP), 0);
    memset(shadow + 50, 0, 2 * CLUSTER);
    ck_reads(&d, shadow);
    ck_assert_int_eq(blk_discard(d.b, 0, CLUSTER), 0);
    memset(shadow, 0, CLUSTER);
    ck_reads(&d, shadow);
    /* Noise cannot be packed. */
    for (size_t i = 0; i < CLUSTER; i++) {
        shadow[i] = (char)random();
    }
    ck_assert_int_eq(blk_pwrite(d.b, shadow, CLUSTER, 0, 0), 0);
    put(&d, shadow, 9, 700, 70);
    ck_reads(&d, shadow);
    free(shadow);
    disk_close(&d);
}
END_TEST

struct writer {
    struct disk *d;
    unsigned number;
};

/* Sectors of its own, in all clusters. */
static void *write_some(void *arg)
{
    const struct writer *w = arg;
    char buf[SECTOR];

    memset(buf, (int)w->number + 1, sizeof(buf));
    for (uint64_t at = w->number * SECTOR; at < SIZE; at += 4 * 4096) {
        int r = w->number == 3 ? blk_zero(w->d->b, at, SECTOR, 0)
                               : blk_pwrite(w->d->b, buf, SECTOR, at, 0);
        ck_assert_int_eq(r, 0);
    }
    return NULL;
}

START_TEST(parts_of_a_cluster_are_not_lost)
{
    struct disk d = disk_open();
    char *shadow = calloc(1, SIZE);

    for (unsigned round = 0; round < 10; round++) {
        struct writer w[WRITERS];
        pthread_t threads[WRITERS];

        put(&d, shadow, 'a', 0, SIZE);
        for (unsigned i = 0; i < WRITERS; i++) {
            w[i] = (struct writer){&d, i};
            ck_assert_int_eq(
                thread_start(&threads[i], "writer", write_some, &w[i]), 0);
        }
        for (unsigned i = 0; i < WRITERS; i++) {
            thread_join(threads[i]);
            for (uint64_t at = i * SECTOR; at < SIZE; at += 4 * 4096) {
                memset(shadow + at, i == 3 ? 0 : (int)i + 1, SECTOR);
            }
        }
        ck_reads(&d, shadow);
    }
    free(shadow);
    disk_close(&d);
}
END_TEST

START_TEST(what_cannot_compress_is_refused)
{
    CLEANUP_GRAPH struct graph *g = graph_new();
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:{s:s, s:i}}", "driver",
                                       "compress", "file", "driver", "mem",
                                       "size", 4096);
    CLEANUP_ERROR struct error *err = NULL;
    struct node *n;

    ck_assert_int_eq(graph_open(g, o, &n, &err), -ENOTSUP);
    ck_assert_str_eq(error_message(err),
                     "Compression is not supported for underlying format: mem");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("compress");
    TCase *t = tcase_create("compress");
    SRunner *r = srunner_create(s);

    tcase_set_timeout(t, 60);
    tcase_add_test(t, what_is_written_is_packed);
    tcase_add_test(t, parts_of_a_cluster_are_not_lost);
    tcase_add_test(t, what_cannot_compress_is_refused);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
