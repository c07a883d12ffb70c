/* SPDX-License-Identifier: BSD-3-Clause */
/* Listing, finding and removing checkpoints: see checkpoint.h. */
#include "backup/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    bool silent; /* storage was asked, and did not answer */
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
    CLEANUP_STORAGE struct storage_snapshots list = {0};
    struct error *err = NULL;
    int r = 0;

    /* Nothing is known of storage that does not answer, and all commands would
     * wait for each of its disks. */
    if (l->silent || storage_is_shown(l->daemon->graph, n)) {
        return 0;
    }
    if (stored_list(n, &list, &err) < 0) {
        log_line(TELL_WARNING, "checkpoints of disk '%.200s': %.400s",
                 node_name(n), error_message(err));
        error_free(err);
        l->silent = true;
    }
    for (size_t i = 0; i < list.count && r == 0; i++) {
        CLEANUP_FREE char *name = storage_checkpoint_of(list.at[i].name);
        r = name ? list_stored(l, n, name, &list.at[i]) : 0;
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

json_t *checkpoints_query(struct daemon *d)
{
    CLEANUP_JSON json_t *all = json_object();
    json_t *list = json_array();
    struct listing listing = {d, all, false};
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

/* Is one of the snapshots the checkpoint @name, or (NULL) any one? */
static bool has_stored(const struct storage_snapshots *list, const char *name)
{
    bool found = false;

    for (size_t i = 0; i < list->count; i++) {
        CLEANUP_FREE char *is = storage_checkpoint_of(list->at[i].name);

        found |= is && (!name || strcmp(is, name) == 0);
    }
    return found;
}

int checkpoint_missing(struct daemon *d, struct node *n, const char *name,
                       const char **why, bool *bitmap, struct error **errp)
{
    CLEANUP_STORAGE struct storage_snapshots list = {0};

    *why = bitmap_missing(n, name);
    *bitmap = *why == NULL;
    if (*bitmap) {
        return 0;
    }
    int r = stored_list(n, &list, errp);
    if (has_stored(&list, name)) {
        *why = NULL;
    } else if (strcmp(*why, "new-disk") == 0 && has_stored(&list, NULL)) {
        *why = "no-checkpoint";
    }
    if (*why && strncmp(*why, "bitmap-", 7) != 0 &&
        bitmap_below(d->graph, n, name)) {
        *why = "base-bitmap";
    }
    return r;
}

char *checkpoint_names(struct node *n)
{
    CLEANUP_BITMAPS struct bitmap_list list;
    CLEANUP_STORAGE struct storage_snapshots stored = {0};
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
    (void)stored_list(n, &stored, NULL);
    for (size_t i = 0; i < stored.count; i++) {
        CLEANUP_FREE char *name = storage_checkpoint_of(stored.at[i].name);

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

bool checkpoint_exists(struct node *n, const char *name)
{
    return is_bitmap(n, name) || stored_has(n, name, NULL) == 1;
}

/* --- Removing. --- */

struct removal {
    struct daemon *daemon;
    const char *name;
    const json_t *nodes; /* NULL: all that have it */
    struct list actions; /* for bitmaps */
    bool removed;        /* a snapshot */
    struct error **errp;
};

static int remove_bitmap(struct node *n, struct removal *rm)
{
    struct action *a;
    int r = bitmap_remove_action((struct bitmap_ref){n, rm->name}, &a,
                                 rm->errp);

    return r < 0 ? r : actions_add(&rm->actions, a, rm->errp);
}

/* Snapshots go at once, before bitmaps do. */
static int remove_from(struct node *n, void *opaque)
{
    struct removal *rm = opaque;
    bool bitmap = is_bitmap(n, rm->name);
    int r = 0;

    if (rm->nodes || !storage_is_shown(rm->daemon->graph, n)) {
        r = stored_has(n, rm->name, rm->errp);
    }
    if (r == 1) {
        rm->removed = true;
        r = stored_remove(n, rm->name, rm->errp);
    } else if (r == 0 && !bitmap && rm->nodes) {
        r = error_set(rm->errp, ENOENT, "Node '%s' has no checkpoint '%s'",
                      node_name(n), rm->name);
    }
    return r == 0 && bitmap ? remove_bitmap(n, rm) : r;
}

static int remove_from_named(struct removal *rm)
{
    size_t i;
    json_t *item;
    int r = 0;

    json_array_foreach (rm->nodes, i, item) {
        const char *name = json_string_value(item);
        struct node *n = graph_find(rm->daemon->graph,
                                    name); /* as the list has it */
        n = n ? n : disk_find_node(rm->daemon, name, rm->errp);
        r = r < 0 ? r : n ? remove_from(n, rm) : -ENODEV;
    }
    return r;
}

int checkpoint_delete(struct daemon *d, const char *name, const json_t *nodes,
                      struct error **errp)
{
    struct removal rm = {
        .daemon = d, .name = name, .nodes = nodes, .errp = errp};

    list_init(&rm.actions);
    int r = nodes ? remove_from_named(&rm)
                  : graph_each(d->graph, remove_from, &rm);
    if (r == 0 && !rm.removed && list_empty(&rm.actions)) {
        r = error_set(errp, ENOENT, "There is no checkpoint '%s'", name);
    }
    if (r < 0) {
        actions_cancel(&rm.actions);
        return r;
    }
    return actions_run(d->graph, &rm.actions, errp);
}
