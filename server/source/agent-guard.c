/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guard: it talks with the guest's agent, and thaws whatever happens.
 *
 *   idle --F--> sync --> freeze sent --answer--> still --T, end, 10 s--> thaw
 *                 |            |                                           ^
 *              no answer       +--- refused, no answer in 10 s, T, end ----+
 *                 v
 *            nothing was sent that freezes
 *
 * Freezing is asked for only when the agent has answered a sync: what is sent
 * to an agent that is not there waits in its channel, and would be carried out
 * when it comes.  Once it is asked for, a thaw follows on the same channel, so
 * that an agent that wakes up late does both.
 */
#include "source/agent-guard.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/text.h"
#include "nbdelta/thread.h"
#include "source/agent-parse.h"
#include "source/agent.h"

#define MS        UINT64_C(1000000)
#define RETRY_MS  500
#define BYTES_MAX (16 << 20) /* that one answer may take */

struct guard {
    const char *path;
    int parent;
    int agent;            /* -1: not connected */
    int64_t id;           /* of the last sync */
    uint64_t still_until; /* ns; 0: nothing stands still */
    bool late;            /* it was thawed because the time was over */
    char why[512];
    struct agent_parser parser;
};

static int fail(struct guard *g, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static int fail(struct guard *g, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(g->why, sizeof(g->why), fmt, ap);
    va_end(ap);
    return -code;
}

static int ms_until(uint64_t end)
{
    uint64_t now = now_ns();

    return now < end ? (int)((end - now) / MS) + 1 : 0;
}

/* --- The channel --- */

static void hang_up(struct guard *g)
{
    if (g->agent >= 0) {
        (void)close(g->agent);
    }
    g->agent = -1;
}

static int connect_agent(struct guard *g)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    if (g->agent >= 0) {
        return 0;
    }
    if (strlen(g->path) >= sizeof(a.sun_path)) {
        return fail(g, ENAMETOOLONG, "the path is too long for a socket");
    }
    memcpy(a.sun_path, g->path, strlen(g->path));
    g->agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (g->agent >= 0 &&
        connect(g->agent, (struct sockaddr *)&a, sizeof(a)) == 0) {
        return 0;
    }
    int code = errno;
    hang_up(g);
    return fail(g, code, "cannot connect: %s", strerror(code));
}

static int send_text(struct guard *g, const char *text, uint64_t end)
{
    size_t left = strlen(text);

    while (left > 0) {
        ssize_t n = send(g->agent, text, left, MSG_NOSIGNAL);

        if (n > 0) {
            text += n;
            left -= (size_t)n;
        } else if (n < 0 && errno == EAGAIN && now_ns() < end) {
            struct pollfd p = {.fd = g->agent, .events = POLLOUT};
            (void)poll(&p, 1, ms_until(end));
        } else {
            return fail(g, n < 0 && errno != EAGAIN ? errno : ETIMEDOUT,
                        "the agent takes no commands");
        }
    }
    return 0;
}

/* Has the parent said, or shown by its end, that it is over? */
static bool parent_wants_end(const struct guard *g)
{
    struct pollfd p = {.fd = g->parent, .events = POLLIN};

    return poll(&p, 1, 0) > 0;
}

/* 1: a sync was answered; 2: *reply; as long as @end allows.  @parent: it may
 * end the waiting, -ECANCELED. */
static int receive(struct guard *g, uint64_t end, bool parent, json_t **reply)
{
    struct pollfd p[2] = {{.fd = g->agent, .events = POLLIN},
                          {.fd = parent ? g->parent : -1, .events = POLLIN}};

    for (size_t bytes = 0; bytes < BYTES_MAX;) {
        unsigned char c;
        ssize_t n = recv(g->agent, &c, 1, 0);

        if (n == 1) {
            int r = agent_parser_take(&g->parser, c, reply);
            if (r != 0) {
                return r < 0 ? fail(g, EPROTO, "the agent sends no JSON") : r;
            }
            bytes++;
            if (bytes % 4096 != 0 || now_ns() < end) {
                continue;
            }
        } else if (n == 0 || errno != EAGAIN) {
            return fail(g, ECONNRESET, "the agent has hung up");
        }
        if (now_ns() >= end) {
            return fail(g, ETIMEDOUT, "the agent does not answer");
        }
        (void)poll(p, 2, ms_until(end));
        if (parent && parent_wants_end(g)) {
            return fail(g, ECANCELED, "interrupted");
        }
    }
    return fail(g, EPROTO, "the agent sends no answer, but much else");
}

/* --- Commands to the agent --- */

static int synchronize(struct guard *g, uint64_t end, bool parent)
{
    char text[128];
    json_t *reply = NULL;

    g->id++;
    (void)snprintf(text, sizeof(text),
                   "\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": "
                   "{\"id\": %" PRId64 "}}\n",
                   g->id);
    agent_parser_expect(&g->parser, g->id);
    int r = connect_agent(g);
    r = r < 0 ? r : send_text(g, text, end);
    r = r < 0 ? r : receive(g, end, parent, &reply);
    json_decref(reply);
    return r < 0 ? r : 0;
}

/* The number that the command returns. */
static int64_t command(struct guard *g, const char *name, uint64_t end,
                       bool parent)
{
    char text[64];
    json_t *reply = NULL;

    (void)snprintf(text, sizeof(text), "{\"execute\": \"%s\"}\n", name);
    int r = send_text(g, text, end);
    r = r < 0 ? r : receive(g, end, parent, &reply);
    if (r < 0) {
        return r;
    }
    const json_t *value = json_object_get(reply, "return");
    const char *desc = json_string_value(
        json_object_get(json_object_get(reply, "error"), "desc"));
    int64_t count = json_integer_value(value);
    if (!json_is_integer(value) || count < 0) {
        CLEANUP_FREE char *shown = text_printable(desc ? desc : "no number");
        count = fail(g, EREMOTEIO, "%s: %s", name, shown ? shown : "?");
    }
    json_decref(reply);
    return count;
}

/* Again and again: file systems that stand still are worse than all else.  A
 * refusal counts, too: nothing stands still, or nothing can be done. */
static int thaw(struct guard *g)
{
    uint64_t end = now_ns() + AGENT_THAW_MS * MS;
    int64_t r;

    do {
        r = synchronize(g, end, false);
        r = r < 0 ? r : command(g, "guest-fsfreeze-thaw", end, false);
        if (r < 0 && r != -EREMOTEIO) {
            hang_up(g);
            (void)poll(NULL, 0, RETRY_MS);
        }
    } while (r < 0 && r != -EREMOTEIO && now_ns() < end);
    g->still_until = 0;
    return r < 0 ? (int)r : 0;
}

/* Asking has failed: some may stand still. */
static int64_t undo_freeze(struct guard *g, int64_t result)
{
    CLEANUP_FREE char *why = strdup(g->why);

    if (thaw(g) < 0) {
        CLEANUP_FREE char *then = strdup(g->why);
        (void)fail(g, EIO, "%.200s; thawing failed, too: %.200s",
                   why ? why : "", then ? then : "");
    } else if (why) {
        (void)fail(g, EIO, "%s", why);
    }
    return result;
}

static int64_t freeze(struct guard *g)
{
    int64_t r = synchronize(g, now_ns() + AGENT_SYNC_MS * MS, true);

    if (r < 0) {
        hang_up(g);
        return r;
    }
    g->late = false;
    g->still_until = now_ns() + AGENT_STILL_MS * MS;
    r = command(g, "guest-fsfreeze-freeze", g->still_until, true);
    return r < 0 ? undo_freeze(g, r) : r;
}

/* --- The parent --- */

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
                      g->path, g->why);
    }
}

/* The next command; 0: the time is over; -1: the parent has ended. */
static int next_command(struct guard *g)
{
    struct pollfd p = {.fd = g->parent, .events = POLLIN};
    char byte;

    if (poll(&p, 1, g->still_until ? ms_until(g->still_until) : -1) <= 0) {
        return 0;
    }
    return recv(g->parent, &byte, 1, 0) == 1 ? byte : -1;
}

static int do_thaw(struct guard *g)
{
    if (g->still_until) {
        return thaw(g);
    }
    return g->late ? fail(g, ETIMEDOUT, "they were thawed before, after %d s",
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

void agent_guard(const char *socket, int fd)
{
    static struct guard g;

    ignore_signals();
    g = (struct guard){.path = socket, .parent = fd, .agent = -1};
    g.id = (int64_t)getpid() << 16;
    for (;;) {
        int c = next_command(&g);

        if (c == GUARD_FREEZE) {
            answer(&g, freeze(&g));
        } else if (c == GUARD_THAW) {
            answer(&g, do_thaw(&g));
        } else if (c == 0 && g.still_until && now_ns() >= g.still_until) {
            g.late = true;
            thaw_unasked(&g);
        } else if (c < 0) {
            break;
        }
    }
    if (g.still_until) {
        thaw_unasked(&g);
    }
}
