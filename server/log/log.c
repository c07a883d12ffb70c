/* SPDX-License-Identifier: BSD-3-Clause */
/* Lines, never too many: see log.h. */
#include "log/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "log/sink.h"
#include "nbdelta/bytes.h"
#include "nbdelta/text.h"
#include "nbdelta/thread.h"

/* Less than what a pipe takes in one piece. */
#define TEXT_MAX 2048
#define MORE_MAX 64 /* of that: how often it was not told */

#define SECOND  UINT64_C(1000000000)
#define EVERY_S 60

/* So many lines at once, and one more in each PACE_NS. */
#define BURST   100
#define PACE_NS (SECOND / 5)

static mutex_t lock = MUTEX_STATIC(LOCK_LOG);
static _Atomic(enum tell_level) most_told = TELL_INFO;

static uint64_t full_at;    /* lock: when BURST lines may come at once again */
static uint64_t lines_lost; /* lock */

static void hear(enum tell_level level, const char *text)
{
    log_line(level, "%s", text);
}

void log_init(const char *name)
{
    sink_init(name);
    tell_to(hear);
}

int log_to(const char *where, struct error **errp)
{
    mutex_lock(&lock);
    int r = sink_open(where, errp);
    mutex_unlock(&lock);
    return r;
}

void log_up_to(enum tell_level most)
{
    atomic_store(&most_told, most);
}

/* A bucket that holds BURST lines and fills again with time.  Lines about what
 * is in order take from its upper half only. */
static bool take_token(enum tell_level level, uint64_t now) REQUIRES(lock)
{
    uint64_t lines = level >= TELL_INFO ? BURST / 2 : BURST;

    full_at = max_u64(full_at, now);
    if (full_at - now > (lines - 1) * PACE_NS) {
        return false;
    }
    full_at += PACE_NS;
    return true;
}

/* @text may be changed. */
static void tell_line(enum tell_level level, char *text) REQUIRES(lock)
{
    char lost[64];

    text_make_printable(text);
    if (!take_token(level, now_ns())) {
        lines_lost++;
        return;
    }
    (void)snprintf(lost, sizeof(lost), "%ju lines were left out here",
                   (uintmax_t)lines_lost);
    if (lines_lost > 0 && sink_write(TELL_WARNING, lost)) {
        lines_lost = 0;
    }
    if (lines_lost > 0 || !sink_write(level, text)) {
        lines_lost++;
    }
}

void log_line(enum tell_level level, const char *fmt, ...)
{
    char text[TEXT_MAX];
    va_list ap;

    if (level > atomic_load_explicit(&most_told, memory_order_relaxed)) {
        return;
    }
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    mutex_lock(&lock);
    tell_line(level, text);
    mutex_unlock(&lock);
}

/* Is it to be told now?  *quiet: how many were not. */
static bool is_time_to_tell(struct log_limit *l, uint64_t *quiet) REQUIRES(lock)
{
    uint64_t now = now_ns();

    if (now < l->next_ns) {
        l->quiet++;
        return false;
    }
    l->next_ns = now + (l->every_s ? l->every_s : EVERY_S) * SECOND;
    *quiet = l->quiet;
    l->quiet = 0;
    return true;
}

void log_seldom(struct log_limit *limit, enum tell_level level, const char *fmt,
                ...)
{
    char text[TEXT_MAX];
    uint64_t quiet = 0;
    va_list ap;

    if (level > atomic_load_explicit(&most_told, memory_order_relaxed)) {
        return;
    }
    mutex_lock(&lock);
    if (is_time_to_tell(limit, &quiet)) {
        va_start(ap, fmt);
        (void)vsnprintf(text, TEXT_MAX - MORE_MAX, fmt, ap);
        va_end(ap);
        if (quiet > 0) {
            size_t len = strlen(text);

            (void)snprintf(text + len, sizeof(text) - len,
                           " (and %ju like it before)", (uintmax_t)quiet);
        }
        tell_line(level, text);
    }
    mutex_unlock(&lock);
}
