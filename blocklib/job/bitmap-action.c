/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changes of dirty bitmaps as actions.
 *
 *             act                            undo            afterwards
 *   add       a new bitmap on the node       drop it
 *   remove    off the node                   put it back     drop it
 *   clear     empty bits for the old ones    the old ones    free the others
 *   enable    the flag                       the old flag
 *   merge     grown bits for the old ones    the old ones    free the others
 */
#include <errno.h>
#include <stdlib.h>

#include "core/dirty.h"
#include "core/graph.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"

struct change {
    struct action action;
    struct bitmap_ref ref;

    /* What is asked for. */
    uint64_t granularity;
    bool persistent;
    bool flag; /* add: disabled; enable: enable */
    struct bitmap_ref *sources;
    size_t source_count;

    /* What act did. */
    struct bitmap *bm;
    struct list *after;    /* remove: its place */
    struct hbitmap *spare; /* clear, merge: the bits that are not in use */
    bool was_enabled;
};

static struct change *change_of(struct action *a)
{
    return list_entry(a, struct change, action);
}

static void drain(struct action *a)
{
    const struct change *c = change_of(a);

    graph_drain(c->ref.node->graph, c->ref.node);
    for (size_t i = 0; i < c->source_count; i++) {
        graph_drain(c->ref.node->graph, c->sources[i].node);
    }
}

static void change_free(struct action *a)
{
    struct change *c = change_of(a);

    hbitmap_free(c->spare);
    free(c->sources);
    free(c);
}

/* NULL: no memory, said in @errp. */
static struct change *change_new(struct bitmap_ref ref,
                                 const struct action_ops *ops,
                                 struct action **ap, struct error **errp)
{
    struct change *c = calloc(1, sizeof(*c));

    if (!c) {
        (void)error_set(errp, ENOMEM, "no memory for bitmap '%s'", ref.name);
        return NULL;
    }
    c->action.ops = ops;
    c->ref = ref;
    *ap = &c->action;
    return c;
}

/* --- add --- */

static int add_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);

    return bitmap_add_locked(c->ref.node, c->ref.name, c->granularity,
                             c->persistent, c->flag, &c->bm, errp);
}

static void add_undo(struct action *a)
{
    bitmap_drop(change_of(a)->bm);
}

static const struct action_ops add_ops = {
    .drain = drain,
    .act = add_act,
    .undo = add_undo,
    .free = change_free,
};

int bitmap_add_action(struct bitmap_ref ref, uint64_t granularity,
                      bool persistent, bool disabled, struct action **ap,
                      struct error **errp)
{
    struct change *c = change_new(ref, &add_ops, ap, errp);

    if (!c) {
        return -ENOMEM;
    }
    c->granularity = granularity;
    c->persistent = persistent;
    c->flag = disabled;
    return 0;
}

/* --- remove --- */

static int remove_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = bitmap_lookup(c->ref.node, c->ref.name, BITMAP_USE_REMOVE, &c->bm,
                          errp);

    if (r == 0) {
        c->after = bitmap_take_off(c->bm);
    }
    return r;
}

static void remove_undo(struct action *a)
{
    struct change *c = change_of(a);

    bitmap_put_back(c->bm, c->ref.node, c->after);
}

static void remove_commit(struct action *a)
{
    bitmap_drop(change_of(a)->bm);
}

static const struct action_ops remove_ops = {
    .drain = drain,
    .act = remove_act,
    .undo = remove_undo,
    .commit = remove_commit,
    .free = change_free,
};

int bitmap_remove_action(struct bitmap_ref ref, struct action **ap,
                         struct error **errp)
{
    return change_new(ref, &remove_ops, ap, errp) ? 0 : -ENOMEM;
}

/* --- clear --- */

static int look_up(struct change *c, struct error **errp)
{
    return bitmap_lookup(c->ref.node, c->ref.name, BITMAP_USE_CHANGE, &c->bm,
                         errp);
}

/* Put new bits in place of the old ones: empty, then with what @bits has. */
static int renew(struct change *c, const struct hbitmap *bits,
                 struct error **errp)
{
    struct hbitmap *fresh = hbitmap_new(hbitmap_size(c->bm->bits),
                                        c->bm->granularity);

    if (!fresh) {
        return error_set(errp, ENOMEM, "no memory for bitmap '%s'",
                         c->ref.name);
    }
    if (bits) {
        hbitmap_merge(fresh, bits);
    }
    c->spare = bitmap_swap_bits(c->bm, fresh);
    return 0;
}

static int clear_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = look_up(c, errp);

    return r < 0 ? r : renew(c, NULL, errp);
}

static void bits_undo(struct action *a)
{
    struct change *c = change_of(a);

    c->spare = bitmap_swap_bits(c->bm, c->spare);
}

static const struct action_ops clear_ops = {
    .drain = drain,
    .act = clear_act,
    .undo = bits_undo,
    .free = change_free,
};

int bitmap_clear_action(struct bitmap_ref ref, struct action **ap,
                        struct error **errp)
{
    return change_new(ref, &clear_ops, ap, errp) ? 0 : -ENOMEM;
}

/* --- enable --- */

static int enable_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = look_up(c, errp);

    if (r == 0) {
        c->was_enabled = c->bm->enabled;
        c->bm->enabled = c->flag;
    }
    return r;
}

static void enable_undo(struct action *a)
{
    const struct change *c = change_of(a);

    c->bm->enabled = c->was_enabled;
}

static const struct action_ops enable_ops = {
    .drain = drain,
    .act = enable_act,
    .undo = enable_undo,
    .free = change_free,
};

int bitmap_enable_action(struct bitmap_ref ref, bool enable, struct action **ap,
                         struct error **errp)
{
    struct change *c = change_new(ref, &enable_ops, ap, errp);

    if (!c) {
        return -ENOMEM;
    }
    c->flag = enable;
    return 0;
}

/* --- merge --- */

/* A copy of the bits with all sources merged takes their place. */
static int merge_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = look_up(c, errp);

    if (r == 0) {
        r = renew(c, c->bm->bits, errp);
    }
    for (size_t i = 0; r == 0 && i < c->source_count; i++) {
        struct bitmap *src;

        r = bitmap_lookup(c->sources[i].node, c->sources[i].name,
                          BITMAP_USE_ANY, &src, errp);
        if (r == 0) {
            r = bitmap_merge_locked(c->bm, src, errp);
        }
    }
    if (r < 0 && c->spare) {
        bits_undo(a);
    }
    return r;
}

static const struct action_ops merge_ops = {
    .drain = drain,
    .act = merge_act,
    .undo = bits_undo,
    .free = change_free,
};

int bitmap_merge_action(struct bitmap_ref ref, const struct bitmap_ref *sources,
                        size_t count, struct action **ap, struct error **errp)
{
    struct change *c = change_new(ref, &merge_ops, ap, errp);

    if (!c) {
        return -ENOMEM;
    }
    c->sources = calloc(count + 1, sizeof(*sources));
    if (!c->sources) {
        change_free(&c->action);
        return error_set(errp, ENOMEM, "no memory for bitmap '%s'", ref.name);
    }
    for (size_t i = 0; i < count; i++) {
        c->sources[i] = sources[i];
    }
    c->source_count = count;
    return 0;
}
