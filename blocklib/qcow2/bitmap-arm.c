/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Arming: before data of a region change for the first time, all bits of the
 * region become ones in the image.
 *
 *   writer    set the exact bit -> armed? -> write data
 *                                   no: queue, with all other bitmaps that
 *                                       record; then under the arm lock
 *                                       ones for all that is queued, durably
 *                                       armed
 *   tightener not touched lately -> not armed -> exact bits, no flush
 *             (bitmap-tighten.c)
 *
 *  1. A region is armed only after its ones are durable, and data are written
 *     only in armed regions: so the image never lacks a bit.  (With
 *     bitmap-durability=process they are in the page cache, where a killed
 *     process leaves them.)
 *  2. A writer sets the bit before it looks whether the region is armed; the
 *     tightener disarms before it reads the bits.  All of these accesses are
 *     sequentially consistent: one of the two sees the other.
 *  3. Bits in the image are written under the arm lock: old bits never land
 *     on newer ones.
 *  4. Bits that were cleared go from the image only after what had been written
 *     before that is durable: a crash that takes such data back is a change,
 *     too.
 *  5. A cluster of bits counts in the refcounts on disk before a table entry
 *     leads to it.  Where there is no room for one, the entry says "all ones".
 *  6. What could not be written, or flushed, is not armed; entries are in doubt
 *     then (bitmap-doubt.c).
 *
 * Ones are written through (through.c) for some requests, as a flush takes as
 * long as all that guests have written.  Where there are many, or the file can
 * only be flushed, one flush covers them.
 *
 * How much is armed at once doubles while arming is frequent, up to a slice,
 * which is one table entry; what is armed too much is paid after a crash
 * only, by a larger increment.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/thread.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"

/* If arming is needed again within this time, more is armed at once.  The first
 * time in a slice that has a cluster it is a block of bits at most: all that is
 * armed there has to be written once more to be exact. */
#define OFTEN_NS  UINT64_C(500000000)
#define WIDTH_MAX 30
#define BLOCK     (4 * KiB)

/* So many requests of a batch at most are written through. */
#define THROUGH_MAX 16

/* A slice with more bytes of bits than this gets an entry "all ones" when all
 * of it is armed: a guest waits for what is written here. */
#define ONES_MAX (256 * KiB)

struct arm_request {
    struct list link;
    struct qcow2_bitmap *qb;
    uint64_t first; /* regions */
    uint64_t last;
    bool done;
    int r;
};

/* Set the marks of @mask in a word. */
static void set_marks(bitmap_word *word, uint64_t mask)
{
    if (mask & ~atomic_load(word)) {
        atomic_fetch_or(word, mask);
    }
}

/* Touches what it looks at. */
static bool all_armed(const struct qcow2_bitmap *qb, uint64_t first,
                      uint64_t last)
{
    for (uint64_t w = first / 64; w <= last / 64; w++) {
        uint64_t mask = bitmap_word_mask(w, first, last + 1);

        set_marks(&qb->touched[w], mask);
        if (mask & ~atomic_load(&qb->armed[w])) {
            return false;
        }
    }
    return true;
}

/* --- Writing ones --- */

/* Set the bits [@from, @to), @from a multiple of 8, in a cluster of bits. */
static void set_ones(unsigned char *bits, uint64_t from, uint64_t to)
{
    memset(bits + from / 8, 0xff, to / 8 - from / 8);
    if (to % 8) {
        bits[to / 8] |= (unsigned char)((1U << to % 8) - 1);
    }
}

/* Write such ones to the image. */
static int write_ones(struct qcow2 *s, uint64_t host, uint64_t from,
                      uint64_t to) REQUIRES(s->bitmaps.arm_lock)
{
    uint64_t bytes = div_up(to, 8) - from / 8;
    CLEANUP_FREE unsigned char *ones = calloc(1, bytes);

    if (!ones) {
        return -ENOMEM;
    }
    set_ones(ones, 0, to - from);
    return s->bitmaps.through
               ? qcow2_write_through(s, ones, bytes, host + from / 8)
               : node_pwrite(s->file, ones, bytes, host + from / 8, 0);
}

/* Write a cluster of bits, and make it durable with its refcount. */
static int write_cluster(struct qcow2 *s, const unsigned char *bits,
                         uint64_t host)
{
    const struct qcow2_run run = {host, s->cluster_size};

    if (!qcow2_can_write_through(s)) {
        int r = node_pwrite(s->file, bits, s->cluster_size, host, 0);
        return r < 0 ? r : qcow2_flush(s->node);
    }
    int r = qcow2_write_through(s, bits, s->cluster_size, host);
    return r < 0 ? r : qcow2_counts_through(s, &run, 1);
}

int qcow2_bits_cluster(struct qcow2 *s, const unsigned char *bits,
                       uint64_t *hostp)
{
    uint64_t host = 0;

    mutex_lock(&s->meta);
    int r = qcow2_alloc_exact(s, QCOW2_META_BITMAP, 1, &host);
    mutex_unlock(&s->meta);
    if (r < 0) {
        return r;
    }
    r = write_cluster(s, bits, host);
    if (r < 0) {
        mutex_lock(&s->meta);
        (void)qcow2_free_later(s, host, 1);
        mutex_unlock(&s->meta);
        return r;
    }
    *hostp = host;
    return 0;
}

int qcow2_hook_up_bits(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t slice,
                       uint64_t host)
{
    int r = qcow2_put_entry(s, qb, slice, host);

    if (r < 0) {
        qcow2_orphan(s, host, s->cluster_size);
    }
    return r;
}

/* Try "all ones" after a failure.  If that fails, too, the node is in doubt,
 * and the next write heals it first. */
static int put_ones_again(struct qcow2 *s, struct qcow2_bitmap *qb,
                          uint64_t slice) REQUIRES(s->bitmaps.arm_lock)
{
    int r = qcow2_put_ones(s, qb, slice);

    if (r < 0) {
        qcow2_bitmap_doubt(s);
    }
    return r;
}

/* Write ones for the regions [@first, @last], which lie in one slice. */
static int arm_in_slice(struct qcow2 *s, struct qcow2_bitmap *qb,
                        uint64_t slice, uint64_t first, uint64_t last,
                        bool exact) REQUIRES(s->bitmaps.arm_lock)
{
    unsigned shift = qb->region_bits - qb->granularity_bits;
    uint64_t start = slice * s->cluster_size * 8;
    uint64_t end = min_u64(s->cluster_size * 8, qb->granules - start);
    uint64_t from = (first << shift) - start;
    uint64_t to = min_u64(((last + 1) << shift) - start, end);
    uint64_t host;

    bitmap_word_set(qb->stale, slice);
    if (bitmap_word_get(qb->doubt, slice)) {
        return put_ones_again(s, qb, slice);
    }
    if (qb->table[slice] == QCOW2_BITMAP_ONES) {
        return 0;
    }
    if (qb->table[slice] != QCOW2_BITMAP_ZEROES) {
        return from == 0 && to == end && to / 8 > ONES_MAX
                   ? qcow2_put_ones(s, qb, slice)
                   : write_ones(s, qb->table[slice], from, to);
    }
    CLEANUP_FREE unsigned char *bits = (from == 0 && to == end) || !exact
                                           ? NULL
                                           : calloc(1, s->cluster_size);
    if (bits) {
        set_ones(bits, from, to);
        int r = qcow2_bits_cluster(s, bits, &host);
        if (r == 0 || r == -ERESTART) {
            return r < 0 ? r : qcow2_hook_up_bits(s, qb, slice, host);
        }
    }
    return qcow2_put_ones(s, qb, slice);
}

/* @exact: arm no more regions than these, where there is room for a cluster. */
static int arm_regions(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t first,
                       uint64_t last, bool exact) REQUIRES(s->bitmaps.arm_lock)
{
    unsigned per = qcow2_regions_bits(s, qb);
    int r = 0;

    while (r == 0 && first <= last) {
        uint64_t slice = first >> per;
        uint64_t end = min_u64(((slice + 1) << per) - 1, last);

        r = arm_in_slice(s, qb, slice, first, end, exact);
        first = end + 1;
    }
    return r;
}

/* --- Requests --- */

bool qcow2_any_armed(const struct qcow2_bitmap *qb,
                     struct qcow2_regions regions)
{
    for (uint64_t w = regions.first / 64; w * 64 < regions.end; w++) {
        if (atomic_load(&qb->armed[w]) &
            bitmap_word_mask(w, regions.first, regions.end)) {
            return true;
        }
    }
    return false;
}

/* How many regions may be armed for a request that begins in @first. */
static uint64_t most_regions(const struct qcow2 *s,
                             const struct qcow2_bitmap *qb, uint64_t first)
{
    uint64_t slice = first >> qcow2_regions_bits(s, qb);
    bool begins = qb->table[slice] > QCOW2_BITMAP_ONES &&
                  !qcow2_any_armed(qb, qcow2_regions_of(s, qb, slice));

    return begins
               ? max_u64(BLOCK * 8 >> (qb->region_bits - qb->granularity_bits),
                         1)
               : UINT64_MAX;
}

/* Arm more than was asked for, if arming has been frequent lately. */
static void widen(struct qcow2 *s, struct arm_request *q)
{
    struct qcow2_bitmap *qb = q->qb;
    uint64_t now = now_ns();
    unsigned most = qcow2_regions_bits(s, qb);

    if (now - qb->armed_at < OFTEN_NS && qb->width < most &&
        qb->width < WIDTH_MAX) {
        qb->width++;
    }
    qb->armed_at = now;
    uint64_t step = min_u64(UINT64_C(1) << qb->width,
                            most_regions(s, qb, q->first));
    q->first = align_down(q->first, step);
    q->last = min_u64(align_up(q->last + 1, step), qb->regions) - 1;
}

static bool needs_nothing(const struct arm_request *q)
{
    return atomic_load(&q->qb->voided) || all_armed(q->qb, q->first, q->last);
}

static int arm_one(struct qcow2 *s, const struct arm_request *q, bool exact)
    REQUIRES(s->bitmaps.arm_lock)
{
    return needs_nothing(q) ? 0
                            : arm_regions(s, q->qb, q->first, q->last, exact);
}

/* The ones are durable: mark the regions as armed.  "All ones" arm the whole
 * slice. */
static void set_armed(struct qcow2 *s, const struct arm_request *q)
{
    struct qcow2_bitmap *qb = q->qb;
    unsigned per = qcow2_regions_bits(s, qb);

    for (uint64_t slice = q->first >> per; slice <= q->last >> per; slice++) {
        bool all = qb->table[slice] == QCOW2_BITMAP_ONES;
        uint64_t first = slice << per;
        uint64_t end = min_u64((slice + 1) << per, qb->regions);

        if (!all) {
            first = max_u64(first, q->first);
            end = min_u64(end, q->last + 1);
        }
        for (uint64_t w = first / 64; w * 64 < end; w++) {
            set_marks(&qb->armed[w], bitmap_word_mask(w, first, end));
        }
    }
}

uint64_t qcow2_armed_bytes(const struct qcow2 *s)
{
    uint64_t bytes = 0;

    list_for_each (e, &s->bitmaps.list) { /* it changes in control sections */
        const struct qcow2_bitmap *qb = list_entry(e, struct qcow2_bitmap,
                                                   in_image);

        for (uint64_t w = 0; qb->armed && w * 64 < qb->regions; w++) {
            uint64_t word = atomic_load(&qb->armed[w]);

            bytes += (uint64_t)__builtin_popcountll(word) << qb->region_bits;
        }
    }
    return bytes;
}

/* The request has failed, so what it has written is not armed. */
static void mark_failed(struct qcow2 *s, const struct arm_request *q)
{
    unsigned per = qcow2_regions_bits(s, q->qb);

    for (uint64_t i = q->first >> per; i <= q->last >> per; i++) {
        qcow2_mark_stale(q->qb, i);
    }
}

/* Arm the regions of one request, without a flush. */
static int arm_through(struct qcow2 *s, struct arm_request *q)
    REQUIRES(s->bitmaps.arm_lock)
{
    widen(s, q);
    int r = arm_regions(s, q->qb, q->first, q->last, true);
    if (r < 0 && r != -ERESTART) {
        r = arm_regions(s, q->qb, q->first, q->last, false);
    }
    if (r == 0) {
        set_armed(s, q);
    } else {
        mark_failed(s, q);
    }
    return r;
}

/* Serve some requests of @batch each for itself.  What is armed of one is armed
 * for the next, so the same range is written once.  The others stay in
 * @batch. */
static void serve_through(struct qcow2 *s, struct list *batch)
    REQUIRES(s->bitmaps.arm_lock)
{
    unsigned left = THROUGH_MAX;

    if (!qcow2_entries_begin(s, true)) {
        return;
    }
    list_for_each_safe (e, batch) {
        struct arm_request *q = list_entry(e, struct arm_request, link);
        bool nothing = needs_nothing(q);

        if (nothing || left > 0) {
            left -= !nothing;
            q->r = nothing ? 0 : arm_through(s, q);
            list_remove(e);
            q->done = true;
        }
    }
    (void)qcow2_flush_entries(s);
}

/* Arm all requests of @batch with one flush.  If the flush fails, none of them
 * is sure. */
static int arm_batch(struct qcow2 *s, const struct list *batch, bool exact)
    REQUIRES(s->bitmaps.arm_lock)
{
    int first = 0;

    (void)qcow2_entries_begin(s, false);
    list_for_each (e, batch) {
        struct arm_request *q = list_entry(e, struct arm_request, link);

        q->r = arm_one(s, q, exact);
        first = first < 0 ? first : q->r;
    }
    int r = qcow2_flush_entries(s);
    list_for_each (e, batch) {
        struct arm_request *q = list_entry(e, struct arm_request, link);

        q->r = q->r < 0 ? q->r : r;
    }
    return first < 0 ? first : r;
}

/* Serve requests with one flush.  After a failure they are tried once more, in
 * the way that needs the least of the image. */
static void serve_flushed(struct qcow2 *s, struct list *batch)
    REQUIRES(s->bitmaps.arm_lock)
{
    list_for_each (e, batch) {
        struct arm_request *q = list_entry(e, struct arm_request, link);
        if (!needs_nothing(q)) {
            widen(s, q);
        }
    }
    int r = arm_batch(s, batch, true);
    if (r < 0 && r != -ERESTART) {
        (void)arm_batch(s, batch, false);
    }
    list_for_each_safe (e, batch) {
        struct arm_request *q = list_entry(e, struct arm_request, link);
        if (q->r == 0) {
            set_armed(s, q);
        } else {
            mark_failed(s, q);
        }
        list_remove(e);
        q->done = true;
    }
}

/* Serve all requests that are queued. */
static void serve_queue(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock)
{
    struct list batch;

    list_init(&batch);
    mutex_lock(&s->bitmaps.queue_lock);
    while (!list_empty(&s->bitmaps.queue)) {
        struct list *e = s->bitmaps.queue.next;
        list_remove(e);
        list_append(&batch, e);
    }
    mutex_unlock(&s->bitmaps.queue_lock);
    if (!s->bitmaps.tightener) {
        /* Without one, it is the close that tightens. */
        (void)qcow2_tightener_start(s);
    }
    serve_through(s, &batch);
    if (!list_empty(&batch)) {
        serve_flushed(s, &batch);
    }
}

/* A bitmap in quarantine will lack a change.  Mark it, so that nobody trusts it
 * when what is wrong with it has gone. */
static int void_it(struct qcow2 *s, struct qcow2_bitmap *qb, bool nowait)
{
    int r = 0;

    if (atomic_load(&qb->voided)) {
        return 0;
    }
    if (nowait) {
        return -EAGAIN;
    }
    mutex_lock(&s->bitmaps.arm_lock);
    if (!atomic_load(&qb->voided)) {
        r = qcow2_bitmap_void(s);
    }
    mutex_unlock(&s->bitmaps.arm_lock);
    return r;
}

/* Find the regions of the range.  False: there are none. */
static bool regions_of(struct qcow2_bitmap *qb, uint64_t offset, uint64_t bytes,
                       struct arm_request *q)
{
    if (bytes == 0 || qb->regions == 0) {
        return false;
    }
    *q = (struct arm_request){
        .qb = qb,
        .first = min_u64(offset >> qb->region_bits, qb->regions - 1),
        .last = min_u64((offset + bytes - 1) >> qb->region_bits,
                        qb->regions - 1),
    };
    return true;
}

/*
 * Requests for the other recording bitmaps that are not armed in the range.
 * The writer will ask for them next, so they share the flush.  If there is no
 * memory, they are armed later.
 */
static struct arm_request *others(struct qcow2 *s,
                                  const struct qcow2_bitmap *own,
                                  uint64_t offset, uint64_t bytes,
                                  size_t *count)
{
    struct arm_request *qs = NULL;
    size_t room = 0;

    *count = 0;
    list_for_each (e, &s->bitmaps.list) {
        struct qcow2_bitmap *qb = list_entry(e, struct qcow2_bitmap, in_image);
        struct arm_request q;

        if (qb == own || qb->broken || !qb->bm || !qb->bm->enabled ||
            atomic_load(&qb->voided) || !regions_of(qb, offset, bytes, &q) ||
            all_armed(qb, q.first, q.last)) {
            continue;
        }
        if (*count == room) {
            size_t more = room ? 2 * room : 16;
            struct arm_request *grown = realloc(qs, more * sizeof(*qs));
            if (!grown) {
                break;
            }
            qs = grown;
            room = more;
        }
        qs[(*count)++] = q;
    }
    return qs;
}

int qcow2_bitmap_arm(struct node *n, struct bitmap *bm, uint64_t offset,
                     uint64_t bytes, bool nowait)
{
    struct qcow2 *s = n->state;
    struct qcow2_bitmap *qb = bm->stored;
    struct arm_request q;
    size_t count;

    if (qb && qb->broken && bytes > 0) {
        return void_it(s, qb, nowait);
    }
    if (!qb || atomic_load(&qb->voided) || !regions_of(qb, offset, bytes, &q) ||
        all_armed(qb, q.first, q.last)) {
        return 0;
    }
    if (nowait) {
        return -EAGAIN;
    }
    CLEANUP_FREE struct arm_request *more = others(s, qb, offset, bytes,
                                                   &count);
    mutex_lock(&s->bitmaps.queue_lock);
    list_append(&s->bitmaps.queue, &q.link);
    for (size_t i = 0; i < count; i++) {
        list_append(&s->bitmaps.queue, &more[i].link);
    }
    mutex_unlock(&s->bitmaps.queue_lock);
    /* The thread that has the lock serves all threads that wait for it.
     * Requests that came into the queue together leave it together. */
    atomic_fetch_add(&s->bitmaps.waiting, 1);
    mutex_lock(&s->bitmaps.arm_lock);
    atomic_fetch_sub(&s->bitmaps.waiting, 1);
    if (!q.done) {
        serve_queue(s);
    }
    mutex_unlock(&s->bitmaps.arm_lock);
    return q.r;
}
