/* SPDX-License-Identifier: BSD-3-Clause */
/* Running actions: see action.h. */
#include "nbdelta/action.h"

#include "core/graph.h"
#include "nbdelta/graph.h"

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

static int act_drained(struct graph *g, struct list *list, struct error **errp)
{
    graph_lock(g);
    list_for_each (at, list) {
        struct action *a = action_of(at);

        if (a->ops->drain) {
            a->ops->drain(a);
        }
    }
    int r = act_all(list, errp);
    graph_unlock(g);
    return r;
}

/* *end: the first whose prepare was not called. */
static int prepare_all(struct list *list, struct list **end,
                       struct error **errp)
{
    int r = 0;

    *end = list->next;
    while (r == 0 && *end != list) {
        struct action *a = action_of(*end);

        *end = (*end)->next;
        r = a->ops->prepare ? a->ops->prepare(a, errp) : 0;
    }
    return r;
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

/* Those before @end. */
static void abort_all(struct list *list, const struct list *end)
{
    for (struct list *at = list->next; at != end; at = at->next) {
        step_fn abort = action_of(at)->ops->abort;
        if (abort) {
            abort(action_of(at));
        }
    }
}

void actions_free(struct list *list)
{
    list_for_each_safe (at, list) {
        list_remove(at);
        action_of(at)->ops->free(action_of(at));
    }
}

bool action_is_alone(const struct action *a)
{
    return a->link.next == a->link.prev;
}

int actions_run(struct graph *g, struct list *list, struct error **errp)
{
    struct list *end;
    int r = prepare_all(list, &end, errp);

    if (r == 0) {
        r = act_drained(g, list, errp);
    }
    if (r == 0) {
        commit_all(list);
    } else {
        abort_all(list, end);
    }
    actions_free(list);
    return r;
}

int action_run(struct graph *g, struct action *a, struct error **errp)
{
    struct list list;

    list_init(&list);
    list_append(&list, &a->link);
    return actions_run(g, &list, errp);
}
