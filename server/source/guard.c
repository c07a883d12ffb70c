/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guard: it freezes, and thaws whatever happens.
 *
 *   idle --F--> freezes --answer--> still --T, end, 10 s--> thaw
 *                  |                                         ^
 *                  +-- refused, no answer, T, end -----------+
 *
 * A thaw is tried for a minute.
 */
#include "source/guard.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/thread.h"
#include "source/agent.h"

#define MS       UINT64_C(1000000)
#define RETRY_MS 500

int guard_fail(struct guard *g, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(g->why, sizeof(g->why), fmt, ap);
    va_end(ap);
    return -code;
}

int guard_ms_until(uint64_t end)
{
    uint64_t now = now_ns();

    return now < end ? (int)((end - now) / MS) + 1 : 0;
}

void guard_begin_still(struct guard *g)
{
    g->still_until = now_ns() + AGENT_STILL_MS * MS;
}

/* Again and again: file systems that stand still are worse than all else.  A
 * refusal counts, too: nothing stands still, or nothing can be done. */
static int thaw(struct guard *g)
{
    uint64_t end = now_ns() + AGENT_THAW_MS * MS;
    int r;

    do {
        r = g->thaw(g, end);
        if (r < 0 && r != -EREMOTEIO) {
            (void)poll(NULL, 0, RETRY_MS);
        }
    } while (r < 0 && r != -EREMOTEIO && now_ns() < end);
    g->still_until = 0;
    return r;
}

/* Asking has failed: some may stand still. */
static int64_t undo_freeze(struct guard *g, int64_t result)
{
    CLEANUP_FREE char *why = strdup(g->why);

    if (thaw(g) < 0) {
        CLEANUP_FREE char *then = strdup(g->why);
        (void)guard_fail(g, EIO, "%.200s; thawing failed, too: %.200s",
                         why ? why : "", then ? then : "");
    } else if (why) {
        (void)guard_fail(g, EIO, "%s", why);
    }
    return result;
}

static int64_t freeze(struct guard *g)
{
    int64_t r = g->freeze(g);

    return r < 0 && g->still_until ? undo_freeze(g, r) : r;
}

static void answer(struct guard *g, int64_t result)
{
    struct guard_answer a = {.result = result};

    if (result < 0) {
        (void)snprintf(a.text, sizeof(a.text), "%s", g->why);
    }
    (void)send(g->parent, &a, sizeof(a), MSG_NOSIGNAL);
}

/* Nobody has asked for it. */
static void thaw_unasked(struct guard *g)
{
    if (thaw(g) < 0) {
        (void)fprintf(stderr,
                      "nbdelta: '%s': file systems of the guest may stand "
                      "still: %s\n",
                      g->name, g->why);
    }
}

/* The next command; 0: the time is over; -1: the parent has ended. */
static int next_command(const struct guard *g)
{
    struct pollfd p = {.fd = g->parent, .events = POLLIN};
    char byte;

    if (poll(&p, 1, g->still_until ? guard_ms_until(g->still_until) : -1) <=
        0) {
        return 0;
    }
    return recv(g->parent, &byte, 1, 0) == 1 ? byte : -1;
}

/* @late: it was thawed because the time was over. */
static int thaw_as_asked(struct guard *g, bool late)
{
    return g->still_until ? thaw(g)
           : late
               ? guard_fail(g, ETIMEDOUT, "they were thawed before, after %d s",
                            AGENT_STILL_MS / 1000)
               : 0;
}

/* Ctrl-C, and the end of a service, are for the parent: its end is enough. */
static void ignore_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE};

    for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++) {
        (void)signal(signals[i], SIG_IGN);
    }
    (void)setsid();
}

void guard_serve(struct guard *g)
{
    bool late = false;

    ignore_signals();
    for (;;) {
        int c = next_command(g);

        if (c == GUARD_FREEZE) {
            late = false;
            answer(g, freeze(g));
        } else if (c == GUARD_THAW) {
            answer(g, thaw_as_asked(g, late));
        } else if (c == 0 && g->still_until && now_ns() >= g->still_until) {
            late = true;
            thaw_unasked(g);
        } else if (c < 0) {
            break;
        }
    }
    if (g->still_until) {
        thaw_unasked(g);
    }
}
