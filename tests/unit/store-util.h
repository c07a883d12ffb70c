/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_STORE_UTIL_H
#define NBDELTA_TESTS_STORE_UTIL_H

/* A backup directory in a temporary directory, for unit tests. */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "store/store.h"
#include "store/sums.h"

#define POINT1 "20261127T023000Z"
#define POINT2 "20261128T023000Z"
#define POINT3 "20261129T023000Z"

/* One for each test; CK_FORK=no runs them in one process. */
static char base[64];

static inline void base_setup(void)
{
    strcpy(base, "/tmp/nbdelta-store.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(base));
}

static inline void base_teardown(void)
{
    char command[128];

    (void)snprintf(command, sizeof(command), "rm -rf '%s'", base);
    ck_assert_int_eq(system(command), 0); /* NOLINT(cert-env33-c) */
}

/* A path below the temporary directory; static. */
__attribute__((format(printf, 1, 2))) static inline const char *at(
    const char *fmt, ...)
{
    static char path[8][512];
    static int turn;
    char *p = path[turn++ % 8];
    int n = snprintf(p, 512, "%s/", base);
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(p + n, 512 - (size_t)n, fmt, ap);
    va_end(ap);
    return p;
}

static inline bool exists(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0;
}

static inline void put(const char *path, const void *bytes, size_t length)
{
    FILE *f = fopen(path, "w");

    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, length, f), length);
    ck_assert_int_eq(fclose(f), 0);
}

static inline struct store *create_store(void)
{
    struct store *s = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int r = store_open(at("dir"), STORE_CREATE, "test", &s, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    return s;
}

static inline struct store *reopen_store(enum store_mode mode)
{
    struct store *s = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int r = store_open(at("dir"), mode, "test", &s, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    return s;
}

#define EMPTY_HASH \
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

/* A manifest of one disk; @parent NULL: a full. */
static inline struct manifest *one_disk(const struct store *s,
                                        const char *point, const char *disk,
                                        const char *parent)
{
    struct manifest *m = manifest_new();
    struct manifest_disk *d;

    ck_assert_ptr_nonnull(m);
    strcpy(m->name, point);
    strcpy(m->id, store_id(s));
    d = manifest_add(m, disk);
    ck_assert_ptr_nonnull(d);
    d->size = 8 * MiB;
    d->kind = parent ? DISK_INCREMENT : DISK_FULL;
    strcpy(d->parent, parent ? parent : "");
    strcpy(d->parent_hash, parent ? EMPTY_HASH : "");
    strcpy(d->sums_hash, EMPTY_HASH);
    return m;
}

/* Files that are empty, and the point over them. */
static inline void add_point(struct store *s, const char *point,
                             const char *disk, const char *parent)
{
    static const char *const endings[] = {"qcow2.part", "sums.part"};
    CLEANUP_ERROR struct error *err = NULL;

    ck_assert_int_eq(store_add_disk(s, disk, NULL), 0);
    for (int i = 0; i < 2; i++) {
        int fd = -1;
        ck_assert_int_eq(
            store_create_file(s, disk, point, endings[i], &fd, NULL), 0);
        close(fd);
    }
    ck_assert_int_eq(store_keep_disk(s, disk, point, NULL), 0);
    ck_assert_int_eq(
        store_put_pending(s, one_disk(s, point, disk, parent), &err), 0);
    int r = store_finish_pending(s, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

#endif /* NBDELTA_TESTS_STORE_UTIL_H */
