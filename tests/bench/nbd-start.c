/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Start a server, and tell how long its first reply took.
 *
 *   nbd-start ADDRESS COMMAND [ARGUMENT...]
 *
 * The first reply is that to a read of 4 KiB of the default export.  It prints
 * milliseconds since the start, and how much of the server was resident in
 * memory by then, in KiB; then it ends the server.
 */
#include "nbd-raw.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, PAUSE_NS = 20000, PATIENCE_S = 30 };

static long resident_kib(pid_t pid)
{
    char path[64], line[256];
    long kib = 0;

    (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof(line), f)) {
        if (strncmp(line, "VmRSS:", 6) == 0) {
            kib = strtol(line + 6, NULL, 10);
        }
    }
    if (f) {
        (void)fclose(f);
    }
    return kib;
}

int main(int argc, char **argv)
{
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    char request[RAW_REQUEST_SIZE], reply[RAW_REPLY_SIZE + BLOCK];
    struct raw server;

    if (argc < 3) {
        raw_fail("usage", "nbd-start ADDRESS COMMAND [ARGUMENT...]");
    }
    double begin = raw_now();
    pid_t pid = fork();
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)execvp(argv[2], argv + 2);
        _exit(127);
    }
    while (!raw_try_open(&server, argv[1], "", NULL)) {
        if (waitpid(pid, NULL, WNOHANG) != 0 ||
            raw_now() - begin > PATIENCE_S) {
            raw_fail(argv[2], "it did not start");
        }
        (void)nanosleep(&pause, NULL);
    }
    (void)raw_request(request, RAW_READ, 0, 0, BLOCK);
    raw_put(&server, request, sizeof(request));
    raw_get(&server, reply, sizeof(reply));
    double end = raw_now();
    (void)printf("%.3f %ld\n", (end - begin) * 1e3, resident_kib(pid));
    (void)close(server.fd);
    (void)kill(pid, SIGTERM);
    (void)waitpid(pid, NULL, 0);
    return 0;
}
