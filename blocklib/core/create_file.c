/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/create_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/imagelock.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

static int open_new(const char *filename, bool replace, bool *existed)
{
    int fd = open(filename, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

    *existed = false;
    if (fd < 0 && errno == EEXIST && replace) {
        *existed = true;
        fd = open(filename, O_RDWR | O_CLOEXEC);
    }
    return fd < 0 ? -errno : fd;
}

/* Under the lock. */
static int empty_file(int fd, const char *filename, struct error **errp)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return error_set(errp, errno, "cannot look at '%s': %s", filename,
                         strerror(errno));
    }
    /* Whoever made it has failed since we opened it, and removed it. */
    if (st.st_nlink == 0) {
        return error_set(errp, EAGAIN, "'%s' was removed by another process",
                         filename);
    }
    if (S_ISBLK(st.st_mode)) {
        return 0;
    }
    if (!S_ISREG(st.st_mode)) {
        return error_set(errp, EINVAL,
                         "'%s' is neither a regular file nor a block device",
                         filename);
    }
    if (ftruncate(fd, 0) < 0) {
        return error_set(errp, errno, "cannot empty '%s': %s", filename,
                         strerror(errno));
    }
    return 0;
}

/* The name goes before the lock does: afterwards it might be another's. */
static void drop_file(const char *filename, int fd, bool existed)
{
    if (!existed) {
        (void)unlink(filename);
    }
    (void)close(fd);
}

int file_create_begin(const char *filename, bool replace, int *fd,
                      bool *existed, struct error **errp)
{
    int new = open_new(filename, replace, existed);
    if (new < 0) {
        return error_set(errp, -new, "Could not create '%s': %s", filename,
                         strerror(-new));
    }
    int r = image_lock(new, filename, true, errp);
    if (r == -EAGAIN) {
        (void)close(new); /* also one that we made is somebody else's now */
        return r;
    }
    if (r == 0) {
        r = empty_file(new, filename, errp);
    }
    if (r < 0) {
        drop_file(filename, new, *existed);
        return r;
    }
    *fd = new;
    return 0;
}

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

int file_create_extend(int fd, uint64_t end, bool allocate)
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

static int write_zeroes(int fd, uint64_t size)
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
                      struct error **errp)
{
    bool existed;
    int fd;
    int r = file_create_begin(filename, true, &fd, &existed, errp);

    if (r < 0) {
        return r;
    }
    r = file_create_extend(fd, size, room == ROOM_RESERVED);
    if (r == 0 && room == ROOM_WRITTEN) {
        r = write_zeroes(fd, size);
    }
    if (r < 0) {
        r = error_set(errp, -r, "cannot make '%s' %" PRIu64 " bytes long: %s",
                      filename, size, strerror(-r));
    }
    return file_create_finish(filename, fd, existed, r, errp);
}
