/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dirty bitmaps of nodes: rules, freezing, reading.  Marking:
 * core/bitmap-mark.c.
 *
 *                    writes                       readers (NBD, query)
 *                      |                                 |
 *   normal    ->   bits (if enabled)                   bits
 *   frozen    ->   successor (if enabled)      bits OR successor
 *                     the job has a copy of bits
 *
 * Bits are set by requests, in any number at once.  Everything else happens
 * in control sections: requests are drained, and readers that are not
 * requests are kept out by the bitmap's lock while bits are exchanged, moved
 * or reset.  Merging only sets bits, so that it keeps nobody out.
 */
#include "nbdelta/bitmap.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/chain.h"
#include "core/dirty.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/tell.h"
#include "nbdelta/text.h"

#define GRANULARITY_MIN UINT64_C(512)
#define GRANULARITY_MAX (2 * GiB)

/* The granularity if a format suggests no other, and the limits of its
 * suggestion. */
#define GRANULARITY_DEFAULT (64 * KiB)
#define DEFAULT_MIN         (4 * KiB)
#define DEFAULT_MAX         (64 * KiB)

/* --- Life --- */

static struct bitmap *bitmap_new(struct node *n, const char *name,
                                 uint64_t granularity, uint64_t size)
{
    struct bitmap *bm = calloc(1, sizeof(*bm));
    char *copy = name ? strdup(name) : NULL;
    struct hbitmap *bits = hbitmap_new(size, granularity);

    if (!bm || (name && !copy) || !bits) {
        free(bm);
        free(copy);
        hbitmap_free(bits);
        return NULL;
    }
    bm->name = copy;
    bm->granularity = granularity;
    bm->bits = bits;
    bm->enabled = true;
    bm->since_ns = now_ns();
    rwlock_init(&bm->lock, LOCK_BITMAP, NULL);
    atomic_init(&bm->refs, 1);
    bm->node = n;
    list_append(&n->bitmaps, &bm->on_node);
    return bm;
}

void bitmap_unref(struct bitmap *bm)
{
    if (bm && atomic_fetch_sub(&bm->refs, 1) == 1) {
        rwlock_destroy(&bm->lock);
        hbitmap_free(bm->bits);
        hbitmap_free(bm->successor);
        free(bm->name);
        free(bm);
    }
}

void bitmap_drop(struct bitmap *bm)
{
    if (bm->stored) {
        bm->node->drv->bitmaps->gone(bm);
    }
    struct node *n = bm->node;
    bool listed = !list_empty(&bm->on_node);

    list_remove(&bm->on_node);
    bm->node = NULL;
    if (listed && n->recording) { /* neither being loaded nor closed */
        bitmap_nest(n, bm);
    }
    atomic_store(&bm->removed, true);
    bitmap_unref(bm);
}

void bitmap_release_all(struct node *n)
{
    n->recording = NULL;
    list_for_each_safe (at, &n->bitmaps) {
        bitmap_drop(list_entry(at, struct bitmap, on_node));
    }
}

struct bitmap *bitmap_new_anonymous(struct node *n, uint64_t granularity)
{
    struct bitmap *bm = bitmap_new(n, NULL, granularity, node_size(n));

    if (bm) {
        bitmap_nest(n, bm);
    }
    return bm;
}

int bitmap_attach(struct node *n, const char *name, uint64_t granularity,
                  struct bitmap **bmp, struct error **errp)
{
    struct bitmap *bm = bitmap_new(n, name, granularity, node_size(n));

    if (!bm) {
        return error_nomem(errp);
    }
    *bmp = bm;
    return 0;
}

int bitmap_attach_broken(struct node *n, const char *name, uint64_t granularity,
                         const char *why, struct bitmap **bmp)
{
    struct bitmap *bm = bitmap_new(n, name, granularity, 0);

    if (!bm) {
        return -ENOMEM;
    }
    bm->enabled = false;
    bm->why = why;
    atomic_store(&bm->inconsistent, true);
    tell_event(TELL_WARNING,
               "bitmap '%.200s' of node '%.200s' cannot be trusted: %s", name,
               node_name(n), why);
    *bmp = bm;
    return 0;
}

/* --- Looking up, and what forbids a change --- */

bool bitmap_is_busy(const struct bitmap *bm)
{
    return bm->users > 0 || bm->successor;
}

static const char *name_of(const struct bitmap *bm)
{
    return bm->name ? bm->name : "";
}

static int check_busy(const struct bitmap *bm, struct error **errp)
{
    if (bitmap_is_busy(bm)) {
        return error_set(errp, EBUSY,
                         "Bitmap '%s' is currently in use by another "
                         "operation and cannot be used",
                         name_of(bm));
    }
    return 0;
}

static int check_usable(const struct bitmap *bm, struct error **errp)
{
    int r = check_busy(bm, errp);

    if (r == 0 && atomic_load(&bm->inconsistent)) {
        r = error_set(errp, EINVAL,
                      "Bitmap '%s' is inconsistent and cannot be used",
                      name_of(bm));
    }
    return r;
}

/* Refuse to change a stored bitmap of an image that cannot be written. */
static int check_read_only(const struct bitmap *bm, struct error **errp)
{
    return bm->persistent && bm->node->flags.read_only
               ? error_set(errp, EPERM,
                           "Bitmap '%s' is readonly and cannot be modified",
                           name_of(bm))
               : 0;
}

static int no_such_bitmap(const char *name, struct error **errp)
{
    return error_set(errp, ENOENT, "Dirty bitmap '%s' not found", name);
}

static struct bitmap *find_bitmap(const struct node *n, const char *name)
{
    list_for_each (at, &n->bitmaps) {
        struct bitmap *bm = list_entry(at, struct bitmap, on_node);
        if (bm->name && strcmp(bm->name, name) == 0) {
            return bm;
        }
    }
    return NULL;
}

struct bitmap *bitmap_find(struct node *n, const char *name)
{
    struct tree *t = node_enter(n, false);
    struct bitmap *bm = find_bitmap(n, name);

    if (bm) {
        bitmap_ref(bm);
    }
    node_leave(t);
    return bm;
}

/* --- Size --- */

/* With @mark, what is new is dirty in a bitmap that records. */
static int resize_bits(struct bitmap *bm, uint64_t size, bool mark)
{
    rwlock_wrlock(&bm->lock);
    uint64_t old = hbitmap_size(bm->bits);
    int r = hbitmap_resize(bm->bits, size);
    if (r == 0 && bm->successor) {
        r = hbitmap_resize(bm->successor, size);
        if (r < 0) {
            (void)hbitmap_resize(bm->bits, old); /* cannot fail */
        }
    }
    if (r == 0 && mark && bm->enabled && size > old) {
        hbitmap_set_alone(bitmap_collecting(bm), old, size - old);
    }
    rwlock_unlock(&bm->lock);
    return r;
}

/* Resize the bitmaps before @stop, which were resized, back to @old.  That
 * cannot fail. */
static void resize_back(struct node *n, const struct list *stop, uint64_t old)
{
    for (struct list *at = n->bitmaps.next; at != stop; at = at->next) {
        struct bitmap *bm = list_entry(at, struct bitmap, on_node);
        if (!atomic_load(&bm->inconsistent)) {
            (void)resize_bits(bm, old, false);
        }
    }
}

int bitmap_resize_all(struct node *n, uint64_t old, uint64_t size,
                      struct error **errp)
{
    list_for_each (at, &n->bitmaps) {
        struct bitmap *bm = list_entry(at, struct bitmap, on_node);
        if (atomic_load(&bm->inconsistent)) {
            continue;
        }
        if (resize_bits(bm, size, true) < 0) {
            resize_back(n, at, old);
            return error_nomem(errp);
        }
    }
    bitmap_nest_again(n); /* what is new is dirty in all that record */
    return 0;
}

/*
 * A file grows by being written past its end, without a control section.  The
 * bits for the new part come when the next control section first looks.
 */
static int follow_growth(struct bitmap *bm, struct error **errp)
{
    uint64_t had = hbitmap_size(bm->bits);
    uint64_t size = node_size(bm->node);

    if (size > had && !atomic_load(&bm->inconsistent)) {
        if (resize_bits(bm, size, true) < 0) {
            return error_nomem(errp);
        }
        bitmap_nest(bm->node, bm);
    }
    return 0;
}

int bitmap_lookup(struct node *n, const char *name, enum bitmap_use use,
                  struct bitmap **bmp, struct error **errp)
{
    struct bitmap *bm = find_bitmap(n, name);
    int r;

    if (!bm) {
        return no_such_bitmap(name, errp);
    }
    r = use == BITMAP_USE_CHANGE || use == BITMAP_USE_READ
            ? check_usable(bm, errp)
        : use == BITMAP_USE_REMOVE ? check_busy(bm, errp)
                                   : 0;
    if (r == 0 && (use == BITMAP_USE_CHANGE || use == BITMAP_USE_REMOVE)) {
        r = check_read_only(bm, errp);
    }
    if (r == 0 && use != BITMAP_USE_REMOVE) {
        r = follow_growth(bm, errp);
    }
    if (r == 0) {
        *bmp = bm;
    }
    return r;
}

/* --- Frozen --- */

int bitmap_freeze(struct bitmap *bm, struct error **errp)
{
    int r = check_usable(bm, errp);

    if (r == 0) {
        r = follow_growth(bm, errp);
    }
    if (r < 0) {
        return r;
    }
    struct hbitmap *successor = hbitmap_new(hbitmap_size(bm->bits),
                                            bm->granularity);
    if (!successor) {
        return error_nomem(errp);
    }
    rwlock_wrlock(&bm->lock);
    bm->successor = successor;
    rwlock_unlock(&bm->lock);
    bitmap_nest(bm->node, bm);
    return 0;
}

/* Tell the format that the bitmap has fewer bits than before. */
static void relaxed(struct bitmap *bm)
{
    bm->since_ns = now_ns();
    if (bm->stored) {
        bm->node->drv->bitmaps->relaxed(bm->node, bm);
    }
}

void bitmap_abdicate(struct bitmap *bm)
{
    struct hbitmap *old = bm->bits;

    assert(bm->successor);
    rwlock_wrlock(&bm->lock);
    bm->bits = bm->successor;
    bm->successor = NULL;
    rwlock_unlock(&bm->lock);
    hbitmap_free(old);
    relaxed(bm);
}

void bitmap_reclaim(struct bitmap *bm)
{
    struct hbitmap *old = bm->successor;

    assert(bm->successor);
    hbitmap_merge(bm->bits, bm->successor);
    rwlock_wrlock(&bm->lock);
    bm->successor = NULL;
    rwlock_unlock(&bm->lock);
    hbitmap_free(old);
    bitmap_nest(bm->node, bm);
}

/* --- Changes --- */

static int check_new(const char *name, uint64_t granularity,
                     struct error **errp)
{
    if (name[0] == '\0') {
        return error_set(errp, EINVAL, "Bitmap name cannot be empty");
    }
    if (strlen(name) > BITMAP_NAME_MAX) {
        return error_set(errp, EINVAL, "Bitmap name too long: %s", name);
    }
    if (granularity == 0) { /* the default */
        return 0;
    }
    if (granularity < GRANULARITY_MIN || !is_pow2(granularity)) {
        return error_set(errp, EINVAL,
                         "Granularity must be power of 2 and at least 512");
    }
    if (granularity > GRANULARITY_MAX) {
        return error_set(errp, EINVAL,
                         "Granularity must be power of 2, at least 512 and "
                         "at most 2 GiB");
    }
    return 0;
}

static uint64_t default_granularity(struct node *n)
{
    uint64_t cluster = node_skip_filters(n)->cluster_size;

    return cluster == 0 ? GRANULARITY_DEFAULT
                        : min_u64(max_u64(cluster, DEFAULT_MIN), DEFAULT_MAX);
}

static int check_storable(struct node *n, const char *name,
                          uint64_t granularity, struct error **errp)
{
    if (!n->drv->bitmaps) {
        const char *id = node_name(n);

        return error_set(
            errp, ENOTSUP, "Can't store persistent bitmaps to %s: %s",
            id[0] == '#' ? node_filename(n) : id, strerror(ENOTSUP));
    }
    if (n->flags.read_only) {
        return error_set(errp, EACCES, "Block node is read-only: '%s'",
                         node_name(n));
    }
    return n->drv->bitmaps->check(n, name, granularity, errp);
}

int bitmap_check_add(struct node *n, const char *name, uint64_t *granularity,
                     bool persistent, struct error **errp)
{
    int r = check_new(name, *granularity, errp);

    if (r < 0) {
        return r;
    }
    if (find_bitmap(n, name)) {
        return error_set(errp, EEXIST, "Bitmap already exists: %s", name);
    }
    if (*granularity == 0) {
        *granularity = default_granularity(n);
    }
    return persistent ? check_storable(n, name, *granularity, errp) : 0;
}

int bitmap_add_locked(struct node *n, const char *name, uint64_t granularity,
                      bool persistent, bool disabled, struct bitmap **bmp,
                      struct error **errp)
{
    int r = bitmap_check_add(n, name, &granularity, persistent, errp);

    if (r < 0) {
        return r;
    }
    struct bitmap *bm = bitmap_new(n, name, granularity, node_size(n));
    if (!bm) {
        return error_nomem(errp);
    }
    bm->persistent = persistent;
    bitmap_set_enabled(bm, !disabled);
    *bmp = bm;
    return 0;
}

int bitmap_add_with_bits(struct node *n, const char *name, struct hbitmap *bits,
                         bool persistent, bool disabled, struct bitmap **bmp,
                         struct error **errp)
{
    if (hbitmap_size(bits) != node_size(n)) {
        return error_set(errp, EINVAL,
                         "Bitmaps are of different sizes (destination size "
                         "is %" PRIu64 ", source size is %" PRIu64
                         ") and can't be merged",
                         node_size(n), hbitmap_size(bits));
    }
    int r = bitmap_add_locked(n, name, hbitmap_granularity(bits), persistent,
                              disabled, bmp, errp);
    if (r == 0) {
        hbitmap_free(bitmap_swap_bits(*bmp, bits));
        n->bitmaps_changed |= persistent;
    }
    return r;
}

bool node_keeps_bitmaps(const struct node *n)
{
    return n->drv->bitmaps;
}

int bitmap_check_persistent(struct bitmap_ref ref, struct error **errp)
{
    graph_lock(ref.node->graph);
    int r = check_new(ref.name, 0, errp);
    if (r == 0) {
        r = check_storable(ref.node, ref.name, default_granularity(ref.node),
                           errp);
    }
    graph_unlock(ref.node->graph);
    return r;
}

int bitmap_make_persistent(struct bitmap *bm, struct error **errp)
{
    int r = bm->persistent
                ? 0
                : check_storable(bm->node, name_of(bm), bm->granularity, errp);

    bm->persistent = bm->persistent || r == 0;
    return r;
}

int bitmap_store(struct node *n, struct error **errp)
{
    return n->drv->bitmaps && !n->flags.read_only
               ? n->drv->bitmaps->store(n, errp)
               : 0;
}

int bitmap_store_ahead(struct node *n, bool more, struct error **errp)
{
    struct tree *t = node_enter(n, false);
    bool can = n->drv->bitmaps && !n->flags.read_only;
    int r = can ? n->drv->bitmaps->store_ahead(n, more) : 0;

    node_leave(t);
    if (r < 0 && r != -ERESTART) { /* a drain: it is done in the section */
        return error_set(errp, -r, "cannot store the bitmaps of '%s': %s",
                         node_name(n), strerror(-r));
    }
    return 0;
}

void bitmap_store_behind(struct node *n)
{
    struct tree *t = node_enter(n, false);

    if (n->drv->bitmaps && !n->flags.read_only) {
        (void)n->drv->bitmaps->store_behind(n);
    }
    node_leave(t);
}

struct list *bitmap_take_off(struct bitmap *bm)
{
    struct list *after = bm->on_node.prev;

    list_remove(&bm->on_node);
    return after;
}

void bitmap_put_back(struct bitmap *bm, struct node *n, struct list *after)
{
    assert(bm->node == n);
    list_insert_before(after->next, &bm->on_node);
}

struct hbitmap *bitmap_swap_bits(struct bitmap *bm, struct hbitmap *bits)
{
    struct hbitmap *old = bm->bits;

    rwlock_wrlock(&bm->lock);
    bm->bits = bits;
    rwlock_unlock(&bm->lock);
    bitmap_nest(bm->node, bm);
    relaxed(bm);
    return old;
}

/* --- Reading --- */

const char *bitmap_name(const struct bitmap *bm)
{
    return bm->name;
}

uint64_t bitmap_granularity(const struct bitmap *bm)
{
    return bm->granularity;
}

bool bitmap_removed(const struct bitmap *bm)
{
    return atomic_load(&bm->removed);
}

bool bitmap_readable(const struct bitmap *bm)
{
    return !atomic_load(&bm->inconsistent);
}

uint64_t bitmap_count(const struct bitmap *bm)
{
    struct bitmap *locked = (struct bitmap *)(uintptr_t)bm;

    rwlock_rdlock(&locked->lock);
    uint64_t count = hbitmap_count(bm->bits);
    rwlock_unlock(&locked->lock);
    return count;
}

/* Bytes from @inside, the end of the bits, to @end are dirty: append them to
 * @count runs that have come as far as @inside. */
static size_t add_behind(uint64_t inside, uint64_t end, bool dirty,
                         uint64_t *lengths, size_t count, size_t max)
{
    bool last = dirty == (count % 2 == 1);

    if (last) {
        lengths[count - 1] += end - inside;
    } else if (count < max) {
        lengths[count++] = end - inside;
    }
    return count;
}

static size_t runs_locked(const struct bitmap *bm, uint64_t offset,
                          uint64_t end, bool *dirty, uint64_t *lengths,
                          size_t max) REQUIRES_SHARED(bm->lock)
{
    uint64_t size = hbitmap_size(bm->bits);

    if (offset >= size) {
        *dirty = true;
        lengths[0] = end - offset;
        return 1;
    }
    uint64_t inside = min_u64(end, size);
    size_t count = hbitmap_runs(bm->bits, bm->successor, offset, inside, dirty,
                                lengths, max);
    uint64_t at = offset;
    for (size_t i = 0; inside < end && i < count; i++) {
        at += lengths[i];
    }
    return at == inside && inside < end
               ? add_behind(inside, end, *dirty, lengths, count, max)
               : count;
}

size_t bitmap_runs(const struct bitmap *bm, uint64_t offset, uint64_t end,
                   bool nowait, bool *dirty, uint64_t *lengths, size_t max)
{
    struct bitmap *locked = (struct bitmap *)(uintptr_t)bm;

    if (!nowait) {
        rwlock_rdlock(&locked->lock);
    } else if (!rwlock_tryrdlock(&locked->lock)) {
        return 0;
    }
    size_t count = runs_locked(locked, offset, end, dirty, lengths, max);
    rwlock_unlock(&locked->lock);
    return count;
}

uint64_t bitmap_run(const struct bitmap *bm, uint64_t offset, uint64_t end,
                    bool *dirty)
{
    uint64_t length;

    (void)bitmap_runs(bm, offset, end, false, dirty, &length, 1);
    return length;
}

void bitmap_export(const struct bitmap *bm, uint64_t first, uint64_t count,
                   void *buf)
{
    hbitmap_or_in(bm->bits, first, count, buf);
    if (bm->successor) {
        hbitmap_or_in(bm->successor, first, count, buf);
    }
}

void *bitmap_bytes(const struct bitmap *bm, size_t *len)
{
    struct bitmap *locked = (struct bitmap *)(uintptr_t)bm;

    rwlock_rdlock(&locked->lock);
    uint64_t count = hbitmap_granules(bm->bits);
    *len = (size_t)max_u64(div_up(count, 64), 1) * 8;
    void *bytes = calloc(1, *len);
    if (bytes) {
        bitmap_export(bm, 0, count, bytes);
    }
    rwlock_unlock(&locked->lock);
    return bytes;
}

/* --- Of a disk --- */

/* The next node that has bitmaps of the disk, or NULL. */
static struct node *next_of_disk(const struct node *n)
{
    return n->drv->is_filter ? node_child(n, CHILD_FILE) : NULL;
}

struct bitmap *bitmap_find_of_disk(struct node *n, const char *name)
{
    struct bitmap *bm = NULL;

    for (; n && !bm; n = next_of_disk(n)) {
        bm = find_bitmap(n, name);
    }
    if (bm) {
        atomic_fetch_add(&bm->refs, 1);
    }
    return bm;
}

json_t *bitmap_names_of_disk(struct node *n)
{
    CLEANUP_JSON json_t *names = json_object();
    json_t *list = json_array();

    for (; n; n = next_of_disk(n)) {
        list_for_each (at, &n->bitmaps) {
            const char *name = list_entry(at, struct bitmap, on_node)->name;
            if (name && !json_object_get(names, name)) {
                (void)json_object_set_new(names, name, json_true());
                (void)json_array_append_new(list, json_string(name));
            }
        }
    }
    return list;
}

bool bitmap_is_of_disk(const struct node *n, const struct bitmap *bm)
{
    while (n && n != bm->node) {
        n = next_of_disk(n);
    }
    return n;
}
