/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_LOG_SINK_H
#define NBDELTA_SERVER_LOG_SINK_H

/*
 * Where the lines of the log go
 * =============================
 *
 *     stderr    nbdelta: 2026-01-31T23:59:00Z job 'j0' failed: ...
 *               <3>job 'j0' failed: ...     where systemd reads it
 *     syslog    a datagram to /dev/log (RFC 3164), as a daemon's
 *     FILE      the lines of stderr, at the end of the file
 *     null      nowhere
 *
 * A file that was renamed or removed is made again with the next line, so
 * logrotate needs to tell nobody.  Not thread-safe: one lock of the caller's
 * goes around everything here.
 */
#include <stdbool.h>

#include "nbdelta/tell.h"

struct error;

/* Lines go to standard error, and begin with @name, which stays.  Looks
 * where standard error leads now. */
void sink_init(const char *name);

/* Lines go to @where from now on: "stderr", "syslog", "null", or else a file,
 * which is made (mode 0640) and opened here.  On an error all stays as it was:
 * -errno of opening the file. */
int sink_open(const char *where, struct error **errp);

/* Does systemd read standard error, so that a line may begin with its level? */
bool sink_is_journal(void);

/* Does not wait, except for a file on storage that hangs.  False: nobody takes
 * lines at the moment. */
bool sink_write(enum tell_level level, const char *text);

#endif /* NBDELTA_SERVER_LOG_SINK_H */
