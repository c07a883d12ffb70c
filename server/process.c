/* SPDX-License-Identifier: BSD-3-Clause */
/* What a process inherits, and its end: see process.h. */
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/module.h"

/* Put something harmless at @fd, which is the lowest that is free. */
static bool fill_descriptor(int fd)
{
    /* Output that nobody would see has to be an error. */
    int flags = fd == STDOUT_FILENO ? O_RDONLY : O_RDWR;
    int got = open("/dev/null", flags | O_NOCTTY);

    if (got < 0) {
        got = open("/", O_RDONLY | O_DIRECTORY); /* a bare root has no /dev */
    }
    return got == fd;
}

static void raise_limit(void)
{
    struct rlimit lim;

    if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < lim.rlim_max) {
        lim.rlim_cur = lim.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &lim);
    }
}

bool process_begin(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && !fill_descriptor(fd)) {
            return false;
        }
    }
    (void)signal(SIGXFSZ, SIG_IGN);
    raise_limit();
    return true;
}

void process_end(int status)
{
    if (module_entered()) {
        (void)fflush(NULL);
        _exit(status);
    }
    exit(status);
}

static bool is_ignored(int sig)
{
    struct sigaction old;

    return sigaction(sig, NULL, &old) == 0 && old.sa_handler == SIG_IGN;
}

void process_take_signals(sigset_t *set)
{
    static const int ending[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGXCPU};
    sigset_t before;

    (void)pthread_sigmask(SIG_BLOCK, NULL, &before);
    (void)sigemptyset(set);
    (void)sigaddset(set, PROCESS_ORPHANED);
    for (size_t i = 0; i < ARRAY_SIZE(ending); i++) {
        /* A shell has a background job ignore SIGINT and SIGQUIT, although
         * a user who sends them to this process means it.  A SIGHUP that is
         * ignored is meant to be (nohup). */
        bool nohup = ending[i] == SIGHUP && is_ignored(SIGHUP);

        if (!sigismember(&before, ending[i]) && !nohup) {
            (void)sigaddset(set, ending[i]);
        }
    }
    (void)pthread_sigmask(SIG_BLOCK, set, NULL);
}
