/* SPDX-License-Identifier: BSD-3-Clause */
/* What storage has of some nodes: see look.h. */
#include "backup/look.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"

/* How long to wait for a node that does not come to rest. */
#define REST_NS UINT64_C(30000000000)

/* Clang cannot follow a lock that is given up by a function. */
NO_LOCK_ANALYSIS void look_begin(struct daemon *d)
{
    mutex_is_held(&d->jobs->lock);
    mutex_unlock(&d->jobs->lock);
}

NO_LOCK_ANALYSIS void look_end(struct daemon *d)
{
    mutex_lock(&d->jobs->lock);
}

int look_add(struct look *l, struct node *n, struct error **errp)
{
    struct looked *at = realloc(l->at, (l->count + 1) * sizeof(*at));

    if (!at) {
        return error_nomem(errp);
    }
    l->at = at;
    at += l->count++;
    *at = (struct looked){.node = n, .storage = storage_below(n)};
    graph_ref(l->daemon->graph, n);
    if (at->storage) {
        graph_ref(l->daemon->graph, at->storage);
    }
    return 0;
}

static bool has_anything(const struct look *l)
{
    for (size_t i = 0; i < l->count; i++) {
        if (l->at[i].storage) {
            return true;
        }
    }
    return false;
}

static int ask_all(struct look *l, struct error **errp)
{
    int r = 0;

    for (size_t i = 0; i < l->count && r != -ETIMEDOUT; i++) {
        struct looked *k = &l->at[i];
        int one = 0;

        storage_snapshots_free(&k->list);
        if (k->storage) {
            one = storage_snapshots_get(k->storage, &k->list,
                                        r == 0 ? errp : NULL);
        }
        if (one < 0) {
            storage_snapshots_free(&k->list);
        }
        r = r == 0 || one == -ETIMEDOUT ? one : r;
    }
    return r;
}

int look_ask(struct look *l, struct error **errp)
{
    if (!has_anything(l)) {
        return 0;
    }
    look_begin(l->daemon);
    int r = ask_all(l, errp);
    look_end(l->daemon);
    return r;
}

const struct looked *look_find(const struct look *l, const struct node *n)
{
    for (size_t i = 0; i < l->count; i++) {
        if (l->at[i].node == n) {
            return &l->at[i];
        }
    }
    return NULL;
}

const struct storage_snapshots *look_of(const struct look *l,
                                        const struct node *n)
{
    const struct looked *k = look_find(l, n);

    return k ? &k->list : NULL;
}

int look_settle(const struct look *l, struct error **errp)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < l->count; i++) {
        r = graph_settle(l->daemon->graph, node_name(l->at[i].node), REST_NS,
                         errp);
    }
    return r;
}

void look_free(struct look *l)
{
    for (size_t i = 0; i < l->count; i++) {
        storage_snapshots_free(&l->at[i].list);
        if (l->at[i].storage) {
            graph_unref(l->daemon->graph, l->at[i].storage);
        }
        graph_unref(l->daemon->graph, l->at[i].node);
    }
    free(l->at);
    *l = (struct look){0};
}
