/* SPDX-License-Identifier: BSD-3-Clause */
#include "export.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/thread.h"

struct exports {
    mutex_t lock;
    struct list list; /* guarded by lock; oldest first */
};

struct exports *exports_new(void)
{
    struct exports *s = calloc(1, sizeof(*s));

    if (s) {
        mutex_init(&s->lock);
        list_init(&s->list);
    }
    return s;
}

static void export_free(struct export *e)
{
    blk_free(e->blk);
    free(e->id);
    free(e->name);
    free(e->description);
    free(e);
}

void exports_free(struct exports *s)
{
    if (!s) {
        return;
    }
    list_for_each_safe (l, &s->list) {
        struct export *e = list_entry(l, struct export, in_set);

        list_remove(l);
        export_free(e);
    }
    mutex_destroy(&s->lock);
    free(s);
}

static bool is_taken(struct exports *s, const struct export *e)
    REQUIRES(s->lock)
{
    list_for_each (l, &s->list) {
        struct export *other = list_entry(l, struct export, in_set);

        if (strcmp(other->id, e->id) == 0 ||
            strcmp(other->name, e->name) == 0) {
            return true;
        }
    }
    return false;
}

static int attach(struct export *e, struct graph *g, struct error **errp)
{
    CLEANUP_FREE char *user = NULL;
    unsigned perm = PERM_READ | (e->writable ? PERM_WRITE : 0);

    if (asprintf(&user, "export '%s'", e->name) < 0) {
        user = NULL;
        return error_set(errp, ENOMEM, "no memory for an export");
    }
    return blk_new(g, e->node, perm, PERM_ALL, user, &e->blk, errp);
}

int exports_add(struct exports *s, struct graph *g, struct node *n,
                const char *id, const char *name, const char *description,
                bool writable, struct error **errp)
{
    struct export *e = calloc(1, sizeof(*e));

    if (!e) {
        return error_set(errp, ENOMEM, "no memory for an export");
    }
    e->id = strdup(id);
    e->name = strdup(name);
    e->description = description ? strdup(description) : NULL;
    e->node = n;
    e->writable = writable;
    e->refs = 1;

    int r = !e->id || !e->name || (description && !e->description)
                ? error_set(errp, ENOMEM, "no memory for an export")
                : attach(e, g, errp);
    if (r == 0) {
        mutex_lock(&s->lock);
        if (is_taken(s, e)) {
            r = error_set(errp, EEXIST, "there is an export '%s' already",
                          name);
        } else {
            list_append(&s->list, &e->in_set);
        }
        mutex_unlock(&s->lock);
    }
    if (r < 0) {
        export_free(e);
    }
    return r;
}

struct export *exports_find(struct exports *s, const char *name)
{
    struct export *found = NULL;

    mutex_lock(&s->lock);
    list_for_each (l, &s->list) {
        struct export *e = list_entry(l, struct export, in_set);

        if (strcmp(e->name, name) == 0) {
            found = e;
            break;
        }
    }
    if (!found && name[0] == '\0' && !list_empty(&s->list)) {
        found = list_entry(s->list.next, struct export, in_set);
    }
    if (found) {
        found->refs++;
    }
    mutex_unlock(&s->lock);
    return found;
}

struct export *exports_find_node(struct exports *s, const struct node *n)
{
    struct export *found = NULL;

    mutex_lock(&s->lock);
    list_for_each (l, &s->list) {
        struct export *e = list_entry(l, struct export, in_set);

        if (e->node == n) {
            found = e;
            found->refs++;
            break;
        }
    }
    mutex_unlock(&s->lock);
    return found;
}

void export_unref(struct exports *s, struct export *e)
{
    if (!e) {
        return;
    }
    mutex_lock(&s->lock);
    bool last = --e->refs == 0;
    mutex_unlock(&s->lock);
    if (last) {
        export_free(e);
    }
}

int exports_each(struct exports *s, int (*fn)(struct export *e, void *opaque),
                 void *opaque)
{
    int r = 0;

    mutex_lock(&s->lock);
    list_for_each (l, &s->list) {
        r = fn(list_entry(l, struct export, in_set), opaque);
        if (r != 0) {
            break;
        }
    }
    mutex_unlock(&s->lock);
    return r;
}
