/* SPDX-License-Identifier: BSD-3-Clause */
/* Backups while they go on: queries, and a thread that tells of points in time
 * that were lost and ends sessions that expire. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/session-priv.h"
#include "daemon.h"
#include "nbd/export.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/kick.h"
#include "nbdelta/point.h"
#include "qmp/monitor.h"

/* How long a session that expires waits for each of its disks to come to rest,
 * and after how long it tries again. */
#define REST_NS  (2 * NS)
#define RETRY_NS (10 * NS)

/* --- Queries --- */

static json_t *query_disk(struct pulls *p, const struct pull_disk *d)
{
    json_t *info = pull_describe_disk(d);
    CLEANUP_JSON json_t *point = point_query(d->point);
    unsigned clients = d->export_id
                           ? exports_clients(p->daemon->exports, d->export_id)
                           : 0;

    if (!info || json_object_update(info, point) < 0 ||
        json_object_set_new(info, "clients", json_integer(clients)) < 0) {
        json_decref(info);
        return NULL;
    }
    return info;
}

static json_t *query_session(struct pulls *p, const struct pull *s)
{
    json_t *info = pull_describe(s);
    json_t *disks = json_array();

    for (unsigned i = 0; i < s->count; i++) {
        (void)json_array_append_new(disks, query_disk(p, &s->disks[i]));
    }
    (void)json_object_set_new(info, "disks", disks);
    if (s->expire_ns > 0) {
        (void)json_object_set_new(
            info, "expire", json_integer((json_int_t)(s->expire_ns / NS)));
    }
    return info;
}

json_t *pulls_query(struct pulls *p)
{
    json_t *list = json_array();

    list_for_each (at, &p->sessions) {
        const struct pull *s = pull_of(at);
        if (!s->ending &&
            json_array_append_new(list, query_session(p, s)) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* --- The thread: lost points in time, sessions that expire --- */

static void tell_lost(struct pulls *p, struct pull *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];
        const char *why = d->told ? NULL : point_lost_why(d->point);
        if (why) {
            CLEANUP_JSON json_t *data = json_pack(
                "{s:s, s:s, s:s}", "id", s->id, "node", d->name, "reason", why);
            monitors_emit("BACKUP_SNAPSHOT_LOST", data, p->daemon->monitors);
            d->told = true;
        }
    }
}

/* Nanoseconds until it expires; 0: it has. */
static uint64_t time_to_expiry(struct pulls *p, const struct pull *s)
{
    uint64_t left = UINT64_MAX;
    uint64_t since = now_ns() - s->renewed_at;

    if (s->expire_ns == 0) {
        return left;
    }
    for (unsigned i = 0; i < s->count; i++) {
        uint64_t idle = min_u64(
            since, exports_idle_ns(p->daemon->exports, s->disks[i].export_id));
        uint64_t rest = s->expire_ns - min_u64(idle, s->expire_ns);
        left = i == 0 ? rest : max_u64(left, rest);
    }
    return left;
}

/* Nanoseconds until the session is to be ended; 0: now. */
static uint64_t ends_in(struct pulls *p, const struct pull *s)
{
    uint64_t left = time_to_expiry(p, s);
    uint64_t now = now_ns();

    return s->stuck_until > now ? max_u64(left, s->stuck_until - now) : left;
}

/* Nanoseconds until the next look; 0: the session *id, which the caller frees,
 * has expired. */
static uint64_t look_at_sessions(struct pulls *p, char **id)
{
    uint64_t next = UINT64_MAX;

    list_for_each (at, &p->sessions) {
        struct pull *s = pull_of(at);
        if (s->ending || s->away) {
            continue;
        }
        tell_lost(p, s);
        uint64_t left = ends_in(p, s);
        if (left == 0 && (*id = strdup(s->id)) != NULL) {
            return 0;
        }
        next = min_u64(next, left > 0 ? left : NS);
    }
    return next;
}

/* The end of a session drains its disks under locks that others need.  So wait
 * for the disks to come to rest without these locks, as commands do. */
static bool come_to_rest(struct pulls *p, const char *id)
{
    CLEANUP_JSON json_t *nodes = json_object();
    const char *node;
    json_t *value;
    bool calm = true;

    mutex_lock(&p->daemon->jobs->lock);
    pulls_name_nodes(p, id, nodes);
    mutex_unlock(&p->daemon->jobs->lock);
    json_object_foreach (nodes, node, value) {
        calm = calm && graph_settle(p->daemon->graph, node, REST_NS, NULL) == 0;
    }
    return calm;
}

static void expire(struct pulls *p, const char *id)
{
    bool calm = come_to_rest(p, id);

    mutex_lock(&p->daemon->jobs->lock);
    struct pull *s = pull_find(p, id);
    if (s && s->away) {
        s = NULL; /* it is looked at again when it is back */
    }
    if (s && !calm) {
        s->stuck_until = now_ns() + RETRY_NS;
    } else if (s && time_to_expiry(p, s) == 0) {
        pull_fail(p, s, "expired");
    }
    mutex_unlock(&p->daemon->jobs->lock);
}

static void *watch_thread(void *arg)
{
    struct pulls *p = arg;
    struct jobs *j = p->daemon->jobs;

    while (!atomic_load(&p->stopping)) {
        struct pollfd fd = {.fd = p->wake, .events = POLLIN};
        CLEANUP_FREE char *id = NULL;

        mutex_lock(&j->lock);
        uint64_t next = look_at_sessions(p, &id);
        mutex_unlock(&j->lock);
        if (id) {
            expire(p, id);
            continue;
        }
        uint64_t ms = div_up(min_u64(next, 3600 * NS), NS / 1000);
        (void)poll(&fd, 1, next == UINT64_MAX ? -1 : (int)ms);
        kick_clear(p->wake);
    }
    return NULL;
}

int pulls_start_thread(struct pulls *p, struct error **errp)
{
    if (p->started) {
        return 0;
    }
    int r = thread_start(&p->thread, "backups", watch_thread, p);
    if (r < 0) {
        return error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
    }
    p->started = true;
    return 0;
}

void pulls_wake(struct pulls *p)
{
    kick_raise(p->wake);
}

struct pulls *pulls_new(struct daemon *d)
{
    struct pulls *p = calloc(1, sizeof(*p));

    if (!p) {
        return NULL;
    }
    p->daemon = d;
    list_init(&p->sessions);
    cond_init(&p->back);
    p->wake = kick_new();
    if (p->wake < 0) {
        cond_destroy(&p->back);
        free(p);
        return NULL;
    }
    return p;
}

static struct pull *first_open(const struct pulls *p)
{
    list_for_each (at, &p->sessions) {
        if (!pull_of(at)->ending) {
            return pull_of(at);
        }
    }
    return NULL;
}

static bool any_away(const struct pulls *p)
{
    list_for_each (at, &p->sessions) {
        if (pull_of(at)->away) {
            return true;
        }
    }
    return false;
}

void pulls_stop(struct pulls *p)
{
    struct jobs *j = p->daemon->jobs;

    mutex_lock(&j->lock);
    atomic_store(&p->stopping, true);
    bool started = p->started;
    mutex_unlock(&j->lock);
    pulls_wake(p);
    if (started) {
        thread_join(p->thread);
    }
    mutex_lock(&j->lock);
    for (;;) { /* each time anew: the lock is given up */
        struct pull *s = first_open(p);

        if (any_away(p)) {
            cond_wait(&p->back, &j->lock);
        } else if (s) {
            pull_fail(p, s, "shutdown");
        } else {
            break;
        }
    }
    mutex_unlock(&j->lock);
}

void pulls_free(struct pulls *p)
{
    if (p) {
        (void)close(p->wake);
        cond_destroy(&p->back);
        free(p);
    }
}
