/* SPDX-License-Identifier: BSD-3-Clause */
/* Our side of the guard: see agent.h. */
#include "source/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nbdelta/error.h"
#include "source/agent-guard.h"
#include "source/guard.h"

struct agent {
    char *name;
    pid_t guard;
    int fd; /* packets to and from it */
};

/* In the new process: it has no descriptor but its socket and what errors go
 * to. */
static void be_guard(agent_serve_fn *serve, const void *opaque, int fd)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null >= 0) {
        (void)dup2(null, STDIN_FILENO);
        (void)dup2(null, STDOUT_FILENO);
    }
    if (fd > 3) {
        (void)dup2(fd, 3);
    }
    (void)close_range(4, ~0U, 0);
    serve(opaque, 3);
    _exit(0);
}

static int fork_guard(struct agent *a, agent_serve_fn *serve,
                      const void *opaque, struct error **errp)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        return error_set(errp, errno, "socketpair: %s", strerror(errno));
    }
    a->guard = fork();
    if (a->guard == 0) {
        be_guard(serve, opaque, pair[1]);
    }
    int code = errno;
    (void)close(pair[1]);
    a->fd = pair[0];
    return a->guard < 0 ? error_set(errp, code, "fork: %s", strerror(code)) : 0;
}

int agent_start_as(const char *name, agent_serve_fn *serve, const void *opaque,
                   struct agent **ap, struct error **errp)
{
    struct agent *a = calloc(1, sizeof(*a));

    if (!a || !(a->name = strdup(name))) {
        free(a);
        return error_nomem(errp);
    }
    a->fd = -1;
    int r = fork_guard(a, serve, opaque, errp);
    if (r < 0) {
        agent_end(a);
        return r;
    }
    *ap = a;
    return 0;
}

int agent_start(const char *socket, struct agent **ap, struct error **errp)
{
    return agent_start_as(socket, agent_guard, socket, ap, errp);
}

void agent_end(struct agent *a)
{
    if (!a) {
        return;
    }
    if (a->fd >= 0) {
        (void)close(a->fd);
    }
    if (a->guard > 0) {
        while (waitpid(a->guard, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    free(a->name);
    free(a);
}

/* The answer to the last command.  1: @stop_fd is readable instead. */
static int hear(struct agent *a, int stop_fd, struct guard_answer *answer,
                struct error **errp)
{
    struct pollfd p[2] = {{.fd = a->fd, .events = POLLIN},
                          {.fd = stop_fd, .events = POLLIN}};

    while (poll(p, 2, -1) < 0 && errno == EINTR) {
    }
    if (!p[0].revents && p[1].revents) {
        return 1;
    }
    if (recv(a->fd, answer, sizeof(*answer), 0) != sizeof(*answer)) {
        return error_set(errp, EPIPE,
                         "the process that thaws the guest has ended");
    }
    answer->text[sizeof(answer->text) - 1] = '\0';
    return 0;
}

static int tell(struct agent *a, char command, struct error **errp)
{
    return send(a->fd, &command, 1, MSG_NOSIGNAL) == 1
               ? 0
               : error_set(errp, EPIPE,
                           "the process that thaws the guest has ended");
}

/* The user wants an end, and one answer is under way. */
static int give_up(struct agent *a, struct error **errp)
{
    struct guard_answer answer;
    int r = tell(a, GUARD_THAW, errp);

    r = r < 0 ? r : hear(a, -1, &answer, errp);
    r = r < 0 ? r : hear(a, -1, &answer, errp);
    return r < 0 ? r : error_set(errp, ECANCELED, "interrupted");
}

int64_t agent_freeze(struct agent *a, int stop_fd, struct error **errp)
{
    struct guard_answer answer;
    int r = tell(a, GUARD_FREEZE, errp);

    r = r < 0 ? r : hear(a, stop_fd, &answer, errp);
    if (r != 0) {
        return r < 0 ? r : give_up(a, errp);
    }
    return answer.result >= 0
               ? answer.result
               : error_set(errp, (int)-answer.result,
                           "'%s': the guest's agent cannot freeze its file "
                           "systems: %s",
                           a->name, answer.text);
}

int agent_thaw(struct agent *a, struct error **errp)
{
    struct guard_answer answer = {.result = -EPIPE};
    int r = tell(a, GUARD_THAW, errp);

    r = r < 0 ? r : hear(a, -1, &answer, errp);
    if (r < 0) {
        return r;
    }
    return answer.result >= 0 ? 0
                              : error_set(errp, (int)-answer.result,
                                          "'%s': thawing the guest's file "
                                          "systems: %s",
                                          a->name, answer.text);
}
