/* SPDX-License-Identifier: BSD-3-Clause */
/* Running actions, alone or several as one: see action.h. */
#include "nbdelta/action.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "core/dirty.h"
#include "core/graph.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/thread.h"

#define action_of(at) list_entry(at, struct action, link)

/* Undo the actions before @stop, the last one first. */
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

/* --- Bitmaps of several nodes, side by side --- */

#define CREW_MAX 64

struct task {
    struct node *n;
    enum action_bitmaps what;
    int r;
    struct error *err;
};

struct crew {
    void (*work)(struct task *t);
    struct task *tasks;
    size_t count;
    _Atomic size_t next;
};

static void *crew_work(void *opaque)
{
    struct crew *c = opaque;
    size_t i;

    while ((i = atomic_fetch_add(&c->next, 1)) < c->count) {
        c->work(&c->tasks[i]);
    }
    return NULL;
}

/* The caller's thread takes part; without other threads it works alone. */
static void crew_run(struct crew *c)
{
    pthread_t threads[CREW_MAX];
    unsigned started = 0;

    while (started < CREW_MAX && started + 1 < c->count &&
           thread_start(&threads[started], "bitmaps", crew_work, c) == 0) {
        started++;
    }
    (void)crew_work(c);
    while (started > 0) {
        thread_join(threads[--started]);
    }
}

static int by_node(const void *va, const void *vb)
{
    const struct task *a = va;
    const struct task *b = vb;

    return a->n == b->n ? 0 : (uintptr_t)a->n < (uintptr_t)b->n ? -1 : 1;
}

/* Keep one task for each node. */
static void merge_tasks(struct crew *c)
{
    size_t kept = 0;

    qsort(c->tasks, c->count, sizeof(*c->tasks), by_node);
    for (size_t i = 0; i < c->count; i++) {
        if (kept > 0 && c->tasks[kept - 1].n == c->tasks[i].n) {
            if (c->tasks[kept - 1].what < c->tasks[i].what) {
                c->tasks[kept - 1].what = c->tasks[i].what;
            }
        } else {
            c->tasks[kept++] = c->tasks[i];
        }
    }
    c->count = kept;
}

/* Make tasks for the nodes whose bitmaps the actions change.  -ENOMEM. */
static int gather(struct crew *c, struct list *list)
{
    size_t room = 0;

    list_for_each (at, list) {
        room += action_of(at)->ops->changes != NULL;
    }
    c->tasks = calloc(room + 1, sizeof(*c->tasks));
    if (!c->tasks) {
        return -ENOMEM;
    }
    list_for_each (at, list) {
        struct action *a = action_of(at);
        enum action_bitmaps what = ACTION_OTHER_BITS;
        struct node *n = a->ops->changes ? a->ops->changes(a, &what) : NULL;

        if (n) {
            c->tasks[c->count++] = (struct task){.n = n, .what = what};
        }
    }
    merge_tasks(c);
    return 0;
}

static void store_ahead(struct task *t)
{
    t->r = t->what == ACTION_FEWER_BITS
               ? 0 /* nothing is stored in the section */
               : bitmap_store_ahead(t->n, t->what == ACTION_MORE_BITMAPS,
                                    &t->err);
}

/* The error of the first task that has failed.  Frees the tasks. */
static int crew_result(struct crew *c, struct error **errp)
{
    int r = 0;

    for (size_t i = 0; i < c->count; i++) {
        struct task *t = &c->tasks[i];

        if (r == 0 && t->r < 0) {
            r = error_set(errp, -t->r, "%s", error_message(t->err));
        }
        error_free(t->err);
    }
    free(c->tasks);
    return r;
}

/* Write what can be written now, so that less is left for the time when guests
 * are held up. */
static int write_ahead(struct list *list, struct error **errp)
{
    struct crew c = {.work = store_ahead};

    if (gather(&c, list) < 0) {
        return error_nomem(errp);
    }
    crew_run(&c);
    return crew_result(&c, errp);
}

static void store_behind(struct task *t)
{
    bitmap_store_behind(t->n);
}

/* The rest of it, when guests go on. */
static void write_behind(struct list *list)
{
    struct crew c = {.work = store_behind};

    if (gather(&c, list) == 0) {
        crew_run(&c);
        (void)crew_result(&c, NULL);
    }
}

static void store(struct task *t)
{
    t->r = bitmap_store(t->n, &t->err);
}

/* Store the bitmaps that have changed.  The error is the first that occurs. */
static int store_changed(struct list *list, struct error **errp)
{
    struct crew c = {.work = store};
    size_t count = 0;

    if (gather(&c, list) < 0) {
        return error_nomem(errp);
    }
    for (size_t i = 0; i < c.count; i++) {
        struct node *n = c.tasks[i].n;
        if (n->bitmaps_changed) {
            n->bitmaps_changed = false;
            c.tasks[count++].n = n;
        }
    }
    c.count = count;
    crew_run(&c);
    return crew_result(&c, errp);
}

static int settle_all_disks(struct list *list, struct error **errp)
{
    int r = store_changed(list, errp);

    if (r < 0) {
        undo_before(list, list);
        (void)store_changed(list, NULL);
    }
    return r;
}

static int act_drained(struct graph *g, struct list *list, uint64_t *drained_ns,
                       struct error **errp)
{
    int r = write_ahead(list, errp);
    if (r < 0) {
        if (drained_ns) {
            *drained_ns = 0;
        }
        write_behind(list);
        return r;
    }
    graph_lock(g);
    uint64_t begin = now_ns();
    list_for_each (at, list) {
        struct action *a = action_of(at);

        if (a->ops->drain) {
            a->ops->drain(a);
        }
    }
    r = act_all(list, errp);
    if (r == 0) {
        r = settle_all_disks(list, errp);
    }
    graph_unlock(g);
    if (drained_ns) {
        *drained_ns = now_ns() - begin;
    }
    write_behind(list);
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
