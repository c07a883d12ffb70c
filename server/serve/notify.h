/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_NOTIFY_H
#define NBDELTA_SERVER_SERVE_NOTIFY_H

/* What systemd, or a program in its place, hands to a program that it starts:
 * sockets that listen already, and one on which to tell that it is ready. */
#include <sys/socket.h>
#include <sys/un.h>

struct error;

/*
 * Sockets given to this process (LISTEN_PID, LISTEN_FDS): the numbers from
 * ACTIVATION_FIRST on.  Returns how many, 0 when there are none; -EINVAL: the
 * variables make no sense.  They leave the environment: to be called once,
 * before there are threads and before forking.
 */
#define ACTIVATION_FIRST 3
int activation_take(struct error **errp);

struct notify {
    struct sockaddr_un addr;
    socklen_t len; /* 0: nobody wants to know */
};

/* Look whom to tell (NOTIFY_SOCKET).  The variable leaves the environment. */
void notify_init(struct notify *n);

/* Tell @state: "READY=1", "STOPPING=1". */
void notify_tell(const struct notify *n, const char *state);

#endif /* NBDELTA_SERVER_SERVE_NOTIFY_H */
