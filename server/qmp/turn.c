/* SPDX-License-Identifier: BSD-3-Clause */
/* Waiting for nodes, and for the monitor lock, before a command: see turn.h. */
#include "qmp/turn.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "qmp/dispatch.h"

/* How long a command waits for nodes that do not come to rest, */
#define NODES_NS UINT64_C(30000000000)
/* and for the monitor lock.  "quit" asks the daemon to end before that. */
#define LOCK_MS 60000
#define QUIT_MS 3000

static const char *command_name(const json_t *request)
{
    const char *name = member_str(request, "exec-oob");

    return name ? name : member_str(request, "execute");
}

static const struct qmp_command *command_of(const struct daemon *d,
                                            const json_t *request)
{
    const char *name = command_name(request);

    return name ? d->service->find_command(name) : NULL;
}

bool qmp_is_lockless(const struct daemon *d, const json_t *request)
{
    const struct qmp_command *c = command_of(d, request);

    return !c || c->lockless;
}

/* --- The nodes that a command drains --- */

/* Gather all strings in @value, which may be names, as members of @names. */
static void gather_names(const json_t *value, json_t *names)
{
    const char *text = json_string_value(value);
    const char *key;
    json_t *member;
    size_t i;

    if (text) {
        (void)json_object_set_new(names, text, json_true());
    }
    json_object_foreach ((json_t *)(uintptr_t)value, key, member) {
        gather_names(member, names);
    }
    json_array_foreach (value, i, member) {
        gather_names(member, names);
    }
}

int qmp_wait_nodes(struct daemon *d, const struct qmp_state *state,
                   const json_t *request, struct error **errp)
{
    const struct qmp_command *c = command_of(d, request);
    const json_t *args = json_object_get(request, "arguments");
    CLEANUP_JSON json_t *names = json_object();
    CLEANUP_JSON json_t *nodes = json_object();
    bool exports = c && c->drains == QMP_DRAINS_ALL &&
                   !json_object_get(args, "disks");
    const char *node;
    json_t *value;
    int r = 0;

    if (!c || (!c->drains && !c->action) || !qmp_may_run(state, c) || !names ||
        !nodes) {
        return 0;
    }
    gather_names(args, names);
    if (!qmp_wait_lock(d, &d->jobs->lock, request, errp)) {
        return -ETIMEDOUT;
    }
    bool all = c->drains == QMP_DRAINS_NODES && json_object_size(names) == 0;
    d->service->find_nodes(d, all ? NULL : names, exports, nodes);
    qmp_end_turn(d);
    mutex_unlock(&d->jobs->lock);
    json_object_foreach (nodes, node, value) {
        r = r == 0 ? graph_settle(d->graph, node, NODES_NS, errp) : r;
    }
    return r;
}

/* --- The lock --- */

static void note_turn(struct daemon *d, const char *command)
{
    mutex_lock(&d->turn_lock);
    (void)snprintf(d->turn, sizeof(d->turn), "%s", command ? command : "");
    mutex_unlock(&d->turn_lock);
}

static void tell_busy(struct daemon *d, struct error **errp)
{
    char turn[sizeof(d->turn)];

    mutex_lock(&d->turn_lock);
    memcpy(turn, d->turn, sizeof(turn));
    mutex_unlock(&d->turn_lock);
    (void)error_set(errp, ETIMEDOUT,
                    "The monitor has been busy for %d s with %s%s: it waits "
                    "for storage, perhaps (see query-yank)",
                    LOCK_MS / 1000, turn[0] ? "command " : "the end of a job",
                    turn);
}

bool qmp_wait_lock(struct daemon *d, mutex_t *lock, const json_t *request,
                   struct error **errp)
{
    const char *name = command_name(request);
    bool quit = name && strcmp(name, "quit") == 0;

    if (quit && !mutex_lock_ms(lock, QUIT_MS)) {
        daemon_ask_quit(
            d, "QMP's quit"); /* whatever has the lock ends then, somehow */
        mutex_lock(lock);
    } else if (!quit && !mutex_lock_ms(lock, LOCK_MS)) {
        tell_busy(d, errp);
        return false;
    }
    note_turn(d, name);
    return true;
}

void qmp_end_turn(struct daemon *d)
{
    note_turn(d, NULL);
}
