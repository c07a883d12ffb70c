/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The fetch job: bitmaps of another server become bitmaps of a disk here (see
 * nbdelta/fetch.h).
 *
 *     start    `since` begins to record what is written here
 *     run      the bits there are read
 *     prepare  one drained section: bits there + bits of `since` = the bitmap,
 *              which is stored and records from then on
 *
 * The order of the first two steps is what makes the bitmaps right.  A change
 * there has its bit before it has its data.  So a change whose bit is not read
 * happens after `since` has begun, and comes here as a write later still.
 */
#include "nbdelta/fetch.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/blocker.h"
#include "core/dirty.h"
#include "core/graph.h"
#include "job/far-bits.h"
#include "job/job.h"
#include "nbdelta/action.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"

/* One bitmap.  Its action adds it. */
struct fetched {
    struct action action;
    struct fetch *fetch;
    char *name;
    struct hbitmap *bits; /* the action's bitmap has them after success */
    struct bitmap *bm;    /* what act has added */
};

struct fetch {
    struct job job;

    /* Set before the start. */
    struct graph *graph;
    uint64_t granularity;
    size_t count;

    /* References; control lock.  The node is blocked. */
    struct node *node;
    struct node *far; /* of driver nbd */
    struct bitmap *since;

    /* Atomic. */
    _Atomic bool stop;
    _Atomic size_t done;

    struct fetched bitmaps[];
};

static struct fetch *fetch_of(struct job *job)
{
    return list_entry(job, struct fetch, job);
}

/* --- The work --- */

static int make_bits(struct fetch *f)
{
    graph_lock(f->graph);
    uint64_t size = hbitmap_size(f->since->bits);
    graph_unlock(f->graph);
    for (size_t i = 0; i < f->count; i++) {
        f->bitmaps[i].bits = hbitmap_new(size, f->granularity);
        if (!f->bitmaps[i].bits) {
            return error_nomem(&f->job.error);
        }
    }
    return 0;
}

static int fetch_run(struct job *job)
{
    struct fetch *f = fetch_of(job);
    int r = make_bits(f);

    for (size_t i = 0; r == 0 && i < f->count; i++) {
        r = far_bits_add(f->far, f->bitmaps[i].name, &f->stop,
                         f->bitmaps[i].bits, &job->error);
        atomic_store(&f->done, i + 1);
    }
    return r;
}

/* --- The end: an action for each bitmap --- */

static struct fetched *fetched_of(struct action *a)
{
    return list_entry(a, struct fetched, action);
}

static void fetched_drain(struct action *a)
{
    const struct fetch *f = fetched_of(a)->fetch;

    graph_drain(f->graph, f->node);
}

static int fetched_act(struct action *a, struct error **errp)
{
    struct fetched *b = fetched_of(a);
    const struct fetch *f = b->fetch;

    if (hbitmap_size(b->bits) != hbitmap_size(f->since->bits)) {
        return error_set(errp, EBUSY, "the size of the disk has changed");
    }
    hbitmap_fill(b->bits, f->since->bits);
    int r = bitmap_add_with_bits(f->node, b->name, b->bits, true, false, &b->bm,
                                 errp);
    if (r == 0) {
        b->bits = NULL;
    }
    return r;
}

static void fetched_undo(struct action *a)
{
    struct fetched *b = fetched_of(a);

    b->fetch->node->bitmaps_changed = true;
    bitmap_drop(b->bm);
}

static struct node *fetched_changes(struct action *a, enum action_bitmaps *what)
{
    *what = ACTION_MORE_BITMAPS;
    return fetched_of(a)->fetch->node;
}

/* It is a part of the job. */
static void fetched_free(struct action *a)
{
    (void)a;
}

static const struct action_ops fetched_ops = {
    .drain = fetched_drain,
    .act = fetched_act,
    .undo = fetched_undo,
    .changes = fetched_changes,
    .free = fetched_free,
};

static int fetch_prepare(struct job *job)
{
    struct fetch *f = fetch_of(job);
    struct list list;

    list_init(&list);
    for (size_t i = 0; i < f->count; i++) {
        f->bitmaps[i].action.ops = &fetched_ops;
        list_append(&list, &f->bitmaps[i].action.link);
    }
    return actions_run(f->graph, &list, &job->error);
}

static void fetch_clean(struct job *job)
{
    struct fetch *f = fetch_of(job);

    graph_lock(f->graph);
    if (f->since) {
        graph_drain(f->graph, f->node);
        bitmap_drop(f->since);
        f->since = NULL;
    }
    if (f->node) {
        node_unblock(f->node);
        node_unref(f->node);
        node_unref(f->far);
        f->node = NULL;
        f->far = NULL;
    }
    graph_unlock(f->graph);
}

/* --- Verbs --- */

static void fetch_give_up(struct job *job)
{
    atomic_store(&fetch_of(job)->stop, true);
}

static bool fetch_uses(struct job *job, const struct node *n)
{
    return n == fetch_of(job)->node;
}

static void fetch_progress(struct job *job, uint64_t *done, uint64_t *total)
{
    const struct fetch *f = fetch_of(job);

    *done = atomic_load(&f->done);
    *total = f->count;
}

static void fetch_free(struct job *job)
{
    struct fetch *f = fetch_of(job);

    for (size_t i = 0; i < f->count; i++) {
        hbitmap_free(f->bitmaps[i].bits);
        free(f->bitmaps[i].name);
    }
    free(f);
}

static const struct job_driver fetch_driver = {
    .type = "fetch",
    .general = true,
    .run = fetch_run,
    .prepare = fetch_prepare,
    .clean = fetch_clean,
    .give_up = fetch_give_up,
    .uses = fetch_uses,
    .progress = fetch_progress,
    .free = fetch_free,
};

/* --- The start --- */

static struct fetch *fetch_new(struct jobs *j, const struct fetch_options *o)
{
    struct fetch *f = calloc(1, sizeof(*f) + o->count * sizeof(f->bitmaps[0]));

    if (!f) {
        return NULL;
    }
    f->graph = jobs_graph(j);
    f->count = o->count;
    f->granularity = o->granularity;
    for (size_t i = 0; i < o->count; i++) {
        f->bitmaps[i].fetch = f;
        f->bitmaps[i].name = strdup(o->names[i]);
        if (!f->bitmaps[i].name) {
            fetch_free(&f->job);
            return NULL;
        }
    }
    return f;
}

/* Check what adding the bitmaps will check, take the nodes, and record. */
static int take_nodes(struct fetch *f, const struct fetch_options *o,
                      struct error **errp)
{
    struct node *far = far_export(o->source);
    int r = node_check_jobs(o->node, errp);

    if (r == 0 && !far) {
        r = error_set(errp, EINVAL, "Node '%s' is no NBD export",
                      node_name(o->source));
    }
    for (size_t i = 0; r == 0 && i < f->count; i++) {
        r = bitmap_check_add(o->node, f->bitmaps[i].name, &f->granularity, true,
                             errp);
    }
    if (r < 0) {
        return r;
    }
    graph_drain(f->graph, o->node);
    f->since = bitmap_new_anonymous(o->node, f->granularity);
    if (!f->since) {
        return error_nomem(errp);
    }
    f->node = o->node;
    f->far = far;
    node_ref(f->node);
    node_ref(f->far);
    node_block(f->node, fetch_driver.type);
    return 0;
}

static int start(struct jobs *j, struct fetch *f, struct error **errp)
    REQUIRES(j->lock)
{
    struct job_txn *txn = job_txn_new();
    int r = txn ? job_enlist(j, &f->job, txn, errp) : error_nomem(errp);

    if (r == 0) {
        job_go(j, &f->job);
    } else {
        fetch_clean(&f->job);
        job_unref(j, &f->job);
    }
    job_txn_unref(txn);
    return r;
}

int job_fetch_bitmaps(struct jobs *j, const struct fetch_options *o,
                      struct error **errp)
{
    const struct job_options job = {.id = o->job_id, .manual_dismiss = true};

    if (o->count == 0) {
        return error_set(errp, EINVAL, "There is no bitmap to fetch");
    }
    struct fetch *f = fetch_new(j, o);
    if (!f) {
        return error_nomem(errp);
    }
    int r = job_create(j, &f->job, &fetch_driver, &job, errp);
    if (r < 0) {
        fetch_free(&f->job);
        return r;
    }
    graph_lock(f->graph);
    r = take_nodes(f, o, errp);
    graph_unlock(f->graph);
    if (r < 0) {
        job_unref(j, &f->job);
        return r;
    }
    return start(j, f, errp);
}
