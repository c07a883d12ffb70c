/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_TURN_H
#define NBDELTA_SERVER_QMP_TURN_H

/*
 * What comes before a command has the monitor lock
 * ================================================
 *
 *      any command   yank, query-version, ...: at once, without the lock
 *         |
 *         | drains disks: which?          with the lock, for a moment
 *         | wait until these can be       without locks; then -ETIMEDOUT
 *         v
 *      lock, run, reply                   the lock is waited for, too, not
 *                                         for ever
 *
 * So storage that hangs holds up the commands that need it, and nobody else;
 * and whoever waits is told what for.
 */
#include <jansson.h>
#include <stdbool.h>

#include "nbdelta/thread.h"

struct daemon;
struct error;

/* May it run, and be replied to, without the monitor lock?  So may what is no
 * command. */
bool qmp_is_lockless(const struct daemon *d, const json_t *request);

/* Wait for the nodes that @request drains.  -ETIMEDOUT: one of them does not
 * come to rest, @errp says which.  Without locks. */
int qmp_wait_nodes(struct daemon *d, const json_t *request,
                   struct error **errp);

/* The monitor lock, for @request.  False: somebody has had it for too long,
 * and @errp tells with which command. */
bool qmp_wait_lock(struct daemon *d, mutex_t *lock, const json_t *request,
                   struct error **errp)
    TSA(try_acquire_capability(true, *lock));

/* It has been run, and replied to. */
void qmp_end_turn(struct daemon *d);

#endif /* NBDELTA_SERVER_QMP_TURN_H */
