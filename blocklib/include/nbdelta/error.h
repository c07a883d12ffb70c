/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_ERROR_H
#define NBDELTA_ERROR_H

/*
 * Errors
 * ======
 *
 * Every function that can fail returns 0 (or a count) on success and a negative
 * errno on failure.  Functions on the I/O path do no more.
 *
 * Functions on the control path (open, create, configure, start a job)
 * additionally take `struct error **errp` as their last parameter and
 * leave there a sentence for a human.
 *
 *  - Pass NULL if you do not want the sentence.  The return value alone
 *    says whether the call has failed; never look at *errp for that.
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
 * @errnum is positive.  Returns -@errnum, also when @errp is NULL and when
 * there is no memory left for the message.  Set *errp to NULL before its first
 * use: an error that is in it already is freed.  Characters in names that are
 * not printable (text.h) become '?'; the sentence is UTF-8.
 */
int error_set(struct error **errp, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Make the error for a lack of memory; returns -ENOMEM. */
static inline int error_nomem(struct error **errp)
{
    return error_set(errp, ENOMEM, "%s",
                     errno == EMFILE || errno == ENFILE
                         ? "no file descriptor is left (see ulimit -n)"
                         : "Out of memory");
}

#ifdef __clang_analyzer__ /* it cannot see that the results are negative */
#define error_set(...)   (error_set(__VA_ARGS__), -1)
#define error_nomem(...) (error_nomem(__VA_ARGS__), -1)
#endif

/* Put context in front of the sentence: "cannot open 'a.qcow2': " and then the
 * old one. */
void error_prefix(struct error **errp, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The positive errno of @err; EIO when @err is NULL. */
int error_code(const struct error *err);

/* The sentence; it lives as long as @err.  A fixed text when @err is NULL,
 * because there was no memory for it. */
const char *error_message(const struct error *err);

/* Free @err; NULL is fine. */
void error_free(struct error *err);

static inline void error_cleanup(struct error **errp)
{
    error_free(*errp);
}
#define CLEANUP_ERROR __attribute__((cleanup(error_cleanup)))

#endif /* NBDELTA_ERROR_H */
