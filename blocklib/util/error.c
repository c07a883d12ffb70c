/* SPDX-License-Identifier: BSD-3-Clause */
/* Errors with a sentence for people: see error.h. */
#include "nbdelta/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/text.h"

struct error {
    int errnum;
    char msg[]; /* one line of printable text */
};

/* A new error whose sentence is the format's text and then @tail, or NULL. */
static struct error *error_make(int errnum, const char *tail, const char *fmt,
                                va_list ap)
    __attribute__((format(printf, 3, 0)));
static struct error *error_make(int errnum, const char *tail, const char *fmt,
                                va_list ap)
{
    size_t tail_len = strlen(tail);
    struct error *err;
    va_list again;
    int len;

    va_copy(again, ap);
    len = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    if (len < 0) {
        return NULL;
    }
    err = malloc(sizeof(*err) + (size_t)len + tail_len + 1);
    if (!err) {
        return NULL;
    }
    err->errnum = errnum;
    (void)vsnprintf(err->msg, (size_t)len + 1, fmt, ap);
    memcpy(err->msg + len, tail, tail_len + 1);
    /* Names may come from images and clients. */
    text_make_printable(err->msg);
    return err;
}

int(error_set)(struct error **errp, int errnum, const char *fmt, ...)
{
    struct error *err;
    va_list ap;

    if (errp) {
        va_start(ap, fmt);
        err = error_make(errnum, "", fmt, ap);
        va_end(ap);
        /* Only now: the old sentence may be an argument of the new one. */
        error_free(*errp);
        *errp = err;
    }
    return -errnum;
}

void error_prefix(struct error **errp, const char *fmt, ...)
{
    struct error *err;
    va_list ap;

    if (!errp || !*errp) {
        return;
    }
    va_start(ap, fmt);
    err = error_make((*errp)->errnum, (*errp)->msg, fmt, ap);
    va_end(ap);
    if (err) {
        error_free(*errp);
        *errp = err;
    }
}

int error_code(const struct error *err)
{
    return err ? err->errnum : EIO;
}

const char *error_message(const struct error *err)
{
    return err ? err->msg : "no memory for the error message";
}

void error_free(struct error *err)
{
    free(err);
}
