/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The file of a scratch: it has no name, and consists of slots.
 *
 * It has no more slots than were needed at once, so a disk may be larger than
 * any file that the file system can have.  A caller that takes slots takes
 * their size from `allowance` first.  When that is used up, the file system is
 * asked how much is free beyond what is to be kept free.  So all scratch files
 * that are on one file system, and all else that is written there, share its
 * room.
 *
 * The file is unlinked from the start (O_TMPFILE).  On a file system that
 * cannot do that, it has a name for a moment.  A crash in that moment leaves
 * the file behind, without a lock, for scratch_clean.
 */
#include "copy/scratch-file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "copy/scratch.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "util/iov.h"

#define ALLOWANCE   (16 * MiB) /* the most that is taken between two looks */
#define DIR_DEFAULT "/var/tmp"
#define NAME_PREFIX ".nbdelta-scratch-"

/* --- Slots --- */

/* What is free in the file system beyond what is to be kept free. */
static uint64_t room_of(const struct scratch_file *f)
{
    struct statvfs fs;

    if (fstatvfs(f->fd, &fs) < 0) {
        return 0;
    }
    uint64_t free = (uint64_t)fs.f_bavail * fs.f_frsize;
    return free > f->kept_free ? free - f->kept_free : 0;
}

/* How many slots more may the file have, at most @most? */
static uint64_t take_allowance(struct scratch_file *f, uint64_t most)
    REQUIRES(f->lock)
{
    if (f->kept_free == 0) {
        return most;
    }
    if (f->allowance < most * SCRATCH_UNIT) {
        f->allowance = min_u64(room_of(f), ALLOWANCE);
    }
    uint64_t count = min_u64(most, f->allowance / SCRATCH_UNIT);
    f->allowance -= count * SCRATCH_UNIT;
    return count;
}

/* Slots in a row at the end of the list of free ones, at most @most. */
static uint64_t take_free(struct scratch_file *f, uint64_t most,
                          uint64_t *first) REQUIRES(f->lock)
{
    uint64_t count = 1;

    *first = f->free_slots[--f->free_count];
    while (count < most && f->free_count > 0 &&
           f->free_slots[f->free_count - 1] == *first + count) {
        f->free_count--;
        count++;
    }
    return count;
}

uint64_t scratch_slots_take(struct scratch_file *f, uint64_t most,
                            uint64_t *first)
{
    mutex_lock(&f->lock);
    uint64_t count = take_allowance(f, most);
    uint64_t taken = count;
    if (count > 0 && f->free_count > 0) {
        taken = take_free(f, count, first);
        f->allowance += (count - taken) * SCRATCH_UNIT;
    } else if (count > 0) {
        *first = f->slots;
        f->slots += count;
    }
    mutex_unlock(&f->lock);
    return taken;
}

/* Without memory for the list, the slots are never used again. */
void scratch_slots_free(struct scratch_file *f, uint64_t first, uint64_t count)
{
    (void)fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    (off_t)(first * SCRATCH_UNIT),
                    (off_t)(count * SCRATCH_UNIT));
    mutex_lock(&f->lock);
    if (f->free_count + count > f->free_room) {
        size_t room = (f->free_count + count) * 2 + 64;
        uint64_t *more = realloc(f->free_slots, room * sizeof(*more));
        if (more) {
            f->free_slots = more;
            f->free_room = room;
        }
    }
    while (count > 0 && f->free_count < f->free_room) { /* the first on top */
        f->free_slots[f->free_count++] = first + --count;
    }
    mutex_unlock(&f->lock);
}

/* --- Content --- */

int scratch_file_read(const struct scratch_file *f, char *buf, uint64_t bytes,
                      uint64_t offset)
{
    while (bytes > 0) {
        ssize_t n = pread(f->fd, buf, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        buf += n;
        offset += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

int scratch_file_writev(const struct scratch_file *f, const struct iovec *iov,
                        int cnt, uint64_t offset)
{
    uint64_t bytes = iov_bytes(iov, cnt);
    struct iovec rest[IOV_MAX_INNER];

    for (uint64_t done = 0; done < bytes;) {
        int parts = iov_slice(rest, iov, cnt, done, bytes - done);
        ssize_t n = pwritev(f->fd, rest, parts, (off_t)(offset + done));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        done += (uint64_t)n;
    }
    return 0;
}

/* --- Making the file --- */

static const char *dir_or_default(const char *dir)
{
    const char *tmp = getenv("TMPDIR");

    return dir ? dir : tmp && tmp[0] ? tmp : DIR_DEFAULT;
}

/* For file systems without O_TMPFILE.  Between opening and locking, the file
 * has no lock, and another process's scratch_clean may unlink it first.  That
 * does no harm. */
static int open_and_unlink(const char *dir)
{
    CLEANUP_FREE char *name = NULL;

    if (asprintf(&name, "%s/" NAME_PREFIX "XXXXXX", dir) < 0) {
        name = NULL;
        return -ENOMEM;
    }
    int fd = mkostemp(name, O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    (void)flock(fd, LOCK_EX | LOCK_NB);
    (void)unlink(name);
    return fd;
}

static int open_scratch_file(const char *dir)
{
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        return open_and_unlink(dir);
    }
    return fd < 0 ? -errno : fd;
}

static void clean_one(int dir, const char *name)
{
    struct stat st;
    int fd = openat(dir, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0) {
        return;
    }
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() &&
        flock(fd, LOCK_EX | LOCK_NB) == 0) {
        (void)unlinkat(dir, name, 0);
    }
    (void)close(fd);
}

void scratch_clean(const char *dir)
{
    DIR *d = opendir(dir_or_default(dir));
    const struct dirent *e;

    while (d && (e = readdir(d))) {
        if (strncmp(e->d_name, NAME_PREFIX, strlen(NAME_PREFIX)) == 0) {
            clean_one(dirfd(d), e->d_name);
        }
    }
    if (d) {
        (void)closedir(d);
    }
}

/* How much of the file system the file has to leave free. */
static uint64_t choose_kept_free(int fd)
{
    struct statvfs fs;

    if (fstatvfs(fd, &fs) < 0) {
        return 0;
    }
    return min_u64((uint64_t)fs.f_blocks * fs.f_frsize / 10,
                   (uint64_t)fs.f_bavail * fs.f_frsize / 2);
}

int scratch_file_open(struct scratch_file *f, const char *dir, bool keep_free,
                      struct error **errp)
{
    const char *where = dir_or_default(dir);
    int fd = open_scratch_file(where);

    if (fd < 0) {
        return error_set(errp, -fd, "cannot make a scratch file in '%s': %s",
                         where, strerror(-fd));
    }
    *f = (struct scratch_file){
        .fd = fd,
        .kept_free = keep_free ? choose_kept_free(fd) : 0,
    };
    mutex_init(&f->lock, LOCK_SCRATCH_SLOTS, NULL);
    return 0;
}

void scratch_file_close(struct scratch_file *f)
{
    mutex_destroy(&f->lock);
    free(f->free_slots);
    (void)close(f->fd);
}
