/* SPDX-License-Identifier: BSD-3-Clause */
/* Listing, finding and removing checkpoints: see checkpoint.h. */
#include "backup/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"
#include "disk.h"
#include "nbd/export.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "qmp/dispatch.h"

#define NAMES_MAX 20

/*
 * A broken bitmap may have been a checkpoint.  On a node that cannot keep
 * bitmaps, a checkpoint is a bitmap in memory.  The bitmap of a backup that has
 * not ended is busy, and is no checkpoint yet.
 */
static bool is_checkpoint(const struct node *n, const struct bitmap_info *b)
{
    return b->name && (b->recording || b->inconsistent) &&
           (b->persistent || (!node_keeps_bitmaps(n) && !b->busy));
}

/* --- Listing. --- */

struct listing {
    struct daemon *daemon;
    json_t *all; /* checkpoints by their names */
};

struct devices {
    const struct node *disk;
    json_t *names;
};

static int name_device(struct export *e, void *opaque)
{
    const struct devices *d = opaque;

    return !e->of_backup && blk_disk(e->blk) == d->disk
               ? json_array_append_new(d->names, json_string(e->name))
               : 0;
}

/* Names of the exports of the disk @n, as query-block has them; a new
 * reference. */
static json_t *devices_of(const struct daemon *d, const struct node *n)
{
    struct devices devices = {n, json_array()};

    (void)exports_each(d->exports, name_device, &devices);
    return devices.names;
}

/* Add what node @n has of the checkpoint to its entry. */
static int list_disk(const struct listing *l, const struct node *n,
                     const struct bitmap_info *b)
{
    json_t *all = l->all;
    json_t *entry = json_object_get(all, b->name);
    json_t *disk = json_pack(
        "{s:s, s:o, s:I, s:I, s:b, s:b, s:b, s:s*}", "node", node_name(n),
        "devices", devices_of(l->daemon, n), "granularity",
        (json_int_t)b->granularity, "count", (json_int_t)b->count, "persistent",
        (int)b->persistent, "busy", (int)b->busy, "inconsistent",
        (int)b->inconsistent, "reason", b->why);

    if (!entry) {
        entry = json_pack("{s:s, s:[]}", "name", b->name, "disks");
        if (json_object_set_new(all, b->name, entry) < 0) {
            json_decref(disk);
            return -1;
        }
    }
    return json_array_append_new(json_object_get(entry, "disks"), disk);
}

static int list_checkpoints(struct node *n, void *opaque)
{
    CLEANUP_BITMAPS struct bitmap_list list;
    int r = bitmaps_get(n, &list);

    for (size_t i = 0; i < list.count && r == 0; i++) {
        if (is_checkpoint(n, &list.at[i])) {
            r = list_disk(opaque, n, &list.at[i]);
        }
    }
    return r;
}

/* Dirty bytes on all disks: of two checkpoints the older one has as many. */
static json_int_t size_of(const json_t *checkpoint)
{
    json_int_t sum = 0;
    size_t i;
    json_t *disk;

    json_array_foreach (json_object_get(checkpoint, "disks"), i, disk) {
        sum += json_integer_value(json_object_get(disk, "count"));
    }
    return sum;
}

static int by_age(const void *a, const void *b)
{
    json_int_t x = size_of(*(json_t *const *)a);
    json_int_t y = size_of(*(json_t *const *)b);

    return x == y ? 0 : x > y ? -1 : 1;
}

json_t *checkpoints_query(struct daemon *d)
{
    CLEANUP_JSON json_t *all = json_object();
    json_t *list = json_array();
    struct listing listing = {d, all};
    CLEANUP_FREE json_t **sorted = NULL;
    size_t count = 0;
    const char *name;
    json_t *entry;
    int r = all && list ? graph_each(d->graph, list_checkpoints, &listing) : -1;

    sorted = calloc(json_object_size(all) + 1, sizeof(*sorted));
    if (r == 0 && sorted) {
        json_object_foreach (all, name, entry) {
            sorted[count++] = entry;
        }
        qsort(sorted, count, sizeof(json_t *), by_age);
    }
    for (size_t i = 0; r == 0 && i < count; i++) {
        r = json_array_append(list, sorted[i]);
    }
    if (r != 0 || !sorted) {
        json_decref(list);
        return NULL;
    }
    return list;
}

/* --- Looking for one. --- */

const char *checkpoint_missing(struct daemon *d, struct node *n,
                               const char *name)
{
    CLEANUP_BITMAPS struct bitmap_list list;
    const char *why = "new-disk";

    (void)bitmaps_get(n, &list);
    for (size_t i = 0; i < list.count; i++) {
        const struct bitmap_info *b = &list.at[i];

        if (b->name && strcmp(b->name, name) == 0) {
            return b->inconsistent ? "bitmap-inconsistent"
                   : b->recording  ? NULL
                                   : "bitmap-disabled";
        }
        why = is_checkpoint(n, b) ? "no-checkpoint" : why;
    }
    return bitmap_below(d->graph, n, name) ? "base-bitmap" : why;
}

char *checkpoint_names(struct node *n)
{
    CLEANUP_BITMAPS struct bitmap_list list;
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    unsigned count = 0;

    (void)bitmaps_get(n, &list);
    for (size_t i = 0; i < list.count; i++) {
        const struct bitmap_info *b = &list.at[i];

        if (f && is_checkpoint(n, b) && count++ < NAMES_MAX) {
            (void)fprintf(f, "%s'%s'", count > 1 ? ", " : "", b->name);
        }
    }
    if (!f) {
        return NULL;
    }
    (void)fputs(count == 0 ? "none" : count > NAMES_MAX ? ", and more" : "", f);
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

bool checkpoint_exists(struct node *n, const char *name)
{
    CLEANUP_BITMAPS struct bitmap_list list;
    bool found = false;

    (void)bitmaps_get(n, &list);
    for (size_t i = 0; i < list.count; i++) {
        const struct bitmap_info *b = &list.at[i];

        found |= is_checkpoint(n, b) && strcmp(b->name, name) == 0;
    }
    return found;
}

/* --- Removing. --- */

struct removal {
    const char *name;
    struct list actions;
    bool strict; /* a node without it is an error */
    struct error **errp;
};

static int remove_from(struct node *n, void *opaque)
{
    struct removal *rm = opaque;
    struct action *a;

    if (!checkpoint_exists(n, rm->name)) {
        return rm->strict ? error_set(rm->errp, ENOENT,
                                      "Node '%s' has no checkpoint '%s'",
                                      node_name(n), rm->name)
                          : 0;
    }
    int r = bitmap_remove_action((struct bitmap_ref){n, rm->name}, &a,
                                 rm->errp);
    return r < 0 ? r : actions_add(&rm->actions, a, rm->errp);
}

static int remove_from_named(struct daemon *d, const json_t *nodes,
                             struct removal *rm)
{
    size_t i;
    json_t *item;
    int r = 0;

    rm->strict = true;
    json_array_foreach (nodes, i, item) {
        const char *name = json_string_value(item);
        struct node *n = graph_find(d->graph, name); /* as the list has it */
        n = n ? n : disk_find_node(d, name, rm->errp);
        r = r < 0 ? r : n ? remove_from(n, rm) : -ENODEV;
    }
    return r;
}

int checkpoint_delete(struct daemon *d, const char *name, const json_t *nodes,
                      struct error **errp)
{
    struct removal rm = {.name = name, .errp = errp};

    list_init(&rm.actions);
    int r = nodes ? remove_from_named(d, nodes, &rm)
                  : graph_each(d->graph, remove_from, &rm);
    if (r == 0 && list_empty(&rm.actions)) {
        r = error_set(errp, ENOENT, "There is no checkpoint '%s'", name);
    }
    if (r < 0) {
        actions_cancel(&rm.actions);
        return r;
    }
    return actions_run(d->graph, &rm.actions, errp);
}
