/* SPDX-License-Identifier: BSD-3-Clause */
/* Lines on standard error, never too many: see log.h. */
#include "log/log.h"

#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/text.h"
#include "nbdelta/thread.h"

/* Less than what a pipe takes in one piece. */
#define TEXT_MAX 2048
#define LINE_MAX (TEXT_MAX + 128)

#define SECOND  UINT64_C(1000000000)
#define EVERY_S 60

/* So many lines at once, and one more in each PACE_NS. */
#define BURST   100
#define PACE_NS (SECOND / 5)

static mutex_t lock = MUTEX_STATIC(LOCK_LOG);
/* Set before there are threads. */
static const char *program = "nbdelta";
static bool to_journal;

static uint64_t full_at;    /* lock: when BURST lines may come at once again */
static uint64_t lines_lost; /* lock */

/* Is standard error the stream that systemd has made ("device:inode")?  It may
 * have been led elsewhere since. */
static bool is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    char own[64];
    struct stat st;

    if (!stream || fstat(STDERR_FILENO, &st) < 0) {
        return false;
    }
    (void)snprintf(own, sizeof(own), "%ju:%ju", (uintmax_t)st.st_dev,
                   (uintmax_t)st.st_ino);
    return strcmp(stream, own) == 0;
}

static void hear(enum tell_level level, const char *text)
{
    log_line(level, "%s", text);
}

void log_init(const char *name)
{
    program = name;
    to_journal = is_journal();
    tell_to(hear);
}

/* False: it would have to wait, or cannot be written at all. */
static bool write_line(enum tell_level level, const char *text) REQUIRES(lock)
{
    char line[LINE_MAX];
    char when[32] = "";
    struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
    time_t now = time(NULL);
    struct tm tm;
    int n;

    if (to_journal) {
        n = snprintf(line, sizeof(line), "<%d>%s\n", (int)level, text);
    } else {
        if (gmtime_r(&now, &tm)) {
            (void)strftime(when, sizeof(when), "%FT%TZ", &tm);
        }
        n = snprintf(line, sizeof(line), "%s: %s %s\n", program, when, text);
    }
    return poll(&p, 1, 0) == 1 && (p.revents & POLLOUT) &&
           write(STDERR_FILENO, line, (size_t)n) == n;
}

/* A bucket that holds BURST lines and fills again with time. */
static bool take_token(uint64_t now) REQUIRES(lock)
{
    full_at = max_u64(full_at, now);
    if (full_at - now > (BURST - 1) * PACE_NS) {
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
    if (!take_token(now_ns())) {
        lines_lost++;
        return;
    }
    (void)snprintf(lost, sizeof(lost), "%ju lines were left out here",
                   (uintmax_t)lines_lost);
    if (lines_lost > 0 && write_line(TELL_WARNING, lost)) {
        lines_lost = 0;
    }
    if (lines_lost > 0 || !write_line(level, text)) {
        lines_lost++;
    }
}

void log_line(enum tell_level level, const char *fmt, ...)
{
    char text[TEXT_MAX];
    va_list ap;

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
    char more[64];
    uint64_t quiet = 0;
    va_list ap;

    mutex_lock(&lock);
    if (is_time_to_tell(limit, &quiet)) {
        (void)snprintf(more, sizeof(more), " (and %ju like it before)",
                       (uintmax_t)quiet);
        va_start(ap, fmt);
        (void)vsnprintf(text, sizeof(text) - sizeof(more), fmt, ap);
        va_end(ap);
        if (quiet > 0) {
            strcat(text, more);
        }
        tell_line(level, text);
    }
    mutex_unlock(&lock);
}
