/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Files of disks in a backup directory, and how they are opened as images.
 *
 *     DIR --openat--> disk's folder (kept open) --openat--> POINT.qcow2
 *
 * Folders are opened once and without following a link.  What blocklib opens is
 * named by way of the folder's descriptor: it stays in that folder, whatever
 * becomes of the names above.  The image's own idea of its parent is never
 * followed: chains are what the manifests say.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/store-priv.h"

#define ENDING_MAX 16
#define FILE_MAX   (POINT_NAME_MAX + ENDING_MAX + 1)

static int folder_open(const struct store *s, const char *disk, int *fd,
                       struct error **errp)
{
    *fd = openat(s->dir, disk, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (*fd >= 0) {
        return 0;
    }
    /* Of a link, some kernels say that it is no directory. */
    return error_set(errp, errno, "cannot open folder '%s/%s': %s", s->path,
                     disk,
                     errno == ENOTDIR || errno == ELOOP
                         ? "it is not a directory, or a symbolic link"
                         : strerror(errno));
}

int store_folder(struct store *s, const char *disk, int *fd,
                 struct error **errp)
{
    int r = disk_name_check(disk, errp);

    for (unsigned i = 0; r == 0 && i < s->folders; i++) {
        if (strcmp(s->folder[i].disk, disk) == 0) {
            *fd = s->folder[i].fd;
            return 0;
        }
    }
    CLEANUP_CLOSE int f = -1;
    r = r < 0 ? r : folder_open(s, disk, &f, errp);
    if (r < 0) {
        return r;
    }
    struct store_folder *all = reallocarray(s->folder, s->folders + 1,
                                            sizeof(*all));
    char *copy = strdup(disk);
    s->folder = all ? all : s->folder;
    if (!all || !copy) {
        free(copy);
        return error_nomem(errp);
    }
    all[s->folders++] = (struct store_folder){.disk = copy, .fd = f};
    *fd = f;
    f = -1;
    return 0;
}

int store_add_disk(struct store *s, const char *disk, struct error **errp)
{
    int fd;
    int r = store_check_writable(s, errp);

    r = r < 0 ? r : disk_name_check(disk, errp);
    if (r < 0) {
        return r;
    }
    if (mkdirat(s->dir, disk, 0700) < 0 && errno != EEXIST) {
        return error_set(errp, errno, "cannot make folder '%s/%s': %s", s->path,
                         disk, strerror(errno));
    }
    r = dir_flush(s->dir, errp);
    return r < 0 ? r : store_folder(s, disk, &fd, errp);
}

/* The folder, and the file's name in it. */
static int find_place(struct store *s, const char *disk, const char *point,
                      const char *ending, int *dir, char file[FILE_MAX],
                      struct error **errp)
{
    if (!point_name_valid(point) || strlen(ending) > ENDING_MAX) {
        return error_set(errp, EINVAL, "'%s.%s' is not the name of a file",
                         point, ending);
    }
    (void)snprintf(file, FILE_MAX, "%s.%s", point, ending);
    return store_folder(s, disk, dir, errp);
}

int store_file_path(struct store *s, const char *disk, const char *point,
                    const char *ending, char **path, struct error **errp)
{
    char file[FILE_MAX];
    int dir;
    int r = find_place(s, disk, point, ending, &dir, file, errp);

    if (r < 0) {
        return r;
    }
    return asprintf(path, "/proc/self/fd/%d/%s", dir, file) < 0
               ? error_nomem(errp)
               : 0;
}

int store_open_file(struct store *s, const char *disk, const char *point,
                    const char *ending, int *fd, uint64_t *size,
                    struct error **errp)
{
    char file[FILE_MAX];
    int dir;
    int r = find_place(s, disk, point, ending, &dir, file, errp);

    r = r < 0 ? r : dir_open_file(dir, file, fd, size, errp);
    if (r < 0 && errp) {
        error_prefix(errp, "disk '%s': ", disk);
    }
    return r;
}

int store_create_file(struct store *s, const char *disk, const char *point,
                      const char *ending, int *fd, struct error **errp)
{
    char file[FILE_MAX];
    int dir;
    int r = store_check_writable(s, errp);

    r = r < 0 ? r : find_place(s, disk, point, ending, &dir, file, errp);
    if (r < 0) {
        return r;
    }
    *fd = openat(dir, file,
                 O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    return *fd >= 0 ? 0
                    : error_set(errp, errno, "cannot create '%s/%s/%s': %s",
                                s->path, disk, file, strerror(errno));
}

/* --- The end of a disk's copy --- */

static int flush_file(struct store *s, const char *disk, const char *point,
                      const char *ending, struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;
    int r = store_open_file(s, disk, point, ending, &fd, NULL, errp);

    if (r == 0 && fsync(fd) < 0) {
        r = error_set(errp, errno, "cannot flush '%s/%s/%s.%s': %s", s->path,
                      disk, point, ending, strerror(errno));
    }
    return r;
}

int store_keep_disk(struct store *s, const char *disk, const char *point,
                    struct error **errp)
{
    static const char *const files[][2] = {{"qcow2.part", "qcow2"},
                                           {"sums.part", "sums"}};
    char from[FILE_MAX];
    char to[FILE_MAX];
    int dir = -1;
    int r = store_check_writable(s, errp);

    for (int i = 0; r == 0 && i < 2; i++) {
        r = flush_file(s, disk, point, files[i][0], errp);
    }
    for (int i = 0; r == 0 && i < 2; i++) {
        r = find_place(s, disk, point, files[i][0], &dir, from, errp);
        r = r < 0 ? r : find_place(s, disk, point, files[i][1], &dir, to, errp);
        r = r < 0 ? r : dir_rename(dir, from, to, errp);
    }
    return r;
}

int store_drop_disk(struct store *s, const char *disk, const char *point,
                    struct error **errp)
{
    static const char *const endings[] = {"qcow2.part", "sums.part", "qcow2",
                                          "sums"};
    char file[FILE_MAX];
    int dir = -1;
    int r = store_check_writable(s, errp);

    if (r == 0 && store_named(s, point)) {
        return error_set(errp, EBUSY, "%s is a point of '%s'", point, s->path);
    }
    for (int i = 0; r == 0 && i < 4; i++) {
        r = find_place(s, disk, point, endings[i], &dir, file, errp);
        r = r < 0 ? r : dir_remove(dir, file, errp);
    }
    return r < 0 ? r : dir_flush(dir, errp);
}

/* --- Images --- */

/* @backing is stolen; NULL: JSON's null. */
static int image_options(struct store *s, const char *disk, const char *point,
                         json_t *backing, json_t **options, struct error **errp)
{
    CLEANUP_FREE char *path = NULL;
    CLEANUP_JSON json_t *below = backing;
    CLEANUP_CLOSE int fd = -1;
    int r = store_open_file(s, disk, point, "qcow2", &fd, NULL, errp);

    r = r < 0 ? r : store_file_path(s, disk, point, "qcow2", &path, errp);
    if (r < 0) {
        return r;
    }
    *options = json_pack("{s:s, s:b, s:O?, s:{s:s, s:s, s:b}}", "driver",
                         "qcow2", "read-only", 1, "backing", below, "file",
                         "driver", "file", "filename", path, "read-only", 1);
    return *options ? 0 : error_nomem(errp);
}

int store_layer_options(struct store *s, const char *disk, const char *point,
                        json_t **options, struct error **errp)
{
    return image_options(s, disk, point, NULL, options, errp);
}

int store_parent(const struct store *s, const struct manifest_disk *d,
                 const struct manifest_disk **parent, struct error **errp)
{
    *parent = NULL;
    if (d->parent[0] == '\0') {
        return 0;
    }
    const struct store_point *p = store_named(s, d->parent);
    if (!p) {
        return error_set(errp, EUCLEAN, "disk '%s': its parent %s is missing",
                         d->name, d->parent);
    }
    if (!p->manifest) {
        return error_set(errp, EUCLEAN,
                         "disk '%s': the manifest of its parent %s cannot be "
                         "used: %s",
                         d->name, d->parent, p->why);
    }
    const struct manifest_disk *found = manifest_find(p->manifest, d->name);
    if (!found || strcmp(found->sums_hash, d->parent_hash) != 0 ||
        found->size != d->size) {
        return error_set(errp, EUCLEAN,
                         "disk '%s': its parent %s has %s it was made over",
                         d->name, d->parent,
                         !found ? "no such disk as" : "another disk than");
    }
    *parent = found;
    return 0;
}

static const struct manifest_disk *find_disk(const struct store *s,
                                             const char *point,
                                             const char *disk)
{
    const struct store_point *p = store_named(s, point);

    return p && p->manifest ? manifest_find(p->manifest, disk) : NULL;
}

/* The points of @d, which is in @point, and of its parents, newest first.
 * Parents are older, so there are no more of them than points, and the pending
 * one.  Free *points. */
static int list_chain(const struct store *s, const char *point,
                      const struct manifest_disk *d, const char ***points,
                      unsigned *count, struct error **errp)
{
    int r = 0;

    *points = calloc(s->count + 2, sizeof(**points));
    if (!*points) {
        return error_nomem(errp);
    }
    while (r == 0 && d) {
        const struct manifest_disk *parent = NULL;

        (*points)[(*count)++] = point;
        r = store_parent(s, d, &parent, errp);
        point = d->parent;
        d = parent;
    }
    return r;
}

int store_chain_options(struct store *s, const char *disk, const char *point,
                        json_t **options, struct error **errp)
{
    CLEANUP_FREE const char **points = NULL;
    const struct manifest_disk *d = find_disk(s, point, disk);
    unsigned count = 0;
    json_t *below = NULL;

    if (!d) {
        return error_set(errp, ENOENT, "point %s of '%s' has no disk '%s'",
                         point, s->path, disk);
    }
    int r = list_chain(s, point, d, &points, &count, errp);
    for (unsigned i = count; r == 0 && i > 0; i--) {
        json_t *above = NULL;
        r = image_options(s, disk, points[i - 1], below, &above, errp);
        below = above;
    }
    if (r < 0) {
        json_decref(below);
        return r == -ENOENT ? -EUCLEAN : r;
    }
    *options = below;
    return 0;
}
