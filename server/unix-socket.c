/* SPDX-License-Identifier: BSD-3-Clause */
#include "unix-socket.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define BACKLOG 128

/* Is @path a socket that nobody listens on? */
static bool is_stale(const char *path, const struct sockaddr_un *addr)
{
    CLEANUP_CLOSE int fd = -1;
    struct stat st;

    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd >= 0 &&
           connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 &&
           errno == ECONNREFUSED;
}

static int bind_path(int fd, const char *path, mode_t mode,
                     const struct sockaddr_un *addr)
{
    const struct sockaddr *sa = (const struct sockaddr *)addr;

    /* The mode of the socket is that of the file that bind makes, less the
     * umask. */
    if (fchmod(fd, mode) < 0) {
        return -errno;
    }
    int r = bind(fd, sa, sizeof(*addr));
    if (r < 0 && errno == EADDRINUSE) {
        if (!is_stale(path, addr)) {
            return -EADDRINUSE;
        }
        (void)unlink(path);
        r = bind(fd, sa, sizeof(*addr));
    }
    return r < 0 || chmod(path, mode) < 0 ? -errno : 0;
}

/* What keeps @path from being ours, for an error text. */
static const char *in_the_way(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode)
               ? " (it is something else than a socket)"
               : " (another process listens on it)";
}

int unix_socket_listen(struct unix_socket *u, const char *path, mode_t mode,
                       struct error **errp)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    CLEANUP_CLOSE int fd = -1;
    struct stat st;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return error_set(errp, ENAMETOOLONG,
                         "the path of the socket '%s' is longer than %zu bytes",
                         path, sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return error_set(errp, errno, "cannot make a socket: %s",
                         strerror(errno));
    }
    int r = bind_path(fd, path, mode, &addr);
    if (r < 0) {
        return error_set(errp, -r, "cannot bind the socket '%s': %s%s", path,
                         strerror(-r),
                         r == -EADDRINUSE ? in_the_way(path) : "");
    }
    u->path = strdup(path);
    if (!u->path || listen(fd, BACKLOG) < 0 || lstat(path, &st) < 0) {
        r = u->path ? -errno : -ENOMEM;
        free(u->path);
        (void)unlink(path);
        return error_set(errp, -r, "cannot listen on '%s': %s", path,
                         strerror(-r));
    }
    u->dev = st.st_dev;
    u->ino = st.st_ino;
    u->fd = fd;
    fd = -1;
    return 0;
}

void unix_socket_close(struct unix_socket *u)
{
    struct stat st;

    if (u->path && lstat(u->path, &st) == 0 && st.st_dev == u->dev &&
        st.st_ino == u->ino) {
        (void)unlink(u->path);
    }
    free(u->path);
    (void)close(u->fd);
}
