/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changes of dirty bitmaps as actions.
 *
 *             act                            undo            afterwards
 *   add       a new bitmap on the node       drop it
 *   remove    off the node                   put it back     drop it
 *   clear     empty bits for the old ones    the old ones    free the others
 *   enable    the flag                       the old flag
 *   persist   the flag                       the old flag
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
    bool was_persistent;
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

/* Of several actions on one node, the first to come stores for all. */
static int settle(struct action *a, struct error **errp)
{
    struct node *n = change_of(a)->ref.node;

    if (!n->bitmaps_changed) {
        return 0;
    }
    n->bitmaps_changed = false;
    return bitmap_store(n, errp);
}

/* What @bm says has changed: the image shall follow, if it has it. */
static void changed(const struct change *c)
{
    c->ref.node->bitmaps_changed |= c->bm->persistent;
}

/* --- add --- */

static int add_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = bitmap_add_locked(c->ref.node, c->ref.name, c->granularity,
                              c->persistent, c->flag, &c->bm, errp);

    if (r == 0) {
        changed(c);
    }
    return r;
}

static void add_undo(struct action *a)
{
    const struct change *c = change_of(a);

    changed(c);
    bitmap_drop(c->bm);
}

static const struct action_ops add_ops = {
    .drain = drain,
    .act = add_act,
    .undo = add_undo,
    .settle = settle,
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
        changed(c);
    }
    return r;
}

static void remove_undo(struct action *a)
{
    struct change *c = change_of(a);

    bitmap_put_back(c->bm, c->ref.node, c->after);
    changed(c);
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
    .settle = settle,
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

static struct hbitmap *bits_like(const struct change *c, struct error **errp)
{
    struct hbitmap *bits = hbitmap_new(hbitmap_size(c->bm->bits),
                                       c->bm->granularity);

    if (!bits) {
        (void)error_set(errp, ENOMEM, "no memory for bitmap '%s'", c->ref.name);
    }
    return bits;
}

/* The image may have more bits for a while. */
static int clear_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = look_up(c, errp);
    struct hbitmap *empty = r < 0 ? NULL : bits_like(c, errp);

    if (!empty) {
        return r < 0 ? r : -ENOMEM;
    }
    c->spare = bitmap_swap_bits(c->bm, empty);
    return 0;
}

static void bits_undo(struct action *a)
{
    struct change *c = change_of(a);

    c->spare = bitmap_swap_bits(c->bm, c->spare);
    c->bm->grew = true;
    changed(c);
}

static const struct action_ops clear_ops = {
    .drain = drain,
    .act = clear_act,
    .undo = bits_undo,
    .settle = settle,
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
        bitmap_set_enabled(c->bm, c->flag);
        changed(c);
    }
    return r;
}

static void enable_undo(struct action *a)
{
    const struct change *c = change_of(a);

    bitmap_set_enabled(c->bm, c->was_enabled);
    changed(c);
}

static const struct action_ops enable_ops = {
    .drain = drain,
    .act = enable_act,
    .undo = enable_undo,
    .settle = settle,
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

/* --- persist --- */

static int persist_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = look_up(c, errp);

    if (r == 0) {
        c->was_persistent = c->bm->persistent;
        r = bitmap_make_persistent(c->bm, errp);
        changed(c);
    }
    return r;
}

static void persist_undo(struct action *a)
{
    const struct change *c = change_of(a);

    changed(c);
    c->bm->persistent = c->was_persistent;
}

static const struct action_ops persist_ops = {
    .drain = drain,
    .act = persist_act,
    .undo = persist_undo,
    .settle = settle,
    .free = change_free,
};

int bitmap_persist_action(struct bitmap_ref ref, struct action **ap,
                          struct error **errp)
{
    return change_new(ref, &persist_ops, ap, errp) ? 0 : -ENOMEM;
}

/* --- merge --- */

/* Bits of its own and of all sources take the place of the old ones. */
static int merge_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = look_up(c, errp);
    struct hbitmap *bits = r < 0 ? NULL : bits_like(c, errp);

    if (!bits) {
        return r < 0 ? r : -ENOMEM;
    }
    hbitmap_merge(bits, c->bm->bits);
    for (size_t i = 0; r == 0 && i < c->source_count; i++) {
        struct bitmap *src;

        r = bitmap_lookup(c->sources[i].node, c->sources[i].name,
                          BITMAP_USE_ANY, &src, errp);
        if (r == 0) {
            r = bitmap_merge_locked(bits, src, errp);
        }
    }
    if (r < 0) {
        hbitmap_free(bits);
        return r;
    }
    c->spare = bitmap_swap_bits(c->bm, bits);
    c->bm->grew = true;
    changed(c);
    return 0;
}

static const struct action_ops merge_ops = {
    .drain = drain,
    .act = merge_act,
    .undo = bits_undo,
    .settle = settle,
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
