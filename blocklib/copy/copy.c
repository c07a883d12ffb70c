/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine: its workers.  fill.c fills the set, area.c says what is
 * where, and move.c moves it.
 *
 *        guest's write                        workers, N threads
 *             |                                      |
 *     copy_before_write                       copy_run: claim, copy, ...
 *             |                                      |
 *             +---> range lock (exclusive) <---------+
 *                          |
 *            still in `todo`? read, write, take it out
 *                          |
 *                source ------> target
 *
 * What keeps the point in time whole:
 *
 *  1. A cluster is taken out of `todo` only after it has been read and
 *     written, or is not wanted.  It never comes back.  So where it is not in
 *     `todo` nobody needs the old data, and a guest may look without any lock.
 *  2. A cluster is copied only under the range lock.  `todo` is looked at after
 *     the lock was taken.  A guest that finds the cluster in it waits there for
 *     a worker that has the cluster in hand.
 *  3. A cluster that is in `todo` has not changed since the point in time.
 *     What node_extents says of it is therefore true at any time, with or
 *     without the range lock.
 *  4. When a copy before a write fails, the write fails, or `broken` is set
 *     before the guest goes on.  A broken copy never succeeds.
 *
 * A copy that is filled again (copy_refill) keeps no point in time: what its
 * set has may change until it is copied.  Its caller fills it again because of
 * that, or both.c notes what changed.
 *
 * Workers enter the tree for each chunk, so that a drain waits for no more
 * than what they have in hand.
 */
#include "copy/priv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "core/dirty.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "util/iov.h"

#define WORKERS_DEFAULT 8
#define WORKERS_MAX     64
#define CHUNK_DEFAULT   (1 * MiB)
#define BUFFER_MAX      (2 * MiB)
#define BUFFERS_KEPT    16

/* An area that the target has already is larger than a chunk, but has an end.
 */
#define BELOW_MAX (1 * GiB)

/* With a limit of speed, a chunk is what goes through in this time. */
#define SLICES_PER_SECOND 10

bool copy_next(const struct copy *c, uint64_t offset, uint64_t *start,
               uint64_t *bytes)
{
    return offset < c->size &&
           copy_set_next(&c->todo, offset, c->size, start, bytes);
}

bool copy_is_done(const struct copy *c)
{
    uint64_t start;
    uint64_t bytes;

    return !copy_next(c, 0, &start, &bytes);
}

/* --- Buffers --- */

/* An unused buffer; this struct is in its memory. */
struct buffer {
    struct buffer *next;
};

void *copy_buffer_get(struct copy *c)
{
    mutex_lock(&c->pool_lock);
    struct buffer *b = c->pool;
    if (b) {
        c->pool = b->next;
        c->pooled--;
    }
    mutex_unlock(&c->pool_lock);
    return b ? b : buf_alloc(c->buffer_size);
}

void copy_buffer_put(struct copy *c, void *buf)
{
    struct buffer *b = buf;

    if (!b) {
        return;
    }
    mutex_lock(&c->pool_lock);
    if (c->pooled < BUFFERS_KEPT) {
        b->next = c->pool;
        c->pool = b;
        c->pooled++;
        b = NULL;
    }
    mutex_unlock(&c->pool_lock);
    free(b);
}

/* --- Failures --- */

/* `broken` has errno in its low bits, and the side in bit 16. */
void copy_break_with(struct copy *c, int r, enum copy_side side)
{
    unsigned none = 0;
    unsigned why = (unsigned)-r | (side == COPY_WRITE ? 1U << 16 : 0);

    if (!atomic_compare_exchange_strong(&c->broken, &none, why)) {
        return;
    }
    copy_give_up(c);      /* what workers wait for is of no use */
    mutex_lock(&c->lock); /* threads that sleep shall see it */
    cond_broadcast(&c->wake);
    mutex_unlock(&c->lock);
    if (c->policy.lost) {
        c->policy.lost(c->policy.opaque, r, side);
    }
}

int copy_check(struct copy *c, enum copy_side *side)
{
    unsigned why = atomic_load(&c->broken);

    if (why) {
        *side = why >> 16 ? COPY_WRITE : COPY_READ;
    }
    return -(int)(why & 0xffff);
}

bool copy_is_broken(const struct copy *c)
{
    return atomic_load(&c->broken) != 0;
}

void copy_break(struct copy *c)
{
    copy_break_with(c, -ECANCELED, COPY_READ);
}

/* --- Workers --- */

enum claim { CLAIM_DONE, CLAIM_AREA, CLAIM_WAIT };

static bool is_over_locked(const struct copy *c) REQUIRES(c->lock)
{
    return c->stop || c->failed || atomic_load(&c->broken) ||
           atomic_load(&c->both_failed);
}

/*
 * The next run of the set from the cursor on.  Look for it in a window first:
 * the length of a run is found by walking the run, which may be the whole disk.
 */
static bool next_run_locked(const struct copy *c, uint64_t *start,
                            uint64_t *bytes) REQUIRES(c->claim_lock)
{
    uint64_t window = c->merge ? BELOW_MAX : copy_zero_max(c);
    uint64_t left = c->size - c->cursor;

    if (left == 0) {
        return false;
    }
    return (window < left && copy_set_next(&c->todo, c->cursor,
                                           c->cursor + window, start, bytes)) ||
           copy_set_next(&c->todo, c->cursor, c->size, start, bytes);
}

/*
 * Take the next part of the set.  Claimed parts lie before the cursor, and stay
 * in the set until they are copied.
 */
static int claim_locked(struct copy *c, struct area *a) REQUIRES(c->claim_lock)
{
    uint64_t most[AREA_KINDS] = {c->chunk, copy_zero_max(c), BELOW_MAX};
    uint64_t start;
    uint64_t bytes;

    mutex_lock(&c->lock);
    bool over = is_over_locked(c);
    uint64_t speed = c->speed;
    uint64_t next_ns = c->next_ns;
    mutex_unlock(&c->lock);
    uint64_t now = speed ? now_ns() : 0;
    if (over || !next_run_locked(c, &start, &bytes)) {
        return CLAIM_DONE;
    }
    *a = (struct area){start, min_u64(bytes, c->chunk), AREA_DATA};
    if (speed) {
        if (now < next_ns) {
            return CLAIM_WAIT;
        }
        uint64_t slice = align_down(speed / SLICES_PER_SECOND, c->cluster);
        slice = max_u64(slice, max_u64(c->step, c->cluster));
        slice = min_u64(c->chunk, slice);
        most[AREA_DATA] = slice;
        most[AREA_ZERO] = slice;
    }
    int r = copy_classify_next(c, start, start + bytes, most, a);
    if (r < 0) {
        return r;
    }
    c->cursor = a->offset + a->bytes;
    if (speed && a->kind != AREA_BELOW &&
        atomic_load(&c->done) + a->bytes > c->burst) {
        /* Whole seconds and the rest apart, so that nothing overflows. */
        uint64_t ns = a->bytes / speed * UINT64_C(1000000000);
        double part = (double)(a->bytes % speed) / (double)speed;
        mutex_lock(&c->lock);
        if (c->speed == speed) {
            c->next_ns = now + ns + (uint64_t)(part * 1e9);
        }
        mutex_unlock(&c->lock);
    }
    return CLAIM_AREA;
}

/* The claimed part has not been done.  What lies between it and the cursor is
 * looked at again, too. */
static void give_back_claim(struct copy *c, const struct area *a)
{
    mutex_lock(&c->claim_lock);
    c->cursor = min_u64(c->cursor, a->offset);
    mutex_unlock(&c->claim_lock);
}

static void note_worker_failure(struct copy *c, int r, enum copy_side side,
                                const struct area *a)
{
    mutex_lock(&c->lock);
    if (!c->failed) {
        c->failed = r;
        c->failed_side = side;
        c->failed_at = (struct range){a->offset, a->bytes};
        cond_broadcast(&c->wake);
    }
    mutex_unlock(&c->lock);
}

static void wait_for_budget(struct copy *c)
{
    mutex_lock(&c->lock);
    uint64_t now = now_ns();
    if (!is_over_locked(c) && now < c->next_ns) {
        (void)cond_wait_ms(&c->wake, &c->lock,
                           (c->next_ns - now) / 1000000 + 1);
    }
    mutex_unlock(&c->lock);
}

/* Copy one chunk, inside a request of the tree. */
static int copy_one_area(struct copy *c, void *buf)
{
    enum copy_side side = COPY_READ;
    struct range_req req;
    struct area a = {0};

    mutex_lock(&c->claim_lock);
    int r = claim_locked(c, &a);
    mutex_unlock(&c->claim_lock);
    if (r == CLAIM_AREA) {
        range_lock(&c->in_hand, &req, a.offset, a.bytes, true);
        int moved = copy_area(c, &a, buf, &side);
        range_unlock(&c->in_hand, &req);
        if (moved == -ERESTART) {
            give_back_claim(c, &a);
        }
        r = moved < 0 ? moved : r;
    }
    if (r == -ERESTART) {
        return CLAIM_AREA; /* again, when the drain is over */
    }
    if (r < 0 && atomic_load(&c->given_up)) {
        return CLAIM_DONE;
    }
    if (r < 0) {
        note_worker_failure(c, r, side, &a);
    }
    return r;
}

static void *copy_worker(void *opaque)
{
    static const struct area nothing;
    struct copy *c = opaque;
    void *buf = copy_buffer_get(c);
    int r = CLAIM_AREA;

    if (!buf) {
        note_worker_failure(c, -ENOMEM, COPY_READ, &nothing);
        return NULL;
    }
    node_unwanted = &c->given_up;
    while (r > CLAIM_DONE) {
        struct tree *t = node_enter(atomic_load(&c->inside), false);
        r = copy_one_area(c, buf);
        node_leave(t);
        if (r == CLAIM_WAIT) {
            wait_for_budget(c);
        }
    }
    node_unwanted = NULL;
    copy_buffer_put(c, buf);
    return NULL;
}

static unsigned workers_wanted(const struct copy *c)
{
    uint64_t chunks = div_up(copy_left(c), c->chunk);
    return (unsigned)max_u64(1, min_u64(chunks, c->max_workers));
}

int copy_run(struct copy *c, enum copy_side *side)
{
    pthread_t threads[WORKERS_MAX];
    unsigned wanted = workers_wanted(c);
    unsigned count = 0;

    mutex_lock(&c->claim_lock);
    c->cursor = 0;
    c->known_end = 0;
    mutex_unlock(&c->claim_lock);
    mutex_lock(&c->lock);
    c->failed = 0;
    mutex_unlock(&c->lock);
    /* This thread is a worker, too.  Fewer workers than wanted are enough. */
    while (count + 1 < wanted &&
           thread_start(&threads[count], "copy", copy_worker, c) == 0) {
        count++;
    }
    (void)copy_worker(c);
    while (count > 0) {
        thread_join(threads[--count]);
    }
    int r = copy_check(c, side);
    mutex_lock(&c->lock);
    if (r == 0) {
        r = c->failed;
        *side = r < 0 ? c->failed_side : *side;
    }
    int both = atomic_load(&c->both_failed);
    if (r == 0 && both < 0) {
        r = copy_both_failed(c);
        *side = COPY_WRITE;
    }
    /* A caller of copy_stop gets COPY_STOPPED, also when the set is empty by
     * now. */
    bool stopped = c->stop;
    mutex_unlock(&c->lock);
    return r < 0 || (copy_is_done(c) && !stopped) ? r : COPY_STOPPED;
}

bool copy_skip_failed(struct copy *c)
{
    uint64_t start;
    uint64_t bytes;

    mutex_lock(&c->lock);
    const struct range at = c->failed_at;
    c->failed_at.bytes = 0;
    mutex_unlock(&c->lock);
    const uint64_t end = at.offset + at.bytes;
    for (uint64_t from = at.offset;
         from < end && copy_set_next(&c->todo, from, end, &start, &bytes);
         from = start + bytes) {
        copy_set_take(&c->todo, start, bytes);
        atomic_fetch_add(&c->done, bytes);
    }
    return at.bytes > 0;
}

int copy_run_drained(struct copy *c, enum copy_side *side)
{
    void *buf = copy_buffer_get(c);
    int r = buf ? copy_range_locked(c, 0, c->size, buf, side) : -ENOMEM;

    copy_buffer_put(c, buf);
    return r;
}

int copy_wait(struct copy *c, enum copy_side *side)
{
    mutex_lock(&c->lock);
    while (!c->stop && !atomic_load(&c->broken)) {
        cond_wait(&c->wake, &c->lock);
    }
    mutex_unlock(&c->lock);
    int r = copy_check(c, side);
    return r < 0 ? r : COPY_STOPPED;
}

/* --- Control --- */

void copy_give_up(struct copy *c)
{
    atomic_store(&c->given_up, true);
}

const _Atomic bool *copy_given_up(const struct copy *c)
{
    return &c->given_up;
}

void copy_stop(struct copy *c, bool stop)
{
    mutex_lock(&c->lock);
    c->stop = stop;
    cond_broadcast(&c->wake);
    mutex_unlock(&c->lock);
}

void copy_set_speed(struct copy *c, uint64_t speed)
{
    mutex_lock(&c->lock);
    c->speed = speed;
    c->next_ns = 0;
    cond_broadcast(&c->wake);
    mutex_unlock(&c->lock);
}

void copy_progress(const struct copy *c, uint64_t *done, uint64_t *total)
{
    *done = atomic_load(&c->done);
    *total = atomic_load(&c->total);
}

/* The copy's read guard; true by invariant 3.  A point in time that is lost
 * holds nothing. */
static uint64_t held_run(const void *opaque, uint64_t offset, uint64_t end,
                         bool *held)
{
    const struct copy *c = opaque;

    *held = false;
    if (atomic_load(&c->broken)) {
        return 0;
    }
    if (offset >= c->size) {
        return end - offset;
    }
    return copy_set_run(&c->todo, offset, min_u64(end, c->size), held);
}

const struct read_guard *copy_guard(const struct copy *c)
{
    return &c->guard;
}

void copy_set_ends(struct copy *c, struct node *inside, struct node *source,
                   struct node *target)
{
    atomic_store(&c->inside, inside);
    c->source = source;
    c->target = target;
}

#define CLUSTER_MIN (64 * KiB)

uint64_t copy_cluster_for(const struct node *target)
{
    uint64_t pref = target->limits.pref;
    return is_pow2(pref) ? max_u64(pref, CLUSTER_MIN) : CLUSTER_MIN;
}

int copy_choose_cluster(const struct node *target, uint64_t least,
                        uint64_t *cluster, struct error **errp)
{
    if (least > INT64_MAX) {
        return error_set(errp, EINVAL,
                         "min-cluster-size too large: %" PRIu64 " > %" PRId64,
                         least, INT64_MAX);
    }
    if (least > 0 && !is_pow2(least)) {
        return error_set(errp, EINVAL,
                         "Cannot create block-copy-state: min-cluster-size "
                         "needs to be a power of 2");
    }
    *cluster = max_u64(copy_cluster_for(target), least);
    return 0;
}

uint64_t copy_size(const struct copy *c)
{
    return c->size;
}

uint64_t copy_cluster(const struct copy *c)
{
    return c->cluster;
}

bool copy_discards_source(const struct copy *c)
{
    return c->discard_source;
}

struct copy *copy_new(const struct copy_options *o)
{
    struct copy *c = calloc(1, sizeof(*c));
    struct copy_set todo = {hbitmap_new(o->size, o->cluster),
                            hbitmap_new(o->size, o->cluster)};
    struct hbitmap *written = hbitmap_new(o->size, o->cluster);

    if (!c || !todo.base || !todo.gone || !written) {
        free(c);
        hbitmap_free(todo.base);
        hbitmap_free(todo.gone);
        hbitmap_free(written);
        return NULL;
    }
    c->size = o->size;
    c->cluster = o->cluster;
    c->past = o->past;
    c->chunk = o->max_chunk ? o->max_chunk : CHUNK_DEFAULT;
    c->chunk = max_u64(align_down(c->chunk, o->cluster), o->cluster);
    /* Compression needs whole clusters. */
    c->buffer_size = (size_t)min_u64(c->chunk, max_u64(BUFFER_MAX, c->cluster));
    c->max_workers = o->max_workers ? o->max_workers : WORKERS_DEFAULT;
    c->max_workers = (unsigned)min_u64(c->max_workers, WORKERS_MAX);
    c->target_zero = o->target_zero;
    c->compress = o->compress;
    c->layers = o->layers;
    c->zero_from = o->zero_from;
    c->merge = o->merge;
    c->changing = o->changing;
    c->keep_space = o->keep_space;
    c->whole = o->whole;
    c->copies_up = o->up != NULL;
    c->up = o->up ? *o->up : c->up;
    c->burst = o->burst;
    c->step = o->step;
    c->policy = o->policy;
    c->uncached = o->uncached;
    c->find_zeroes = o->find_zeroes;
    c->quick = o->quick;
    c->discard_source = o->discard_source;
    c->moved = o->moved;
    c->moved_opaque = o->moved_opaque;
    c->share = o->share && !o->moved && !o->compress;
    c->todo = todo;
    c->written = written;
    c->guard = (struct read_guard){held_run, c};
    range_lock_init(&c->in_hand);
    range_lock_init(&c->both);
    mutex_init(&c->claim_lock, LOCK_COPY_CLAIM, c);
    mutex_init(&c->lock, LOCK_COPY, c);
    cond_init(&c->wake);
    mutex_init(&c->pool_lock, LOCK_COPY_POOL, NULL);
    if (o->policy.max_wait_ms > 0) {
        c->errands = copy_errands_new(c);
        if (!c->errands) {
            copy_free(c);
            return NULL;
        }
    }
    return c;
}

void copy_free(struct copy *c)
{
    if (!c) {
        return;
    }
    copy_errands_free(c->errands);
    while (c->pool) {
        struct buffer *b = c->pool;
        c->pool = b->next;
        free(b);
    }
    hbitmap_free(c->todo.base);
    hbitmap_free(c->todo.gone);
    hbitmap_free(c->visible.gone);
    hbitmap_free(c->written);
    hbitmap_free(c->late);
    range_lock_destroy(&c->in_hand);
    range_lock_destroy(&c->both);
    mutex_destroy(&c->claim_lock);
    mutex_destroy(&c->lock);
    cond_destroy(&c->wake);
    mutex_destroy(&c->pool_lock);
    free(c);
}
