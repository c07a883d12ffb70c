/* SPDX-License-Identifier: BSD-3-Clause */
/* Unix sockets that listen, and their files: see unix-socket.h. */
#include "net/unix-socket.h"

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
#include "nbdelta/list.h"
#include "nbdelta/thread.h"

#define BACKLOG 128

/* A file that a socket has made. */
struct socket_file {
    struct list link;
    char *path;
    dev_t dev; /* another file may have its name by now */
    ino_t ino;
};

static mutex_t files_lock = MUTEX_STATIC(LOCK_SOCKET_FILES);
/* Guarded by files_lock. */
static struct list files = {&files, &files};
static bool files_stay;

/* The file of the socket that was just bound to @path.  NULL: no memory, or no
 * file. */
static struct socket_file *file_new(const char *path)
{
    struct socket_file *f = calloc(1, sizeof(*f));
    struct stat st;

    if (!f || !(f->path = strdup(path)) || lstat(path, &st) < 0) {
        if (f) {
            free(f->path);
        }
        free(f);
        return NULL;
    }
    f->dev = st.st_dev;
    f->ino = st.st_ino;
    mutex_lock(&files_lock);
    list_append(&files, &f->link);
    mutex_unlock(&files_lock);
    return f;
}

static void file_free(struct socket_file *f)
{
    if (f) {
        mutex_lock(&files_lock);
        list_remove(&f->link);
        mutex_unlock(&files_lock);
        free(f->path);
        free(f);
    }
}

static void file_remove(const struct socket_file *f)
{
    struct stat st;

    if (lstat(f->path, &st) == 0 && st.st_dev == f->dev &&
        st.st_ino == f->ino) {
        (void)unlink(f->path);
    }
}

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

static mode_t mode_of(const struct socket_access *a)
{
    return a && a->mode ? a->mode : 0600;
}

static int bind_path(int fd, const char *path, mode_t mode,
                     const struct sockaddr_un *addr)
{
    const struct sockaddr *sa = (const struct sockaddr *)addr;

    /* bind makes a file with the mode of the socket, less the umask. */
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
    return r < 0 ? -errno : 0;
}

/* Nobody can connect yet, because nobody listens. */
static int admit(const char *path, const struct socket_access *access,
                 struct error **errp)
{
    if (access && access->has_group &&
        lchown(path, (uid_t)-1, access->group) < 0) {
        return error_set(errp, errno,
                         "cannot give the socket '%s' to group %u: %s", path,
                         (unsigned)access->group, strerror(errno));
    }
    return chmod(path, mode_of(access)) < 0
               ? error_set(errp, errno, "cannot change the mode of '%s': %s",
                           path, strerror(errno))
               : 0;
}

/* Why @path is taken, for an error text. */
static const char *in_the_way(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode)
               ? " (it is something else than a socket)"
               : " (another process listens on it)";
}

/* Make the file of the bound socket @fd one that clients can connect to. */
static int open_door(struct unix_socket *u, int fd, const char *path,
                     const struct socket_access *access, struct error **errp)
{
    int r = admit(path, access, errp);

    if (r < 0) {
        return r;
    }
    u->file = file_new(path);
    if (!u->file || listen(fd, BACKLOG) < 0) {
        r = u->file ? -errno : -ENOMEM;
        file_free(u->file);
        return error_set(errp, -r, "cannot listen on '%s': %s", path,
                         strerror(-r));
    }
    return 0;
}

int unix_socket_listen(struct unix_socket *u, const char *path,
                       const struct socket_access *access, struct error **errp)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    CLEANUP_CLOSE int fd = -1;

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
    int r = bind_path(fd, path, mode_of(access), &addr);
    if (r < 0) {
        return error_set(errp, -r, "cannot bind the socket '%s': %s%s", path,
                         strerror(-r),
                         r == -EADDRINUSE ? in_the_way(path) : "");
    }
    r = open_door(u, fd, path, access, errp);
    if (r < 0) {
        (void)unlink(path);
        return r;
    }
    u->fd = fd;
    fd = -1;
    return 0;
}

void unix_socket_close(struct unix_socket *u)
{
    (void)close(u->fd);
    mutex_lock(&files_lock);
    bool go = u->file && !files_stay;
    mutex_unlock(&files_lock);
    if (go) {
        file_remove(u->file);
        file_free(u->file);
    }
}

void unix_sockets_keep(void)
{
    mutex_lock(&files_lock);
    files_stay = true;
    mutex_unlock(&files_lock);
}

void unix_sockets_forget(void)
{
    mutex_lock(&files_lock);
    while (!list_empty(&files)) {
        struct socket_file *f = list_entry(files.next, struct socket_file,
                                           link);

        mutex_unlock(&files_lock);
        file_remove(f);
        file_free(f);
        mutex_lock(&files_lock);
    }
    mutex_unlock(&files_lock);
}
