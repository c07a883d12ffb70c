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
#include "nbdelta/list.h"
#include "nbdelta/thread.h"

/* The wire's limit for names and descriptions. */
#define STRING_MAX 4096

struct exports {
    mutex_t lock;
    struct list all; /* of struct export.in_set, oldest first */
};

struct exports *exports_new(void)
{
    struct exports *s = calloc(1, sizeof(*s));

    if (s) {
        mutex_init(&s->lock);
        list_init(&s->all);
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
    list_for_each_safe (at, &s->all) {
        export_free(list_entry(at, struct export, in_set));
    }
    mutex_destroy(&s->lock);
    free(s);
}

static struct export *find_locked(struct exports *s, const char *name)
    REQUIRES(s->lock)
{
    list_for_each (at, &s->all) {
        struct export *e = list_entry(at, struct export, in_set);
        if (strcmp(e->name, name) == 0 || name[0] == '\0') {
            return e;
        }
    }
    return NULL;
}

static int check_unique(struct exports *s, const char *id, const char *name,
                        struct error **errp)
{
    int r = 0;

    mutex_lock(&s->lock);
    list_for_each (at, &s->all) {
        const struct export *e = list_entry(at, struct export, in_set);
        if (strcmp(e->id, id) == 0) {
            r = error_set(errp, EEXIST,
                          "Block export id '%s' is already in use", id);
        } else if (strcmp(e->name, name) == 0) {
            r = error_set(errp, EEXIST,
                          "NBD server already has export named '%s'", name);
        }
    }
    mutex_unlock(&s->lock);
    return r;
}

int exports_add(struct exports *s, struct graph *g, struct node *n,
                const char *id, const char *name, const char *description,
                bool writable, struct error **errp)
{
    unsigned perm = PERM_READ | (writable ? PERM_WRITE | PERM_RESIZE : 0);
    CLEANUP_FREE char *user = NULL;

    if (strlen(name) > STRING_MAX) {
        return error_set(errp, EINVAL, "export name is longer than %d bytes",
                         STRING_MAX);
    }
    if (description && strlen(description) > STRING_MAX) {
        return error_set(errp, EINVAL,
                         "export description is longer than %d bytes",
                         STRING_MAX);
    }
    int r = check_unique(s, id, name, errp);
    if (r < 0) {
        return r;
    }
    struct export *e = calloc(1, sizeof(*e));
    if (!e || asprintf(&user, "export '%s'", name) < 0) {
        free(e);
        user = NULL;
        return error_set(errp, ENOMEM, "no memory for export '%s'", name);
    }
    e->id = strdup(id);
    e->name = strdup(name);
    e->description = description ? strdup(description) : NULL;
    e->writable = writable;
    r = e->id && e->name && (e->description || !description)
            ? blk_new(g, n, perm, PERM_ALL, user, &e->blk, errp)
            : error_set(errp, ENOMEM, "no memory for export '%s'", name);
    if (r < 0) {
        export_free(e);
        return r;
    }
    mutex_lock(&s->lock);
    list_append(&s->all, &e->in_set);
    mutex_unlock(&s->lock);
    return 0;
}

struct export *exports_find(struct exports *s, const char *name)
{
    mutex_lock(&s->lock);
    struct export *e = find_locked(s, name);
    if (e) {
        e->refs++;
    }
    mutex_unlock(&s->lock);
    return e;
}

struct export *exports_find_node(struct exports *s, const struct node *n)
{
    struct export *found = NULL;

    mutex_lock(&s->lock);
    list_for_each (at, &s->all) {
        struct export *e = list_entry(at, struct export, in_set);
        if (!found && blk_node(e->blk) == n) {
            e->refs++;
            found = e;
        }
    }
    mutex_unlock(&s->lock);
    return found;
}

void export_unref(struct exports *s, struct export *e)
{
    if (e) {
        mutex_lock(&s->lock);
        e->refs--;
        mutex_unlock(&s->lock);
    }
}

int exports_each(struct exports *s,
                 int (*fn)(struct export *e, void *opaque), void *opaque)
{
    int r = 0;

    mutex_lock(&s->lock);
    for (struct list *at = s->all.next; at != &s->all && r == 0;
         at = at->next) {
        r = fn(list_entry(at, struct export, in_set), opaque);
    }
    mutex_unlock(&s->lock);
    return r;
}
