/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The implicit-open policy: which files an image may name.
 *
 * Both sides are resolved (symbolic links, "..") before they are compared, so
 * that neither a link nor a clever name leads out of a directory.  The resolved
 * path is then walked down without following any link (core/door.h): a link
 * that has come there meanwhile is an error.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/door.h"
#include "core/graph-priv.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

int graph_allow_path(struct graph *g, const char *path, struct error **errp)
{
    char *real = realpath(path, NULL);
    if (!real) {
        return error_set(errp, errno, "cannot resolve the path '%s': %s", path,
                         strerror(errno));
    }
    char **more = realloc(g->allowed, (g->allowed_count + 1) * sizeof(*more));
    if (!more) {
        free(real);
        return error_nomem(errp);
    }
    g->allowed = more;
    g->allowed[g->allowed_count++] = real;
    return 0;
}

void graph_follow(struct graph *g, enum graph_follow how)
{
    g->follow = how;
}

void graph_without_data(struct graph *g)
{
    g->without_data = true;
}

void graph_without_bitmaps(struct graph *g)
{
    g->without_bitmaps = true;
}

bool graph_is_without_bitmaps(const struct graph *g)
{
    return g->without_bitmaps;
}

char *path_beside(const char *image, const char *named)
{
    const char *slash = strrchr(image, '/');
    char *path;

    if (named[0] == '/' || !slash) {
        return strdup(named);
    }
    if (asprintf(&path, "%.*s/%s", (int)(slash - image), image, named) < 0) {
        return NULL;
    }
    return path;
}

/* Is @path @dir itself or below it?  Both are resolved. */
static bool path_is_below(const char *dir, const char *path)
{
    size_t len = strlen(dir);

    if (strcmp(dir, "/") == 0) {
        return true;
    }
    return strncmp(dir, path, len) == 0 &&
           (path[len] == '/' || path[len] == '\0');
}

/* Find the file that @real names, without following a link: the path may have
 * changed since it was resolved. */
static int find_resolved(struct door *d, const char *real)
{
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int r = root < 0 ? -errno : 0;

    *d = (struct door){-1, AT_FDCWD, NULL, {0}};
    if (root >= 0) {
        r = door_find_below(d, root, real + 1);
        (void)close(root);
    }
    return r;
}

const struct node *node_at_bottom(const struct node *n)
{
    while (node_child(n, CHILD_FILE)) {
        n = node_child(n, CHILD_FILE);
    }
    return n;
}

/*
 * The directory that the file of @image is in, and its resolved path (the
 * caller's), or false.  The name alone is no proof: the open file has to be
 * what is found there.
 */
static bool own_directory(const struct node *image, char **path,
                          struct door *dir)
{
    const struct node *file = node_at_bottom(image);
    struct stat there;
    struct stat st;

    if (!file->drv->fstat || file->drv->fstat(file, &st) < 0 ||
        !S_ISREG(st.st_mode)) {
        return false;
    }
    CLEANUP_FREE char *real = realpath(node_filename(file), NULL);
    char *slash = real ? strrchr(real, '/') : NULL;
    if (!slash) {
        return false;
    }
    CLEANUP_FREE char *name = strdup(slash + 1);
    slash[slash == real] = '\0';
    if (!name || find_resolved(dir, real) < 0) {
        return false;
    }
    if (fstatat(dir->fd, name, &there, AT_SYMLINK_NOFOLLOW) < 0 ||
        !door_same(&there, &st)) {
        door_close(dir);
        return false;
    }
    *path = real;
    real = NULL;
    return true;
}

/* Find the file below the allowed directories.  1: it is not there. */
static int find_allowed(const struct graph *g, const char *real, struct door *d)
{
    for (size_t i = 0; i < g->allowed_count; i++) {
        if (path_is_below(g->allowed[i], real)) {
            return find_resolved(d, real);
        }
    }
    return 1;
}

/* Find the file in or below the directory of the image.  1: it is not there. */
static int find_beside(const struct node *image, const char *real,
                       struct door *d)
{
    CLEANUP_FREE char *own = NULL;
    struct door dir;
    int r = 1;

    if (!own_directory(image, &own, &dir)) {
        return 1;
    }
    if (path_is_below(own, real)) {
        size_t skip = strlen(own);

        r = door_find_below(d, dir.fd, real + skip + (real[skip] == '/'));
    }
    door_close(&dir);
    return r;
}

/* Do the file and the image belong to the same user? */
static bool same_owner(const struct node *image, const struct door *d)
{
    const struct node *file = node_at_bottom(image);
    struct stat st;

    return file->drv->fstat && file->drv->fstat(file, &st) == 0 &&
           st.st_uid == d->st.st_uid;
}

static const char *image_of(const struct named *by)
{
    return node_filename(node_at_bottom(by->image));
}

static int refuse(const struct named *by, const char *real, const char *why,
                  struct error **errp)
{
    return error_set(errp, EPERM, "image '%s' names the file '%s', which %s",
                     image_of(by), real, why);
}

static int cannot_open(const struct named *by, const char *path, int code,
                       struct error **errp)
{
    return error_set(errp, code,
                     "image '%s' names the file '%s', which cannot be opened: "
                     "%s",
                     image_of(by), path, strerror(code));
}

int policy_find(const struct named *by, const char *path, bool writable,
                struct door *d, bool *only_read, struct error **errp)
{
    const struct graph *g = by->image->graph;
    CLEANUP_FREE char *real = realpath(path, NULL);
    if (!real) {
        return cannot_open(by, path, errno, errp);
    }
    int r = find_allowed(g, real, d);

    *only_read = false;
    if (r == 1 && g->follow == FOLLOW_NONE) {
        return refuse(by, real,
                      "is not below what --allow-path allows (--follow=none)",
                      errp);
    }
    bool beside = r == 1;
    if (beside) {
        r = find_beside(by->image, real, d);
    }
    if (r == 1) {
        return refuse(by, real,
                      "is outside of the image's directory and of what "
                      "--allow-path allows (an image on a device has no "
                      "directory of its own)",
                      errp);
    }
    if (r < 0) {
        return cannot_open(by, path, -r, errp);
    }
    if (beside && !S_ISREG(d->st.st_mode)) {
        r = refuse(by, real,
                   "is no regular file, and not below what --allow-path allows",
                   errp);
    }
    *only_read = beside && by->data && g->follow != FOLLOW_DATA &&
                 !same_owner(by->image, d);
    if (r == 0 && *only_read && writable) {
        r = refuse(by, real,
                   "belongs to somebody else, and is written to only if you "
                   "name it (option 'data-file') or allow it (--follow=data, "
                   "--allow-path)",
                   errp);
    }
    if (r < 0) {
        door_close(d);
    }
    return r;
}
