/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_LOG_H
#define NBDELTA_SERVER_LOG_H

/*
 * The daemon's log: standard error
 * ================================
 *
 * The one door for what is told to nobody in particular.  An event is a line:
 *
 *     nbdelta: 2026-01-31T23:59:00Z job 'j0' (backup) failed: ...
 *     <3>job 'j0' (backup) failed: ...            (to the journal)
 *
 * Names from elsewhere may be in it: characters that are not printable (text.h)
 * become '?'.  Nothing here waits, so any locks may be held.  Lines that
 * standard error has no room for, and lines beyond a hundred at once, are only
 * counted; the next line tells their number.
 */
#include <stdint.h>

#include "nbdelta/tell.h"

/* Before there are threads: take @name, which stays, for the beginning of
 * lines, look where standard error leads, and listen to the library. */
void log_init(const char *name);

void log_line(enum tell_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * For events that may come often, and events that clients cause: the first is
 * told at once, then one in @every_s seconds, with how many there were in
 * between.  Have one log_limit for each kind of event, and for each disk or the
 * like that it may happen to.
 */
struct log_limit {
    unsigned every_s; /* 0: a minute */
    uint64_t next_ns; /* guarded by the log's lock */
    uint64_t quiet;   /* not told since; the same */
};

void log_seldom(struct log_limit *limit, enum tell_level level, const char *fmt,
                ...) __attribute__((format(printf, 3, 4)));

#endif /* NBDELTA_SERVER_LOG_H */
