/* SPDX-License-Identifier: BSD-3-Clause */
/* The file under a new image: finding, making and finishing it. */
#include "core/create-file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/door.h"
#include "core/graph.h"
#include "core/imagelock.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

/* --- Permissions --- */

/* The mode when the group is another one: the group gets only what others have,
 * too. */
static mode_t of_strangers(mode_t mode)
{
    return mode & (0707 | (mode & 07) << 3);
}

void file_access_narrow(struct file_access *a, const struct stat *st)
{
    mode_t mode = st->st_mode & 0777;

    if (a->of_group && a->gid != st->st_gid) {
        a->mode = of_strangers(a->mode);
        mode = of_strangers(mode);
    }
    a->mode &= mode;
    a->of_group = true;
    a->gid = st->st_gid;
}

/* The group of a new file depends on its directory. */
static int narrow_group(int fd, const struct file_access *a)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    if (!a->of_group || a->gid == st.st_gid) {
        return 0;
    }
    mode_t mode = st.st_mode & 0777;
    return of_strangers(mode) != mode && fchmod(fd, of_strangers(mode)) < 0
               ? -errno
               : 0;
}

/* --- Making and replacing --- */

/* Remove the name while the lock stands: afterwards it might be another's
 * file. */
static void drop_file(const char *filename, int fd, bool existed)
{
    struct stat there;
    struct stat st;

    if (!existed && fstat(fd, &st) == 0 && lstat(filename, &there) == 0 &&
        door_same(&there, &st)) {
        (void)unlink(filename);
    }
    (void)close(fd);
}

#define LINKS_MAX 40

/* The path that the link @d leads to; NULL: it leads nowhere. */
static char *read_link(const struct door *d)
{
    char target[4096];
    ssize_t len = readlinkat(d->fd, "", target, sizeof(target) - 1);

    if (len <= 0) {
        return NULL;
    }
    target[len] = '\0';
    return path_beside(d->name, target);
}

/*
 * Find the file at @filename, which will be replaced.  A user who may make
 * names in its directory could make it a link to any file.  So links of other
 * users are not followed (-EPERM).
 */
static int find_old(const char *filename, struct door *d)
{
    int r = door_find_link(d, filename);

    for (unsigned i = 0; r == 0 && S_ISLNK(d->st.st_mode); i++) {
        bool ours = d->st.st_uid == 0 || d->st.st_uid == geteuid();
        CLEANUP_FREE char *next = ours && i < LINKS_MAX ? read_link(d) : NULL;

        door_close(d);
        if (!next) {
            return ours ? -ELOOP : -EPERM;
        }
        r = door_find_link(d, next);
    }
    return r;
}

static int open_old(const char *filename, struct error **errp)
{
    struct door d;
    int r = find_old(filename, &d);

    if (r == -EPERM) {
        return error_set(errp, EPERM,
                         "Could not create '%s': it is a link that somebody "
                         "else has made",
                         filename);
    }
    if (r == 0 && !S_ISREG(d.st.st_mode) && !S_ISBLK(d.st.st_mode)) {
        door_close(&d); /* opening it may do something to it */
        return error_set(errp, EINVAL,
                         "'%s' is neither a regular file nor a block device",
                         filename);
    }
    if (r == 0) {
        r = door_open(&d, O_RDWR);
        door_close(&d);
    }
    return r < 0 ? error_set(errp, -r, "Could not create '%s': %s", filename,
                             strerror(-r))
                 : r;
}

static int open_new(const char *filename, bool replace,
                    const struct file_access *a, bool *existed,
                    struct error **errp)
{
    int fd = open(filename, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
                  (a->mode | 0600) & 0644);
    int r = fd < 0 ? -errno : narrow_group(fd, a);

    *existed = fd < 0;
    if (r == -EEXIST && replace) {
        return open_old(filename, errp);
    }
    if (r < 0 && fd >= 0) {
        drop_file(filename, fd, false);
    }
    return r < 0 ? error_set(errp, -r, "Could not create '%s': %s", filename,
                             strerror(-r))
                 : fd;
}

/* Empty the file, whose lock is held.  *st: which file it is. */
static int empty_file(int fd, const char *filename, struct stat *st,
                      struct error **errp)
{
    if (fstat(fd, st) < 0) {
        return error_set(errp, errno, "cannot look at '%s': %s", filename,
                         strerror(errno));
    }
    /* The program that made it has failed since we opened it, and removed
     * it. */
    if (st->st_nlink == 0) {
        return error_set(errp, EAGAIN, "'%s' was removed by another process",
                         filename);
    }
    if (S_ISREG(st->st_mode) && ftruncate(fd, 0) < 0) {
        return error_set(errp, errno, "cannot empty '%s': %s", filename,
                         strerror(errno));
    }
    return 0;
}

int file_create_begin(const char *filename, bool replace, struct file_make *how,
                      int *fd, bool *existed, struct error **errp)
{
    int new = open_new(filename, replace, &how->access, existed, errp);
    if (new < 0) {
        return new;
    }
    int r = image_lock(new, filename, true, errp);
    if (r == -EAGAIN) {
        (void)close(new); /* another program has it, even if we made it */
        return r;
    }
    if (r == 0) {
        r = empty_file(new, filename, &how->made, errp);
    }
    if (r < 0) {
        drop_file(filename, new, *existed);
        return r;
    }
    *fd = new;
    return 0;
}

/* --- Content --- */

int file_create_write(int fd, const void *buf, size_t bytes, uint64_t offset)
{
    const char *at = buf;

    while (bytes > 0) {
        ssize_t n = pwrite(fd, at, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        at += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* Let the file be at least @end bytes long, with @allocate backed by space. */
static int extend_file(int fd, uint64_t end, bool allocate)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    if (!S_ISREG(st.st_mode)) {
        off_t size = lseek(fd, 0, SEEK_END);
        return size >= 0 && (uint64_t)size < end ? -ENOSPC : 0;
    }
    if (allocate && end > 0) {
        return -posix_fallocate(fd, 0, (off_t)end);
    }
    if ((uint64_t)st.st_size < end && ftruncate(fd, (off_t)end) < 0) {
        return -errno;
    }
    return 0;
}

/* The name is durable when its directory is. */
static int sync_directory(const char *filename)
{
    const char *slash = strrchr(filename, '/');
    CLEANUP_FREE char *dir =
        slash ? strndup(filename, (size_t)(slash - filename) + 1) : strdup(".");
    if (!dir) {
        return -ENOMEM;
    }
    CLEANUP_CLOSE int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return errno == EACCES ? 0 : -errno; /* not ours to read or sync */
    }
    return fsync(fd) < 0 && errno != EINVAL ? -errno : 0;
}

int file_create_finish(const char *filename, int fd, bool existed, int r,
                       struct error **errp)
{
    if (r == 0) {
        r = fsync(fd) < 0 ? -errno : 0;
        if (r == 0 && !existed) {
            r = sync_directory(filename);
        }
        if (r < 0) {
            r = error_set(errp, -r, "cannot make '%s' durable: %s", filename,
                          strerror(-r));
        }
    }
    drop_file(filename, fd, existed || r == 0);
    return r;
}

static int fill_file(int fd, uint64_t size)
{
    static const char zeroes[64 * KiB];
    int r = 0;

    for (uint64_t at = 0; at < size && r == 0; at += sizeof(zeroes)) {
        r = file_create_write(fd, zeroes, min_u64(sizeof(zeroes), size - at),
                              at);
    }
    return r;
}

int file_create_plain(const char *filename, uint64_t size, enum file_room room,
                      struct file_make *how, struct error **errp)
{
    bool existed;
    int fd;
    int r = file_create_begin(filename, true, how, &fd, &existed, errp);

    if (r < 0) {
        return r;
    }
    r = extend_file(fd, size, room == ROOM_RESERVED);
    if (r == 0 && room == ROOM_WRITTEN) {
        r = fill_file(fd, size);
    }
    if (r < 0) {
        r = error_set(errp, -r, "cannot make '%s' %" PRIu64 " bytes long: %s",
                      filename, size, strerror(-r));
    }
    return file_create_finish(filename, fd, existed, r, errp);
}
