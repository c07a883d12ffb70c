/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Files of a backup directory, beneath a descriptor.
 *
 * A file that is put appears whole or not at all:
 *
 *     tmp.PID.N  write, fsync  --rename-->  NAME, fsync of the directory
 *
 * After an error in the last step nobody knows which of the two is there after
 * a power cut.  Each of them is a whole file.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/store-priv.h"

#define TMP "tmp."

/* O_NONBLOCK: a pipe in the place of a file is refused, and not waited for. */
int dir_open_file(int dir, const char *name, int *fd, uint64_t *size,
                  struct error **errp)
{
    struct stat st;
    CLEANUP_CLOSE int f = openat(
        dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

    if (f < 0) {
        return error_set(errp, errno, "cannot open '%s': %s", name,
                         errno == ELOOP ? "it is a symbolic link"
                                        : strerror(errno));
    }
    if (fstat(f, &st) < 0) {
        return error_set(errp, errno, "cannot look at '%s': %s", name,
                         strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return error_set(errp, EINVAL, "'%s' is not a regular file", name);
    }
    if (size) {
        *size = (uint64_t)st.st_size;
    }
    *fd = f;
    f = -1;
    return 0;
}

static int read_all(int fd, char *bytes, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = read(fd, bytes + done, length - done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO; /* it has become shorter */
        }
        done += (size_t)n;
    }
    return 0;
}

int dir_get(int dir, const char *name, size_t max, char **bytes, size_t *length,
            struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;
    uint64_t size = 0;
    int r = dir_open_file(dir, name, &fd, &size, errp);

    if (r < 0) {
        return r;
    }
    if (size > max) {
        return error_set(errp, EFBIG, "'%s' has more than %zu bytes", name,
                         max);
    }
    char *all = malloc((size_t)size + 1);
    if (!all) {
        return error_nomem(errp);
    }
    r = read_all(fd, all, (size_t)size);
    if (r < 0) {
        free(all);
        return error_set(errp, -r, "cannot read '%s': %s", name, strerror(-r));
    }
    all[size] = '\0';
    *bytes = all;
    *length = (size_t)size;
    return 0;
}

int write_all(int fd, const void *bytes, size_t length)
{
    const char *at = bytes;

    while (length > 0) {
        ssize_t n = write(fd, at, length);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        at += n;
        length -= (size_t)n;
    }
    return 0;
}

int dir_flush(int dir, struct error **errp)
{
    return fsync(dir) == 0
               ? 0
               : error_set(errp, errno, "cannot flush a directory: %s",
                           strerror(errno));
}

int dir_rename(int dir, const char *from, const char *to, struct error **errp)
{
    if (renameat(dir, from, dir, to) < 0) {
        return error_set(errp, errno, "cannot rename '%s' to '%s': %s", from,
                         to, strerror(errno));
    }
    return dir_flush(dir, errp);
}

int dir_remove(int dir, const char *name, struct error **errp)
{
    return unlinkat(dir, name, 0) == 0 || errno == ENOENT
               ? 0
               : error_set(errp, errno, "cannot remove '%s': %s", name,
                           strerror(errno));
}

bool is_unfinished(const char *name)
{
    return strncmp(name, TMP, strlen(TMP)) == 0 && name[strlen(TMP)] != '\0' &&
           name[strlen(TMP) + strspn(name + strlen(TMP), "0123456789.")] ==
               '\0';
}

/* A file of an earlier process with our number may be there. */
static int create_unfinished(int dir, char *name, size_t max)
{
    static _Atomic unsigned serial;
    int fd;

    do {
        (void)snprintf(name, max, TMP "%d.%u", (int)getpid(),
                       atomic_fetch_add(&serial, 1));
        fd = openat(dir, name,
                    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    } while (fd < 0 && errno == EEXIST);
    return fd < 0 ? -errno : fd;
}

static int fill(int fd, const void *bytes, size_t length)
{
    int r = write_all(fd, bytes, length);

    if (r == 0 && fsync(fd) < 0) {
        r = -errno;
    }
    if (close(fd) < 0 && r == 0) {
        r = -errno;
    }
    return r;
}

static int put_once(int dir, const char *name, const void *bytes, size_t length,
                    struct error **errp)
{
    char tmp[64];
    int fd = create_unfinished(dir, tmp, sizeof(tmp));

    if (fd < 0) {
        return error_set(errp, -fd, "cannot create '%s': %s", name,
                         strerror(-fd));
    }
    int r = fill(fd, bytes, length);
    if (r < 0) {
        (void)error_set(errp, -r, "cannot write '%s': %s", name, strerror(-r));
    } else if (renameat(dir, tmp, dir, name) < 0) {
        r = error_set(errp, errno, "cannot rename a file to '%s': %s", name,
                      strerror(errno));
    } else {
        return dir_flush(dir, errp);
    }
    (void)unlinkat(dir, tmp, 0);
    return r;
}

/* A run that cleans takes all unfinished files for those of killed runs, also
 * one of a process that needs no lock for what it puts: that tries again. */
int dir_put(int dir, const char *name, const void *bytes, size_t length,
            struct error **errp)
{
    int r = -ENOENT;

    for (int tries = 0; r == -ENOENT && tries < 3; tries++) {
        r = put_once(dir, name, bytes, length, errp);
    }
    return r;
}

int dir_each(int dir, int (*fn)(const char *name, void *opaque), void *opaque,
             struct error **errp)
{
    int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    int r = 0;

    if (!d) {
        r = error_set(errp, errno, "cannot read a directory: %s",
                      strerror(errno));
        if (fd >= 0) {
            (void)close(fd);
        }
        return r;
    }
    while (r == 0) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e) {
            if (errno != 0) {
                r = error_set(errp, errno, "cannot read a directory: %s",
                              strerror(errno));
            }
            break;
        }
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            r = fn(e->d_name, opaque);
        }
    }
    (void)closedir(d);
    return r;
}
