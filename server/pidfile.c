/* SPDX-License-Identifier: BSD-3-Clause */
#include "pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

/* The first line of @path into @buf; empty when there is none. */
static void first_line(const char *path, char *buf, size_t size)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd >= 0 ? read(fd, buf, size - 1) : 0;

    buf[n > 0 ? n : 0] = '\0';
    buf[strcspn(buf, "\n")] = '\0';
}

int pidfile_check(const char *path, struct error **errp)
{
    char line[32];
    char comm[64];
    char proc[64];
    char own[64];

    first_line(path, line, sizeof(line));
    long pid = strtol(line, NULL, 10);
    if (pid <= 0 || pid == (long)getpid()) {
        return 0;
    }
    (void)snprintf(proc, sizeof(proc), "/proc/%ld/comm", pid);
    first_line(proc, comm, sizeof(comm));
    first_line("/proc/self/comm", own, sizeof(own));
    if (comm[0] == '\0' || strcmp(comm, own) != 0) {
        return 0; /* nobody, or somebody else by now */
    }
    return error_set(errp, EEXIST, "'%s' belongs to process %ld, which runs",
                     path, pid);
}

int pidfile_write(struct pidfile *p, struct error **errp)
{
    CLEANUP_FREE char *temp = NULL;
    CLEANUP_CLOSE int fd = -1;
    struct stat st;

    if (asprintf(&temp, "%s.XXXXXX", p->path) < 0) {
        temp = NULL;
        return error_set(errp, ENOMEM, "no memory for a file name");
    }
    fd = mkostemp(temp, O_CLOEXEC);
    if (fd < 0) {
        return error_set(errp, errno, "cannot make '%s': %s", p->path,
                         strerror(errno));
    }
    if (dprintf(fd, "%ld\n", (long)getpid()) < 0 || fchmod(fd, 0644) < 0 ||
        fstat(fd, &st) < 0 || rename(temp, p->path) < 0) {
        int code = errno;
        (void)unlink(temp);
        return error_set(errp, code, "cannot write '%s': %s", p->path,
                         strerror(code));
    }
    p->written = true;
    p->dev = st.st_dev;
    p->ino = st.st_ino;
    return 0;
}

void pidfile_remove(struct pidfile *p)
{
    struct stat st;

    if (p->written && lstat(p->path, &st) == 0 && st.st_dev == p->dev &&
        st.st_ino == p->ino) {
        (void)unlink(p->path);
    }
    p->written = false;
}
