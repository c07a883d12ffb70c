/* SPDX-License-Identifier: BSD-3-Clause */
/* A child looks at what may hang, or be hostile: see aside.h. */
#include "complete/aside.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "complete/offer.h"
#include "nbdelta/cleanup.h"

#define ANSWER_MAX (4 << 20) /* bytes of lines */

int aside_ms(void)
{
    const char *text = getenv("NBDELTA_COMPLETE_TIMEOUT");
    char *end = NULL;
    long ms = text ? strtol(text, &end, 10) : 0;

    return ms > 0 && ms <= ASIDE_MS_MAX && *end == '\0' ? (int)ms : ASIDE_MS;
}

static int64_t now_ms(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* --- The child --- */

/* A shell reads our output to its end, and the child may outlive us. */
static void let_go_of_output(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    for (int i = 0; i <= STDERR_FILENO; i++) {
        if (fd < 0 || dup2(fd, i) < 0) {
            (void)close(i);
        }
    }
}

static void run_child(int fd, struct offers *o,
                      void (*ask)(struct offers *o, const void *opaque),
                      const void *opaque)
{
    const struct rlimit none = {0, 0};

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)setrlimit(RLIMIT_CORE, &none);
    let_go_of_output();
    o->out = fdopen(fd, "w");
    if (o->out) {
        (void)setvbuf(o->out, NULL, _IOLBF, 0);
        ask(o, opaque);
        (void)fflush(o->out);
    }
    _exit(0);
}

/* --- The parent --- */

/* Read until the end, the limit, or the deadline. */
static size_t read_answer(int fd, char *answer)
{
    int64_t end = now_ms() + aside_ms();
    size_t have = 0;

    while (have < ANSWER_MAX) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int64_t left = end - now_ms();

        if (left <= 0) {
            break;
        }
        if (poll(&p, 1, (int)left) <= 0) {
            continue;
        }
        ssize_t n = read(fd, answer + have, ANSWER_MAX - have);
        if (n <= 0) {
            break;
        }
        have += (size_t)n;
    }
    return have;
}

/* Whole lines. */
static void pass_on(struct offers *o, int fd)
{
    CLEANUP_FREE char *answer = malloc(ANSWER_MAX);
    size_t have = answer ? read_answer(fd, answer) : 0;

    while (have > 0 && answer[have - 1] != '\n') {
        have--;
    }
    if (have > 0) {
        (void)fwrite(answer, 1, have, o->out);
    }
}

void aside(struct offers *o, void (*ask)(struct offers *o, const void *opaque),
           const void *opaque)
{
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) < 0) {
        return;
    }
    (void)fflush(o->out);
    pid_t child = fork();
    if (child == 0) {
        (void)close(fds[0]);
        run_child(fds[1], o, ask, opaque);
    }
    (void)close(fds[1]);
    if (child > 0) {
        pass_on(o, fds[0]);
        (void)kill(child, SIGKILL);
    }
    (void)close(fds[0]);
}
