/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Groups of throttled nodes: how requests wait, and the limits as options.
 *
 * Requests queue by direction.  Only the first request of a queue looks at the
 * clock; a request that leaves wakes the others.
 */
#include "core/throttle-group.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph-priv.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

struct throttle_group {
    char *name;

    /* Control lock. */
    struct list in_graph;
    unsigned users;
    bool implicit; /* it goes with its last user */

    _Atomic bool limited; /* is there any limit at all? */

    mutex_t lock;
    cond_t moved;

    /* Guarded by lock. */
    struct throttle state;
    struct list queue[2]; /* of struct waiter; [1]: writes */
    bool released;        /* nobody waits any more */
    uint64_t (*now)(void);
};

struct waiter {
    struct list link;
};

/* --- Waiting --- */

static void queue_up(struct throttle_group *t, const struct node *n, bool write)
    REQUIRES(t->lock)
{
    struct waiter w;

    list_append(&t->queue[write], &w.link);
    while (!node_is_draining(n) && !t->released) {
        if (t->queue[write].next != &w.link) {
            cond_wait(&t->moved, &t->lock);
            continue;
        }
        uint64_t ns = throttle_wait(&t->state, write, t->now());
        if (ns == 0) {
            break;
        }
        (void)cond_wait_ms(&t->moved, &t->lock, div_up(ns, 1000000));
    }
    list_remove(&w.link);
    cond_broadcast(&t->moved);
}

int throttle_group_wait(struct throttle_group *t, const struct node *n,
                        bool write, uint64_t bytes, unsigned flags)
{
    if (!atomic_load(&t->limited)) {
        return 0;
    }
    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    thread_wait_begin();
    mutex_lock(&t->lock);
    queue_up(t, n, write);
    throttle_account(&t->state, write, bytes);
    mutex_unlock(&t->lock);
    thread_wait_end();
    return 0;
}

void throttle_group_release(struct throttle_group *t)
{
    mutex_lock(&t->lock);
    t->released = true;
    cond_broadcast(&t->moved);
    mutex_unlock(&t->lock);
}

void throttle_group_kick(struct throttle_group *t)
{
    mutex_lock(&t->lock);
    cond_broadcast(&t->moved);
    mutex_unlock(&t->lock);
}

void throttle_group_set(struct throttle_group *t,
                        const struct throttle_config *c)
{
    mutex_lock(&t->lock);
    throttle_start(&t->state, c, t->now());
    atomic_store(&t->limited, throttle_limits_something(c));
    cond_broadcast(&t->moved);
    mutex_unlock(&t->lock);
}

void throttle_group_set_clock(struct throttle_group *t, uint64_t (*now)(void))
{
    mutex_lock(&t->lock);
    t->now = now;
    throttle_start(&t->state, &t->state.config, now());
    mutex_unlock(&t->lock);
}

unsigned throttle_group_waiting(struct throttle_group *t)
{
    unsigned count = 0;

    mutex_lock(&t->lock);
    for (int i = 0; i < 2; i++) {
        list_for_each (at, &t->queue[i]) {
            count++;
        }
    }
    mutex_unlock(&t->lock);
    return count;
}

/* --- Limits as options --- */

static const char *const limit_names[THROTTLE_BUCKETS] = {
    [THROTTLE_BPS_TOTAL] = "bps-total", [THROTTLE_BPS_READ] = "bps-read",
    [THROTTLE_BPS_WRITE] = "bps-write", [THROTTLE_IOPS_TOTAL] = "iops-total",
    [THROTTLE_IOPS_READ] = "iops-read", [THROTTLE_IOPS_WRITE] = "iops-write",
};

static int take_value(struct opts *o, const char *prefix, const char *name,
                      const char *suffix, uint64_t max, uint64_t *val,
                      struct error **errp)
{
    char key[40];

    (void)snprintf(key, sizeof(key), "%s%s%s", prefix, name, suffix);
    int r = opts_uint(o, key, max, val, errp);

    return r == 0 && prefix[0] && *val > INT64_MAX
               ? error_set(errp, EINVAL, "Property values cannot be negative")
               : r;
}

static int take_throttle_limits(struct opts *o, const char *prefix,
                                struct throttle_config *c, struct error **errp)
{
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        struct throttle_limit *l = &c->limit[i];
        const char *name = limit_names[i];
        int r;
        if ((r = take_value(o, prefix, name, "", UINT64_MAX, &l->avg, errp)) <
                0 ||
            (r = take_value(o, prefix, name, "-max", UINT64_MAX, &l->max,
                            errp)) < 0 ||
            (r = take_value(o, prefix, name, "-max-length", UINT_MAX,
                            &l->length, errp)) < 0) {
            return r;
        }
    }
    return take_value(o, prefix, "iops-size", "", INT64_MAX, &c->iops_size,
                      errp);
}

static void set_defaults(struct throttle_config *c)
{
    *c = (struct throttle_config){0};
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        c->limit[i].length = 1;
    }
}

/* Read the members of @limits into *c. */
static int read_limits(const json_t *limits, struct throttle_config *c,
                       struct error **errp)
{
    if (!json_is_object(limits)) {
        return error_set(errp, EINVAL, "option 'limits' must be an object");
    }
    struct opts *o = opts_new(limits);
    if (!o) {
        return error_nomem(errp);
    }
    int r = take_throttle_limits(o, "", c, errp);
    if (r == 0) {
        r = opts_end(o, "a throttle group", errp);
    }
    opts_free(o);
    return r;
}

int throttle_read(const json_t *limits, struct throttle_config *c,
                  struct error **errp)
{
    set_defaults(c);
    int r = read_limits(limits, c, errp);
    return r < 0 ? r : throttle_check(c, errp);
}

static int read_group(struct opts *o, const char **id,
                      struct throttle_config *c, struct error **errp)
{
    static const char *const types[] = {"throttle-group", NULL};
    unsigned type = 0;
    int r;

    set_defaults(c);
    if ((r = opts_enum(o, "qom-type", types, &type, errp)) < 0 ||
        (r = opts_str(o, "id", id, errp)) < 0 ||
        (r = take_throttle_limits(o, "x-", c, errp)) < 0) {
        return r;
    }
    if (!*id) {
        return error_set(errp, EINVAL, "Parameter 'id' is missing");
    }
    json_t *limits = opts_take(o, "limits");
    r = limits ? read_limits(limits, c, errp) : 0;
    json_decref(limits);
    if (r == 0) {
        r = opts_end(o, "a throttle group", errp);
    }
    return r < 0 ? r : throttle_check(c, errp);
}

/* --- The groups of a graph --- */

static struct throttle_group *find_group(struct graph *g, const char *name)
{
    list_for_each (at, &g->throttle_groups) {
        struct throttle_group *t = list_entry(at, struct throttle_group,
                                              in_graph);
        if (strcmp(t->name, name) == 0) {
            return t;
        }
    }
    return NULL;
}

struct throttle_group *throttle_group_ref(struct throttle_group *t)
{
    t->users++;
    return t;
}

struct throttle_group *throttle_group_get(struct graph *g, const char *name)
{
    struct throttle_group *t = find_group(g, name);

    return t ? throttle_group_ref(t) : NULL;
}

static void group_free(struct throttle_group *t)
{
    list_remove(&t->in_graph);
    cond_destroy(&t->moved);
    mutex_destroy(&t->lock);
    free(t->name);
    free(t);
}

void throttle_group_put(struct throttle_group *t)
{
    if (--t->users == 0 && t->implicit) {
        group_free(t);
    }
}

const char *throttle_group_name(const struct throttle_group *t)
{
    return t->name;
}

void throttle_groups_free(struct list *groups)
{
    list_for_each_safe (at, groups) {
        group_free(list_entry(at, struct throttle_group, in_graph));
    }
}

static struct throttle_group *group_new(struct graph *g, const char *name)
{
    struct throttle_group *t = calloc(1, sizeof(*t));
    char *copy = strdup(name);

    if (!t || !copy) {
        free(t);
        free(copy);
        return NULL;
    }
    t->name = copy;
    t->now = now_ns;
    mutex_init(&t->lock, LOCK_THROTTLE, NULL);
    cond_init(&t->moved);
    list_init(&t->queue[0]);
    list_init(&t->queue[1]);
    list_append(&g->throttle_groups, &t->in_graph);
    return t;
}

static int add_group(struct graph *g, const char *name,
                     const struct throttle_config *c, struct error **errp)
{
    if (find_group(g, name)) {
        return error_set(errp, EEXIST,
                         "attempt to add duplicate property '%s' to object "
                         "(type 'container')",
                         name);
    }
    struct throttle_group *t = group_new(g, name);
    if (!t) {
        return error_nomem(errp);
    }
    throttle_group_set(t, c);
    return 0;
}

struct throttle_group *throttle_group_get_new(struct graph *g, const char *name)
{
    struct throttle_group *t = find_group(g, name);

    if (!t && (t = group_new(g, name))) {
        struct throttle_config none;

        set_defaults(&none);
        t->implicit = true;
        throttle_group_set(t, &none);
    }
    if (t) {
        t->users++;
    }
    return t;
}

int throttle_group_create(struct graph *g, const json_t *properties,
                          struct error **errp)
{
    struct throttle_config c;
    const char *id = NULL;

    if (!json_is_object(properties)) {
        return error_set(errp, EINVAL, "options must be a JSON object");
    }
    struct opts *o = opts_new(properties);
    if (!o) {
        return error_nomem(errp);
    }
    int r = read_group(o, &id, &c, errp);
    if (r == 0) {
        graph_lock(g);
        r = add_group(g, id, &c, errp);
        graph_unlock(g);
    }
    opts_free(o);
    return r;
}

static int no_such_group(const char *name, struct error **errp)
{
    return error_set(errp, ENOENT, "object '%s' not found", name);
}

static int change(struct graph *g, const char *name, const json_t *limits,
                  struct error **errp)
{
    struct throttle_group *t = find_group(g, name);

    if (!t) {
        return no_such_group(name, errp);
    }
    struct throttle_config c = t->state.config; /* changed by us alone */
    int r = read_limits(limits, &c, errp);
    if (r == 0) {
        r = throttle_check(&c, errp);
    }
    if (r == 0) {
        throttle_group_set(t, &c);
    }
    return r;
}

int throttle_group_change(struct graph *g, const char *name,
                          const json_t *limits, struct error **errp)
{
    graph_lock(g);
    int r = change(g, name, limits, errp);
    graph_unlock(g);
    return r;
}

int throttle_group_delete(struct graph *g, const char *name,
                          struct error **errp)
{
    int r = 0;

    graph_lock(g);
    struct throttle_group *t = find_group(g, name);
    if (!t) {
        r = no_such_group(name, errp);
    } else if (t->users > 0) {
        r = error_set(errp, EBUSY, "object '%s' is in use, can not be deleted",
                      name);
    } else {
        group_free(t);
    }
    graph_unlock(g);
    return r;
}

static void put_value(json_t *out, const char *name, const char *suffix,
                      uint64_t value)
{
    char key[40];

    (void)snprintf(key, sizeof(key), "%s%s", name, suffix);
    (void)json_object_set_new(out, key, json_integer((json_int_t)value));
}

static json_t *describe(const struct throttle_group *t)
{
    const struct throttle_config *c = &t->state.config;
    json_t *out = json_object();

    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        put_value(out, limit_names[i], "", c->limit[i].avg);
        put_value(out, limit_names[i], "-max", c->limit[i].max);
        put_value(out, limit_names[i], "-max-length", c->limit[i].length);
    }
    put_value(out, "iops-size", "", c->iops_size);
    return out;
}

json_t *throttle_group_info(const struct throttle_group *t)
{
    json_t *info = describe(t);

    (void)json_object_set_new(info, "group", json_string(t->name));
    return info;
}

json_t *throttle_group_query(struct graph *g, const char *name)
{
    graph_lock(g);
    const struct throttle_group *t = find_group(g, name);
    json_t *out = t ? describe(t) : NULL;
    graph_unlock(g);
    return out;
}
