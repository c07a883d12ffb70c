/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A file whose first cluster is written under power cuts
 * ======================================================
 *
 * After each write to the first cluster, any set of its sectors that have
 * changed since the last flush may be on the disk: some such sets are made, and
 * cut.check looks at each.  A write can be made to fail, done or not.
 */
#ifndef NBDELTA_TESTS_SECTOR_CUT_H
#define NBDELTA_TESTS_SECTOR_CUT_H

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/graph.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "qcow2/qcow2.h"
#include "util/iov.h"

#define SECTOR   512
#define DISK_MAX (1 * MiB)
#define HEAD_MAX (64 * KiB)
#define CUTS     40 /* after a write */

static struct {
    unsigned char *disk; /* as it is */
    unsigned char *safe; /* as it was at the last flush */
    size_t cluster;
    void (*check)(const unsigned char *head);
    unsigned writes;
    unsigned fail_at; /* this write fails, and is done or not; 0: none does */
    bool fail_done;
    unsigned long count;
    uint64_t seed;
} cut;

static inline bool cut_coin(void)
{
    cut.seed ^= cut.seed << 13;
    cut.seed ^= cut.seed >> 7;
    cut.seed ^= cut.seed << 17;
    return cut.seed % 2;
}

static inline void cut_power(void)
{
    static unsigned char head[HEAD_MAX];

    for (int i = 0; i < CUTS; i++) {
        for (size_t at = 0; at < cut.cluster; at += SECTOR) {
            memcpy(head + at, (cut_coin() ? cut.disk : cut.safe) + at, SECTOR);
        }
        cut.check(head);
        cut.count++;
    }
}

/* --- The file --- */

static inline int cut_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                             const struct iovec *iov, int cnt, unsigned flags)
{
    (void)n;
    (void)flags;
    iov_from_buf(iov, cnt, 0, cut.disk + offset, bytes);
    return 0;
}

static inline int cut_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                              const struct iovec *iov, int cnt, unsigned flags)
{
    bool fails = ++cut.writes == cut.fail_at;

    (void)n;
    (void)flags;
    if (!fails || cut.fail_done) {
        iov_to_buf(iov, cnt, 0, cut.disk + offset, bytes);
    }
    if (offset < cut.cluster) {
        cut_power();
    }
    return fails ? -EIO : 0;
}

static inline int cut_flush(struct node *n)
{
    (void)n;
    memcpy(cut.safe, cut.disk, DISK_MAX);
    return 0;
}

static const struct driver cut_driver = {
    .name = "sector-cut",
    .is_protocol = true,
    .preadv = cut_preadv,
    .pwritev = cut_pwritev,
    .flush = cut_flush,
};

static inline struct node *cut_open_file(struct graph *g)
{
    struct node like = {.size = DISK_MAX};
    struct node *file;

    graph_lock(g);
    ck_assert_int_eq(node_new(g, &cut_driver, "file", &like, &file, NULL), 0);
    file->monitor_owned = true;
    graph_unlock(g);
    return file;
}

/* The image in the file, without its backing file. */
static inline struct node *cut_open_image(struct graph *g)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:n}", "driver", "qcow2",
                                       "file", "file", "backing");
    struct error *err = NULL;
    struct node *n;

    (void)cut_open_file(g);
    int r = graph_open(g, o, &n, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    return n;
}

/* The file becomes a new image with these options; @check looks at what cuts
 * leave. */
static inline void cut_load(const json_t *options, size_t cluster,
                            void (*check)(const unsigned char *head))
{
    struct stat st;

    ck_assert_int_eq(image_create("new.qcow2", "qcow2", options, NULL), 0);
    memset(&cut, 0, sizeof(cut));
    cut.disk = calloc(1, DISK_MAX);
    cut.safe = calloc(1, DISK_MAX);
    ck_assert(cut.disk && cut.safe);
    FILE *f = fopen("new.qcow2", "rb");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fstat(fileno(f), &st), 0);
    ck_assert_uint_le((uint64_t)st.st_size, DISK_MAX);
    ck_assert_uint_eq(fread(cut.disk, 1, (size_t)st.st_size, f), st.st_size);
    (void)fclose(f);
    (void)unlink("new.qcow2");
    memcpy(cut.safe, cut.disk, DISK_MAX);
    cut.cluster = cluster;
    cut.check = check;
    cut.seed = 42;
}

static inline void cut_drop(void)
{
    free(cut.disk);
    free(cut.safe);
}

#endif /* NBDELTA_TESTS_SECTOR_CUT_H */
