/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_PROCESS_H
#define NBDELTA_SERVER_PROCESS_H

#include <signal.h>
#include <stdbool.h>

/*
 * What a process inherits from the one that started it, and cannot be used as
 * it is.  In the first thread, before anything is opened: descriptors 0 to 2
 * that are closed are filled, lest a disk gets the number that error texts go
 * to; and a limit on the size of files is an error of who writes, not the end
 * of the process.  False: a descriptor cannot be filled.
 */
bool process_begin(void);

/* The signal that tells that the parent has gone: one that nobody else sends,
 * so that it can be received whatever is blocked. */
#define PROCESS_ORPHANED SIGRTMIN

/*
 * Block the signals that end a server in order, in this thread and in those
 * that it starts, and put them into @set for a signalfd.  One that the parent
 * has blocked is not among them, nor is SIGHUP when it is ignored (nohup).
 */
void process_take_signals(sigset_t *set);

#endif /* NBDELTA_SERVER_PROCESS_H */
