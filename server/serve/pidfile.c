/* SPDX-License-Identifier: BSD-3-Clause */
/* The file with the process id, and its lock: see pidfile.h. */
#include "serve/pidfile.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

/* The whole file; false: somebody else has it, or errno says why not. */
static bool lock_file(int fd)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fcntl(fd, F_OFD_SETLK, &l) == 0;
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        (void)close(*fd);
    }
    *fd = -1;
}

/* Is @path (still) the file @fd? */
static bool is_at(int fd, const char *path)
{
    struct stat own;
    struct stat there;

    return fstat(fd, &own) == 0 && lstat(path, &there) == 0 &&
           own.st_dev == there.st_dev && own.st_ino == there.st_ino;
}

/* The number that is all of the file; 0: it is empty; -1: it is something
 * else. */
static long read_pid(int fd)
{
    char text[32];
    struct stat st;
    ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
    char *end;

    if (n < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
        st.st_size != n) {
        return -1;
    }
    text[n] = '\0';
    if (n == 0) {
        return 0;
    }
    long pid = strtol(text, &end, 10);
    while (isspace((unsigned char)*end)) {
        end++;
    }
    return *end || pid <= 0 ? -1 : pid;
}

static int tell_taken(const char *path, int fd, struct error **errp)
{
    return error_set(errp, EEXIST,
                     "'%s' belongs to another process, which runs (the file "
                     "says %ld)",
                     path, read_pid(fd));
}

/* The file that is there, of nobody, becomes p->stale.  -EAGAIN: it was another
 * one meanwhile. */
static int take_stale(struct pidfile *p, struct error **errp)
{
    int fd = open(p->path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    int r = 0;

    if (fd < 0 && errno == ENOENT) {
        return 0;
    }
    if (fd < 0) {
        return error_set(errp, errno, "cannot open '%s': %s", p->path,
                         strerror(errno));
    }
    if (read_pid(fd) < 0) {
        r = error_set(errp, EINVAL,
                      "'%s' is there and is no pidfile: it is not overwritten",
                      p->path);
    } else if (!lock_file(fd)) {
        r = errno == EAGAIN || errno == EACCES
                ? tell_taken(p->path, fd, errp)
                : error_set(errp, errno, "cannot lock '%s': %s", p->path,
                            strerror(errno));
    } else if (!is_at(fd, p->path)) {
        r = -EAGAIN;
    }
    if (r < 0) {
        (void)close(fd);
    } else {
        p->stale = fd;
    }
    return r;
}

int pidfile_check(struct pidfile *p, struct error **errp)
{
    int r = 0;

    if (p->path) {
        do {
            r = take_stale(p, errp);
        } while (r == -EAGAIN);
    }
    return r;
}

/* A file beside it, locked, that says who we are. */
static int make_locked(const char *path, char *temp, int *fd,
                       struct error **errp)
{
    *fd = mkostemp(temp, O_CLOEXEC);
    if (*fd < 0) {
        return error_set(errp, errno, "cannot make '%s': %s", path,
                         strerror(errno));
    }
    if (lock_file(*fd) && dprintf(*fd, "%ld\n", (long)getpid()) > 0 &&
        fchmod(*fd, 0644) == 0) {
        return 0;
    }
    int code = errno;
    (void)unlink(temp);
    close_fd(fd);
    return error_set(errp, code, "cannot write '%s': %s", path, strerror(code));
}

/* Without a file there, nobody may have come first; else it is ours. */
static bool put_in_place(const struct pidfile *p, const char *temp)
{
    if (p->stale >= 0 && is_at(p->stale, p->path)) {
        return rename(temp, p->path) == 0;
    }
    if (renameat2(AT_FDCWD, temp, AT_FDCWD, p->path, RENAME_NOREPLACE) == 0) {
        return true;
    }
    /* Not all file systems have that; those have hard links. */
    if (errno != EINVAL || link(temp, p->path) < 0) {
        return false;
    }
    (void)unlink(temp);
    return true;
}

int pidfile_write(struct pidfile *p, struct error **errp)
{
    CLEANUP_FREE char *temp = NULL;
    int fd = -1;
    int r;

    if (!p->path) {
        return 0;
    }
    if (asprintf(&temp, "%s.XXXXXX", p->path) < 0) {
        temp = NULL;
        return error_nomem(errp);
    }
    r = make_locked(p->path, temp, &fd, errp);
    if (r < 0) {
        return r;
    }
    while (!put_in_place(p, temp)) {
        int code = errno;

        close_fd(&p->stale);
        r = code == EEXIST ? pidfile_check(p, errp)
                           : error_set(errp, code, "cannot write '%s': %s",
                                       p->path, strerror(code));
        if (r < 0) {
            (void)unlink(temp);
            (void)close(fd);
            return r;
        }
    }
    p->fd = fd;
    close_fd(&p->stale);
    return 0;
}

void pidfile_remove(struct pidfile *p)
{
    if (p->fd >= 0 && is_at(p->fd, p->path)) {
        (void)unlink(p->path);
    }
    close_fd(&p->fd);
    close_fd(&p->stale);
}
