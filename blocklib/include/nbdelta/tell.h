/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TELL_H
#define NBDELTA_TELL_H

/*
 * Telling of events that no caller learns of
 * ==========================================
 *
 * A function returns its errors to its caller.  Some events have no caller: a
 * job fails in its thread, or an image has a bitmap that cannot be trusted. The
 * library tells of each in one sentence.  It prints nothing itself: it calls
 * the function that the program has given to tell_to, and none until then.
 */

/* The numbers are syslog's. */
enum tell_level {
    TELL_ERROR = 3,   /* something is lost, or does not work any more */
    TELL_WARNING = 4, /* somebody should look at it */
    TELL_INFO = 6,    /* nothing is wrong */
    TELL_DEBUG = 7,   /* what helps to find a fault of a client, or ours */
};

/* @text is one phrase, like the sentence of an error.  Names from elsewhere are
 * in it unchanged: they may not be printable.  Called from any thread, with any
 * locks: it must not wait, and must not call the library. */
typedef void tell_fn(enum tell_level level, const char *text);

/* Call @fn from now on; NULL: tell nobody.  Call it before there are threads.
 */
void tell_to(tell_fn *fn);

/* A text that is too long, above 1023 bytes, is cut off. */
void tell_event(enum tell_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif /* NBDELTA_TELL_H */
