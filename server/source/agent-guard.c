/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guard (guard.h) of a guest whose agent has a socket.
 *
 *   sync --> freeze sent --answer--> still
 *    |            |
 *    |            +--- refused, no answer in 10 s, T, end --> thaw
 * no answer
 *    v
 *   nothing was sent that freezes
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
#include "source/guard.h"

#define MS        UINT64_C(1000000)
#define BYTES_MAX (16 << 20) /* that one answer may take */

struct channel {
    struct guard guard;
    const char *path;
    int agent;  /* -1: not connected */
    int64_t id; /* of the last sync */
    struct agent_parser parser;
};

/* --- The channel --- */

static void hang_up(struct channel *c)
{
    if (c->agent >= 0) {
        (void)close(c->agent);
    }
    c->agent = -1;
}

static int connect_agent(struct channel *c)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    if (c->agent >= 0) {
        return 0;
    }
    if (strlen(c->path) >= sizeof(a.sun_path)) {
        return guard_fail(&c->guard, ENAMETOOLONG,
                          "the path is too long for a socket");
    }
    memcpy(a.sun_path, c->path, strlen(c->path));
    c->agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->agent >= 0 &&
        connect(c->agent, (struct sockaddr *)&a, sizeof(a)) == 0) {
        return 0;
    }
    int code = errno;
    hang_up(c);
    return guard_fail(&c->guard, code, "cannot connect: %s", strerror(code));
}

static int send_text(struct channel *c, const char *text, uint64_t end)
{
    size_t left = strlen(text);

    while (left > 0) {
        ssize_t n = send(c->agent, text, left, MSG_NOSIGNAL);

        if (n > 0) {
            text += n;
            left -= (size_t)n;
        } else if (n < 0 && errno == EAGAIN && now_ns() < end) {
            struct pollfd p = {.fd = c->agent, .events = POLLOUT};
            (void)poll(&p, 1, guard_ms_until(end));
        } else {
            return guard_fail(&c->guard,
                              n < 0 && errno != EAGAIN ? errno : ETIMEDOUT,
                              "the agent takes no commands");
        }
    }
    return 0;
}

/* Has the parent said, or shown by its end, that it is over? */
static bool parent_wants_end(const struct channel *c)
{
    struct pollfd p = {.fd = c->guard.parent, .events = POLLIN};

    return poll(&p, 1, 0) > 0;
}

/* 1: a sync was answered; 2: *reply; as long as @end allows.  @parent: it may
 * end the waiting, -ECANCELED. */
static int receive(struct channel *c, uint64_t end, bool parent, json_t **reply)
{
    struct pollfd p[2] = {
        {.fd = c->agent, .events = POLLIN},
        {.fd = parent ? c->guard.parent : -1, .events = POLLIN}};

    for (size_t bytes = 0; bytes < BYTES_MAX;) {
        unsigned char byte;
        ssize_t n = recv(c->agent, &byte, 1, 0);

        if (n == 1) {
            int r = agent_parser_take(&c->parser, byte, reply);
            if (r != 0) {
                return r < 0 ? guard_fail(&c->guard, EPROTO,
                                          "the agent sends no JSON")
                             : r;
            }
            bytes++;
            if (bytes % 4096 != 0 || now_ns() < end) {
                continue;
            }
        } else if (n == 0 || errno != EAGAIN) {
            return guard_fail(&c->guard, ECONNRESET, "the agent has hung up");
        }
        if (now_ns() >= end) {
            return guard_fail(&c->guard, ETIMEDOUT,
                              "the agent does not answer");
        }
        (void)poll(p, 2, guard_ms_until(end));
        if (parent && parent_wants_end(c)) {
            return guard_fail(&c->guard, ECANCELED, "interrupted");
        }
    }
    return guard_fail(&c->guard, EPROTO,
                      "the agent sends no answer, but much else");
}

/* --- Commands to the agent --- */

static int synchronize(struct channel *c, uint64_t end, bool parent)
{
    char text[128];
    json_t *reply = NULL;

    c->id++;
    (void)snprintf(text, sizeof(text),
                   "\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": "
                   "{\"id\": %" PRId64 "}}\n",
                   c->id);
    agent_parser_expect(&c->parser, c->id);
    int r = connect_agent(c);
    r = r < 0 ? r : send_text(c, text, end);
    r = r < 0 ? r : receive(c, end, parent, &reply);
    json_decref(reply);
    return r < 0 ? r : 0;
}

/* The number that the command returns. */
static int64_t command(struct channel *c, const char *name, uint64_t end,
                       bool parent)
{
    char text[64];
    json_t *reply = NULL;

    (void)snprintf(text, sizeof(text), "{\"execute\": \"%s\"}\n", name);
    int r = send_text(c, text, end);
    r = r < 0 ? r : receive(c, end, parent, &reply);
    if (r < 0) {
        return r;
    }
    const json_t *value = json_object_get(reply, "return");
    const char *desc = json_string_value(
        json_object_get(json_object_get(reply, "error"), "desc"));
    int64_t count = json_integer_value(value);
    if (!json_is_integer(value) || count < 0) {
        CLEANUP_FREE char *shown = text_printable(desc ? desc : "no number");
        count = guard_fail(&c->guard, EREMOTEIO, "%s: %s", name,
                           shown ? shown : "?");
    }
    json_decref(reply);
    return count;
}

static int thaw(struct guard *guard, uint64_t end)
{
    struct channel *c = guard->opaque;
    int64_t r = synchronize(c, end, false);

    r = r < 0 ? r : command(c, "guest-fsfreeze-thaw", end, false);
    if (r < 0 && r != -EREMOTEIO) {
        hang_up(c);
    }
    return r < 0 ? (int)r : 0;
}

static int64_t freeze(struct guard *guard)
{
    struct channel *c = guard->opaque;
    int64_t r = synchronize(c, now_ns() + AGENT_SYNC_MS * MS, true);

    if (r < 0) {
        hang_up(c);
        return r;
    }
    guard_begin_still(guard);
    return command(c, "guest-fsfreeze-freeze", guard->still_until, true);
}

void agent_guard(const void *socket, int fd)
{
    static struct channel c;

    c = (struct channel){.path = socket, .agent = -1};
    c.id = (int64_t)getpid() << 16;
    c.guard = (struct guard){.name = c.path,
                             .parent = fd,
                             .opaque = &c,
                             .freeze = freeze,
                             .thaw = thaw};
    guard_serve(&c.guard);
}
