/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A small qcow2 image beside a raw disk, which stays as it is:
 *
 *   disk.qcow2   header, tables, bitmaps       written here
 *   disk.raw     the data, each at its place   only looked at
 *
 * All clusters are mapped from the start, so no write to the disk ever needs
 * a write to the tables.  They are eight bytes a cluster: large disks get
 * large clusters, which cost nothing where no cluster is ever allocated.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/create.h"
#include "core/dirty.h"
#include "core/door.h"
#include "core/format.h"
#include "core/graph.h"
#include "core/imagelock.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "qcow2/qcow2.h"

#define SECTOR 512

/* No more clusters (8 MiB of tables), as long as clusters can be larger. */
#define CLUSTERS_MAX     (1 * MiB)
#define CLUSTER_SIZE_MIN (64 * KiB)
#define CLUSTER_SIZE_MAX (2 * MiB)

/* --- The disk --- */

static int check_content(const struct driver_table *t, int fd, uint64_t size,
                         const char *raw, struct error **errp)
{
    char head[FORMAT_BYTES] = {0};
    char tail[FORMAT_BYTES] = {0};

    if (pread(fd, head, sizeof(head), 0) < 0 ||
        (size > FORMAT_BYTES &&
         pread(fd, tail, sizeof(tail), (off_t)(size - FORMAT_BYTES)) < 0)) {
        return error_set(errp, errno, "cannot read '%s': %s", raw,
                         strerror(errno));
    }
    const char *format = format_probe(t, head, tail);
    return strcmp(format, FORMAT_OF_BYTES) == 0
               ? 0
               : error_set(errp, EINVAL,
                           "'%s' looks like an image of format %s, not like a "
                           "raw disk (--force tracks its bytes all the same)",
                           raw, format);
}

/* Open the disk alone (O_EXCL): that fails for a block device that is mounted,
 * or part of another one. */
static int open_raw(const char *raw, struct stat *st, struct error **errp)
{
    struct door d;
    int fd = door_find(&d, raw);

    if (fd < 0) {
        return error_set(errp, -fd, "Could not open '%s': %s", raw,
                         strerror(-fd));
    }
    *st = d.st;
    bool block = S_ISBLK(st->st_mode);
    if (block || S_ISREG(st->st_mode)) {
        fd = door_open(&d, O_RDONLY | (block ? O_EXCL : 0));
    }
    door_close(&d);
    if (!block && !S_ISREG(st->st_mode)) {
        return error_set(errp, EINVAL,
                         "'%s' is neither a regular file nor a block device",
                         raw);
    }
    if (fd >= 0) {
        return fd;
    }
    int code = -fd;
    return error_set(errp, code, "Could not open '%s': %s%s", raw,
                     strerror(code),
                     code == EBUSY ? " (it is mounted, or the kernel uses it "
                                     "otherwise)"
                                   : "");
}

static int measure_raw(int fd, const char *raw, uint64_t *size,
                       struct error **errp)
{
    off_t end = lseek(fd, 0, SEEK_END);

    if (end < 0) {
        return error_set(errp, errno, "cannot find the size of '%s': %s", raw,
                         strerror(errno));
    }
    if (end == 0) {
        return error_set(errp, EINVAL, "'%s' is empty", raw);
    }
    *size = (uint64_t)end;
    return 0;
}

/* --- The image --- */

static uint64_t choose_cluster_size(uint64_t size)
{
    uint64_t cluster = CLUSTER_SIZE_MIN;

    while (size / cluster > CLUSTERS_MAX && cluster < CLUSTER_SIZE_MAX) {
        cluster *= 2;
    }
    return cluster;
}

/* The absolute path of @raw.  Readers take a relative name in an image as
 * relative to where they run.  Links stay: they may lead to another device of
 * the same disk one day. */
static char *whole_path(const char *raw)
{
    char *path;

    if (raw[0] == '/') {
        return strdup(raw);
    }
    CLEANUP_FREE char *here = getcwd(NULL, 0);
    return here && asprintf(&path, "%s/%s", here, raw) >= 0 ? path : NULL;
}

static int complete(json_t *options, const char *raw, uint64_t size,
                    struct error **errp)
{
    static const char *const ours[] = {"size", "backing_file", "data_file",
                                       "data_file_raw", "preallocation"};
    CLEANUP_FREE char *path = whole_path(raw);

    for (size_t i = 0; i < ARRAY_SIZE(ours); i++) {
        if (json_object_get(options, ours[i])) {
            return error_set(errp, EINVAL,
                             "option '%s' makes no sense for an image that "
                             "tracks '%s'",
                             ours[i], raw);
        }
    }
    CLEANUP_JSON json_t *more = path ? json_pack("{s:I, s:s, s:b, s:b}", "size",
                                                 (json_int_t)size, "data_file",
                                                 path, "data_file_raw", 1,
                                                 "data_file_exists", 1)
                                     : NULL;
    bool chosen = json_object_get(options, "cluster_size") != NULL;
    if (!more || json_object_update(options, more) < 0 ||
        (!chosen &&
         json_object_set_new(
             options, "cluster_size",
             json_integer((json_int_t)choose_cluster_size(size))) < 0)) {
        return error_set(errp, EINVAL,
                         "the path of '%s' is not UTF-8, or there is no memory",
                         raw);
    }
    return 0;
}

/* --- Its first bitmap --- */

static int add_in_section(struct node *n, const char *name, struct error **errp)
{
    struct bitmap *bm;

    graph_drain(n->graph, n);
    int r = bitmap_add_locked(n, name, 0, true, false, &bm, errp);
    return r < 0 ? r : bitmap_store(n, errp);
}

/* Add the first bitmap without opening the disk, which is locked by us. */
static int add_tracking_bitmap(const struct driver_table *t,
                               const char *filename, const char *name,
                               struct error **errp)
{
    CLEANUP_JSON json_t *options = json_pack("{s:s, s:o}", "driver",
                                             driver_qcow2.name, "file",
                                             options_of_file(filename));
    struct graph *g = graph_new_with(t);
    struct node *n;
    int r;

    if (!g || !options) {
        graph_free(g);
        return error_nomem(errp);
    }
    graph_without_data(g);
    r = graph_open(g, options, &n, errp);
    if (r == 0) {
        graph_lock(g);
        r = add_in_section(n, name, errp);
        graph_unlock(g);
    }
    graph_free(g);
    return r;
}

/* --- */

static int track(const struct driver_table *t, const char *filename, int fd,
                 const struct stat *st, const char *raw,
                 const struct image_track *how, struct error **errp)
{
    CLEANUP_JSON json_t *options = how->options ? json_deep_copy(how->options)
                                                : json_object();
    struct file_make made = {.access = FILE_ACCESS_ANY};
    uint64_t size = 0;
    int r;

    file_access_narrow(&made.access, st);
    if ((r = image_lock(fd, raw, true, errp)) < 0 ||
        (r = measure_raw(fd, raw, &size, errp)) < 0 ||
        (r = how->force ? 0 : check_content(t, fd, size, raw, errp)) < 0 ||
        (r = complete(options, raw, align_up(size, SECTOR), errp)) < 0 ||
        (r = image_make(t, filename, driver_qcow2.name, options, &made, errp)) <
            0) {
        return r;
    }
    r = how->bitmap ? add_tracking_bitmap(t, filename, how->bitmap, errp) : 0;
    if (r < 0) {
        (void)unlink(filename);
    }
    return r;
}

int qcow2_track(const struct driver_table *t, const char *filename,
                const char *raw, const struct image_track *how,
                struct error **errp)
{
    struct stat st;
    int fd = open_raw(raw, &st, errp);

    if (fd < 0) {
        return fd;
    }
    int r = track(t, filename, fd, &st, raw, how, errp);
    (void)close(fd);
    return r;
}
