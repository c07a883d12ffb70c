/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk of a point, written to a target: see restore.h.
 *
 *     files of the disk --layers.c--> one unit --> what differs is written
 *                                         ^
 *                          what the target has
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
#include "store/layers.h"

#define THREADS_MAX 16

struct restore {
    struct layers layers;
    struct blk *target;
    const struct restore_options *o;
    struct restore_result *result;

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

/* --- A unit --- */

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
    uint64_t bytes = layers_unit_bytes(&r->layers, unit);
    uint64_t from = 0;
    uint64_t end = 0; /* of what is to be written */
    bool zero = false;
    int c = 0;

    for (uint64_t at = 0; c == 0 && at < bytes; at += SUMS_CHUNK) {
        uint64_t len = min_u64(bytes - at, SUMS_CHUNK);
        bool same = memcmp(out + at, old + at, len) == 0;
        bool z = !same && bytes_are_zero(out + at, len);

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
    uint64_t bytes = layers_unit_bytes(&r->layers, unit);
    int c = 0;

    unsigned by = 0;
    r->damaged[unit] = layers_read_unit(&r->layers, unit, out, old, &by);
    r->by[unit] = (uint16_t)by;
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
    uint64_t units = div_up(r->layers.size, SUMS_UNIT);

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

    return (unsigned)max_u64(1, min_u64(min_u64(most, THREADS_MAX),
                                        div_up(r->layers.size, SUMS_UNIT)));
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
    const struct layer *l = &r->layers.layer[by];
    struct damage d = {
        .point = l->point,
        .disk = r->layers.disk,
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

    for (uint64_t at = 0; at < r->layers.size; at += SUMS_CHUNK) {
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
        end = min_u64(at + SUMS_CHUNK, r->layers.size);
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
        return error_set(errp, -c, "disk '%s': the target: %s", r->layers.disk,
                         strerror(-c));
    }
    if (is_stopped(r)) {
        return error_set(errp, ECANCELED, "disk '%s': interrupted",
                         r->layers.disk);
    }
    return damaged == 0
               ? 0
               : error_set(errp, EUCLEAN, "disk '%s': the backup is damaged",
                           r->layers.disk);
}

static int run(struct restore *r, struct error **errp)
{
    uint64_t units = div_up(r->layers.size, SUMS_UNIT);

    if (blk_size(r->target) < r->layers.size) {
        return error_set(errp, EINVAL,
                         "disk '%s' has %" PRIu64
                         " bytes, and the target only %" PRIu64,
                         r->layers.disk, r->layers.size, blk_size(r->target));
    }
    r->damaged = calloc(units + 1, sizeof(*r->damaged));
    r->by = calloc(units + 1, sizeof(*r->by));
    if (!r->damaged || !r->by) {
        return error_nomem(errp);
    }
    run_threads(r);
    return finish(r, errp);
}

int restore_disk(struct store *s, struct graph *g, const char *point,
                 const char *disk, struct blk *target,
                 const struct restore_options *o, struct restore_result *result,
                 struct error **errp)
{
    struct restore r = {
        .layers = {.store = s, .graph = g, .disk = disk},
        .target = target,
        .o = o,
        .result = result,
    };
    mutex_init(&r.lock, LOCK_RESTORE, NULL);
    int c = layers_open(&r.layers, point, errp);
    if (c == 0) {
        c = run(&r, errp);
    }
    layers_close(&r.layers);
    free(r.damaged);
    free(r.by);
    mutex_destroy(&r.lock);
    return c;
}
