/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_MONITOR_H
#define NBDELTA_SERVER_QMP_MONITOR_H

/* QMP monitors on character devices, their sessions, and events to all. */
#include <jansson.h>

struct chardevs;
struct daemon;
struct error;
struct socket_access;
struct monitors;

struct monitors *monitors_new(struct daemon *d, struct chardevs *chardevs);

/* Add a monitor that listens on a checked address (net/address.h).  A Unix
 * socket has @access; NULL: for the user alone.  A socket that is there is
 * replaced only if nobody listens on it. */
int monitors_listen(struct monitors *m, const json_t *addr,
                    const struct socket_access *access, struct error **errp);

/* Add a monitor from the text of an option:
 * "[chardev=]ID[,mode=control][,pretty=on][,role=backup,disks.0=NAME...]". */
int monitors_add(struct monitors *m, const char *text, struct error **errp);

/* Greet and serve clients, first the ones that have been waiting.  Add no
 * monitor after that. */
int monitors_start(struct monitors *m, struct error **errp);

/* Send an event to all sessions that have negotiated.  This is the job_event_fn
 * of jobs_new(), with the monitors as @opaque.  Hold the monitor lock.  Never
 * blocks on a client. */
void monitors_emit(const char *name, json_t *data, void *opaque);

/* Let no more sessions begin, send the replies and events that are queued, for
 * a bounded time, and end all sessions.  Their connections stay. */
void monitors_stop(struct monitors *m);

/*
 * Close the connections.  A client takes that for the end of the daemon, as
 * QEMU's clients do, and opens its images next.  So they are closed before.
 */
void monitors_free(struct monitors *m);

#endif /* NBDELTA_SERVER_QMP_MONITOR_H */
