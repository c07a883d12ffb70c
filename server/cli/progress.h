/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_PROGRESS_H
#define NBDELTA_SERVER_CLI_PROGRESS_H

/* A line on the terminal that tells how far a long operation is. */

struct progress;

/* How much is done, 0 to 1.  Called from a thread of its own. */
typedef double progress_fn(void *opaque);

/* Show @what with a percentage on standard error, when that is a terminal,
 * from half a second on.  NULL when there is nothing to show it on. */
struct progress *progress_start(const char *what, progress_fn *fn,
                                void *opaque);

/* Erase the line.  NULL is fine. */
void progress_stop(struct progress *p);

#endif /* NBDELTA_SERVER_CLI_PROGRESS_H */
