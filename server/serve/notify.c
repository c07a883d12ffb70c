/* SPDX-License-Identifier: BSD-3-Clause */
/* What systemd hands to a program: see notify.h. */
#include "serve/notify.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define SOCKETS_MAX 1024

/* -1: it is no number. */
static long parse_number(const char *text)
{
    char *end;
    long n = strtol(text, &end, 10);

    return isdigit((unsigned char)text[0]) && !*end ? n : -1;
}

static int count_sockets(struct error **errp)
{
    const char *pid = getenv("LISTEN_PID");
    const char *fds = getenv("LISTEN_FDS");

    if (!pid || !fds || parse_number(pid) != (long)getpid()) {
        return 0; /* meant for somebody else */
    }
    long n = parse_number(fds);
    if (n < 1 || n > SOCKETS_MAX) {
        return error_set(errp, EINVAL,
                         "LISTEN_FDS='%.64s' is not a number of sockets", fds);
    }
    return (int)n;
}

int activation_take(struct error **errp)
{
    int n = count_sockets(errp);

    (void)unsetenv("LISTEN_PID");
    (void)unsetenv("LISTEN_FDS");
    (void)unsetenv("LISTEN_FDNAMES");
    return n;
}

void notify_init(struct notify *n)
{
    const char *path = getenv("NOTIFY_SOCKET");
    size_t len = path ? strlen(path) : 0;

    *n = (struct notify){.addr.sun_family = AF_UNIX};
    if (len > 1 && len < sizeof(n->addr.sun_path) &&
        (path[0] == '/' || path[0] == '@')) {
        memcpy(n->addr.sun_path, path, len);
        if (path[0] == '@') {
            n->addr.sun_path[0] = '\0'; /* an abstract one */
        }
        n->len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    }
    (void)unsetenv("NOTIFY_SOCKET");
}

void notify_tell(const struct notify *n, const char *state)
{
    CLEANUP_CLOSE int fd = n->len > 0
                               ? socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)
                               : -1;

    if (fd >= 0) {
        (void)sendto(fd, state, strlen(state), MSG_NOSIGNAL,
                     (const struct sockaddr *)&n->addr, n->len);
    }
}
