/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TELL_H
#define NBDELTA_TELL_H

/*
 * What nobody has asked for
 * =========================
 *
 * An error goes to who has called.  What has no caller who could tell of it
 * (a job that fails in its thread, a bitmap that an image has and nobody can
 * trust) is told here, a sentence each.  The library itself prints nothing: the
 * program says who hears it, and until then nobody does.
 */

/* As syslog has them. */
enum tell_level {
    TELL_ERROR = 3,   /* something is lost, or does not work any more */
    TELL_WARNING = 4, /* somebody should look at it */
    TELL_NOTE = 5,    /* nothing is wrong */
};

/* @text is one phrase, as those of errors are, and may have names from
 * elsewhere in it as they are.  Called from any thread, with any locks: it
 * does not wait, and calls nothing of the library. */
typedef void tell_fn(enum tell_level level, const char *text);

/* Before there are threads. */
void tell_to(tell_fn *fn);

void tell_event(enum tell_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif /* NBDELTA_TELL_H */
