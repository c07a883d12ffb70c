/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_MONITOR_H
#define NBDELTA_SERVER_MONITOR_H

/* QMP: sockets, sessions, and events to all of them. */
#include <jansson.h>

struct daemon;
struct error;
struct monitors;

struct monitors *monitors_new(struct daemon *d);

/* Listen on a Unix socket (mode 0600; a stale one is replaced only if nobody
 * listens on it).  The socket file is removed by monitors_stop. */
int monitors_listen(struct monitors *m, const char *path,
                    struct error **errp);

/* Send an event to all sessions that have negotiated: the job_event_fn of
 * jobs_new with `m` as opaque, called under the monitor lock.  Never blocks
 * on a client. */
void monitors_emit(const char *name, json_t *data, void *opaque);

/* No new sessions; replies and events that are queued go out (for a bounded
 * time); sessions end; sockets are removed. */
void monitors_stop(struct monitors *m);
void monitors_free(struct monitors *m);

#endif /* NBDELTA_SERVER_MONITOR_H */
