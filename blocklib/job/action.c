/* SPDX-License-Identifier: BSD-3-Clause */
/* Running actions: see action.h. */
#include "nbdelta/action.h"

#include "core/graph.h"
#include "nbdelta/graph.h"
#include "nbdelta/thread.h"

#define action_of(at) list_entry(at, struct action, link)

/* Undo those before @stop, the last one first. */
static void undo_before(struct list *list, struct list *stop)
{
    for (struct list *at = stop->prev; at != list; at = at->prev) {
        struct action *a = action_of(at);

        if (a->ops->undo) {
            a->ops->undo(a);
        }
    }
}

static int act_all(struct list *list, struct error **errp)
{
    list_for_each (at, list) {
        struct action *a = action_of(at);
        int r = a->ops->act ? a->ops->act(a, errp) : 0;

        if (r < 0) {
            undo_before(list, at);
            return r;
        }
    }
    return 0;
}

static int settle_all(struct list *list, struct error **errp)
{
    int r = 0;

    list_for_each (at, list) {
        struct action *a = action_of(at);

        if (r == 0 && a->ops->settle) {
            r = a->ops->settle(a, errp);
        }
    }
    if (r < 0) {
        undo_before(list, list);
        list_for_each (at, list) {
            struct action *a = action_of(at);

            if (a->ops->settle) {
                (void)a->ops->settle(a, NULL);
            }
        }
    }
    return r;
}

static int act_drained(struct graph *g, struct list *list, uint64_t *drained_ns,
                       struct error **errp)
{
    graph_lock(g);
    uint64_t begin = now_ns();
    list_for_each (at, list) {
        struct action *a = action_of(at);

        if (a->ops->drain) {
            a->ops->drain(a);
        }
    }
    int r = act_all(list, errp);
    if (r == 0) {
        r = settle_all(list, errp);
    }
    graph_unlock(g);
    if (drained_ns) {
        *drained_ns = now_ns() - begin;
    }
    return r;
}

static int prepare(struct action *a, struct error **errp)
{
    if (a->prepared) {
        return 0;
    }
    a->prepared = true;
    return a->ops->prepare ? a->ops->prepare(a, errp) : 0;
}

static int prepare_all(struct list *list, struct error **errp)
{
    list_for_each (at, list) {
        int r = prepare(action_of(at), errp);

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

typedef void (*step_fn)(struct action *a);

static void commit_all(struct list *list)
{
    list_for_each (at, list) {
        step_fn commit = action_of(at)->ops->commit;
        if (commit) {
            commit(action_of(at));
        }
    }
    list_for_each (at, list) {
        step_fn finish = action_of(at)->ops->finish;
        if (finish) {
            finish(action_of(at));
        }
    }
}

static void abort_all(struct list *list)
{
    list_for_each (at, list) {
        struct action *a = action_of(at);

        if (a->prepared && a->ops->abort) {
            a->ops->abort(a);
        }
    }
}

static void free_all(struct list *list)
{
    list_for_each_safe (at, list) {
        list_remove(at);
        action_of(at)->ops->free(action_of(at));
    }
}

int actions_add(struct list *list, struct action *a, struct error **errp)
{
    list_append(list, &a->link);
    return prepare(a, errp);
}

void actions_cancel(struct list *list)
{
    abort_all(list);
    free_all(list);
}

bool action_is_alone(const struct action *a)
{
    return a->link.next == a->link.prev;
}

int actions_run_timed(struct graph *g, struct list *list, uint64_t *drained_ns,
                      struct error **errp)
{
    int r = prepare_all(list, errp);

    if (r == 0) {
        r = act_drained(g, list, drained_ns, errp);
    }
    if (r < 0) {
        actions_cancel(list);
        return r;
    }
    commit_all(list);
    free_all(list);
    return 0;
}

int actions_run(struct graph *g, struct list *list, struct error **errp)
{
    return actions_run_timed(g, list, NULL, errp);
}

int action_run(struct graph *g, struct action *a, struct error **errp)
{
    struct list list;

    list_init(&list);
    list_append(&list, &a->link);
    return actions_run(g, &list, errp);
}
