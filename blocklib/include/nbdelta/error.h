/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_ERROR_H
#define NBDELTA_ERROR_H

/*
 * Errors
 * ======
 *
 * Every function which can fail returns 0 (or a count) on success and
 * a negative errno on failure.  That is the whole story on the I/O path.
 *
 * Functions on the control path (open, create, configure, start a job)
 * additionally take `struct error **errp` as their last parameter and
 * leave there a sentence for a human.
 *
 *  - Pass NULL if you do not want the sentence; the return value is
 *    always enough to know that the call failed.  Never look at *errp
 *    to find that out.
 *  - A callee that succeeds does not touch *errp.
 *  - The sentence is one phrase: no newline, no full stop, names in
 *    'single quotes'.  Where a system call failed, the caller's format
 *    ends with ": %s" and strerror.
 */
#include <errno.h>

struct error;

/*
 * Make an error and hand back its code, so that a failing function ends
 * with one line:
 *
 *     return error_set(errp, EINVAL, "'%s' is not a size", text);
 *
 * @errnum is positive.  Returns -@errnum, also when @errp is NULL and
 * when there is no memory left for the message.  An error that is in *errp
 * already is freed, so *errp must have been set to NULL at first.  What is not
 * only to be read in names (text.h) becomes '?': the sentence is UTF-8.
 */
int error_set(struct error **errp, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __clang_analyzer__ /* it cannot see that the result is negative */
#define error_set(...) (error_set(__VA_ARGS__), -1)
#endif

/* There is no memory for what was wanted; returns -ENOMEM. */
static inline int error_nomem(struct error **errp)
{
    return error_set(errp, ENOMEM, "Out of memory");
}

/* Put context in front: "cannot open 'a.qcow2': " + what was there. */
void error_prefix(struct error **errp, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The positive errno of @err; EIO when @err is NULL. */
int error_code(const struct error *err);

/* The sentence; a fixed text when @err is NULL (no memory for it). */
const char *error_message(const struct error *err);

/* Free @err; NULL is fine. */
void error_free(struct error *err);

static inline void error_cleanup(struct error **errp)
{
    error_free(*errp);
}
#define CLEANUP_ERROR __attribute__((cleanup(error_cleanup)))

#endif /* NBDELTA_ERROR_H */
