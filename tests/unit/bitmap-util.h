/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_BITMAP_UTIL_H
#define NBDELTA_TESTS_BITMAP_UTIL_H

/* Changes of bitmaps, one at a time. */
#include "core/dirty.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"

static inline int bitmap_add(struct graph *g, struct node *n, const char *name,
                             uint64_t granularity, bool persistent,
                             bool disabled, struct error **errp)
{
    struct action *a;
    int r = bitmap_add_action((struct bitmap_ref){n, name}, granularity,
                              persistent, disabled, &a, errp);

    return r < 0 ? r : action_run(g, a, errp);
}

static inline int bitmap_remove(struct graph *g, struct node *n,
                                const char *name, struct error **errp)
{
    struct action *a;
    int r = bitmap_remove_action((struct bitmap_ref){n, name}, &a, errp);

    return r < 0 ? r : action_run(g, a, errp);
}

static inline int bitmap_clear(struct graph *g, struct node *n,
                               const char *name, struct error **errp)
{
    struct action *a;
    int r = bitmap_clear_action((struct bitmap_ref){n, name}, &a, errp);

    return r < 0 ? r : action_run(g, a, errp);
}

static inline int bitmap_enable(struct graph *g, struct node *n,
                                const char *name, bool enable,
                                struct error **errp)
{
    struct action *a;
    int r = bitmap_enable_action((struct bitmap_ref){n, name}, enable, &a,
                                 errp);

    return r < 0 ? r : action_run(g, a, errp);
}

static inline int bitmap_merge(struct graph *g, struct node *n,
                               const char *name, const struct bitmap *from,
                               struct error **errp)
{
    struct bitmap_ref src = {from->node, from->name};
    struct action *a;
    int r = bitmap_merge_action((struct bitmap_ref){n, name}, &src, 1, &a,
                                errp);

    return r < 0 ? r : action_run(g, a, errp);
}

#endif /* NBDELTA_TESTS_BITMAP_UTIL_H */
