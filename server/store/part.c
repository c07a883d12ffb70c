/* SPDX-License-Identifier: BSD-3-Clause */
/* POINT.qcow2.part, while an image is made: see part.h. */
#include "store/part.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "store/store-priv.h"
#include "store/sums.h"

#define ENDING "qcow2.part"

/* Hashes are made of chunks, and each belongs to one file: so clusters have
 * their size. */
static int image_options(uint64_t size, const char *parent,
                         const char *compression, json_t **options)
{
    char backing[POINT_NAME_MAX + sizeof(".qcow2")];
    json_t *o = json_pack("{s:I, s:I}", "size", (json_int_t)image_bytes(size),
                          "cluster_size", (json_int_t)SUMS_CHUNK);
    int r = o ? 0 : -1;

    if (r == 0 && parent[0]) {
        (void)snprintf(backing, sizeof(backing), "%s.qcow2", parent);
        r = json_object_set_new(o, "backing_file", json_string(backing)) |
            json_object_set_new(o, "backing_fmt", json_string("qcow2")) |
            json_object_set_new(o, "backing_unchecked", json_true());
    }
    if (r == 0 && compression) {
        r = json_object_set_new(o, "compression_type",
                                json_string(compression));
    }
    *options = o;
    return r;
}

int part_create(struct store *s, const char *disk, const char *point,
                uint64_t size, const char *parent, const char *compression,
                struct error **errp)
{
    CLEANUP_FREE char *path = NULL;
    CLEANUP_JSON json_t *o = NULL;
    int r = store_check_writable(s, errp);

    r = r < 0 ? r : store_file_path(s, disk, point, ENDING, &path, errp);
    if (r < 0) {
        return r;
    }
    return image_options(size, parent, compression, &o) == 0
               ? image_create(path, "qcow2", o, errp)
               : error_nomem(errp);
}

static bool is_as_made(struct graph *g, struct node *n, uint64_t size,
                       const char *parent)
{
    CLEANUP_JSON json_t *info = node_image_info(g, n);
    const char *below =
        json_string_value(json_object_get(info, "backing-filename"));
    const json_t *data =
        json_object_get(json_object_get(info, "format-specific"), "data");
    char want[POINT_NAME_MAX + sizeof(".qcow2")];

    (void)snprintf(want, sizeof(want), "%s.qcow2", parent);
    return info && node_size(n) == image_bytes(size) &&
           node_cluster_size(n) == SUMS_CHUNK &&
           !json_object_get(data, "data-file") &&
           (parent[0] ? below && strcmp(below, want) == 0 : below == NULL);
}

bool part_fits(struct store *s, const char *disk, const char *point,
               uint64_t size, const char *parent)
{
    CLEANUP_FREE char *path = NULL;
    CLEANUP_CLOSE int fd = -1;
    struct node *n = NULL;

    if (store_open_file(s, disk, point, ENDING, &fd, NULL, NULL) < 0 ||
        store_file_path(s, disk, point, ENDING, &path, NULL) < 0) {
        return false;
    }
    CLEANUP_JSON json_t *o = json_pack(
        "{s:s, s:b, s:{s:s, s:s, s:b}, s:n}", "driver", "qcow2", "read-only", 1,
        "file", "driver", "file", "filename", path, "read-only", 1, "backing");
    struct graph *g = graph_new();
    bool fits = false;
    if (g && o) {
        graph_follow(g, FOLLOW_NONE);
        graph_without_data(g);
        graph_without_bitmaps(g);
        fits = graph_open(g, o, &n, NULL) == 0 &&
               is_as_made(g, n, size, parent);
    }
    if (g) {
        graph_close_all(g);
        graph_free(g);
    }
    return fits;
}

bool part_reclaim(struct store *s, const char *disk, const char *point)
{
    const struct image_check_options how = {.repair = IMAGE_REPAIR_LEAKS};
    CLEANUP_FREE char *path = NULL;
    struct image_check found = {0};
    struct node *file = NULL;

    if (store_file_path(s, disk, point, ENDING, &path, NULL) < 0) {
        return false;
    }
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s}", "driver", "file",
                                       "filename", path);
    struct graph *g = graph_new();
    bool sound = g && o && graph_open(g, o, &file, NULL) == 0 &&
                 image_check(g, file, "qcow2", &how, &found, NULL) == 0 &&
                 found.corruptions == 0;
    if (g) {
        graph_close_all(g);
        graph_free(g);
    }
    return sound;
}

int part_open(struct store *s, struct graph *g, const char *disk,
              const char *point, unsigned perm, struct node **np,
              struct blk **bp, struct error **errp)
{
    CLEANUP_FREE char *path = NULL;
    int r = store_file_path(s, disk, point, ENDING, &path, errp);

    if (r < 0) {
        return r;
    }
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:{s:s, s:s}, s:n}", "driver",
                                       "qcow2", "file", "driver", "file",
                                       "filename", path, "backing");
    r = o ? graph_open(g, o, np, errp) : error_nomem(errp);
    return r < 0 ? r : blk_new(g, *np, perm, PERM_ALL, "backup", bp, errp);
}

int part_replace(struct store *s, const char *disk, const char *point,
                 const char *ending, struct error **errp)
{
    char from[POINT_NAME_MAX + 16];
    char to[POINT_NAME_MAX + 16];
    char part[16];
    CLEANUP_CLOSE int fd = -1;
    int dir = -1;
    int r = store_check_writable(s, errp);

    (void)snprintf(part, sizeof(part), "%s.part", ending);
    (void)snprintf(from, sizeof(from), "%s.%s", point, part);
    (void)snprintf(to, sizeof(to), "%s.%s", point, ending);
    r = r < 0 ? r : store_open_file(s, disk, point, part, &fd, NULL, errp);
    if (r == 0 && fsync(fd) < 0) {
        r = error_set(errp, errno, "cannot flush '%s/%s': %s", disk, from,
                      strerror(errno));
    }
    r = r < 0 ? r : store_folder(s, disk, &dir, errp);
    return r < 0 ? r : dir_rename(dir, from, to, errp);
}

int part_drop(struct store *s, const char *disk, const char *point,
              const char *ending, struct error **errp)
{
    char name[POINT_NAME_MAX + 16];
    int dir = -1;
    int r = store_folder(s, disk, &dir, errp);

    (void)snprintf(name, sizeof(name), "%s.%s.part", point, ending);
    return r < 0 ? r : dir_remove(dir, name, errp);
}
