/* SPDX-License-Identifier: BSD-3-Clause */
/* The set of yanks: registering them, and calling them by name. */
#include "core/yank.h"

#include <string.h>

#include "core/graph-priv.h"
#include "nbdelta/graph.h"

#define yank_of(at) list_entry(at, struct yank, link)

void yank_set_init(struct yank_set *s)
{
    mutex_init(&s->lock, LOCK_YANKS, NULL);
    list_init(&s->list);
}

void yank_set_destroy(struct yank_set *s)
{
    mutex_destroy(&s->lock);
}

void yank_register(struct graph *g, struct yank *y)
{
    mutex_lock(&g->yanks.lock);
    list_append(&g->yanks.list, &y->link);
    if (g->yanks.ending) {
        y->give_up(y->opaque);
    }
    mutex_unlock(&g->yanks.lock);
}

void yank_unregister(struct graph *g, struct yank *y)
{
    mutex_lock(&g->yanks.lock);
    list_remove(&y->link);
    mutex_unlock(&g->yanks.lock);
}

static struct yank *find_instance_locked(struct yank_set *s, const char *name)
    REQUIRES(s->lock)
{
    list_for_each (at, &s->list) {
        if (strcmp(yank_of(at)->name, name) == 0) {
            return yank_of(at);
        }
    }
    return NULL;
}

bool graph_can_yank(struct graph *g, const char *name)
{
    mutex_lock(&g->yanks.lock);
    bool found = find_instance_locked(&g->yanks, name);
    mutex_unlock(&g->yanks.lock);
    return found;
}

void graph_yank(struct graph *g, const char *name)
{
    mutex_lock(&g->yanks.lock);
    const struct yank *y = find_instance_locked(&g->yanks, name);
    if (y) {
        y->fn(y->opaque);
    }
    mutex_unlock(&g->yanks.lock);
}

void graph_yank_stuck(struct graph *g,
                      void (*yanked)(const char *name, void *opaque),
                      void *opaque)
{
    mutex_lock(&g->yanks.lock);
    list_for_each (at, &g->yanks.list) {
        const struct yank *y = yank_of(at);
        if (y->is_stuck(y->opaque)) {
            y->fn(y->opaque);
            yanked(y->name, opaque);
        }
    }
    mutex_unlock(&g->yanks.lock);
}

void graph_stop_waiting(struct graph *g)
{
    mutex_lock(&g->yanks.lock);
    list_for_each (at, &g->yanks.list) {
        yank_of(at)->give_up(yank_of(at)->opaque);
    }
    g->yanks.ending = true;
    mutex_unlock(&g->yanks.lock);
}

bool yank_set_ending(struct yank_set *s)
{
    mutex_lock(&s->lock);
    bool ending = s->ending;
    mutex_unlock(&s->lock);
    return ending;
}

json_t *graph_yank_names(struct graph *g)
{
    json_t *names = json_array();

    mutex_lock(&g->yanks.lock);
    list_for_each (at, &g->yanks.list) {
        (void)json_array_append_new(names, json_string(yank_of(at)->name));
    }
    mutex_unlock(&g->yanks.lock);
    return names;
}
