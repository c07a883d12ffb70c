/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk of a point, written to a target: see restore.h.
 *
 *      newest layer   | d |   |   | d |      chunks that it decides, checked
 *      ...            | . | z |   | . |      only where nothing above does
 *      base           | . | . | d | . |
 *                       |   |   |   |
 *      one buffer       d   z   d   d   -->  what differs is written
 *
 * A layer whose hash does not agree may decide other chunks than it says.  So
 * nothing below it is true either: what is not known by then is damaged.
 */
#include "store/restore.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/thread.h"
#include "store/store.h"
#include "store/sums.h"

#define THREADS_MAX 16
#define CHUNKS_MAX  (SUMS_UNIT / SUMS_CHUNK)

/* One file of the disk. */
struct layer {
    char point[POINT_NAME_MAX];
    bool base;
    int held; /* see store_hold; -1: not */
    struct node *node;
    struct blk *file; /* NULL: it cannot be used, for the reason */
    struct sums *sums;
    char *why;
};

struct restore {
    struct store *store;
    struct graph *graph;
    const char *disk;
    uint64_t size;
    struct blk *target;
    const struct restore_options *o;
    struct restore_result *result;
    struct layer *layers; /* the newest first */
    unsigned count;

    /* Atomic. */
    _Atomic uint64_t next; /* unit */
    _Atomic bool over;

    /* For each unit: its chunks that are damaged, and by which layer.  Each
     * thread writes those of its own units. */
    uint16_t *damaged;
    uint16_t *by;

    mutex_t lock;
    int failed GUARDED_BY(lock); /* of the target; the first one */
};

/* --- Layers --- */

static int spoil(struct layer *l, const char *why)
{
    free(l->why);
    l->why = strdup(why);
    return l->why ? 0 : -ENOMEM;
}

static int open_file(struct restore *r, struct layer *l, struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    int c = store_layer_options(r->store, r->disk, l->point, &options, errp);

    if (c == 0) {
        c = graph_open(r->graph, options, &l->node, errp);
    }
    if (c == 0 && node_size(l->node) < r->size) {
        c = error_set(errp, EUCLEAN,
                      "the image has %" PRIu64 " bytes, not %" PRIu64,
                      node_size(l->node), r->size);
    }
    return c < 0 ? c
                 : blk_new(r->graph, l->node, PERM_READ, PERM_READ, "restore",
                           &l->file, errp);
}

static int open_sums(struct restore *r, struct layer *l,
                     const struct manifest_disk *d, struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;
    int c = store_open_file(r->store, r->disk, l->point, "sums", &fd, NULL,
                            errp);

    return c < 0 ? c : sums_read(fd, d->size, d->sums_hash, &l->sums, errp);
}

static void close_layer(struct restore *r, struct layer *l)
{
    blk_free(l->file);
    l->file = NULL;
    if (l->node) {
        (void)graph_close(r->graph, l->node, NULL);
    }
    l->node = NULL;
    sums_free(l->sums);
    l->sums = NULL;
}

/* Is it our trouble, and no damage? */
static bool is_ours(int c)
{
    return c == -ENOMEM || c == -EMFILE || c == -ENFILE || c == -EACCES ||
           c == -EAGAIN || c == -EBUSY;
}

/* A file that cannot be read is damage. */
static int open_layer(struct restore *r, struct layer *l,
                      const struct manifest_disk *d, struct error **errp)
{
    struct error *err = NULL;
    int c = open_sums(r, l, d, &err);

    if (c == 0) {
        c = open_file(r, l, &err);
    }
    if (c == 0) {
        return 0;
    }
    if (is_ours(c)) {
        error_prefix(&err, "disk '%s', point %s: ", r->disk, l->point);
        *errp = err;
        return c;
    }
    close_layer(r, l);
    c = spoil(l, error_message(err));
    error_free(err);
    return c < 0 ? error_nomem(errp) : 0;
}

static int add_layer(struct restore *r, const char *point, struct layer **lp)
{
    struct layer *layers = realloc(r->layers,
                                   (r->count + 1) * sizeof(*r->layers));

    if (!layers) {
        return -ENOMEM;
    }
    r->layers = layers;
    struct layer *l = &layers[r->count++];
    memset(l, 0, sizeof(*l));
    l->held = -1;
    (void)snprintf(l->point, sizeof(l->point), "%s", point);
    *lp = l;
    return 0;
}

/* What is known of @d's parent is refreshed: it is held. */
static int look_up_parent(struct restore *r, const struct layer *above,
                          const struct manifest_disk *d,
                          const struct manifest_disk **parent,
                          struct error **errp)
{
    int c = store_parent(r->store, d, parent, errp);

    return c == 0 && *parent && strcmp(d->parent, above->point) >= 0
               ? error_set(errp, EUCLEAN, "its parent is not older")
               : c;
}

/* The layer of @point, which is held from now on. */
static int hold_layer(struct restore *r, const char *point, struct layer **lp,
                      struct error **errp)
{
    int c = add_layer(r, point, lp);

    return c < 0 ? error_nomem(errp)
                 : store_hold(r->store, point, false, &(*lp)->held, errp);
}

/* Damage of the manifests: what the layers so far do not decide, nobody
 * knows. */
static int end_layers(struct layer *l, int c, struct error *why,
                      struct error **errp)
{
    if (c == -EBUSY || c == -ENOMEM) {
        return error_set(errp, -c, "%s", error_message(why));
    }
    return spoil(l, error_message(why)) < 0 ? error_nomem(errp) : 0;
}

/* From the disk of @point, whose layer is there, down to the base.  There are
 * no more layers than points: a parent is older. */
static int open_layers(struct restore *r, const struct manifest_disk *d,
                       struct error **errp)
{
    while (d) {
        CLEANUP_ERROR struct error *why = NULL;
        const struct manifest_disk *parent = NULL;
        struct layer *l = &r->layers[r->count - 1];

        l->base = d->kind == DISK_FULL;
        int c = open_layer(r, l, d, errp);
        if (c < 0 || l->base) {
            return c;
        }
        c = hold_layer(r, d->parent, &l, &why);
        c = c < 0 && c != -ENOENT
                ? c
                : look_up_parent(r, &r->layers[r->count - 2], d, &parent, &why);
        if (c < 0) {
            return end_layers(&r->layers[r->count - 1], c, why, errp);
        }
        d = parent;
    }
    return 0;
}

static void close_layers(struct restore *r)
{
    for (unsigned i = 0; i < r->count; i++) {
        struct layer *l = &r->layers[i];

        close_layer(r, l);
        free(l->why);
        if (l->held >= 0) {
            (void)close(l->held);
        }
    }
    free(r->layers);
}

/* --- A unit --- */

static uint64_t unit_bytes(const struct restore *r, uint64_t unit)
{
    return min_u64(r->size - unit * SUMS_UNIT, SUMS_UNIT);
}

static uint16_t all_chunks(uint64_t bytes)
{
    return (uint16_t)((UINT32_C(1) << div_up(bytes, SUMS_CHUNK)) - 1);
}

/* Is what the layer has of the unit as it was written?  @only: the chunks that
 * it decides, whose bytes are in @buf. */
static bool layer_is_true(const struct layer *l, uint64_t unit, void *buf,
                          uint32_t *only)
{
    uint8_t hash[HASH_BYTES];
    bool any = false;

    if (!l->file) {
        return false;
    }
    memset(buf, 0, SUMS_UNIT);
    if (sums_compute(l->file, unit, l->base, buf, hash, &any, only) < 0) {
        return false;
    }
    const uint8_t *known = sums_find(l->sums, unit);
    return known ? any && memcmp(hash, known, HASH_BYTES) == 0 : !any;
}

static void take_chunks(uint8_t *to, const uint8_t *from, uint32_t chunks)
{
    for (unsigned i = 0; i < CHUNKS_MAX; i++) {
        if (chunks & (1U << i)) {
            memcpy(to + i * SUMS_CHUNK, from + i * SUMS_CHUNK, SUMS_CHUNK);
        }
    }
}

/* The unit in @out; chunks that nobody knows are zeroes there, and noted. */
static void read_unit(struct restore *r, uint64_t unit, uint8_t *out,
                      uint8_t *buf)
{
    uint16_t missing = all_chunks(unit_bytes(r, unit));
    unsigned i = 0;

    memset(out, 0, SUMS_UNIT);
    for (; missing && i < r->count; i++) {
        uint32_t only = 0;

        if (!layer_is_true(&r->layers[i], unit, buf, &only)) {
            break;
        }
        take_chunks(out, buf, only & missing);
        missing = (uint16_t)(missing & ~only);
        if (r->layers[i].base) {
            missing = 0;
        }
    }
    r->damaged[unit] = missing;
    r->by[unit] = (uint16_t)min_u64(i, r->count - 1);
}

static bool is_zero(const uint8_t *p, uint64_t bytes)
{
    return p[0] == 0 && memcmp(p, p + 1, bytes - 1) == 0;
}

/* Write [from, end) of the unit, which is all zeroes or not. */
static int write_run(struct restore *r, uint64_t unit, const uint8_t *out,
                     uint64_t from, uint64_t end, bool zero)
{
    uint64_t at = unit * SUMS_UNIT + from;

    if (from == end) {
        return 0;
    }
    atomic_fetch_add(&r->result->written, end - from);
    return zero ? blk_zero(r->target, at, end - from, REQ_MAY_UNMAP)
                : blk_pwrite(r->target, out + from, end - from, at, 0);
}

/* @old: what the target has.  Neighbours are written together. */
static int write_unit(struct restore *r, uint64_t unit, const uint8_t *out,
                      const uint8_t *old)
{
    uint64_t bytes = unit_bytes(r, unit);
    uint64_t from = 0;
    uint64_t end = 0; /* of what is to be written */
    bool zero = false;
    int c = 0;

    for (uint64_t at = 0; c == 0 && at < bytes; at += SUMS_CHUNK) {
        uint64_t len = min_u64(bytes - at, SUMS_CHUNK);
        bool same = memcmp(out + at, old + at, len) == 0;
        bool z = !same && is_zero(out + at, len);

        if (same || (end > from && (end < at || z != zero))) {
            c = write_run(r, unit, out, from, end, zero);
            from = end = 0;
        }
        if (!same) {
            from = end > from ? from : at;
            end = at + len;
            zero = z;
        }
    }
    return c < 0 ? c : write_run(r, unit, out, from, end, zero);
}

/* --- Threads --- */

static void fail(struct restore *r, int c)
{
    mutex_lock(&r->lock);
    if (r->failed == 0) {
        r->failed = c;
    }
    mutex_unlock(&r->lock);
    atomic_store(&r->over, true);
}

static bool is_stopped(const struct restore *r)
{
    return r->o->stop && atomic_load(r->o->stop);
}

static int restore_unit(struct restore *r, uint64_t unit, uint8_t *bufs)
{
    uint8_t *out = bufs;
    uint8_t *old = bufs + SUMS_UNIT;
    uint64_t bytes = unit_bytes(r, unit);
    int c = 0;

    read_unit(r, unit, out, old);
    if (r->damaged[unit] && !r->o->partial) {
        atomic_store(&r->over, true);
        return 0;
    }
    memset(old, 0, SUMS_UNIT);
    if (!r->o->target_zero) {
        c = blk_pread(r->target, old, bytes, unit * SUMS_UNIT, 0);
    }
    if (c == 0) {
        c = write_unit(r, unit, out, old);
    }
    atomic_fetch_add(&r->result->done, bytes);
    return c;
}

static void *work(void *opaque)
{
    struct restore *r = opaque;
    CLEANUP_FREE uint8_t *bufs = malloc(2 * SUMS_UNIT);
    uint64_t units = div_up(r->size, SUMS_UNIT);

    if (!bufs) {
        fail(r, -ENOMEM);
        return NULL;
    }
    while (!atomic_load(&r->over) && !is_stopped(r)) {
        uint64_t unit = atomic_fetch_add(&r->next, 1);
        if (unit >= units) {
            break;
        }
        int c = restore_unit(r, unit, bufs);
        if (c < 0) {
            fail(r, c);
        }
    }
    return NULL;
}

static unsigned threads_wanted(const struct restore *r)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t most = r->o->threads ? r->o->threads
                                  : (uint64_t)(cpus > 0 ? cpus : 1);

    return (unsigned)max_u64(
        1, min_u64(min_u64(most, THREADS_MAX), div_up(r->size, SUMS_UNIT)));
}

static void run_threads(struct restore *r)
{
    pthread_t threads[THREADS_MAX];
    unsigned wanted = threads_wanted(r);
    unsigned count = 0;

    /* This one works, too; fewer than wanted is well enough. */
    while (count + 1 < wanted &&
           thread_start(&threads[count], "restore", work, r) == 0) {
        count++;
    }
    (void)work(r);
    while (count > 0) {
        thread_join(threads[--count]);
    }
}

/* --- Damage --- */

static void tell_damage(struct restore *r, uint64_t from, uint64_t end,
                        unsigned by)
{
    const struct layer *l = &r->layers[by];
    struct damage d = {
        .point = l->point,
        .disk = r->disk,
        .offset = from,
        .bytes = end - from,
        .what = l->why ? l->why : "it is not what was written",
    };

    atomic_fetch_add(&r->result->damaged, d.bytes);
    if (r->o->on_damage) {
        r->o->on_damage(&d, r->o->opaque);
    }
}

/* Neighbours of one layer are one range. */
static void tell_all_damage(struct restore *r)
{
    uint64_t from = 0;
    uint64_t end = 0;
    unsigned by = 0;

    for (uint64_t at = 0; at < r->size; at += SUMS_CHUNK) {
        uint64_t unit = at / SUMS_UNIT;
        uint64_t bit = at % SUMS_UNIT / SUMS_CHUNK;

        if (!(r->damaged[unit] & (1U << bit))) {
            continue;
        }
        if (end > from && (end < at || by != r->by[unit])) {
            tell_damage(r, from, end, by);
            from = end;
        }
        from = end > from ? from : at;
        end = min_u64(at + SUMS_CHUNK, r->size);
        by = r->by[unit];
    }
    if (end > from) {
        tell_damage(r, from, end, by);
    }
}

/* --- All of it --- */

static int finish(struct restore *r, struct error **errp)
{
    mutex_lock(&r->lock);
    int c = r->failed;
    mutex_unlock(&r->lock);

    tell_all_damage(r);
    uint64_t damaged = atomic_load(&r->result->damaged);
    if (c == 0 && (damaged == 0 || r->o->partial) && !is_stopped(r)) {
        c = blk_flush(r->target);
    }
    if (c < 0) {
        return error_set(errp, -c, "disk '%s': the target: %s", r->disk,
                         strerror(-c));
    }
    if (is_stopped(r)) {
        return error_set(errp, ECANCELED, "disk '%s': interrupted", r->disk);
    }
    return damaged == 0
               ? 0
               : error_set(errp, EUCLEAN, "disk '%s': the backup is damaged",
                           r->disk);
}

static int run(struct restore *r, struct error **errp)
{
    uint64_t units = div_up(r->size, SUMS_UNIT);

    if (blk_size(r->target) < r->size) {
        return error_set(errp, EINVAL,
                         "disk '%s' has %" PRIu64
                         " bytes, and the target only %" PRIu64,
                         r->disk, r->size, blk_size(r->target));
    }
    r->damaged = calloc(units + 1, sizeof(*r->damaged));
    r->by = calloc(units + 1, sizeof(*r->by));
    if (!r->damaged || !r->by) {
        return error_nomem(errp);
    }
    run_threads(r);
    return finish(r, errp);
}

/* The disk, as the manifest has it that is held now. */
static int find_disk(struct restore *r, const char *point,
                     const struct manifest_disk **d, struct error **errp)
{
    struct layer *l = NULL;
    int c = hold_layer(r, point, &l, errp);
    const struct store_point *p = store_named(r->store, point);

    if (c == 0 && p && !p->manifest) {
        return error_set(errp, EUCLEAN,
                         "the manifest of point %s cannot be used: %s", point,
                         p->why);
    }
    *d = c == 0 && p ? manifest_find(p->manifest, r->disk) : NULL;
    return c < 0 && c != -ENOENT ? c
           : *d                  ? 0
                : error_set(errp, ENOENT, "point %s has no disk '%s'", point,
                            r->disk);
}

int restore_disk(struct store *s, struct graph *g, const char *point,
                 const char *disk, struct blk *target,
                 const struct restore_options *o, struct restore_result *result,
                 struct error **errp)
{
    const struct manifest_disk *d = NULL;
    struct restore r = {
        .store = s,
        .graph = g,
        .disk = disk,
        .target = target,
        .o = o,
        .result = result,
    };
    mutex_init(&r.lock, LOCK_RESTORE, NULL);
    int c = find_disk(&r, point, &d, errp);
    if (c == 0) {
        r.size = d->size;
        c = open_layers(&r, d, errp);
    }
    if (c == 0) {
        c = run(&r, errp);
    }
    close_layers(&r);
    free(r.damaged);
    free(r.by);
    mutex_destroy(&r.lock);
    return c;
}
