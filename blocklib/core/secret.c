/* SPDX-License-Identifier: BSD-3-Clause */
/* Secrets: the set in a graph. */
#include "core/secret.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph-priv.h"
#include "nbdelta/error.h"

struct entry {
    struct list in_set;
    char *id;
    struct secret secret;
};

void secret_release(struct secret *s)
{
    if (s->bytes) {
        explicit_bzero(s->bytes, s->len);
        free(s->bytes);
    }
    *s = (struct secret){NULL, 0};
}

static int copy_bytes(const void *bytes, size_t len, struct secret *s)
{
    s->bytes = malloc(len + 1);
    s->len = len;
    if (!s->bytes) {
        return -ENOMEM;
    }
    memcpy(s->bytes, bytes, len);
    return 0;
}

static void free_entry(struct entry *e)
{
    if (e) {
        secret_release(&e->secret);
        free(e->id);
        free(e);
    }
}

void secret_set_init(struct secret_set *s)
{
    mutex_init(&s->lock, LOCK_SECRETS, NULL);
    list_init(&s->list);
}

void secret_set_destroy(struct secret_set *s)
{
    list_for_each_safe (at, &s->list) {
        list_remove(at);
        free_entry(list_entry(at, struct entry, in_set));
    }
    mutex_destroy(&s->lock);
}

static struct entry *find_secret(struct secret_set *s, const char *id)
    REQUIRES(s->lock)
{
    list_for_each (at, &s->list) {
        struct entry *e = list_entry(at, struct entry, in_set);

        if (strcmp(e->id, id) == 0) {
            return e;
        }
    }
    return NULL;
}

int secret_create(struct graph *g, const char *id, const void *bytes,
                  size_t len, struct error **errp)
{
    struct secret_set *s = &g->secrets;
    struct entry *e = calloc(1, sizeof(*e));

    if (!e || !(e->id = strdup(id)) || copy_bytes(bytes, len, &e->secret) < 0) {
        free_entry(e);
        return error_nomem(errp);
    }
    list_init(&e->in_set);
    mutex_lock(&s->lock);
    bool taken = find_secret(s, id) != NULL;
    if (!taken) {
        list_append(&s->list, &e->in_set);
    }
    mutex_unlock(&s->lock);
    if (taken) {
        free_entry(e);
        return error_set(errp, EEXIST, "there is a secret '%s' already", id);
    }
    return 0;
}

int secret_delete(struct graph *g, const char *id, struct error **errp)
{
    struct secret_set *s = &g->secrets;

    mutex_lock(&s->lock);
    struct entry *e = find_secret(s, id);
    if (e) {
        list_remove(&e->in_set);
    }
    mutex_unlock(&s->lock);
    free_entry(e);
    return e ? 0 : error_set(errp, ENOENT, "No secret with id '%s'", id);
}

int secret_get(struct graph *g, const char *id, struct secret *secret,
               struct error **errp)
{
    struct secret_set *s = &g->secrets;
    int r = -ENOENT;

    mutex_lock(&s->lock);
    const struct entry *e = find_secret(s, id);
    if (e) {
        r = copy_bytes(e->secret.bytes, e->secret.len, secret);
    }
    mutex_unlock(&s->lock);
    return r == -ENOENT ? error_set(errp, ENOENT, "No secret with id '%s'", id)
           : r < 0      ? error_nomem(errp)
                        : 0;
}
