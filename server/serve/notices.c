/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sending the events that requests give rise to: see notices.h.
 *
 *   a request, any locks            the thread "notices"
 *     take_*: {event, data} ------> waiting -> monitor lock -> all sessions
 *     kick                              |
 *                                       +-> BLOCK_IO_ERROR: held (below)
 *
 * A guest can cause I/O errors at will, so they are limited as in QEMU, for
 * each export: the first one is sent at once.  Of those that follow within a
 * second, the last one is sent when the second is over, and that begins another
 * second.
 */
#include "serve/notices.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon.h"
#include "log/log.h"
#include "nbd/export.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/kick.h"
#include "qmp/monitor.h"
#include "vm/device.h"

/* More events wait only if clients do such things all the time while a command
 * has the monitor lock.  Then the others are lost. */
#define WAITING_MAX 1000

#define LIMIT_NS UINT64_C(1000000000)

/* No event: an image may have another size now. */
#define SIZE_CHANGED "size changed"
#define SETTLE_NS    UINT64_C(5000000000)

/* An export of which an error was told less than a second ago. */
struct limit {
    char *export; /* its id */
    uint64_t until_ns;
    json_t *held; /* the last error since, or NULL */
    struct limit *next;
};

struct notices {
    struct daemon *daemon;
    int wake;
    bool started;
    pthread_t thread;
    _Atomic bool stopping;

    struct limit *limits; /* of the thread alone */

    mutex_t lock;
    json_t *waiting; /* lock: an array of {"event", "data"}, and "export" of an
                        error */
};

/* --- Requests: any thread, any locks. --- */

/* @notice is consumed; NULL: no memory.  It has one owner at a time, the array
 * or a thread: references are counted without a lock. */
static void take(struct notices *s, json_t *notice)
{
    mutex_lock(&s->lock);
    if (notice && json_array_size(s->waiting) < WAITING_MAX) {
        (void)json_array_append_new(s->waiting, notice);
        notice = NULL;
    }
    mutex_unlock(&s->lock);
    json_decref(notice);
    kick_raise(s->wake);
}

/* Which device and, of an export, which node that is: that is looked for when
 * the event is sent, with the monitor lock. */
static void take_corruption(const struct corruption *what, void *opaque)
{
    json_t *notice = json_pack(
        "{s:s, s:{s:s, s:s, s:b}}", "event", "BLOCK_IMAGE_CORRUPTED", "data",
        "node-name", what->node, "msg", what->text, "fatal", what->fatal);
    json_t *data = json_object_get(notice, "data");

    if (data && what->placed) {
        (void)json_object_set_new(data, "offset",
                                  json_integer((json_int_t)what->offset));
        (void)json_object_set_new(data, "size",
                                  json_integer((json_int_t)what->bytes));
    }
    take(opaque, notice);
}

static void take_threshold(const char *node, uint64_t threshold,
                           uint64_t exceeded, void *opaque)
{
    take(opaque, json_pack("{s:s, s:{s:s, s:I, s:I}}", "event",
                           "BLOCK_WRITE_THRESHOLD", "data", "node-name", node,
                           "amount-exceeded", (json_int_t)exceeded,
                           "write-threshold", (json_int_t)threshold));
}

static void take_size(const char *node, void *opaque)
{
    take(opaque, json_pack("{s:s, s:{s:s}}", "event", SIZE_CHANGED, "data",
                           "node-name", node));
}

/* As QEMU tells of a device that is in no tree of objects, and that hands
 * errors to the guest. */
static void take_io_error(const struct export *e, bool is_read, int error,
                          void *opaque)
{
    const char *reason = strerrordesc_np(error);

    take(opaque, json_pack("{s:s, s:s, s:{s:s, s:s, s:s, s:s, s:s}}", "event",
                           "BLOCK_IO_ERROR", "export", e->id, "data",
                           "qom-path", "", "device", e->name, "operation",
                           is_read ? "read" : "write", "action", "report",
                           "reason", reason ? reason : "unknown error"));
}

/* --- The thread. --- */

struct search {
    const char *node;
    const char *device; /* "": none is on that node */
};

static int match_device(const char *id, struct blk *b, const char *qdev,
                        void *opaque)
{
    struct search *s = opaque;
    struct node *n = blk_node(b);

    (void)qdev;
    if (n && strcmp(node_name(n), s->node) == 0) {
        s->device = id;
    }
    return 0;
}

static void add_device(const struct daemon *d, json_t *data)
{
    struct search s = {json_string_value(json_object_get(data, "node-name")),
                       ""};

    (void)devices_each(d->devices, match_device, &s);
    (void)json_object_set_new(data, "device", json_string(s.device));
}

/* An export that has gone meanwhile has no node any more. */
static void add_node(const struct daemon *d, const char *export, json_t *data)
{
    struct export *e = exports_find_id(d->exports, export);

    if (e) {
        (void)json_object_set_new(data, "node-name",
                                  json_string(node_name(blk_node(e->blk))));
        export_unref(d->exports, e);
    }
}

/* @export is of an I/O error, else NULL. */
static void send_event(struct notices *s, const char *event, const char *export,
                       json_t *data)
{
    struct daemon *d = s->daemon;

    mutex_lock(&d->jobs->lock);
    if (export) {
        add_node(d, export, data);
    } else if (strcmp(event, "BLOCK_IMAGE_CORRUPTED") == 0) {
        add_device(d, data);
    }
    monitors_emit(event, data, d->monitors);
    mutex_unlock(&d->jobs->lock);
}

static struct limit *find_limit(const struct notices *s, const char *export)
{
    struct limit *l = s->limits;

    while (l && strcmp(l->export, export) != 0) {
        l = l->next;
    }
    return l;
}

/* From now on.  Without memory there is no limit. */
static void begin_limit(struct notices *s, const char *export)
{
    struct limit *l = calloc(1, sizeof(*l));

    if (l && !(l->export = strdup(export))) {
        free(l);
        l = NULL;
    }
    if (l) {
        l->until_ns = now_ns() + LIMIT_NS;
        l->next = s->limits;
        s->limits = l;
    }
}

static void follow_size(struct notices *s, const char *node)
{
    struct daemon *d = s->daemon;
    CLEANUP_ERROR struct error *err = NULL;
    int r = graph_settle(d->graph, node, SETTLE_NS, &err);

    if (r == 0) {
        mutex_lock(&d->jobs->lock);
        r = graph_follow_size(d->graph, node, &err);
        mutex_unlock(&d->jobs->lock);
    }
    if (r < 0) {
        log_line(TELL_WARNING, "%s", error_message(err));
    }
}

static void send_notice(struct notices *s, const json_t *notice)
{
    const char *event = json_string_value(json_object_get(notice, "event"));
    const char *export = json_string_value(json_object_get(notice, "export"));
    json_t *data = json_object_get(notice, "data");
    struct limit *l = export ? find_limit(s, export) : NULL;

    if (strcmp(event, SIZE_CHANGED) == 0) {
        follow_size(s, json_string_value(json_object_get(data, "node-name")));
        return;
    }
    if (l) {
        json_decref(l->held);
        l->held = json_incref(data);
        return;
    }
    send_event(s, event, export, data);
    if (export) {
        begin_limit(s, export);
    }
}

static void send_waiting(struct notices *s)
{
    for (;;) {
        mutex_lock(&s->lock);
        CLEANUP_JSON json_t *notice =
            json_incref(json_array_get(s->waiting, 0));
        (void)json_array_remove(s->waiting, 0);
        mutex_unlock(&s->lock);
        if (!notice) {
            return;
        }
        send_notice(s, notice);
    }
}

/* Send what was held until @now, and drop the limits that nobody needs. */
static void end_limits(struct notices *s, uint64_t now)
{
    struct limit **at = &s->limits;

    while (*at) {
        struct limit *l = *at;

        if (l->until_ns > now) {
            at = &l->next;
            continue;
        }
        if (l->held) {
            send_event(s, "BLOCK_IO_ERROR", l->export, l->held);
            json_decref(l->held);
            l->held = NULL;
            l->until_ns = now_ns() + LIMIT_NS;
            at = &l->next;
        } else {
            *at = l->next;
            free(l->export);
            free(l);
        }
    }
}

/* Milliseconds until a limit ends; -1: there is none. */
static int patience(const struct notices *s)
{
    uint64_t first = UINT64_MAX;
    uint64_t now = now_ns();

    for (const struct limit *l = s->limits; l; l = l->next) {
        first = min_u64(first, l->until_ns);
    }
    return first == UINT64_MAX ? -1
           : first <= now      ? 0
                               : (int)((first - now) / 1000000 + 1);
}

static void *notices_thread(void *arg)
{
    struct notices *s = arg;
    bool last;

    do {
        struct pollfd fd = {.fd = s->wake, .events = POLLIN};

        (void)poll(&fd, 1, patience(s));
        kick_clear(s->wake);
        last = atomic_load(&s->stopping);
        send_waiting(s);
        end_limits(s, last ? UINT64_MAX - 1 : now_ns());
    } while (!last);
    return NULL;
}

struct notices *notices_new(struct daemon *d)
{
    struct notices *s = calloc(1, sizeof(*s));

    if (!s) {
        return NULL;
    }
    s->daemon = d;
    s->wake = kick_new();
    s->waiting = json_array();
    mutex_init(&s->lock, LOCK_NOTICES, NULL);
    if (s->wake < 0 || !s->waiting) {
        notices_free(s);
        return NULL;
    }
    graph_on_corruption(d->graph, take_corruption, s);
    graph_on_threshold(d->graph, take_threshold, s);
    graph_on_size(d->graph, take_size, s);
    exports_on_error(d->exports, take_io_error, s);
    return s;
}

int notices_start(struct notices *s, struct error **errp)
{
    int r = thread_start(&s->thread, "notices", notices_thread, s);

    s->started = r == 0;
    return r < 0
               ? error_set(errp, -r, "cannot start a thread: %s", strerror(-r))
               : 0;
}

void notices_stop(struct notices *s)
{
    atomic_store(&s->stopping, true);
    kick_raise(s->wake);
    if (s->started) {
        thread_join(s->thread);
        s->started = false;
    }
}

void notices_free(struct notices *s)
{
    if (!s) {
        return;
    }
    while (s->limits) {
        struct limit *l = s->limits;

        s->limits = l->next;
        json_decref(l->held);
        free(l->export);
        free(l);
    }
    json_decref(s->waiting);
    mutex_destroy(&s->lock);
    if (s->wake >= 0) {
        (void)close(s->wake);
    }
    free(s);
}
