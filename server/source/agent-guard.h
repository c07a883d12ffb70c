/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_AGENT_GUARD_H
#define NBDELTA_SERVER_SOURCE_AGENT_GUARD_H

/* The process between us and a guest's agent (agent.h). */
#include <stdint.h>

/* Commands to the guard, a byte each. */
enum { GUARD_FREEZE = 'F', GUARD_THAW = 'T' };

/* Its answers. */
struct guard_answer {
    int64_t result; /* of GUARD_FREEZE: file systems; of both: -errno */
    char text[512]; /* why */
};

/* Do what comes from the packet socket @fd, until it ends.  This is all that
 * the process does. */
void agent_guard(const char *socket, int fd);

#endif /* NBDELTA_SERVER_SOURCE_AGENT_GUARD_H */
