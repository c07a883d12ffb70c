/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_MONITOR_H
#define NBDELTA_SERVER_QMP_MONITOR_H

/* QMP monitors on character devices, their sessions, and events to all. */
#include <jansson.h>

struct chardevs;
struct daemon;
struct error;
struct monitors;

struct monitors *monitors_new(struct daemon *d, struct chardevs *chardevs);

/* A monitor on a Unix socket that listens (mode 0600; a stale one is replaced
 * only if nobody listens on it). */
int monitors_listen(struct monitors *m, const char *path, struct error **errp);

/* A monitor as an option tells: "[chardev=]ID[,mode=control][,pretty=on]". */
int monitors_add(struct monitors *m, const char *text, struct error **errp);

/* Greet and serve clients, those that have been waiting first.  No monitor is
 * added any more. */
int monitors_start(struct monitors *m, struct error **errp);

/* Send an event to all sessions that have negotiated: the job_event_fn of
 * jobs_new with `m` as opaque, called under the monitor lock.  Never blocks
 * on a client. */
void monitors_emit(const char *name, json_t *data, void *opaque);

/* No new sessions; replies and events that are queued go out (for a bounded
 * time); sessions end. */
void monitors_stop(struct monitors *m);
void monitors_free(struct monitors *m);

#endif /* NBDELTA_SERVER_QMP_MONITOR_H */
