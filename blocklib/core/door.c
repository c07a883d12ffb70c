/* SPDX-License-Identifier: BSD-3-Clause */
/* Finding files as O_PATH descriptors, and opening what was found. */
#include "core/door.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"

/* Take @fd, an O_PATH descriptor (or -1 with errno), and @dir into *d. */
static int look(struct door *d, int fd, int dir, const char *name)
{
    int r = fd < 0 ? -errno : 0;

    *d = (struct door){fd, dir, strdup(name), {0}};
    if (r == 0 && fstat(fd, &d->st) < 0) {
        r = -errno;
    }
    if (r == 0 && !d->name) {
        r = -ENOMEM;
    }
    if (r < 0) {
        door_close(d);
    }
    return r;
}

int door_find(struct door *d, const char *filename)
{
    return look(d, open(filename, O_PATH | O_CLOEXEC), AT_FDCWD, filename);
}

int door_find_link(struct door *d, const char *filename)
{
    return look(d, open(filename, O_PATH | O_NOFOLLOW | O_CLOEXEC), AT_FDCWD,
                filename);
}

/* The directory in @at with the name that begins at @path.  @at is closed. */
static int step(int at, const char *path, size_t len)
{
    CLEANUP_FREE char *name = strndup(path, len);
    int next = name ? openat(at, name,
                             O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                    : -1;
    int r = next < 0 ? -errno : next;

    (void)close(at);
    return r;
}

int door_find_below(struct door *d, int root, const char *path)
{
    int at = fcntl(root, F_DUPFD_CLOEXEC, 0);
    const char *slash;

    if (at < 0) {
        return -errno;
    }
    while ((slash = strchr(path, '/'))) {
        at = step(at, path, (size_t)(slash - path));
        if (at < 0) {
            return at;
        }
        path = slash + 1;
    }
    /* The root itself has no name in it. */
    path = path[0] ? path : ".";
    int r = look(d, openat(at, path, O_PATH | O_NOFOLLOW | O_CLOEXEC), at,
                 path);
    if (r == 0 && S_ISLNK(d->st.st_mode)) {
        door_close(d);
        r = -ELOOP;
    }
    return r;
}

/* Open the file by its name, if that still leads to it. */
static int open_by_name(const struct door *d, int flags)
{
    struct stat st;
    int fd = openat(d->dir, d->name,
                    flags | O_NONBLOCK | (d->dir == AT_FDCWD ? 0 : O_NOFOLLOW));

    if (fd < 0) {
        return -errno;
    }
    if (fstat(fd, &st) < 0 || !door_same(&st, &d->st) ||
        fcntl(fd, F_SETFL, flags) < 0) {
        (void)close(fd);
        return -ESTALE;
    }
    return fd;
}

int door_open(const struct door *d, int flags)
{
    char path[40];

    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", d->fd);
    int fd = open(path, flags | O_CLOEXEC | O_NOCTTY);
    if (fd < 0 && errno == ENOENT) { /* no /proc */
        return open_by_name(d, flags | O_CLOEXEC | O_NOCTTY);
    }
    return fd < 0 ? -errno : fd;
}

void door_close(struct door *d)
{
    if (d->fd >= 0) {
        (void)close(d->fd);
    }
    if (d->dir >= 0) {
        (void)close(d->dir);
    }
    free(d->name);
    d->fd = -1;
    d->dir = AT_FDCWD;
    d->name = NULL;
}
