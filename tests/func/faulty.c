/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta on a file system that fails: linked with --wrap for what changes
 * files.  For tests only.
 *
 * FAULTY=KIND:K:ERRNO fails the K-th request of a kind, "write" or "flush";
 * errno 0 ends the process there, as kill -9.  The numbers of requests are
 * written to the file FAULTY_COUNTS at exit.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

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

enum kind { WRITES, FLUSHES };

static const char *const words[] = {"write", "flush"};
static _Atomic unsigned counts[ARRAY_SIZE(words)];

static void __attribute__((destructor)) tell(void)
{
    const char *path = getenv("FAULTY_COUNTS");
    FILE *f = path ? fopen(path, "w") : NULL;

    if (f) {
        (void)fprintf(f, "%u %u\n", counts[WRITES], counts[FLUSHES]);
        (void)fclose(f);
    }
}

/* Does this request fail?  Then errno says how. */
static bool fails(enum kind kind)
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
