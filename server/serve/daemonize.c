/* SPDX-License-Identifier: BSD-3-Clause */
/* Going to the background: see daemonize.h. */
#include "serve/daemonize.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/error.h"

/* The first process: until the daemon is ready, or gone. */
static void wait_ready(int fd)
{
    char byte;
    ssize_t n;

    while ((n = read(fd, &byte, 1)) < 0 && errno == EINTR) {
    }
    _exit(n == 1 ? EXIT_SUCCESS : EXIT_FAILURE);
}

int daemonize(int *ready, struct error **errp)
{
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) < 0) {
        return error_set(errp, errno, "cannot make a pipe: %s",
                         strerror(errno));
    }
    pid_t pid = fork();
    if (pid < 0) {
        int code = errno;

        (void)close(fds[0]);
        (void)close(fds[1]);
        return error_set(errp, code, "cannot fork: %s", strerror(code));
    }
    if (pid > 0) {
        (void)close(fds[1]);
        wait_ready(fds[0]);
    }
    (void)close(fds[0]);
    /* Twice, so that it is no leader that could get a terminal. */
    if (setsid() < 0 || (pid = fork()) < 0) {
        int code = errno;

        (void)close(fds[1]);
        return error_set(errp, code, "cannot leave the session: %s",
                         strerror(code));
    }
    if (pid > 0) {
        _exit(EXIT_SUCCESS);
    }
    *ready = fds[1];
    return 0;
}

void daemonize_ready(int ready, bool log_stays)
{
    int null = ready >= 0 ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;

    if (ready < 0) {
        return;
    }
    int last = log_stays ? STDOUT_FILENO : STDERR_FILENO;
    for (int fd = STDIN_FILENO; null >= 0 && fd <= last; fd++) {
        (void)dup2(null, fd);
    }
    if (null > STDERR_FILENO) {
        (void)close(null);
    }
    (void)!write(ready, "", 1);
    (void)close(ready);
}
