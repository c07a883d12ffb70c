/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_AGENT_GUARD_H
#define NBDELTA_SERVER_SOURCE_AGENT_GUARD_H

/* Be the guard (guard.h) of the guest whose agent is at @socket, a path, with
 * the packet socket @fd.  Returns when that has ended. */
void agent_guard(const void *socket, int fd);

#endif /* NBDELTA_SERVER_SOURCE_AGENT_GUARD_H */
