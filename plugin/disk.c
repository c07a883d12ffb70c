/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening and closing the disks, and what clients open: see disk.h. */
#include "disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/internal-snapshot.h"
#include "nbdelta/secret.h"

#define DIRTY_MARK    "@dirty="
#define SNAPSHOT_MARK "@snapshot="

/* The secret with the passphrase of all images. */
#define SECRET_ID "passphrase"

static enum graph_follow follow_of(const struct config *c)
{
    const char *word = c->follow ? c->follow : "beside";

    return strcmp(word, "none") == 0   ? FOLLOW_NONE
           : strcmp(word, "data") == 0 ? FOLLOW_DATA
                                       : FOLLOW_BESIDE;
}

int disks_new(const struct config *c, struct disks **dsp, struct error **errp)
{
    struct disks *ds = calloc(1, sizeof(*ds));
    int r = 0;

    if (!ds) {
        return error_nomem(errp);
    }
    mutex_init(&ds->lock, LOCK_DISKS, NULL);
    list_init(&ds->opened);
    ds->config = c;
    ds->graph = graph_new();
    ds->all = calloc(c->source_count, sizeof(*ds->all));
    if (!ds->graph || !ds->all) {
        disks_free(ds);
        return error_nomem(errp);
    }
    for (; ds->count < c->source_count; ds->count++) {
        ds->all[ds->count].source = &c->sources[ds->count];
    }
    graph_follow(ds->graph, follow_of(c));
    for (unsigned i = 0; i < c->allowed.count && r == 0; i++) {
        r = graph_allow_path(ds->graph, c->allowed.at[i], errp);
    }
    if (r == 0 && c->passphrase) {
        r = secret_create(ds->graph, SECRET_ID, c->passphrase,
                          strlen(c->passphrase), errp);
    }
    if (r < 0) {
        disks_free(ds);
        return r;
    }
    *dsp = ds;
    return 0;
}

void disks_free(struct disks *ds)
{
    if (ds) {
        graph_free(ds->graph);
        mutex_destroy(&ds->lock);
        free(ds->all);
        free(ds);
    }
}

/* --- Bitmaps of bitmap= --- */

/* A bitmap that is there already has to be of use. */
static int check_view_bitmap(const struct disk *d, const char *name,
                             const struct bitmap *bm, struct error **errp)
{
    if (!bitmap_readable(bm)) {
        return error_set(errp, EINVAL,
                         "the bitmap '%s' of '%s' is inconsistent: see "
                         "'nbdelta bitmap repair'",
                         name, d->source->name);
    }
    if (!bitmap_enabled(bm)) {
        return error_set(errp, EINVAL,
                         "the bitmap '%s' of '%s' is disabled, and does not "
                         "know what changed since: see 'nbdelta bitmap "
                         "enable', or take another name",
                         name, d->source->name);
    }
    return 0;
}

static int need_bitmap(struct disks *ds, const struct disk *d, const char *name,
                       struct error **errp)
{
    struct bitmap *bm = bitmap_find(d->node, name);
    struct action *a;
    int r;

    if (bm) {
        r = check_view_bitmap(d, name, bm, errp);
        bitmap_unref(bm);
        return r;
    }
    r = bitmap_add_action((struct bitmap_ref){d->node, name}, 0, true, false,
                          &a, errp);
    r = r < 0 ? r : action_run(ds->graph, a, errp);
    if (r < 0) {
        error_prefix(errp, "bitmap=%s: ", name);
    }
    return r;
}

/* --- Opening and closing --- */

/* Options that not every format knows, unless the user gave them. */
static int add_special(const struct disks *ds, const struct source *s,
                       json_t *o)
{
    if (s->no_backing && !json_object_get(o, "backing") &&
        json_object_set_new(o, "backing", json_null()) < 0) {
        return -ENOMEM;
    }
    if (ds->config->passphrase && s->is_file &&
        !json_object_get(o, "encrypt") &&
        json_object_set_new(o, "encrypt",
                            json_pack("{s:s}", "key-secret", SECRET_ID)) < 0) {
        return -ENOMEM;
    }
    return 0;
}

static int open_disk_node(struct disks *ds, struct disk *d, bool writable,
                          bool special, struct error **errp)
{
    CLEANUP_JSON json_t *o = json_deep_copy(d->source->options);

    if (!o ||
        (!writable && json_object_set_new(o, "read-only", json_true()) < 0) ||
        (special && add_special(ds, d->source, o) < 0)) {
        return error_nomem(errp);
    }
    return graph_open(ds->graph, o, &d->node, errp);
}

/* A format that does not know special options refuses them.  It is opened
 * without them then.  Where that is wrong, too, the first error is the one that
 * tells what is. */
static int open_source(struct disks *ds, struct disk *d, bool writable,
                       struct error **errp)
{
    CLEANUP_ERROR struct error *first = NULL;
    CLEANUP_ERROR struct error *second = NULL;
    bool special = d->source->no_backing ||
                   (ds->config->passphrase && d->source->is_file);
    int r = open_disk_node(ds, d, writable, true, &first);

    if (r == -EINVAL && special) {
        r = open_disk_node(ds, d, writable, false, &second);
    }
    if (r < 0) {
        const struct error *err = second && r != -EINVAL ? second : first;
        return error_set(errp, -r, "%s", error_message(err));
    }
    return 0;
}

static void close_disk(struct disks *ds, struct disk *d)
{
    blk_free(d->blk);
    d->blk = NULL;
    if (d->node) {
        (void)graph_close(ds->graph, d->node, NULL); /* nobody else has it */
        d->node = NULL;
    }
}

/* All of it or, on an error, nothing. */
static int open_disk(struct disks *ds, struct disk *d, bool writable,
                     struct error **errp)
{
    const struct strings *bitmaps = &ds->config->bitmaps;
    CLEANUP_FREE char *user = NULL;
    int r = open_source(ds, d, writable, errp);

    if (r < 0) {
        return r;
    }
    d->writable = writable && !node_read_only(d->node);
    for (unsigned i = 0; i < bitmaps->count && r == 0; i++) {
        r = need_bitmap(ds, d, bitmaps->at[i], errp);
    }
    if (r == 0 && asprintf(&user, "export '%s'", d->source->name) < 0) {
        user = NULL;
        r = error_nomem(errp);
    }
    if (r == 0) {
        r = blk_new(ds->graph, d->node,
                    PERM_READ | (d->writable ? PERM_WRITE : 0), PERM_ALL, user,
                    &d->blk, errp);
    }
    if (r < 0) {
        close_disk(ds, d);
    }
    return r;
}

int disks_open(struct disks *ds, struct error **errp)
{
    int r = 0;

    mutex_lock(&ds->lock);
    for (unsigned i = 0; i < ds->count && r == 0; i++) {
        r = open_disk(ds, &ds->all[i], ds->config->bitmaps.count > 0, errp);
    }
    for (unsigned i = 0; i < ds->count && r < 0; i++) {
        close_disk(ds, &ds->all[i]);
    }
    mutex_unlock(&ds->lock);
    return r;
}

int disks_close(struct disks *ds, struct error **errp)
{
    int failed = 0;

    list_for_each_safe (l, &ds->opened) {
        disks_leave(ds, list_entry(l, struct opened, link));
    }
    mutex_lock(&ds->lock);
    for (unsigned i = 0; i < ds->count; i++) {
        struct disk *d = &ds->all[i];
        int r = d->blk && d->writable ? blk_flush(d->blk) : 0;

        if (r < 0 && failed == 0) {
            failed = error_set(errp, -r, "cannot flush '%s': %s",
                               d->source->name, strerror(-r));
        }
        close_disk(ds, d);
    }
    mutex_unlock(&ds->lock);
    return failed;
}

/* --- Clients --- */

/*
 * A client that may write has come, and nobody has the disk open.  If we may
 * only read, so may the client; any other error is told to the client.
 */
static int make_writable(struct disks *ds, struct disk *d, struct error **errp)
    REQUIRES(ds->lock)
{
    CLEANUP_ERROR struct error *err = NULL;

    close_disk(ds, d);
    int r = open_disk(ds, d, true, &err);
    if (r == 0) {
        d->stays_read_only = !d->writable; /* its options say so */
        return 0;
    }
    d->stays_read_only = r == -EACCES || r == -EPERM || r == -EROFS ||
                         r == -EUCLEAN; /* it is marked as corrupt */
    int again = open_disk(ds, d, false, errp);
    if (again < 0 || d->stays_read_only) {
        return again;
    }
    return error_set(errp, -r, "%s", error_message(err));
}

static int enter_disk(struct disks *ds, struct disk *d, bool readonly,
                      struct opened *o, struct error **errp) REQUIRES(ds->lock)
{
    int r = d->node ? 0 : open_disk(ds, d, false, errp);

    if (r == 0 && !readonly && !d->writable && !d->stays_read_only &&
        d->clients == 0) {
        r = make_writable(ds, d, errp);
    }
    if (r == 0) {
        d->clients++;
        o->blk = d->blk;
        o->writable = !readonly && d->writable;
        list_append(&ds->opened, &o->link);
    }
    return r;
}

static bool is_mark(const char *text, const char *mark)
{
    return strncmp(text, mark, strlen(mark)) == 0;
}

static int dirty_view(struct disks *ds, const struct opened *o,
                      const char *bitmap, const char *user, struct blk **viewp,
                      struct error **errp)
{
    struct bitmap *bm = blk_bitmap_find(o->blk, bitmap);

    if (!bm) {
        return error_set(errp, ENOENT, "'%s' has no bitmap '%s'",
                         o->disk->source->name, bitmap);
    }
    int r = blk_dirty_view(ds->graph, o->blk, bm, true, user, viewp, errp);
    bitmap_unref(bm);
    return r;
}

/* @o, which is a disk, becomes the view of that disk that @mark begins. */
static int become_view(struct disks *ds, struct opened *o, const char *name,
                       const char *mark, struct error **errp)
{
    bool dirty = is_mark(mark, DIRTY_MARK);
    const char *which = strchr(mark, '=') + 1;
    CLEANUP_FREE char *user = NULL;
    struct blk *view;

    if (asprintf(&user, "export '%s'", name) < 0) {
        user = NULL;
        return error_nomem(errp);
    }
    int r = dirty ? dirty_view(ds, o, which, user, &view, errp)
                  : blk_snapshot_view(ds->graph, o->blk, which, user, &view,
                                      errp);
    if (r == 0) {
        o->blk = view;
        o->bitmap = dirty ? which : NULL;
        o->snapshot = dirty ? NULL : which;
        o->writable = false;
    }
    return r;
}

static struct disk *find_disk(struct disks *ds, const char *name, size_t len)
{
    for (unsigned i = 0; i < ds->count; i++) {
        const char *is = ds->all[i].source->name;

        if (len == 0 || (strlen(is) == len && memcmp(is, name, len) == 0)) {
            return &ds->all[i];
        }
    }
    return NULL;
}

int disks_enter(struct disks *ds, const char *name, bool readonly,
                struct opened **op, struct error **errp)
{
    struct disk *d = find_disk(ds, name, strlen(name));
    const char *mark = d ? NULL : strchr(name, '@'); /* no disk's name has it */

    if (mark && (is_mark(mark, DIRTY_MARK) || is_mark(mark, SNAPSHOT_MARK))) {
        d = find_disk(ds, name, (size_t)(mark - name));
    }
    if (!d) {
        return error_set(errp, ENOENT,
                         "there is no export '%.200s'; 'nbdinfo --list' shows "
                         "all",
                         name);
    }
    struct opened *o = calloc(1, sizeof(*o));
    if (!o) {
        return error_nomem(errp);
    }
    o->disk = d;
    list_init(&o->link);
    mutex_lock(&ds->lock);
    int r = enter_disk(ds, d, readonly, o, errp);
    mutex_unlock(&ds->lock);
    if (r < 0) {
        free(o);
        return r;
    }
    if (mark) {
        r = become_view(ds, o, name, mark, errp);
    }
    if (r < 0) {
        disks_leave(ds, o);
        return r;
    }
    *op = o;
    return 0;
}

void disks_leave(struct disks *ds, struct opened *o)
{
    if (o->bitmap || o->snapshot) {
        blk_free(o->blk);
    }
    mutex_lock(&ds->lock);
    o->disk->clients--;
    list_remove(&o->link);
    mutex_unlock(&ds->lock);
    free(o);
}

/* --- Listing --- */

typedef int export_fn(const char *name, const char *bitmap, void *opaque);

static int each_view(struct blk *b, const char *disk, export_fn *fn,
                     void *opaque)
{
    CLEANUP_JSON json_t *names = blk_bitmap_names(b);
    json_t *entry;
    size_t i;
    int r = names ? 0 : -ENOMEM;

    json_array_foreach (names, i, entry) {
        const char *bitmap = json_string_value(entry);
        struct bitmap *bm = blk_bitmap_find(b, bitmap);
        CLEANUP_FREE char *name = NULL;

        if (r == 0 && bm && bitmap_readable(bm)) {
            if (asprintf(&name, "%s" DIRTY_MARK "%s", disk, bitmap) < 0) {
                name = NULL;
                r = -ENOMEM;
            } else {
                r = fn(name, bitmap, opaque);
            }
        }
        bitmap_unref(bm);
    }
    return r;
}

int disks_each_export(struct disks *ds, export_fn *fn, void *opaque)
{
    int r = 0;

    mutex_lock(&ds->lock);
    for (unsigned i = 0; i < ds->count && r == 0; i++) {
        const struct disk *d = &ds->all[i];

        r = fn(d->source->name, NULL, opaque);
        if (r == 0 && d->blk) {
            r = each_view(d->blk, d->source->name, fn, opaque);
        }
    }
    mutex_unlock(&ds->lock);
    return r;
}
