/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_PROGRESS_H
#define NBDELTA_SERVER_CLI_PROGRESS_H

/* How far a long operation is: a line on the terminal, or JSON. */
#include <stdint.h>

struct progress;

/* How much is done, 0 to 1.  Called from a thread of its own. */
typedef double progress_fn(void *opaque);

/* Show @what with a percentage on standard error, when that is a terminal,
 * from half a second on.  NULL when there is nothing to show it on. */
struct progress *progress_start(const char *what, progress_fn *fn,
                                void *opaque);

/* Bytes that are done, and that are to be done.  Called from another thread. */
typedef void progress_bytes_fn(void *opaque, uint64_t *done, uint64_t *total);

/* What --progress=json prints: {"done": 1048576, "total": 8388608}, a line each
 * second on standard error, and one at the end.  NULL: it cannot be started. */
struct progress *progress_start_json(progress_bytes_fn *fn, void *opaque);

/* Erase the line.  NULL is fine. */
void progress_stop(struct progress *p);

#endif /* NBDELTA_SERVER_CLI_PROGRESS_H */
