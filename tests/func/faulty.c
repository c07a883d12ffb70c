/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta on a file system that fails: linked with --wrap for what changes
 * files.  For tests only.
 *
 * FAULTY=KIND:K:ERRNO fails the K-th request of a kind, "write" (of images) or
 * "flush", or of all that change anything, "step": these and other writes, new
 * names, removed names.  What has files share bytes is a write.  errno 0 ends
 * the process there, as kill -9.  The numbers of requests are written to the
 * file FAULTY_COUNTS at exit.
 *
 * FAULTY_NAME=before:ENDING, or after:ENDING, ends the process, as kill -9,
 * when a file is renamed to a name with that ending.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/fs.h>

#include "nbdelta/bytes.h"

ssize_t __real_pwritev2(int fd, const struct iovec *iov, int cnt, off_t at,
                        int flags);
ssize_t __wrap_pwritev2(int fd, const struct iovec *iov, int cnt, off_t at,
                        int flags);
ssize_t __real_pwrite(int fd, const void *buf, size_t bytes, off_t at);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t bytes, off_t at);
int __real_ftruncate(int fd, off_t size);
int __wrap_ftruncate(int fd, off_t size);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_fsync(int fd);
int __wrap_fsync(int fd);
ssize_t __real_write(int fd, const void *buf, size_t bytes);
ssize_t __wrap_write(int fd, const void *buf, size_t bytes);
int __real_renameat(int a, const char *from, int b, const char *to);
int __wrap_renameat(int a, const char *from, int b, const char *to);
int __real_unlinkat(int dir, const char *name, int flags);
int __wrap_unlinkat(int dir, const char *name, int flags);

int __real_ioctl(int fd, unsigned long request, void *what);
int __wrap_ioctl(int fd, unsigned long request, void *what);

enum kind { WRITES, FLUSHES, STEPS };

static const char *const words[] = {"write", "flush", "step"};
static _Atomic unsigned counts[ARRAY_SIZE(words)];

static void __attribute__((destructor)) tell(void)
{
    const char *path = getenv("FAULTY_COUNTS");
    FILE *f = path ? fopen(path, "w") : NULL;

    if (f) {
        (void)fprintf(f, "%u %u %u\n", counts[WRITES], counts[FLUSHES],
                      counts[STEPS]);
        (void)fclose(f);
    }
}

/* Does this request fail, as one of @kind?  Then errno says how. */
static bool fails_as(enum kind kind)
{
    const char *rule = getenv("FAULTY");
    unsigned count = atomic_fetch_add(&counts[kind], 1) + 1;
    unsigned k;
    char word[8];
    int error;

    if (!rule || sscanf(rule, "%7[a-z]:%u:%d", word, &k, &error) != 3 ||
        strcmp(word, words[kind]) != 0 || k != count) {
        return false;
    }
    if (error == 0) {
        (void)raise(SIGKILL);
    }
    errno = error;
    return true;
}

static bool fails(enum kind kind)
{
    return (kind != STEPS && fails_as(kind)) || fails_as(STEPS);
}

ssize_t __wrap_pwritev2(int fd, const struct iovec *iov, int cnt, off_t at,
                        int flags)
{
    return fails(WRITES) ? -1 : __real_pwritev2(fd, iov, cnt, at, flags);
}

ssize_t __wrap_pwrite(int fd, const void *buf, size_t bytes, off_t at)
{
    return fails(WRITES) ? -1 : __real_pwrite(fd, buf, bytes, at);
}

int __wrap_ftruncate(int fd, off_t size)
{
    return fails(WRITES) ? -1 : __real_ftruncate(fd, size);
}

int __wrap_fdatasync(int fd)
{
    return fails(FLUSHES) ? -1 : __real_fdatasync(fd);
}

int __wrap_fsync(int fd)
{
    return fails(FLUSHES) ? -1 : __real_fsync(fd);
}

ssize_t __wrap_write(int fd, const void *buf, size_t bytes)
{
    return fails(STEPS) ? -1 : __real_write(fd, buf, bytes);
}

static void die_at(const char *when, const char *name)
{
    const char *rule = getenv("FAULTY_NAME");
    size_t len = strlen(when);

    if (rule && strncmp(rule, when, len) == 0 && rule[len] == ':') {
        const char *ending = rule + len + 1;
        size_t tail = strlen(ending);
        size_t all = strlen(name);

        if (all >= tail && strcmp(name + all - tail, ending) == 0) {
            (void)raise(SIGKILL);
        }
    }
}

int __wrap_renameat(int a, const char *from, int b, const char *to)
{
    die_at("before", to);
    int r = fails(STEPS) ? -1 : __real_renameat(a, from, b, to);
    die_at("after", to);
    return r;
}

int __wrap_unlinkat(int dir, const char *name, int flags)
{
    return fails(STEPS) ? -1 : __real_unlinkat(dir, name, flags);
}

/* Of these, what has files share bytes. */
int __wrap_ioctl(int fd, unsigned long request, void *what)
{
    return request == FICLONERANGE && fails(WRITES)
               ? -1
               : __real_ioctl(fd, request, what);
}
