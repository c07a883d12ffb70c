/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_TURN_H
#define NBDELTA_SERVER_QMP_TURN_H

/*
 * What a command waits for before it has the monitor lock
 * =======================================================
 *
 *      any command   yank, query-version, ...: at once, without the lock
 *         |
 *         | it drains disks: which?       with the lock, for a moment
 *         | wait until they can be        without locks; -ETIMEDOUT after
 *         | drained                       a while
 *         v
 *      lock, run, reply                   the wait for the lock ends after
 *                                         a while, too
 *
 * So storage that hangs holds up only the commands that need it, and a command
 * that fails tells what it has waited for.
 */
#include <jansson.h>
#include <stdbool.h>

#include "nbdelta/thread.h"

struct daemon;
struct error;
struct qmp_state;

/* May @request run, and be replied to, without the monitor lock?  True also
 * when it is no command. */
bool qmp_is_lockless(const struct daemon *d, const json_t *request);

/* Wait for the nodes that @request drains, if the client may run it.
 * -ETIMEDOUT: a node does not come to rest, and @errp says which.  Hold no
 * lock. */
int qmp_wait_nodes(struct daemon *d, const struct qmp_state *state,
                   const json_t *request, struct error **errp);

/* Take the monitor lock, for @request.  False: another command has had it for
 * too long, and @errp tells which. */
bool qmp_wait_lock(struct daemon *d, mutex_t *lock, const json_t *request,
                   struct error **errp)
    TSA(try_acquire_capability(true, *lock));

/* The request has been run, and replied to; then release the lock. */
void qmp_end_turn(struct daemon *d);

#endif /* NBDELTA_SERVER_QMP_TURN_H */
