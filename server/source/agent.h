/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_AGENT_H
#define NBDELTA_SERVER_SOURCE_AGENT_H

/*
 * A guest's file systems stand still for a moment
 * ===============================================
 *
 *     this process            the guard             the agent, or libvirt
 *     agent_freeze  -------->  sync, freeze  ------->
 *        <-- how many file systems stand still --
 *     agent_thaw    -------->  thaw          ------->
 *
 * The guard is a process of its own.  It thaws when it is told, when 10 s are
 * over since it has told the agent to freeze, and when this process ends, in
 * whatever way.  It goes on for a minute while the agent does not answer.  Only
 * something that kills both leaves the guest frozen.
 */
#include <stdint.h>

struct agent;
struct error;

/* The limits. */
#define AGENT_SYNC_MS  5000  /* an agent that does not answer is not there */
#define AGENT_STILL_MS 10000 /* that file systems stand still */
#define AGENT_THAW_MS  60000 /* of attempts to thaw */

/* Start the guard of a guest whose agent is at @socket.  Call this before there
 * are threads.  Nothing is connected to before agent_freeze. */
int agent_start(const char *socket, struct agent **ap, struct error **errp);

/* The same with another kind of guard: @serve is all that its process does,
 * with
 * @fd as agent_guard() has it.  @name is the guest's. */
typedef void agent_serve_fn(const void *opaque, int fd);
int agent_start_as(const char *name, agent_serve_fn *serve, const void *opaque,
                   struct agent **ap, struct error **errp);

/*
 * Freeze all file systems.  The number of them, or -errno, and then they are
 * thawed again: -ETIMEDOUT: no answer; -EREMOTEIO: the agent refuses; -EPROTO;
 * -ECANCELED: @stop_fd (or -1) is readable; others from connecting.
 */
int64_t agent_freeze(struct agent *a, int stop_fd, struct error **errp);

/* Thaw them.  -ETIMEDOUT: the guard has done so before, as 10 s were over;
 * others: the agent did not answer, or has refused. */
int agent_thaw(struct agent *a, struct error **errp);

/* Thaws, and ends the guard.  NULL is fine. */
void agent_end(struct agent *a);

#endif /* NBDELTA_SERVER_SOURCE_AGENT_H */
