/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_ACTIVATION_H
#define NBDELTA_SERVER_SERVE_ACTIVATION_H

/* Sockets that listen already, as systemd hands them to a program that it
 * starts (sd_listen_fds(3)). */
#include <stdbool.h>

struct error;

/* Their numbers begin here. */
#define ACTIVATION_FIRST 3

struct activation {
    int count;
    char *names; /* of all, with colons between, or NULL */
};

/*
 * Take the sockets that are given to this process (LISTEN_PID, LISTEN_FDS,
 * LISTEN_FDNAMES).  -EINVAL: the variables make no sense.  They leave the
 * environment: to be called once, before there are threads and before forking.
 */
int activation_take(struct activation *a, struct error **errp);
void activation_free(struct activation *a);

/* Is socket @i (from 0) for monitors?  Then its FileDescriptorName= is "qmp".
 * All others are for NBD. */
bool activation_is_monitor(const struct activation *a, int i);

#endif /* NBDELTA_SERVER_SERVE_ACTIVATION_H */
