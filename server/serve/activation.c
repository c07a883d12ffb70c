/* SPDX-License-Identifier: BSD-3-Clause */
/* Sockets from systemd: see activation.h. */
#include "serve/activation.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

int activation_take(struct activation *a, struct error **errp)
{
    const char *names = getenv("LISTEN_FDNAMES");
    int n = count_sockets(errp);
    int r = n < 0 ? n : 0;

    *a = (struct activation){.count = n > 0 ? n : 0};
    if (n > 0 && names && !(a->names = strdup(names))) {
        r = error_nomem(errp);
    }
    (void)unsetenv("LISTEN_PID");
    (void)unsetenv("LISTEN_FDS");
    (void)unsetenv("LISTEN_FDNAMES");
    return r;
}

void activation_free(struct activation *a)
{
    free(a->names);
    *a = (struct activation){.count = 0};
}

bool activation_is_monitor(const struct activation *a, int i)
{
    static const char monitor[] = "qmp";
    const char *at = a->names;

    while (at && i > 0) {
        at = strchr(at, ':');
        at += at != NULL;
        i--;
    }
    return at && strcspn(at, ":") == sizeof(monitor) - 1 &&
           strncmp(at, monitor, sizeof(monitor) - 1) == 0;
}
