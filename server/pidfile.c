/* SPDX-License-Identifier: BSD-3-Clause */
#include "pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

static bool is_held(const char *path)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0 &&
           errno == EWOULDBLOCK;
}

static int write_number(int fd)
{
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 ||
        dprintf(fd, "%ld\n", (long)getpid()) < 0) {
        return -errno;
    }
    return fchmod(fd, 0644) < 0 ? -errno : 0;
}

int pidfile_write(const char *path, struct error **errp)
{
    CLEANUP_FREE char *temporary = NULL;

    if (is_held(path)) {
        return error_set(errp, EBUSY,
                         "the pidfile '%s' belongs to a running process",
                         path);
    }
    if (asprintf(&temporary, "%s.XXXXXX", path) < 0) {
        temporary = NULL;
        return error_set(errp, ENOMEM, "no memory for the pidfile '%s'",
                         path);
    }
    int fd = mkostemp(temporary, O_CLOEXEC);
    int r = fd < 0 ? -errno : write_number(fd);
    if (r == 0 && rename(temporary, path) < 0) {
        r = -errno;
    }
    if (r == 0) {
        return fd;
    }
    if (fd >= 0) {
        (void)unlink(temporary);
        (void)close(fd);
    }
    return error_set(errp, -r, "cannot write the pidfile '%s': %s", path,
                     strerror(-r));
}

void pidfile_remove(const char *path, int fd)
{
    if (fd >= 0) {
        (void)unlink(path);
        (void)close(fd);
    }
}
