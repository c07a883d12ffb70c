/* SPDX-License-Identifier: BSD-3-Clause */
/* Directories that only the source's process may enter: see private-dir.h.
 * Another user may own them, so that nothing in them is followed. */
#include "source/private-dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

/* With an id of 32 bytes, and the socket's name, it fits into sun_path. */
#define SOCKET_DIR_MAX 40

/* Files only: nobody makes directories in there. */
static void empty_dir(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    const struct dirent *e;

    if (!dir) {
        if (copy >= 0) {
            (void)close(copy);
        }
        return;
    }
    while ((e = readdir(dir)) != NULL) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            (void)unlinkat(fd, e->d_name, 0);
        }
    }
    (void)closedir(dir);
}

static void remove_at(int parent, const char *name)
{
    CLEANUP_CLOSE int fd =
        openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

    if (fd >= 0) {
        empty_dir(fd);
        (void)unlinkat(parent, name, AT_REMOVEDIR);
    }
}

int private_dir_make(struct private_dir *d, const char *parent, const char *id,
                     struct error **errp)
{
    CLEANUP_FREE char *at = realpath(parent, NULL);
    CLEANUP_FREE char *path = NULL;

    if (!at) {
        return error_set(errp, errno, "the directory '%s': %s", parent,
                         strerror(errno));
    }
    if (asprintf(&path, "%s/nbdelta-%s.XXXXXX", strcmp(at, "/") == 0 ? "" : at,
                 id) < 0) {
        path = NULL;
        return error_nomem(errp);
    }
    if (!mkdtemp(path)) { /* with mode 0700 */
        return error_set(errp, errno, "cannot make a directory in '%s': %s",
                         parent, strerror(errno));
    }
    d->path = path;
    path = NULL;
    return 0;
}

int private_dir_give(struct private_dir *d, uid_t owner, struct error **errp)
{
    return owner == geteuid() || lchown(d->path, owner, (gid_t)-1) == 0
               ? 0
               : error_set(errp, errno,
                           "the directory '%s' cannot be given to user %lu, "
                           "which the other side runs as: %s",
                           d->path, (unsigned long)owner, strerror(errno));
}

const char *private_dir_for_sockets(void)
{
    const char *dir = getenv("TMPDIR");

    return dir && *dir && strlen(dir) <= SOCKET_DIR_MAX ? dir : "/tmp";
}

char *private_dir_beside(const char *socket)
{
    CLEANUP_FREE char *real = realpath(socket, NULL);
    CLEANUP_FREE char *other = realpath(private_dir_for_sockets(), NULL);
    char *slash = real ? strrchr(real, '/') : NULL;

    if (!slash || slash == real || slash - real > SOCKET_DIR_MAX) {
        return NULL;
    }
    *slash = '\0';
    return other && strcmp(other, real) == 0 ? NULL : strdup(real);
}

const char *private_dir_for_files(void)
{
    const char *dir = getenv("TMPDIR");

    return dir && *dir ? dir : "/var/tmp";
}

void private_dir_remove(struct private_dir *d)
{
    if (d->path) {
        remove_at(AT_FDCWD, d->path);
        free(d->path);
        d->path = NULL;
    }
}

static int is_ours(int parent, const char *name, uid_t owner)
{
    struct stat st;

    return fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISDIR(st.st_mode) && (st.st_mode & 07777) == 0700 &&
           (st.st_uid == owner || st.st_uid == geteuid());
}

/* One that private_dir_make() has made for @id. */
static bool is_name(const char *name, const char *id)
{
    static const char prefix[] = "nbdelta-";
    size_t len = strlen(prefix) + strlen(id);

    return strncmp(name, prefix, strlen(prefix)) == 0 &&
           strncmp(name + strlen(prefix), id, strlen(id)) == 0 &&
           name[len] == '.' && strlen(name) == len + 1 + 6 &&
           !strchr(name + len, '/');
}

int private_dir_take(struct private_dir *d, const char *parent, const char *id,
                     uid_t owner, const char *path)
{
    CLEANUP_FREE char *at = realpath(parent, NULL);
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;

    if (!at || !slash || !is_name(slash + 1, id) ||
        !(strcmp(at, "/") == 0
              ? len == 0
              : len == strlen(at) && strncmp(path, at, len) == 0) ||
        !is_ours(AT_FDCWD, path, owner)) {
        return -ENOENT;
    }
    d->path = strdup(path);
    return d->path ? 0 : -ENOMEM;
}

void private_dir_sweep(const char *parent, const char *id, uid_t owner)
{
    DIR *dir = opendir(parent);
    const struct dirent *e;

    while (dir && (e = readdir(dir)) != NULL) {
        if (is_name(e->d_name, id) && is_ours(dirfd(dir), e->d_name, owner)) {
            remove_at(dirfd(dir), e->d_name);
        }
    }
    if (dir) {
        (void)closedir(dir);
    }
}
