/* SPDX-License-Identifier: BSD-3-Clause */
/* Listing, finding and removing checkpoints: see checkpoint.h. */
#include "backup/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/look.h"
#include "backup/stored.h"
#include "daemon.h"
#include "disk.h"
#include "log/log.h"
#include "nbd/export.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/storage-snapshot.h"
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
    struct look look;
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

/* Add what a node has of the checkpoint, a new reference, to its entry. */
static int add_disk(const struct listing *l, const char *name, json_t *disk)
{
    json_t *all = l->all;
    json_t *entry = json_object_get(all, name);

    if (!entry) {
        entry = json_pack("{s:s, s:[]}", "name", name, "disks");
        if (json_object_set_new(all, name, entry) < 0) {
            json_decref(disk);
            return -1;
        }
    }
    return json_array_append_new(json_object_get(entry, "disks"), disk);
}

static int list_bitmap(const struct listing *l, const struct node *n,
                       const struct bitmap_info *b)
{
    return add_disk(
        l, b->name,
        json_pack("{s:s, s:o, s:I, s:I, s:b, s:b, s:b, s:s*}", "node",
                  node_name(n), "devices", devices_of(l->daemon, n),
                  "granularity", (json_int_t)b->granularity, "count",
                  (json_int_t)b->count, "persistent", (int)b->persistent,
                  "busy", (int)b->busy, "inconsistent", (int)b->inconsistent,
                  "reason", b->why));
}

/* A checkpoint that is a snapshot of the storage.  How much has changed since
 * then would have to be asked. */
static int list_stored(const struct listing *l, const struct node *n,
                       const char *name, const struct storage_snapshot *s)
{
    return add_disk(l, name,
                    json_pack("{s:s, s:o, s:s, s:I, s:b, s:b, s:b}", "node",
                              node_name(n), "devices", devices_of(l->daemon, n),
                              "snapshot", s->name, "snapshot-id",
                              (json_int_t)s->id, "persistent", 1, "busy", 0,
                              "inconsistent", 0));
}

static int list_snapshots(struct listing *l, struct node *n)
{
    const struct storage_snapshots *list = look_of(&l->look, n);
    int r = 0;

    for (size_t i = 0; list && i < list->count && r == 0; i++) {
        CLEANUP_FREE char *name = storage_checkpoint_of(list->at[i].name);
        r = name ? list_stored(l, n, name, &list->at[i]) : 0;
    }
    return r;
}

static int list_checkpoints(struct node *n, void *opaque)
{
    CLEANUP_BITMAPS struct bitmap_list list;
    int r = bitmaps_get(n, &list);

    for (size_t i = 0; i < list.count && r == 0; i++) {
        if (is_checkpoint(n, &list.at[i])) {
            r = list_bitmap(opaque, n, &list.at[i]);
        }
    }
    return r < 0 ? r : list_snapshots(opaque, n);
}

/* A member of all disks of the checkpoint, added up. */
static json_int_t sum_of(const json_t *checkpoint, const char *member)
{
    json_int_t sum = 0;
    size_t i;
    json_t *disk;

    json_array_foreach (json_object_get(checkpoint, "disks"), i, disk) {
        sum += json_integer_value(json_object_get(disk, member));
    }
    return sum;
}

/* Of two checkpoints the older one has as many dirty bytes, and its snapshots
 * have smaller numbers. */
static int by_age(const void *a, const void *b)
{
    const json_t *ca = *(json_t *const *)a;
    const json_t *cb = *(json_t *const *)b;
    json_int_t x = sum_of(ca, "count");
    json_int_t y = sum_of(cb, "count");

    if (x == y) {
        y = sum_of(ca, "snapshot-id");
        x = sum_of(cb, "snapshot-id");
    }
    return x == y ? 0 : x > y ? -1 : 1;
}

static int add_storing(struct node *n, void *opaque)
{
    struct look *l = opaque;

    return storage_has_snapshots(n) && !storage_is_shown(l->daemon->graph, n)
               ? look_add(l, n, NULL)
               : 0;
}

/* Nothing is told of storage that does not answer. */
static int look_at_all(struct look *l)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = graph_each(l->daemon->graph, add_storing, l);

    if (r == 0 && look_ask(l, &err) < 0) {
        log_line(TELL_WARNING, "checkpoints are not listed: %.400s",
                 error_message(err));
    }
    return r;
}

static json_t *sorted_list(const json_t *all)
{
    CLEANUP_FREE json_t **sorted = calloc(json_object_size(all) + 1,
                                          sizeof(*sorted));
    json_t *list = json_array();
    size_t count = 0;
    const char *name;
    json_t *entry;

    if (!sorted || !list) {
        json_decref(list);
        return NULL;
    }
    json_object_foreach ((json_t *)(uintptr_t)all, name, entry) {
        sorted[count++] = entry;
    }
    qsort(sorted, count, sizeof(json_t *), by_age);
    for (size_t i = 0; i < count; i++) {
        if (json_array_append(list, sorted[i]) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

json_t *checkpoints_query(struct daemon *d)
{
    CLEANUP_JSON json_t *all = json_object();
    struct listing listing = {d, all, {.daemon = d}};
    int r = all ? look_at_all(&listing.look) : -ENOMEM;

    if (r == 0) {
        r = graph_each(d->graph, list_checkpoints, &listing);
    }
    look_free(&listing.look);
    return r == 0 ? sorted_list(all) : NULL;
}

/* --- Looking for one. --- */

/* The word of checkpoint_missing(), as far as bitmaps go. */
static const char *bitmap_missing(struct node *n, const char *name)
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
    return why;
}

const char *checkpoint_missing(struct daemon *d, struct node *n,
                               const char *name,
                               const struct storage_snapshots *stored,
                               bool *bitmap)
{
    const char *why = bitmap_missing(n, name);

    *bitmap = !why;
    if (!why || stored_has(stored, name)) {
        return NULL;
    }
    if (strcmp(why, "new-disk") == 0 && stored_has(stored, NULL)) {
        why = "no-checkpoint";
    }
    return strncmp(why, "bitmap-", 7) != 0 && bitmap_below(d->graph, n, name)
               ? "base-bitmap"
               : why;
}

char *checkpoint_names(struct node *n, const struct storage_snapshots *stored)
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
    for (size_t i = 0; stored && i < stored->count; i++) {
        CLEANUP_FREE char *name = storage_checkpoint_of(stored->at[i].name);

        if (f && name && count++ < NAMES_MAX) {
            (void)fprintf(f, "%s'%s'", count > 1 ? ", " : "", name);
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

/* As a bitmap. */
static bool is_bitmap(struct node *n, const char *name)
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

bool checkpoint_exists(struct node *n, const char *name,
                       const struct storage_snapshots *stored)
{
    return is_bitmap(n, name) || stored_has(stored, name);
}

/* --- Removing. --- */

struct removal {
    const char *name;
    struct look look; /* where it may be */
};

static int add_having(struct node *n, void *opaque)
{
    struct removal *rm = opaque;

    return is_bitmap(n, rm->name) ? look_add(&rm->look, n, NULL)
                                  : add_storing(n, &rm->look);
}

static int add_named(struct removal *rm, const json_t *nodes,
                     struct error **errp)
{
    struct daemon *d = rm->look.daemon;
    size_t i;
    json_t *item;
    int r = 0;

    json_array_foreach (nodes, i, item) {
        const char *name = json_string_value(item);
        struct node *n = graph_find(d->graph, name); /* as the list has it */
        n = n ? n : disk_find_node(d, name, errp);
        if (!n) {
            return -ENODEV;
        }
        if (r == 0 && !look_of(&rm->look, n)) {
            r = look_add(&rm->look, n, errp);
        }
    }
    return r;
}

/* All of them have it, or (if they were not @named) any. */
static int check_there(const struct removal *rm, bool named,
                       struct error **errp)
{
    bool any = false;

    for (size_t i = 0; i < rm->look.count; i++) {
        const struct looked *k = &rm->look.at[i];

        if (checkpoint_exists(k->node, rm->name, &k->list)) {
            any = true;
        } else if (named) {
            return error_set(errp, ENOENT, "Node '%s' has no checkpoint '%s'",
                             node_name(k->node), rm->name);
        }
    }
    return any ? 0
               : error_set(errp, ENOENT, "There is no checkpoint '%s'",
                           rm->name);
}

static int remove_stored(const struct removal *rm, struct error **errp)
{
    bool any = false;
    int r = 0;

    for (size_t i = 0; i < rm->look.count; i++) {
        any |= stored_has(&rm->look.at[i].list, rm->name);
    }
    if (!any) {
        return 0;
    }
    look_begin(rm->look.daemon);
    for (size_t i = 0; r == 0 && i < rm->look.count; i++) {
        const struct looked *k = &rm->look.at[i];

        r = stored_has(&k->list, rm->name)
                ? stored_remove(k->storage, rm->name, errp)
                : 0;
    }
    r = r < 0 ? r : look_settle(&rm->look, errp);
    look_end(rm->look.daemon);
    return r;
}

static int remove_bitmaps(const struct removal *rm, struct error **errp)
{
    struct list actions;
    int r = 0;

    list_init(&actions);
    for (size_t i = 0; r == 0 && i < rm->look.count; i++) {
        struct node *n = rm->look.at[i].node;
        struct action *a;

        if (is_bitmap(n, rm->name)) {
            r = bitmap_remove_action((struct bitmap_ref){n, rm->name}, &a,
                                     errp);
            r = r < 0 ? r : actions_add(&actions, a, errp);
        }
    }
    if (r < 0) {
        actions_cancel(&actions);
        return r;
    }
    return actions_run(rm->look.daemon->graph, &actions, errp);
}

int checkpoint_delete(struct daemon *d, const char *name, const json_t *nodes,
                      struct error **errp)
{
    struct removal rm = {name, {.daemon = d}};
    int r = nodes ? add_named(&rm, nodes, errp)
                  : graph_each(d->graph, add_having, &rm);

    if (r == 0 && (r = look_ask(&rm.look, errp)) == 0 &&
        (r = check_there(&rm, nodes, errp)) == 0 &&
        (r = remove_stored(&rm, errp)) == 0) {
        r = remove_bitmaps(&rm, errp);
    }
    look_free(&rm.look);
    return r;
}
