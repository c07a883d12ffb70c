/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_LOG_H
#define NBDELTA_SERVER_LOG_H

/*
 * The daemon's log
 * ================
 *
 * The one door for what is told to nobody in particular.  An event is a line;
 * sink.h says where it goes and how it looks there.
 *
 * Names from elsewhere may be in it: characters that are not printable (text.h)
 * become '?'.  Nothing here waits, so any locks may be held.  Lines that do not
 * find room where they go, and lines beyond a hundred at once, are only
 * counted; the next line tells their number.  The last half of the hundred is
 * kept for warnings and errors, so clients that come and go cannot hide one.
 */
#include <stdint.h>

#include "nbdelta/tell.h"

struct error;

/* Before there are threads: take @name, which stays, for the beginning of
 * lines, and listen to the library.  Lines up to TELL_INFO go to standard
 * error. */
void log_init(const char *name);

/* The same: lines go to @where (see sink_open). */
int log_to(const char *where, struct error **errp);

/* Leave out the lines above @most from now on. */
void log_up_to(enum tell_level most);

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
