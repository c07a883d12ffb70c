/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What differs between a disk and a point of it: see compare.h.
 *
 *     chunks of the disk, of many threads
 *            |  hashed; gathered until their unit is whole
 *            v
 *     hash of the unit == that of the one layer that has it?  -- the same
 *            |  no: perhaps more than one layer has a part of it
 *            v
 *     queue (WAITING_MAX) --> threads: read the unit of the point, checked,
 *                             and compare chunk by chunk
 *
 * A hash over all chunks of a unit is that of a file only if the file decides
 * them all, because the numbers of the chunks are part of it.  So nothing of
 * the point is read where the two are equal.
 *
 * A transfer's workers are inside of its nodes when they tell, and must not
 * enter others there: that is what the queue is for.  Units that are open lie
 * at the ends of what workers have in hand, so they are few.
 */
#include "store/compare.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "store/layers.h"
#include "store/sums-priv.h"

#define THREADS_MAX 8
#define WAITING_MAX 256
#define BUCKETS     64

/* A unit of the disk, of which some chunks were told. */
struct told {
    struct list at; /* in a bucket while it is open, then in the queue */
    uint64_t number;
    unsigned have; /* bits */
    struct chunk chunks[CHUNKS];
};

struct compare {
    struct graph *graph;
    struct layers layers;
    uint16_t *differs; /* of each unit: its chunks; one thread writes it */
    pthread_t threads[THREADS_MAX];
    unsigned thread_count;

    mutex_t lock;
    cond_t wake;
    struct list open[BUCKETS] GUARDED_BY(lock);
    struct list queue GUARDED_BY(lock);
    unsigned waiting GUARDED_BY(lock);
    bool over GUARDED_BY(lock);   /* nothing follows */
    int failed GUARDED_BY(lock);  /* of a thread */
    bool damage GUARDED_BY(lock); /* the first place: */
    struct compare_damage where GUARDED_BY(lock);
};

static struct told *told_at(struct list *at)
{
    return list_entry(at, struct told, at);
}

static unsigned chunk_count(const struct compare *c, uint64_t unit)
{
    return sums_chunks(layers_unit_bytes(&c->layers, unit));
}

/* --- Threads --- */

static void note_damage(struct compare *c, uint64_t unit, uint16_t chunks,
                        unsigned by)
{
    uint64_t first = (uint64_t)__builtin_ctz(chunks) * SUMS_CHUNK;
    uint64_t bytes = min_u64(layers_unit_bytes(&c->layers, unit) - first,
                             SUMS_CHUNK);

    mutex_lock(&c->lock);
    if (!c->damage || unit * SUMS_UNIT + first < c->where.offset) {
        c->damage = true;
        c->where.offset = unit * SUMS_UNIT + first;
        c->where.bytes = bytes;
        memcpy(c->where.point, c->layers.layer[by].point, POINT_NAME_MAX);
    }
    mutex_unlock(&c->lock);
}

/* The last one is hashed with what the image has behind the disk's end. */
static int look_at_chunk(const struct compare *c, uint64_t offset,
                         const void *buf, uint64_t bytes, struct chunk *chunk)
{
    uint64_t size = c->layers.size;

    if (!buf || offset + bytes < size || image_bytes(size) == size) {
        return chunk_look(buf, bytes, chunk);
    }
    CLEANUP_FREE uint8_t *whole = calloc(1, SUMS_CHUNK);
    if (!whole) {
        return -ENOMEM;
    }
    memcpy(whole, buf, bytes);
    return chunk_look(whole, image_bytes(size) - offset, chunk);
}

/* @bufs: two units. */
static int compare_unit(struct compare *c, const struct told *t, uint8_t *bufs)
{
    uint64_t bytes = layers_unit_bytes(&c->layers, t->number);
    uint16_t differs = 0;
    unsigned by = 0;
    uint16_t unknown = layers_read_unit(&c->layers, t->number, bufs,
                                        bufs + SUMS_UNIT, &by);

    if (unknown) {
        note_damage(c, t->number, unknown, by);
        return 0;
    }
    for (unsigned i = 0; i < sums_chunks(bytes); i++) {
        uint64_t at = i * SUMS_CHUNK;
        struct chunk old;
        int r = look_at_chunk(c, t->number * SUMS_UNIT + at, bufs + at,
                              min_u64(bytes - at, SUMS_CHUNK), &old);
        if (r < 0) {
            return r;
        }
        if (old.kind != t->chunks[i].kind ||
            memcmp(old.hash, t->chunks[i].hash, HASH_BYTES) != 0) {
            differs |= (uint16_t)(1U << i);
        }
    }
    c->differs[t->number] = differs;
    return 0;
}

/* The next unit of the queue; NULL: nothing follows. */
static struct told *take_told(struct compare *c)
{
    struct told *t = NULL;

    mutex_lock(&c->lock);
    while (list_empty(&c->queue) && !c->over) {
        cond_wait(&c->wake, &c->lock);
    }
    if (!list_empty(&c->queue)) {
        t = told_at(c->queue.next);
        list_remove(&t->at);
        c->waiting--;
        cond_broadcast(&c->wake);
    }
    mutex_unlock(&c->lock);
    return t;
}

/* Goes on after a failure, so that nobody waits for room in the queue. */
static void *work(void *opaque)
{
    struct compare *c = opaque;
    CLEANUP_FREE uint8_t *bufs = malloc(2 * SUMS_UNIT);
    struct told *t;

    while ((t = take_told(c)) != NULL) {
        int r = bufs ? compare_unit(c, t, bufs) : -ENOMEM;

        free(t);
        if (r < 0) {
            mutex_lock(&c->lock);
            c->failed = c->failed ? c->failed : r;
            mutex_unlock(&c->lock);
        }
    }
    return NULL;
}

/* --- Telling --- */

static struct told *find_open(struct compare *c, uint64_t unit)
    REQUIRES(c->lock)
{
    list_for_each (at, &c->open[unit % BUCKETS]) {
        if (told_at(at)->number == unit) {
            return told_at(at);
        }
    }
    return NULL;
}

/* Put a chunk into its unit.  *whole: the unit, which is the caller's now, if
 * all of it is there; else NULL. */
static int add_chunk(struct compare *c, uint64_t unit, unsigned index,
                     const struct chunk *chunk, struct told **whole)
{
    int r = 0;

    *whole = NULL;
    mutex_lock(&c->lock);
    struct told *t = find_open(c, unit);
    if (!t) {
        t = calloc(1, sizeof(*t));
        if (t) {
            t->number = unit;
            list_append(&c->open[unit % BUCKETS], &t->at);
        }
    }
    r = !t                        ? -ENOMEM
        : t->have & (1U << index) ? -EINVAL
        : c->damage               ? -EUCLEAN
                                  : c->failed;
    if (r == 0) {
        t->have |= 1U << index;
        t->chunks[index] = *chunk;
        if (t->have == (1U << chunk_count(c, unit)) - 1) {
            list_remove(&t->at);
            *whole = t;
        }
    }
    mutex_unlock(&c->lock);
    return r;
}

/* Do the sums of the point say that the unit is the same? */
static bool is_same(const struct compare *c, const struct told *t)
{
    const uint8_t *old;
    uint8_t now[HASH_BYTES];

    if (!layers_find_hash(&c->layers, t->number, &old)) {
        return false;
    }
    bool data = chunks_hash(t->chunks, chunk_count(c, t->number), true, now);
    if (!data && old) {
        /* All zeroes: of a file with a parent that has a hash, too. */
        data = chunks_hash(t->chunks, chunk_count(c, t->number), false, now);
    }
    return old ? data && memcmp(now, old, HASH_BYTES) == 0 : !data;
}

static void queue_told(struct compare *c, struct told *t)
{
    mutex_lock(&c->lock);
    while (c->waiting >= WAITING_MAX) {
        cond_wait(&c->wake, &c->lock);
    }
    list_append(&c->queue, &t->at);
    c->waiting++;
    cond_broadcast(&c->wake);
    mutex_unlock(&c->lock);
}

static int tell_chunk(struct compare *c, uint64_t offset, uint64_t bytes,
                      const void *buf)
{
    struct chunk chunk;
    struct told *whole = NULL;
    int r = look_at_chunk(c, offset, buf, bytes, &chunk);

    r = r < 0 ? r
              : add_chunk(c, offset / SUMS_UNIT,
                          (unsigned)(offset % SUMS_UNIT / SUMS_CHUNK), &chunk,
                          &whole);
    if (r < 0 || !whole) {
        return r;
    }
    if (is_same(c, whole)) {
        free(whole);
    } else {
        queue_told(c, whole);
    }
    return 0;
}

int compare_tap(void *opaque, uint64_t offset, uint64_t bytes, const void *buf)
{
    struct compare *c = opaque;
    const uint8_t *from = buf;
    uint64_t size = c->layers.size;
    int r = 0;

    if (!range_inside(offset, bytes, size) || !is_aligned(offset, SUMS_CHUNK) ||
        (!is_aligned(bytes, SUMS_CHUNK) && offset + bytes != size)) {
        return -EINVAL;
    }
    for (uint64_t done = 0; r == 0 && done < bytes; done += SUMS_CHUNK) {
        r = tell_chunk(c, offset + done, min_u64(bytes - done, SUMS_CHUNK),
                       from ? from + done : NULL);
    }
    return r;
}

/* --- Beginning and end --- */

static int start_threads(struct compare *c)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned wanted = cpus < 1             ? 1
                      : cpus > THREADS_MAX ? THREADS_MAX
                                           : (unsigned)cpus;
    int r = 0;

    while (r == 0 && c->thread_count < wanted) {
        r = thread_start(&c->threads[c->thread_count], "compare", work, c);
        c->thread_count += r == 0;
    }
    return c->thread_count > 0 ? 0 : r;
}

static int open_point(struct compare *c, const char *point, struct error **errp)
{
    c->graph = graph_new();
    c->layers.graph = c->graph;
    if (!c->graph) {
        return error_nomem(errp);
    }
    /* Files of the directory are followed nowhere. */
    graph_follow(c->graph, FOLLOW_NONE);
    graph_without_data(c->graph);
    graph_without_bitmaps(c->graph);
    int r = layers_open(&c->layers, point, errp);
    if (r < 0) {
        return r;
    }
    c->differs = calloc(sums_units(c->layers.size) + 1, sizeof(*c->differs));
    return c->differs ? 0 : error_nomem(errp);
}

int compare_new(struct store *s, const char *point, const char *disk,
                struct compare **cp, struct error **errp)
{
    struct compare *c = calloc(1, sizeof(*c));

    if (!c) {
        return error_nomem(errp);
    }
    c->layers.store = s;
    c->layers.disk = disk;
    mutex_init(&c->lock, LOCK_COMPARE, NULL);
    cond_init(&c->wake);
    mutex_lock(&c->lock);
    list_init(&c->queue);
    for (int i = 0; i < BUCKETS; i++) {
        list_init(&c->open[i]);
    }
    mutex_unlock(&c->lock);
    int r = open_point(c, point, errp);
    if (r == 0 && (r = start_threads(c)) < 0) {
        (void)error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
    }
    if (r < 0) {
        compare_free(c);
        return r;
    }
    *cp = c;
    return 0;
}

static void end_threads(struct compare *c)
{
    mutex_lock(&c->lock);
    c->over = true;
    cond_broadcast(&c->wake);
    mutex_unlock(&c->lock);
    while (c->thread_count > 0) {
        thread_join(c->threads[--c->thread_count]);
    }
}

int compare_finish(struct compare *c, struct compare_damage *damage,
                   struct error **errp)
{
    bool part = false;

    end_threads(c);
    mutex_lock(&c->lock);
    for (int i = 0; i < BUCKETS; i++) {
        part |= !list_empty(&c->open[i]);
    }
    int r = c->failed ? c->failed : c->damage ? -EUCLEAN : part ? -EINVAL : 0;
    struct compare_damage where = c->where;
    mutex_unlock(&c->lock);
    if (r == -EUCLEAN) {
        if (damage) {
            *damage = where;
        }
        return error_set(errp, EUCLEAN,
                         "its parent %s is damaged at %" PRIu64 ", %" PRIu64
                         " bytes",
                         where.point, where.offset, where.bytes);
    }
    return r < 0 ? error_set(errp, -r, "cannot compare with the parent: %s",
                             strerror(-r))
                 : 0;
}

void compare_free(struct compare *c)
{
    if (!c) {
        return;
    }
    end_threads(c);
    mutex_lock(&c->lock);
    for (int i = 0; i < BUCKETS; i++) {
        while (!list_empty(&c->open[i])) {
            struct told *t = told_at(c->open[i].next);
            list_remove(&t->at);
            free(t);
        }
    }
    mutex_unlock(&c->lock);
    layers_close(&c->layers);
    graph_free(c->graph);
    free(c->differs);
    cond_destroy(&c->wake);
    mutex_destroy(&c->lock);
    free(c);
}

/* --- What differs --- */

static bool chunk_differs(const struct compare *c, uint64_t at)
{
    return c->differs[at / SUMS_UNIT] & (1U << (at % SUMS_UNIT / SUMS_CHUNK));
}

bool compare_next(const struct compare *c, uint64_t offset, uint64_t *start,
                  uint64_t *bytes)
{
    uint64_t size = c->layers.size;
    uint64_t at = align_up(offset, SUMS_CHUNK);

    while (at < size && !chunk_differs(c, at)) {
        at = c->differs[at / SUMS_UNIT] ? at + SUMS_CHUNK
                                        : align_down(at, SUMS_UNIT) + SUMS_UNIT;
    }
    *start = at;
    while (at < size && chunk_differs(c, at)) {
        at += SUMS_CHUNK;
    }
    at = min_u64(at, size);
    *bytes = at > *start ? at - *start : 0;
    return *bytes > 0;
}
