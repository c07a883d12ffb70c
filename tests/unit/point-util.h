/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_POINT_UTIL_H
#define NBDELTA_TESTS_POINT_UTIL_H

/* Points with images that have something in them, for unit tests. */
#include "store-util.h"

#define DISK_SIZE (6 * MiB + 512)

struct run {
    uint64_t offset;
    uint64_t bytes;
    uint8_t byte; /* 0: zeroes */
};

/* Options that open the file of a disk for writing, without its parents. */
static inline json_t *writable_layer(const char *path)
{
    return json_pack("{s:s, s:n, s:{s:s, s:s}}", "driver", "qcow2", "backing",
                     "file", "driver", "file", "filename", path);
}

/* Write @runs into the image, and tell @s unless it is NULL. */
static inline void write_runs(const char *path, struct sums *s,
                              const struct run *runs, unsigned count)
{
    struct graph *g = graph_new();
    CLEANUP_JSON json_t *o = writable_layer(path);
    CLEANUP_FREE uint8_t *buf = malloc(DISK_SIZE);
    CLEANUP_ERROR struct error *err = NULL;
    struct node *n = NULL;
    struct blk *b = NULL;
    int r = graph_open(g, o, &n, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    for (unsigned i = 0; i < count; i++) {
        const struct run *w = &runs[i];

        memset(buf, w->byte, w->bytes);
        if (s) {
            ck_assert_int_eq(
                sums_tap(s, w->offset, w->bytes, w->byte ? buf : NULL), 0);
        }
        ck_assert_int_eq(w->byte ? blk_pwrite(b, buf, w->bytes, w->offset, 0)
                                 : blk_zero(b, w->offset, w->bytes, 0),
                         0);
    }
    if (s) {
        ck_assert_int_eq(sums_finish(s, b, NULL), 0);
    }
    blk_free(b);
    graph_close_all(g);
    graph_free(g);
}

/* Add the file of a disk to @m: an increment over @parent, or a full (NULL). */
static inline void make_disk(struct store *s, struct manifest *m,
                             const char *disk, const char *parent,
                             const struct run *runs, unsigned count)
{
    CLEANUP_SUMS struct sums *sums = sums_new(DISK_SIZE, parent == NULL);
    CLEANUP_FREE char *path = NULL;
    CLEANUP_FREE char *below = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int fd = -1;

    ck_assert_int_eq(store_add_disk(s, disk, NULL), 0);
    ck_assert_int_eq(
        store_file_path(s, disk, m->name, "qcow2.part", &path, NULL), 0);
    CLEANUP_JSON json_t *o = json_pack("{s:I}", "size", (json_int_t)DISK_SIZE);
    if (parent) {
        ck_assert_int_gt(asprintf(&below, "%s.qcow2", parent), 0);
        ck_assert_int_eq(
            json_object_update_new(
                o, json_pack("{s:s, s:s, s:b}", "backing_file", below,
                             "backing_fmt", "qcow2", "backing_unchecked", 1)),
            0);
    }
    int r = image_create(path, "qcow2", o, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    write_runs(path, sums, runs, count);

    struct manifest_disk *d = manifest_add(m, disk);
    ck_assert_int_eq(
        store_create_file(s, disk, m->name, "sums.part", &fd, NULL), 0);
    ck_assert_int_eq(sums_write(sums, fd, d->sums_hash, NULL), 0);
    close(fd);
    ck_assert_int_eq(store_keep_disk(s, disk, m->name, NULL), 0);
    d->size = DISK_SIZE;
    d->kind = parent ? DISK_INCREMENT : DISK_FULL;
    if (parent) {
        strcpy(d->parent, parent);
        strcpy(
            d->parent_hash,
            manifest_find(store_named(s, parent)->manifest, disk)->sums_hash);
    }
}

static inline struct manifest *begin_point(struct store *s, const char *point)
{
    struct manifest *m = manifest_new();

    strcpy(m->name, point);
    strcpy(m->id, store_id(s));
    return m;
}

static inline void end_point(struct store *s, struct manifest *m)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = store_put_pending(s, m, &err);

    r = r < 0 ? r : store_finish_pending(s, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

/* Three points of two disks; what is in them overlaps. */
static inline struct store *three_points(void)
{
    static const struct run full[] = {
        {0, MiB, 1}, {2 * MiB, 128 * KiB, 2}, {6 * MiB, 512, 3}};
    static const struct run inc[] = {
        {64 * KiB, 128 * KiB, 4}, {2 * MiB, 64 * KiB, 0}, {5 * MiB, MiB, 5}};
    static const char *const points[] = {POINT1, POINT2, POINT3};
    struct store *s = create_store();

    for (int i = 0; i < 3; i++) {
        struct manifest *m = begin_point(s, points[i]);
        const char *parent = i > 0 ? points[i - 1] : NULL;

        make_disk(s, m, "vda", parent, i > 0 ? inc : full, 3);
        make_disk(s, m, "vdb", i == 1 ? parent : NULL, i == 1 ? inc : full,
                  (unsigned)i);
        end_point(s, m);
    }
    return s;
}

#endif /* NBDELTA_TESTS_POINT_UTIL_H */
