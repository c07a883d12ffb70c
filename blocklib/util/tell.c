/* SPDX-License-Identifier: BSD-3-Clause */
/* Telling of events that no caller learns of from a result: see tell.h. */
#include "nbdelta/tell.h"

#include <stdarg.h>
#include <stdio.h>

#define TEXT_MAX 1024

static tell_fn *listener;

void tell_to(tell_fn *fn)
{
    listener = fn;
}

void tell_event(enum tell_level level, const char *fmt, ...)
{
    char text[TEXT_MAX];
    va_list ap;

    if (listener) {
        va_start(ap, fmt);
        (void)vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        listener(level, text);
    }
}
