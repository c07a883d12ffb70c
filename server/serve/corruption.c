/* SPDX-License-Identifier: BSD-3-Clause */
/* Telling clients of images that contradict themselves: see corruption.h. */
#include "serve/corruption.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon.h"
#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/kick.h"
#include "qmp/monitor.h"
#include "vm/device.h"

/* More events wait only if clients open one damaged image after the other while
 * a command has the monitor lock.  Then the others are lost. */
#define WAITING_MAX 1000

struct corruptions {
    struct daemon *daemon;
    int wake;
    bool started;
    pthread_t thread;
    _Atomic bool stopping;

    mutex_t lock;
    json_t *waiting; /* lock: an array of the events' data, without "device" */
};

/* Called with any locks. */
static void take_corruption(const struct corruption *what, void *opaque)
{
    struct corruptions *c = opaque;
    json_t *data = json_pack("{s:s, s:s, s:b}", "node-name", what->node, "msg",
                             what->text, "fatal", what->fatal);

    if (data && what->placed) {
        (void)json_object_set_new(data, "offset",
                                  json_integer((json_int_t)what->offset));
        (void)json_object_set_new(data, "size",
                                  json_integer((json_int_t)what->bytes));
    }
    mutex_lock(&c->lock);
    if (data && json_array_size(c->waiting) < WAITING_MAX) {
        (void)json_array_append(c->waiting, data);
    }
    mutex_unlock(&c->lock);
    json_decref(data);
    kick_raise(c->wake);
}

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

static void send_event(struct corruptions *c, json_t *data)
{
    struct daemon *d = c->daemon;

    mutex_lock(&d->jobs->lock);
    struct search s = {json_string_value(json_object_get(data, "node-name")),
                       ""};
    (void)devices_each(d->devices, match_device, &s);
    if (json_object_set_new(data, "device", json_string(s.device)) == 0) {
        monitors_emit("BLOCK_IMAGE_CORRUPTED", data, d->monitors);
    }
    mutex_unlock(&d->jobs->lock);
}

static void send_waiting(struct corruptions *c)
{
    for (;;) {
        mutex_lock(&c->lock);
        CLEANUP_JSON json_t *data = json_incref(json_array_get(c->waiting, 0));
        (void)json_array_remove(c->waiting, 0);
        mutex_unlock(&c->lock);
        if (!data) {
            return;
        }
        send_event(c, data);
    }
}

static void *corruption_thread(void *arg)
{
    struct corruptions *c = arg;
    bool last;

    do {
        struct pollfd fd = {.fd = c->wake, .events = POLLIN};

        (void)poll(&fd, 1, -1);
        kick_clear(c->wake);
        last = atomic_load(&c->stopping);
        send_waiting(c);
    } while (!last);
    return NULL;
}

struct corruptions *corruptions_new(struct daemon *d)
{
    struct corruptions *c = calloc(1, sizeof(*c));

    if (!c) {
        return NULL;
    }
    c->daemon = d;
    c->wake = kick_new();
    c->waiting = json_array();
    mutex_init(&c->lock, LOCK_CORRUPTIONS, NULL);
    if (c->wake < 0 || !c->waiting) {
        corruptions_free(c);
        return NULL;
    }
    graph_on_corruption(d->graph, take_corruption, c);
    return c;
}

int corruptions_start(struct corruptions *c, struct error **errp)
{
    int r = thread_start(&c->thread, "corruptions", corruption_thread, c);

    c->started = r == 0;
    return r < 0
               ? error_set(errp, -r, "cannot start a thread: %s", strerror(-r))
               : 0;
}

void corruptions_stop(struct corruptions *c)
{
    atomic_store(&c->stopping, true);
    kick_raise(c->wake);
    if (c->started) {
        thread_join(c->thread);
        c->started = false;
    }
}

void corruptions_free(struct corruptions *c)
{
    if (c) {
        json_decref(c->waiting);
        mutex_destroy(&c->lock);
        if (c->wake >= 0) {
            (void)close(c->wake);
        }
        free(c);
    }
}
