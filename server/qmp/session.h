/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_SESSION_H
#define NBDELTA_SERVER_QMP_SESSION_H

/*
 * A QMP session: one client, one thread
 * =====================================
 *
 *      input --> parser --> dispatch (under the monitor lock)
 *                               | reply
 *      output <-- sending <-- out <---- session_event (any thread)
 *
 * Nobody waits for a client.  A session whose own replies pile up is not read
 * from, and a session that lets events pile up is dropped.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "qmp/chardev.h"

struct daemon;
struct qmp_role;
struct session;

/*
 * Take @ch, and queue the greeting.  @wake is a kick (nbdelta/kick.h) that is
 * raised when the session has ended.  @role (or NULL) stays until then.  NULL:
 * no memory; @ch is closed then.
 */
enum session_mode { SESSION_QMP, SESSION_PRETTY, SESSION_HUMAN };
struct session *session_new(struct daemon *d, const struct channel *ch,
                            const struct qmp_role *role, enum session_mode mode,
                            int wake);

/* Begin to read and write.  After an error only session_free() may follow. */
int session_start(struct session *s);

/* Queue an event, if the client has negotiated and has no role.  Hold the
 * monitor lock. */
void session_event(struct session *s, const json_t *event);

bool session_finished(const struct session *s);

/* Has its client negotiated?  Any thread. */
bool session_negotiated(const struct session *s);

/* Tell the session to send what is queued, until @deadline (now_ns) at most,
 * and to end. */
void session_stop(struct session *s, uint64_t deadline);

/* Wait until the thread of @s, if it was started, has ended.  The connection
 * stays until session_free(). */
void session_wait(struct session *s);

/* Wait for the end of @s, if it was started, close its connection and free it.
 */
void session_free(struct session *s);

#endif /* NBDELTA_SERVER_QMP_SESSION_H */
