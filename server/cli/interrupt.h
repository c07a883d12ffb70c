/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_INTERRUPT_H
#define NBDELTA_SERVER_CLI_INTERRUPT_H

/*
 * Signals that end a command in order, or at once
 * ===============================================
 *
 * The first SIGINT, SIGTERM, SIGHUP... is news: a descriptor becomes readable,
 * for good, and the command undoes what it has begun.  The second ends the
 * process as if it had never been blocked, and a child with it.
 */
#include <stdbool.h>
#include <sys/types.h>

struct error;

/* Block the signals, and have a thread wait for them.  *stop_fd: becomes
 * readable.  Call this once, before other threads are started. */
int interrupt_start(int *stop_fd, struct error **errp);
/* The same as a flag. */
const _Atomic bool *interrupt_flag(void);
void interrupt_end(void);

/* A child that leads a process group of its own, which is killed by the second
 * signal; 0: there is none.  Any thread. */
void interrupt_with(pid_t child);

#endif /* NBDELTA_SERVER_CLI_INTERRUPT_H */
