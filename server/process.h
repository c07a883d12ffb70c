/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_PROCESS_H
#define NBDELTA_SERVER_PROCESS_H

#include <signal.h>
#include <stdbool.h>

/*
 * Put right what a process inherits from the one that started it.  Call this in
 * the first thread, before anything is opened.  Descriptors 0 to 2 that are
 * closed are filled, so that no disk gets the number that error texts go to.  A
 * limit on the size of files becomes an error of the write, not the end of the
 * process.  As many descriptors as the hard limit allows can be opened: a chain
 * of images, and a crowd of clients, need many.  False: a descriptor cannot be
 * filled.
 */
bool process_begin(void);

/* End it: orderly, or at once where a call of a library still goes on that
 * nobody waits for.  What was printed is out in both cases. */
_Noreturn void process_end(int status);

/* The signal that tells that the parent has gone: one that nobody else sends,
 * so that it can be received whatever is blocked. */
#define PROCESS_ORPHANED SIGRTMIN

/*
 * Block the signals that end a server in order, in this thread and in threads
 * that it starts, and put them into @set for a signalfd.  Signals that the
 * parent has blocked are left out, and so is SIGHUP when it is ignored (nohup).
 */
void process_take_signals(sigset_t *set);

#endif /* NBDELTA_SERVER_PROCESS_H */
