/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_QMP_WAIT_H
#define NBDELTA_SERVER_CLI_QMP_WAIT_H

/*
 * Waiting for jobs of a daemon
 * ============================
 *
 * A job that this command has started is its own.  When the command is
 * interrupted, the job is cancelled and its end waited for: the command can be
 * repeated, and finds all as it was.  A job that was there before is somebody
 * else's, and goes on; so do all after waiter_detach().  The exit status tells
 * which of both.
 */
#include <jansson.h>
#include <stdbool.h>

struct error;
struct qmp_client;
struct waiter;

/* What ends the waiting. */
enum wait_until {
    WAIT_READY, /* the end, or that nothing but a command brings the job there:
                   it is ready, or pending */
    WAIT_END,   /* the end */
};

/* Signals of @c have to be minded.  NULL: no memory. */
struct waiter *waiter_new(struct qmp_client *c);
void waiter_free(struct waiter *w); /* NULL is fine */

/* From now on a signal leaves the command's own jobs as they are, and ends the
 * command once it knows which they are. */
void waiter_detach(struct waiter *w);

/* From now on show no progress, and print how a job ended only when it failed.
 */
void waiter_hush(struct waiter *w);

/*
 * Send @command and wait for its reply.  A signal is noted, and what the
 * command starts is cancelled later; the second one is -EINTR, as the first is
 * when there is nothing to be undone (@starts false).
 */
int waiter_run(struct waiter *w, const char *command, json_t *args, bool starts,
               json_t **reply, struct error **errp);

/* Wait also for the jobs that the command has started or, if there are none,
 * for the one that it names.  Returns their number. */
unsigned waiter_add_own(struct waiter *w, json_t *args);

/* Wait for a job that is there.  -ENOMEM. */
int waiter_add(struct waiter *w, const char *id);

/*
 * Wait until all jobs have come as far.  Shows progress meanwhile, and prints
 * how each job ended.  Returns an exit status, with the reason printed
 * (CLI_INTERRUPTED: the jobs were cancelled after a signal; CLI_UNKNOWN: they
 * go on, or the daemon has gone).
 */
int waiter_wait(struct waiter *w, enum wait_until until);

#endif /* NBDELTA_SERVER_CLI_QMP_WAIT_H */
