/* SPDX-License-Identifier: BSD-3-Clause */
/* Image locks: shared OFD locks on the bytes that QEMU locks. */
#include "core/imagelock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

#define USED_BASE     100
#define UNSHARED_BASE 200
#define MARK_BASE     (INT64_C(1) << 62)

enum { ACCESS_READ, ACCESS_WRITE, ACCESS_WRITE_UNCHANGED, ACCESS_RESIZE };

static const char *const names[] = {"consistent read", "write",
                                    "write unchanged", "resize"};

static int set_byte(int fd, short type, off_t byte)
{
    struct flock l = {
        .l_type = type,
        .l_whence = SEEK_SET,
        .l_start = byte,
        .l_len = 1,
    };
    return fcntl(fd, F_OFD_SETLK, &l) < 0 ? -errno : 0;
}

/* Does another open file hold @byte?  0, -EAGAIN, or what fcntl says. */
static int probe_byte(int fd, off_t byte)
{
    struct flock l = {
        .l_type = F_WRLCK,
        .l_whence = SEEK_SET,
        .l_start = byte,
        .l_len = 1,
    };
    if (fcntl(fd, F_OFD_GETLK, &l) < 0) {
        return -errno;
    }
    return l.l_type == F_UNLCK ? 0 : -EAGAIN;
}

/* Has this descriptor a lock on @byte?  False when it cannot be found out. */
static bool has_lock(int fd, off_t byte)
{
    char path[40];
    char line[200];
    bool found = false;

    (void)snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    FILE *f = fopen(path, "re");
    while (f && !found && fgets(line, sizeof(line), f)) {
        int at = 0; /* of the first byte that is locked */

        (void)sscanf(line, "lock: %*s OFDLCK %*s %*s %*s %*s %n", &at);
        found = at > 0 && strtoll(line + at, NULL, 10) == byte;
    }
    if (f) {
        (void)fclose(f);
    }
    return found;
}

/* Has another descriptor of this process a lock on @byte of the file?  Others
 * are looked at by their names: their owners may close them meanwhile. */
static bool is_held_by_us(int fd, off_t byte)
{
    DIR *all = opendir("/proc/self/fd");
    const struct dirent *e;
    struct stat mine;
    struct stat st;
    bool ours = false;

    while (all && !ours && fstat(fd, &mine) == 0 && (e = readdir(all))) {
        int other = e->d_name[0] == '.' ? fd : (int)strtol(e->d_name, NULL, 10);

        ours = other != fd && fstatat(dirfd(all), e->d_name, &st, 0) == 0 &&
               st.st_dev == mine.st_dev && st.st_ino == mine.st_ino &&
               has_lock(other, byte);
    }
    if (all) {
        (void)closedir(all);
    }
    return ours;
}

static int lock_conflict(int fd, off_t byte, const char *filename,
                         const char *kind, unsigned access, struct error **errp)
{
    return error_set(
        errp, EAGAIN,
        "Failed to get %s\"%s\" lock: is another process using "
        "the image '%s'?%s",
        kind, names[access], filename,
        is_held_by_us(fd, byte) ? " (this process has it open already)" : "");
}

static int no_locks(const char *filename, int r, struct error **errp)
{
    return error_set(errp, -r,
                     "cannot lock the image '%s' (the file option "
                     "locking=off opens it without): %s",
                     filename, strerror(-r));
}

static int lock_all(int fd, unsigned used, unsigned unshared)
{
    int r = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(names) && r == 0; i++) {
        if (used & 1U << i) {
            r = set_byte(fd, F_RDLCK, USED_BASE + (off_t)i);
        }
        if (r == 0 && (unshared & 1U << i)) {
            r = set_byte(fd, F_RDLCK, UNSHARED_BASE + (off_t)i);
        }
    }
    return r;
}

#define UNSHARED (1U << ACCESS_WRITE | 1U << ACCESS_RESIZE)

static unsigned used_by(bool writable)
{
    return 1U << ACCESS_READ | (writable ? UNSHARED : 0);
}

int image_lock_again(int fd, bool writable)
{
    return lock_all(fd, used_by(writable), UNSHARED);
}

void image_lock_narrow(int fd)
{
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        if (used_by(true) & ~used_by(false) & 1U << i) {
            (void)set_byte(fd, F_UNLCK, USED_BASE + (off_t)i);
        }
    }
}

void image_lock_idle(int fd)
{
    (void)set_byte(fd, F_RDLCK, USED_BASE + ACCESS_READ);
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        if (i != ACCESS_READ) {
            (void)set_byte(fd, F_UNLCK, USED_BASE + (off_t)i);
        }
        (void)set_byte(fd, F_UNLCK, UNSHARED_BASE + (off_t)i);
    }
}

void image_unlock(int fd)
{
    const struct flock rest = {
        .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = MARK_BASE};

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        (void)set_byte(fd, F_UNLCK, USED_BASE + (off_t)i);
        (void)set_byte(fd, F_UNLCK, UNSHARED_BASE + (off_t)i);
    }
    (void)fcntl(fd, F_OFD_SETLK, &rest);
}

int image_lock_widen(int fd, const char *filename, struct error **errp)
{
    int r = image_lock(fd, filename, true, errp);

    if (r < 0) {
        image_lock_narrow(fd);
    }
    return r;
}

int image_lock(int fd, const char *filename, bool writable, struct error **errp)
{
    unsigned used = used_by(writable);
    unsigned unshared = UNSHARED;
    int r = lock_all(fd, used, unshared);
    if (r < 0) {
        return no_locks(filename, r, errp);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        r = used & 1U << i ? probe_byte(fd, UNSHARED_BASE + (off_t)i) : 0;
        if (r == -EAGAIN) {
            return lock_conflict(fd, UNSHARED_BASE + (off_t)i, filename, "", i,
                                 errp);
        }
        if (r == 0 && (unshared & 1U << i)) {
            r = probe_byte(fd, USED_BASE + (off_t)i);
        }
        if (r == -EAGAIN) {
            return lock_conflict(fd, USED_BASE + (off_t)i, filename, "shared ",
                                 i, errp);
        }
        if (r < 0) {
            return no_locks(filename, r, errp);
        }
    }
    return 0;
}

int image_mark(int fd, uint64_t mark)
{
    return set_byte(fd, F_RDLCK, MARK_BASE + (off_t)mark);
}

bool image_is_marked(int fd, uint64_t mark)
{
    return probe_byte(fd, MARK_BASE + (off_t)mark) == -EAGAIN;
}
