/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The user's command, at certain moments of a run.
 *
 *     sh -c "COMMAND WHEN"    a process group of its own, no signal blocked or
 *                             ignored, no descriptor of ours but standard
 *                             error, which its output goes to, too
 *
 * It has a limit of time.  At its end, or when the user wants an end, the group
 * gets SIGTERM, and SIGKILL a moment later.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/backup-priv.h"
#include "cli/interrupt.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/thread.h"

#define GRACE_MS 3000
#define LOOK_MS  20
#define OURS     "NBDELTA_"

extern char **environ;

/* --- Its environment --- */

static const char *const names[] = {"WHEN", "POINT", "DIR", "SOURCE", "ERROR"};

static bool is_ours(const char *entry)
{
    bool ours = false;

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        size_t len = strlen(names[i]);
        ours |= strncmp(entry, OURS, strlen(OURS)) == 0 &&
                strncmp(entry + strlen(OURS), names[i], len) == 0 &&
                entry[strlen(OURS) + len] == '=';
    }
    return ours;
}

/* Those of ours are new, and the first; the others are borrowed. */
static char **make_environment(const struct run *r, const char *when,
                               const char *why)
{
    const char *const values[ARRAY_SIZE(names)] = {
        when, r->point, r->store ? store_path(r->store) : r->o->directory,
        r->o->source_name, why};
    size_t count = 0;
    size_t n = 0;

    while (environ[count]) {
        count++;
    }
    char **env = calloc(count + ARRAY_SIZE(names) + 1, sizeof(*env));
    for (size_t i = 0; env && i < ARRAY_SIZE(names); i++) {
        if (asprintf(&env[n], OURS "%s=%s", names[i], values[i]) >= 0) {
            n++;
        }
    }
    for (size_t i = 0; env && i < count; i++) {
        if (!is_ours(environ[i])) {
            env[n++] = environ[i];
        }
    }
    return env;
}

static void free_environment(char **env)
{
    for (size_t i = 0; env && env[i] && is_ours(env[i]); i++) {
        free(env[i]);
    }
    free(env);
}

/* --- Starting --- */

/* As the user's shell would start it; SIGHUP stays ignored (nohup). */
static void set_attributes(posix_spawnattr_t *attr)
{
    struct sigaction hup;
    sigset_t set;

    (void)sigemptyset(&set);
    (void)posix_spawnattr_setsigmask(attr, &set);
    (void)sigfillset(&set);
    if (sigaction(SIGHUP, NULL, &hup) == 0 && hup.sa_handler == SIG_IGN) {
        (void)sigdelset(&set, SIGHUP);
    }
    (void)posix_spawnattr_setsigdefault(attr, &set);
    (void)posix_spawnattr_setpgroup(attr, 0);
    (void)posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGMASK |
                                             POSIX_SPAWN_SETSIGDEF |
                                             POSIX_SPAWN_SETPGROUP);
}

static int spawn(char *command, char **env, pid_t *pid)
{
    char sh[] = "sh";
    char option[] = "-c";
    char *argv[] = {sh, option, command, NULL};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;

    (void)posix_spawnattr_init(&attr);
    (void)posix_spawn_file_actions_init(&files);
    set_attributes(&attr);
    (void)posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null",
                                           O_RDONLY, 0);
    (void)posix_spawn_file_actions_adddup2(&files, STDERR_FILENO,
                                           STDOUT_FILENO);
    int code = posix_spawn(pid, "/bin/sh", &files, &attr, argv, env);
    (void)posix_spawn_file_actions_destroy(&files);
    (void)posix_spawnattr_destroy(&attr);
    return -code;
}

/* --- Until it ends --- */

enum end { ENDED, LATE, STOPPED };

/* Wait until the process is a zombie, for @ms at most. */
static enum end wait_end(int pidfd, int stop_fd, int ms)
{
    struct pollfd p[2] = {{.fd = pidfd, .events = POLLIN},
                          {.fd = stop_fd, .events = POLLIN}};
    int n;

    do {
        n = poll(p, 2, ms);
    } while (n < 0 && errno == EINTR);
    return p[0].revents ? ENDED : n > 0 ? STOPPED : LATE;
}

/* The shell may be gone long before what it has started. */
static void end_group(pid_t pid, int grace_ms)
{
    bool reaped = false;

    (void)kill(-pid, SIGTERM);
    for (int ms = 0; ms < grace_ms; ms += LOOK_MS) {
        reaped = reaped || waitpid(pid, NULL, WNOHANG) == pid;
        if (reaped && kill(-pid, 0) < 0) {
            return;
        }
        (void)poll(NULL, 0, LOOK_MS);
    }
    (void)kill(-pid, SIGKILL);
    while (!reaped && waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
}

static bool wants_end(const struct run *r)
{
    struct pollfd p = {.fd = r->o->how.stop_fd, .events = POLLIN};

    return poll(&p, 1, 0) > 0;
}

/* 0, or why it was ended. */
static int watch(const struct hook *h, pid_t pid, int stop_fd, int *status)
{
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    int result = pidfd < 0 ? -errno : 0;

    interrupt_with(pid);
    if (result == 0) {
        switch (wait_end(pidfd, stop_fd, h->limit_ms)) {
        case ENDED:
            break;
        case LATE:
            result = -ETIMEDOUT;
            break;
        case STOPPED:
            result = -ECANCELED;
            break;
        }
    }
    if (result < 0) {
        end_group(pid, h->still ? 0 : GRACE_MS);
    } else {
        while (waitpid(pid, status, 0) < 0 && errno == EINTR) {
        }
    }
    interrupt_with(0);
    if (pidfd >= 0) {
        (void)close(pidfd);
    }
    return result;
}

static int tell(const struct hook *h, int result, int status,
                struct error **errp)
{
    if (result == -ETIMEDOUT) {
        return error_set(errp, ETIMEDOUT, "the hook (%s) was ended after %d s",
                         h->when, h->limit_ms / 1000);
    }
    if (result == -ECANCELED) {
        return error_set(errp, ECANCELED,
                         "interrupted: the hook (%s) was ended", h->when);
    }
    if (result < 0) {
        return error_set(errp, -result, "the hook (%s): %s", h->when,
                         strerror(-result));
    }
    return WIFSIGNALED(status)
               ? error_set(errp, ECHILD, "the hook (%s) was killed: signal %d",
                           h->when, WTERMSIG(status))
           : WEXITSTATUS(status) != 0
               ? error_set(errp, ECHILD, "the hook (%s) failed: status %d",
                           h->when, WEXITSTATUS(status))
               : 0;
}

int run_hook(const struct run *r, const struct hook *h, struct error **errp)
{
    CLEANUP_FREE char *command = NULL;
    int status = 0;
    pid_t pid;

    if (!r->o->hook) {
        return 0;
    }
    char **env = make_environment(r, h->when, h->why ? h->why : "");
    if (!env || asprintf(&command, "%s %s", r->o->hook, h->when) < 0) {
        command = NULL;
        free_environment(env);
        return error_nomem(errp);
    }
    int stop_fd = h->last_words && wants_end(r) ? -1 : r->o->how.stop_fd;
    int result = spawn(command, env, &pid);
    free_environment(env);
    result = result < 0 ? result : watch(h, pid, stop_fd, &status);
    return tell(h, result, status, errp);
}
