/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changes of dirty bitmaps as actions: what each of them does.
 *
 *             act                            undo            afterwards
 *   add       a new bitmap on the node       drop it
 *   remove    off the node                   put it back     drop it
 *   repair    off the node, a new one of     the same, and   drop the old one
 *             all ones in its place          drop the new
 *   clear     empty bits for the old ones    the old ones    free the others
 *   enable    the flag                       the old flag
 *   persist   the flag                       the old flag
 *   merge     grown bits for the old ones    the old ones    free the others
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "core/dirty.h"
#include "core/graph.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"

struct taken {
    struct bitmap *bm;
    struct list *after; /* its place in the node's list */
};

struct change {
    struct action action;
    struct bitmap_ref ref;

    /* What the caller asks for. */
    uint64_t granularity;
    bool persistent;
    bool flag; /* add: disabled; enable: enable */
    struct bitmap_ref *sources;
    size_t source_count;

    /* What act did. */
    struct bitmap *bm;
    struct taken *taken; /* remove, repair: bitmaps off the node, in order */
    size_t taken_count;
    struct hbitmap *spare; /* clear, merge: the bits that are not in use */
    const void *stored;    /* clear, merge: bm->stored as it was before, */
    bool was_rewrite;      /* and bm->rewrite */
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
    free(c->taken);
    free(c);
}

/* NULL: no memory, and *errp is set. */
static struct change *change_new(struct bitmap_ref ref,
                                 const struct action_ops *ops,
                                 struct action **ap, struct error **errp)
{
    struct change *c = calloc(1, sizeof(*c));

    if (!c) {
        (void)error_nomem(errp);
        return NULL;
    }
    c->action.ops = ops;
    c->ref = ref;
    *ap = &c->action;
    return c;
}

static struct node *changes(struct action *a, enum action_bitmaps *what)
{
    const struct change *c = change_of(a);

    *what = c->persistent ? ACTION_MORE_BITMAPS : ACTION_OTHER_BITS;
    return c->ref.node;
}

/* The bitmap has changed: the image shall follow, if it has the bitmap. */
static void note_bitmap_change(const struct change *c)
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
        note_bitmap_change(c);
    }
    return r;
}

static void add_undo(struct action *a)
{
    const struct change *c = change_of(a);

    note_bitmap_change(c);
    bitmap_drop(c->bm);
}

static const struct action_ops add_ops = {
    .drain = drain,
    .act = add_act,
    .undo = add_undo,
    .changes = changes,
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

static void put_back(struct change *c)
{
    struct node *n = c->ref.node;

    while (c->taken_count > 0) {
        const struct taken *t = &c->taken[--c->taken_count];
        bitmap_put_back(t->bm, n, t->after);
        n->bitmaps_changed |= t->bm->persistent;
    }
    bitmap_nest(n, NULL);
}

static int take_bitmap_off(struct change *c, struct bitmap *bm,
                           struct error **errp)
{
    struct taken *more = realloc(c->taken,
                                 (c->taken_count + 1) * sizeof(*more));

    if (!more) {
        return error_nomem(errp);
    }
    c->taken = more;
    more[c->taken_count++] = (struct taken){bm, bitmap_take_off(bm)};
    c->ref.node->bitmaps_changed |= bm->persistent;
    return 0;
}

/* Take all bitmaps of that name off the node.  An image may have several.  They
 * are inconsistent then, because nobody can say which of them is good. */
static int take_all(struct change *c, struct error **errp)
{
    struct bitmap *bm;
    int r = bitmap_lookup(c->ref.node, c->ref.name, BITMAP_USE_REMOVE, &bm,
                          errp);

    while (r == 0) {
        r = take_bitmap_off(c, bm, errp);
        if (r == 0 && bitmap_lookup(c->ref.node, c->ref.name, BITMAP_USE_REMOVE,
                                    &bm, NULL) < 0) {
            bitmap_nest(c->ref.node, NULL);
            return 0;
        }
    }
    put_back(c);
    return r;
}

static int remove_act(struct action *a, struct error **errp)
{
    return take_all(change_of(a), errp);
}

static void remove_undo(struct action *a)
{
    put_back(change_of(a));
}

static void remove_commit(struct action *a)
{
    const struct change *c = change_of(a);

    for (size_t i = 0; i < c->taken_count; i++) {
        bitmap_drop(c->taken[i].bm);
    }
}

static const struct action_ops remove_ops = {
    .drain = drain,
    .act = remove_act,
    .undo = remove_undo,
    .commit = remove_commit,
    .changes = changes,
    .free = change_free,
};

int bitmap_remove_action(struct bitmap_ref ref, struct action **ap,
                         struct error **errp)
{
    return change_new(ref, &remove_ops, ap, errp) ? 0 : -ENOMEM;
}

/* --- repair --- */

static int repair_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = take_all(c, errp);

    if (r < 0) {
        return r;
    }
    const struct bitmap *old = c->taken[0].bm;
    if (bitmap_readable(old)) {
        r = error_set(errp, EINVAL,
                      "Bitmap '%s' is not inconsistent: there is nothing to "
                      "repair",
                      c->ref.name);
    } else {
        r = bitmap_add_locked(c->ref.node, c->ref.name,
                              c->granularity ? c->granularity
                                             : bitmap_granularity(old),
                              true, !old->recorded, &c->bm, errp);
    }
    if (r < 0) {
        put_back(c);
        return r;
    }
    uint64_t size = hbitmap_size(c->bm->bits);
    if (size > 0) {
        hbitmap_set(c->bm->bits, 0, size);
        bitmap_nest(c->ref.node, c->bm); /* it has more bits than others now */
    }
    return 0;
}

static void repair_undo(struct action *a)
{
    struct change *c = change_of(a);

    bitmap_drop(c->bm);
    put_back(c);
}

static const struct action_ops repair_ops = {
    .drain = drain,
    .act = repair_act,
    .undo = repair_undo,
    .commit = remove_commit,
    .changes = changes,
    .free = change_free,
};

int bitmap_repair_action(struct bitmap_ref ref, uint64_t granularity,
                         struct action **ap, struct error **errp)
{
    struct change *c = change_new(ref, &repair_ops, ap, errp);

    if (!c) {
        return -ENOMEM;
    }
    c->granularity = granularity;
    c->persistent = true;
    return 0;
}

/* --- clear --- */

static int look_up_bitmap(struct change *c, struct error **errp)
{
    return bitmap_lookup(c->ref.node, c->ref.name, BITMAP_USE_CHANGE, &c->bm,
                         errp);
}

static struct hbitmap *bits_like(const struct change *c, struct error **errp)
{
    struct hbitmap *bits = hbitmap_new(hbitmap_size(c->bm->bits),
                                       c->bm->granularity);

    if (!bits) {
        (void)error_nomem(errp);
    }
    return bits;
}

static void swap_bits(struct change *c, struct hbitmap *bits)
{
    c->was_rewrite = c->bm->rewrite;
    c->stored = c->bm->stored;
    c->spare = bitmap_swap_bits(c->bm, bits);
    note_bitmap_change(c);
}

/* Guests wait for no write: the image may have more bits than memory. */
static struct node *clear_changes(struct action *a, enum action_bitmaps *what)
{
    *what = ACTION_FEWER_BITS;
    return change_of(a)->ref.node;
}

static int clear_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = look_up_bitmap(c, errp);
    struct hbitmap *empty = r < 0 ? NULL : bits_like(c, errp);

    if (!empty) {
        return r < 0 ? r : -ENOMEM;
    }
    swap_bits(c, empty);
    return 0;
}

static void bits_undo(struct action *a)
{
    struct change *c = change_of(a);

    c->spare = bitmap_swap_bits(c->bm, c->spare);
    /* The image has the old bits, unless the new ones were stored meanwhile. */
    c->bm->rewrite = c->was_rewrite || c->bm->stored != c->stored;
    note_bitmap_change(c);
}

static const struct action_ops clear_ops = {
    .drain = drain,
    .act = clear_act,
    .undo = bits_undo,
    .changes = clear_changes,
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
    int r = look_up_bitmap(c, errp);

    if (r == 0) {
        c->was_enabled = c->bm->enabled;
        bitmap_set_enabled(c->bm, c->flag);
        note_bitmap_change(c);
    }
    return r;
}

static void enable_undo(struct action *a)
{
    const struct change *c = change_of(a);

    bitmap_set_enabled(c->bm, c->was_enabled);
    note_bitmap_change(c);
}

static const struct action_ops enable_ops = {
    .drain = drain,
    .act = enable_act,
    .undo = enable_undo,
    .changes = changes,
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
    int r = look_up_bitmap(c, errp);

    if (r == 0) {
        c->was_persistent = c->bm->persistent;
        r = bitmap_make_persistent(c->bm, errp);
        note_bitmap_change(c);
    }
    return r;
}

static void persist_undo(struct action *a)
{
    const struct change *c = change_of(a);

    note_bitmap_change(c);
    c->bm->persistent = c->was_persistent;
}

static const struct action_ops persist_ops = {
    .drain = drain,
    .act = persist_act,
    .undo = persist_undo,
    .changes = changes,
    .free = change_free,
};

int bitmap_persist_action(struct bitmap_ref ref, struct action **ap,
                          struct error **errp)
{
    struct change *c = change_new(ref, &persist_ops, ap, errp);

    if (!c) {
        return -ENOMEM;
    }
    c->persistent = true;
    return 0;
}

/* --- merge --- */

/* Add the bits of a bitmap to @bits, which no bitmap has yet. */
static int add_source(struct hbitmap **bits, struct bitmap *src,
                      struct error **errp)
{
    uint64_t to = hbitmap_size(*bits);
    uint64_t from = hbitmap_size(src->bits);

    if (to != from) {
        return error_set(errp, EINVAL,
                         "Bitmaps are of different sizes (destination size "
                         "is %" PRIu64 ", source size is %" PRIu64
                         ") and can't be merged",
                         to, from);
    }
    if (hbitmap_count(*bits) >= hbitmap_count(src->bits) ||
        hbitmap_granularity(*bits) != src->granularity) {
        hbitmap_fill(*bits, src->bits);
        return 0;
    }
    struct hbitmap *shared = bitmap_share_bits(src); /* of which most stays */
    if (!shared) {
        return error_nomem(errp);
    }
    hbitmap_fill(shared, *bits);
    hbitmap_free(*bits);
    *bits = shared;
    return 0;
}

/* The bitmap's own bits with the bits of all sources replace the old bits. */
static int merge_act(struct action *a, struct error **errp)
{
    struct change *c = change_of(a);
    int r = look_up_bitmap(c, errp);
    struct hbitmap *bits = r < 0 ? NULL : bitmap_share_bits(c->bm);

    if (!bits) {
        return r < 0 ? r : error_nomem(errp);
    }
    for (size_t i = 0; r == 0 && i < c->source_count; i++) {
        struct bitmap *src;

        r = bitmap_lookup(c->sources[i].node, c->sources[i].name,
                          BITMAP_USE_READ, &src, errp);
        if (r == 0) {
            r = add_source(&bits, src, errp);
        }
    }
    if (r < 0) {
        hbitmap_free(bits);
        return r;
    }
    swap_bits(c, bits);
    c->bm->rewrite = true;
    return 0;
}

static const struct action_ops merge_ops = {
    .drain = drain,
    .act = merge_act,
    .undo = bits_undo,
    .changes = changes,
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
        return error_nomem(errp);
    }
    for (size_t i = 0; i < count; i++) {
        c->sources[i] = sources[i];
    }
    c->source_count = count;
    return 0;
}
