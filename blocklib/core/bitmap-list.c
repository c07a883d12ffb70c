/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists of all bitmaps of a node, and the same as QMP has it. */
#include <errno.h>
#include <stdlib.h>

#include "core/dirty.h"
#include "core/graph.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/text.h"

/* The dirty bytes that will be added when a control section looks
 * (follow_growth in bitmap.c). */
static uint64_t growth(const struct bitmap *bm, const struct hbitmap *bits)
{
    uint64_t size = node_size(bm->node);
    uint64_t had = hbitmap_size(bits);

    if (!bm->enabled || size <= had) {
        return 0;
    }
    return align_up(size, bm->granularity) - align_up(had, bm->granularity);
}

/* A list that is being filled. */
struct filling {
    struct bitmap_list *list;
    size_t room;
    bool failed; /* no memory */
};

static void add_info(const struct bitmap_info *info, void *opaque)
{
    struct filling *f = opaque;
    struct bitmap_list *list = f->list;

    if (list->count == f->room) {
        size_t room = f->room * 2 + 4;
        struct bitmap_info *more = reallocarray(list->at, room, sizeof(*more));
        if (!more) {
            f->failed = true;
            return;
        }
        list->at = more;
        f->room = room;
    }
    struct bitmap_info *to = &list->at[list->count++];
    *to = *info;
    to->name = info->name ? text_as_utf8(info->name) : NULL;
    f->failed |= info->name && !to->name;
}

/* As in QEMU, a successor shows before the frozen bitmap. */
static void list_bitmap(struct filling *f, const struct bitmap *bm)
{
    uint64_t grown = growth(bm, bitmap_collecting(bm));
    struct bitmap_info info = {
        .granularity = bm->granularity,
        .recording = bm->enabled,
        .persistent = bm->persistent,
    };

    if (bm->successor) {
        info.count = hbitmap_count(bm->successor) + grown;
        add_info(&info, f);
        grown = 0;
    }
    info.count = hbitmap_count(bm->bits) + grown;
    info.busy = bitmap_is_busy(bm);
    info.inconsistent = atomic_load(&bm->inconsistent);
    info.why = info.inconsistent ? bm->why : NULL;
    info.name = bm->name;
    add_info(&info, f);
}

/* Add the bits of the copy engine; in QEMU they are bitmaps without names, and
 * the oldest. */
static void add_bits(struct filling *f, const struct node *n)
{
    if (n->drv->tell_bits) {
        n->drv->tell_bits(n, add_info, f);
    }
}

int bitmaps_get(struct node *n, struct bitmap_list *list)
{
    struct filling f = {.list = list};

    *list = (struct bitmap_list){NULL, 0};
    struct tree *t = node_enter(n, false);
    add_bits(&f, n);
    for (struct list *at = n->bitmaps.prev; at != &n->bitmaps; at = at->prev) {
        list_bitmap(&f, list_entry(at, struct bitmap, on_node));
    }
    node_leave(t);
    if (f.failed) {
        bitmaps_free(list);
    }
    return f.failed ? -ENOMEM : 0;
}

void bitmaps_free(struct bitmap_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->at[i].name);
    }
    free(list->at);
    *list = (struct bitmap_list){NULL, 0};
}

json_t *bitmap_info_json(const struct bitmap_info *info)
{
    json_t *o = json_pack("{s:b, s:b, s:b, s:I, s:I, s:s*}", "recording",
                          (int)info->recording, "persistent",
                          (int)info->persistent, "busy", (int)info->busy,
                          "granularity", (json_int_t)info->granularity, "count",
                          (json_int_t)info->count, "name", info->name);

    if (o && info->inconsistent) {
        (void)json_object_set_new(o, "inconsistent", json_true());
        (void)json_object_set_new(o, "inconsistent-reason",
                                  json_string(info->why));
    }
    return o;
}

json_t *bitmap_query(struct node *n)
{
    CLEANUP_BITMAPS struct bitmap_list list;
    json_t *all = json_array();
    int r = bitmaps_get(n, &list);

    for (size_t i = 0; i < list.count && r == 0; i++) {
        r = json_array_append_new(all, bitmap_info_json(&list.at[i]));
    }
    if (r < 0) {
        json_decref(all);
        return NULL;
    }
    return all;
}
