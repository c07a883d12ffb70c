/* SPDX-License-Identifier: BSD-3-Clause */
/* Running actions: see action.h. */
#include "job/action.h"

#include "core/graph.h"
#include "job/job.h"
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

static void settle(struct list *list, const struct list *end, bool success)
{
    for (struct list *at = list->next; at != end; at = at->next) {
        struct action *a = action_of(at);

        if (success && a->ops->commit) {
            a->ops->commit(a);
        } else if (!success && a->ops->abort) {
            a->ops->abort(a);
        }
    }
}

int actions_run(struct jobs *j, struct list *list, struct error **errp)
{
    struct list *end;
    int r = prepare_all(list, &end, errp);

    if (r == 0) {
        r = act_drained(jobs_graph(j), list, errp);
    }
    settle(list, end, r == 0);
    list_for_each_safe (at, list) {
        list_remove(at);
        action_of(at)->ops->free(action_of(at));
    }
    return r;
}
