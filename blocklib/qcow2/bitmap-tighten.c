/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Tightening: exact bits over the ones of armed regions that have been quiet.
 * bitmap-arm.c numbers what has to hold.
 *
 *   slice with a cluster   regions that lie together, with one write; also
 *                          those that are not armed, if it is loose
 *   slice of "all ones"    disarm -- lock free: exact bits into a new cluster,
 *                          flush -- no region armed meanwhile? hook it up
 *
 * Guests wait for the arm lock.  So it is held for one short write, and not
 * taken again at once while a guest waits for it.  A drain waits for the slice
 * that is at work: a look ends early when a drain has begun, or when somebody
 * has told that one comes soon (qcow2_store_ahead).
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/thread.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"

#define QUIET_MS  2000 /* between two looks */
#define WRITE_MAX (64 * KiB)

/* How long the arm lock is left to others. */
#define PAUSE_NS 100000
#define PAUSES   100

struct tightener {
    pthread_t thread;
    struct qcow2 *s;
    unsigned ahead; /* what it has seen of bitmaps.ahead */
    mutex_t lock;
    cond_t wake;
    bool stop; /* guarded by lock */
};

bool qcow2_look_ends(const struct qcow2_look *k)
{
    return node_is_draining(k->s->node) ||
           atomic_load(&k->s->bitmaps.ahead) != k->ahead;
}

void qcow2_take_arm_lock(struct qcow2 *s)
{
    const struct timespec pause = {0, PAUSE_NS};

    for (unsigned i = 0; i < PAUSES && atomic_load(&s->bitmaps.waiting); i++) {
        (void)nanosleep(&pause, NULL);
    }
    mutex_lock(&s->bitmaps.arm_lock);
}

/* Are all granules of the region dirty?  Then there is nothing to tighten. */
static bool is_full(const struct qcow2_bitmap *qb, uint64_t region)
{
    uint64_t from = region << qb->region_bits;
    uint64_t size = hbitmap_size(qb->bm->bits);
    uint64_t end = min_u64(size, from + (UINT64_C(1) << qb->region_bits));
    bool dirty = false;

    return from < end && bitmap_run(qb->bm, from, end, &dirty) == end - from &&
           dirty;
}

void qcow2_disarm(struct qcow2_bitmap *qb, struct qcow2_regions r)
{
    for (uint64_t w = r.first / 64; w * 64 < r.end; w++) {
        atomic_fetch_and(&qb->armed[w], ~bitmap_word_mask(w, r.first, r.end));
    }
}

static bool any_full(const struct qcow2_bitmap *qb, struct qcow2_regions r)
{
    for (uint64_t i = r.first; i < r.end; i++) {
        if (is_full(qb, i)) {
            return true;
        }
    }
    return false;
}

/* The regions in a word of marks that are not armed. */
static uint64_t unarmed_regions(const struct qcow2_bitmap *qb, uint64_t word,
                                struct qcow2_regions r)
{
    return ~atomic_load(&qb->armed[word]) &
           bitmap_word_mask(word, r.first, r.end);
}

/* The regions in a word of marks that are armed and quiet.  Looking clears the
 * mark of a touch. */
static uint64_t quiet_regions(struct qcow2_bitmap *qb, uint64_t word,
                              struct qcow2_regions r)
{
    uint64_t armed = atomic_load(&qb->armed[word]) &
                     bitmap_word_mask(word, r.first, r.end);
    uint64_t touched = armed ? atomic_load(&qb->touched[word]) & armed : 0;
    if (touched) {
        atomic_fetch_and(&qb->touched[word], ~touched);
    }
    return armed & ~touched;
}

/* --- A slice with a cluster --- */

/* Write exact bits for regions of one slice. */
static int write_exact(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t slice,
                       struct qcow2_regions r) REQUIRES(s->bitmaps.arm_lock)
{
    qcow2_disarm(qb, r);
    int ret = qcow2_write_exact(s, qb, slice, qb->table[slice], r);
    if (ret < 0) { /* some of them may have ones still */
        qcow2_mark_stale(qb, slice);
    }
    return ret;
}

/* Write exact bits for the quiet ones of some regions, and if the slice is
 * @loose for all that are not armed.  The regions have less than WRITE_MAX
 * bytes, or are one word of marks. */
static int tighten_regions(struct qcow2 *s, const struct qcow2_look *k,
                           struct qcow2_bitmap *qb, uint64_t slice, bool loose,
                           struct qcow2_regions part)
    REQUIRES(s->bitmaps.arm_lock)
{
    struct qcow2_regions run = {part.first, part.first};
    int r = 0;

    for (uint64_t w = part.first / 64; w * 64 < part.end && r == 0; w++) {
        uint64_t quiet = k->quiet ? quiet_regions(qb, w, part) : 0;

        quiet |= loose ? unarmed_regions(qb, w, part) : 0;
        for (; quiet && r == 0; quiet &= quiet - 1) {
            uint64_t i = w * 64 + (uint64_t)__builtin_ctzll(quiet);

            if (is_full(qb, i)) {
                continue;
            }
            if (i != run.end && run.first < run.end) {
                r = write_exact(s, qb, slice, run);
            }
            run.first = i == run.end ? run.first : i;
            run.end = i + 1;
        }
    }
    return r == 0 && run.first < run.end ? write_exact(s, qb, slice, run) : r;
}

static bool has_cluster(const struct qcow2_bitmap *qb, uint64_t slice)
{
    return !atomic_load(&qb->voided) && qb->table[slice] > QCOW2_BITMAP_ONES;
}

/* A loose slice is not loose any more when each of its regions is armed, or has
 * exact bits. */
static int tighten_cluster(const struct qcow2_look *k, struct qcow2_bitmap *qb,
                           uint64_t slice, bool loose)
{
    struct qcow2 *s = k->s;
    const struct qcow2_regions all = qcow2_regions_of(s, qb, slice);
    unsigned shift = qb->region_bits - qb->granularity_bits;
    uint64_t step = max_u64(WRITE_MAX * 8 >> shift, 64);
    struct qcow2_regions part = all;
    int r = 0;

    for (; part.first < all.end && r == 0 && !qcow2_look_ends(k);
         part.first = part.end) {
        part.end = min_u64(align_down(part.first, step) + step, all.end);
        qcow2_take_arm_lock(s);
        if (has_cluster(qb, slice)) {
            r = tighten_regions(s, k, qb, slice, loose, part);
        }
        mutex_unlock(&s->bitmaps.arm_lock);
    }
    if (loose && part.first < all.end) { /* a failure has left it so, too */
        qcow2_mark_stale(qb, slice);
    }
    return r;
}

/* --- A slice that is "all ones" because it got no cluster --- */

static bool is_ones(const struct qcow2_bitmap *qb, uint64_t slice)
{
    return !atomic_load(&qb->voided) && qb->table[slice] == QCOW2_BITMAP_ONES &&
           !bitmap_word_get(qb->doubt, slice);
}

/* Are all of the slice's regions armed and quiet, and is none full? */
static bool is_quiet(struct qcow2_bitmap *qb, struct qcow2_regions all)
{
    uint64_t quiet = 0;

    for (uint64_t w = all.first / 64; w * 64 < all.end; w++) {
        quiet += (uint64_t)__builtin_popcountll(quiet_regions(qb, w, all));
    }
    return quiet == all.end - all.first && !any_full(qb, all);
}

/* Disarm the slice if it is still "all ones". */
static bool disarm_ones(struct qcow2 *s, struct qcow2_bitmap *qb,
                        uint64_t slice)
{
    qcow2_take_arm_lock(s);
    bool ones = is_ones(qb, slice);
    if (ones) {
        qcow2_disarm(qb, qcow2_regions_of(s, qb, slice));
    }
    mutex_unlock(&s->bitmaps.arm_lock);
    return ones;
}

/* Have the slice's entry lead to the cluster, unless a guest has come that
 * relies on its ones. */
static int replace_ones(struct qcow2 *s, struct qcow2_bitmap *qb,
                        uint64_t slice, uint64_t host)
{
    int r = 0;

    qcow2_take_arm_lock(s);
    if (is_ones(qb, slice) &&
        !qcow2_any_armed(qb, qcow2_regions_of(s, qb, slice))) {
        bool through = qcow2_entries_begin(s, true);
        r = qcow2_hook_up_bits(s, qb, slice, host);
        if (through) { /* else some flush will come */
            (void)qcow2_flush_entries(s);
        }
    } else {
        mutex_lock(&s->meta);
        (void)qcow2_free_later(s, host, 1);
        mutex_unlock(&s->meta);
    }
    mutex_unlock(&s->bitmaps.arm_lock);
    return r;
}

static int tighten_ones(struct qcow2 *s, struct qcow2_bitmap *qb,
                        uint64_t slice)
{
    CLEANUP_FREE unsigned char *bits = NULL;
    uint64_t host;

    if (!is_quiet(qb, qcow2_regions_of(s, qb, slice))) {
        return 0;
    }
    bits = calloc(1, s->cluster_size);
    if (!bits) {
        return -ENOMEM;
    }
    if (!disarm_ones(s, qb, slice)) {
        return 0;
    }
    qcow2_bitmap_slice(s, qb, slice, bits);
    int r = qcow2_bits_cluster(s, bits, &host);
    return r < 0 ? r : replace_ones(s, qb, slice, host);
}

/* --- All --- */

/* The mark stays until it is done: nobody else shall go on before that. */
int qcow2_bitmaps_sync(struct qcow2 *s)
{
    int r = atomic_load(&s->bitmaps.relaxed) ? qcow2_flush(s->node) : 0;

    if (r == 0) {
        atomic_store(&s->bitmaps.relaxed, false);
    }
    return r;
}

static int tighten_slice(const struct qcow2_look *k, struct qcow2_bitmap *qb,
                         uint64_t slice)
{
    struct qcow2 *s = k->s;

    qcow2_take_arm_lock(s);
    bool cluster = has_cluster(qb, slice);
    bool ones = is_ones(qb, slice);
    bool loose = cluster && bitmap_word_get(qb->loose, slice);
    if (loose) { /* what fails from now on makes it so again */
        bitmap_word_clear(qb->loose, slice);
    }
    mutex_unlock(&s->bitmaps.arm_lock);
    return cluster && (loose || k->quiet) ? tighten_cluster(k, qb, slice, loose)
           : ones && k->quiet             ? tighten_ones(s, qb, slice)
                                          : 0;
}

/* What is left when the look must end comes with the next one. */
static int tighten(const struct qcow2_look *k, struct qcow2_bitmap *qb)
{
    int r = qcow2_empty_slices(k, qb);

    for (uint64_t i = 0; i < qb->table_size && r == 0 && !qcow2_look_ends(k);
         i++) {
        if (bitmap_word_get(qb->stale, i)) {
            r = tighten_slice(k, qb, i);
        }
    }
    return r;
}

static void narrow(struct qcow2 *s, struct qcow2_bitmap *qb)
{
    mutex_lock(&s->bitmaps.arm_lock);
    qb->width -= qb->width > 0;
    mutex_unlock(&s->bitmaps.arm_lock);
}

/* In a request. */
static int tighten_all(struct qcow2 *s, bool quiet)
{
    const struct qcow2_look k = {s, atomic_load(&s->bitmaps.ahead), quiet};

    mutex_lock(&s->bitmaps.arm_lock);
    int r = qcow2_heal(s);
    mutex_unlock(&s->bitmaps.arm_lock);
    if (r == 0) { /* without the lock: guests wait for that */
        r = qcow2_bitmaps_sync(s);
    }
    list_for_each (e, &s->bitmaps.list) { /* it changes in drained sections */
        struct qcow2_bitmap *qb = list_entry(e, struct qcow2_bitmap, in_image);

        if (qb->bm && !qb->broken && !atomic_load(&qb->voided) && r == 0) {
            r = tighten(&k, qb);
            if (quiet) {
                narrow(s, qb);
            }
        }
    }
    return r;
}

int qcow2_bitmaps_tighten(struct qcow2 *s)
{
    /* Another thread may be at it: a second flush would hold up the drain that
     * comes next.  And do not wait for a drain: it may be about to close the
     * image. */
    bool busy = atomic_load(&s->bitmaps.relaxing) > 0;
    struct tree *t = busy ? NULL : node_enter(s->node, true);
    int r = t ? tighten_all(s, true) : 0;

    if (t) {
        node_leave(t);
    }
    return r;
}

static bool any_loose(const struct qcow2 *s)
{
    list_for_each (e, &s->bitmaps.list) {
        const struct qcow2_bitmap *qb = list_entry(e, struct qcow2_bitmap,
                                                   in_image);

        for (uint64_t w = 0; qb->loose && w * 64 < qb->table_size; w++) {
            if (atomic_load(&qb->loose[w])) {
                return true;
            }
        }
    }
    return false;
}

void qcow2_bitmaps_relax(struct qcow2 *s)
{
    if (!any_loose(s)) {
        return;
    }
    atomic_fetch_add(&s->bitmaps.relaxing, 1);
    (void)tighten_all(s, false);
    atomic_fetch_sub(&s->bitmaps.relaxing, 1);
    mutex_lock(&s->bitmaps.arm_lock);
    if (any_loose(s) && !s->bitmaps.tightener && !s->bitmaps.closing) {
        (void)qcow2_tightener_start(s);
    }
    mutex_unlock(&s->bitmaps.arm_lock);
}

/* Has a drained section come, or will one, since the last look? */
static bool is_disturbed(struct tightener *t)
{
    unsigned ahead = atomic_load(&t->s->bitmaps.ahead);
    bool disturbed = ahead != t->ahead;

    t->ahead = ahead;
    return disturbed;
}

static void *tightener_thread(void *opaque)
{
    struct tightener *t = opaque;

    mutex_lock(&t->lock);
    while (!t->stop) {
        (void)cond_wait_ms(&t->wake, &t->lock, QUIET_MS);
        if (!t->stop && !is_disturbed(t)) {
            mutex_unlock(&t->lock);
            (void)qcow2_bitmaps_tighten(t->s); /* a failure loses nothing */
            mutex_lock(&t->lock);
        }
    }
    mutex_unlock(&t->lock);
    return NULL;
}

int qcow2_tightener_start(struct qcow2 *s)
{
    struct tightener *t = calloc(1, sizeof(*t));

    if (!t) {
        return -ENOMEM;
    }
    t->s = s;
    t->ahead = atomic_load(&s->bitmaps.ahead);
    mutex_init(&t->lock, LOCK_QCOW2_TIGHTENER, NULL);
    cond_init(&t->wake);
    int r = thread_start(&t->thread, "bitmaps", tightener_thread, t);
    if (r < 0) {
        free(t);
        return r;
    }
    s->bitmaps.tightener = t;
    return 0;
}

void qcow2_tightener_stop(struct qcow2 *s)
{
    struct tightener *t = s->bitmaps.tightener;

    if (!t) {
        return;
    }
    mutex_lock(&t->lock);
    t->stop = true;
    cond_signal(&t->wake);
    mutex_unlock(&t->lock);
    thread_join(t->thread);
    mutex_destroy(&t->lock);
    cond_destroy(&t->wake);
    free(t);
    s->bitmaps.tightener = NULL;
}
