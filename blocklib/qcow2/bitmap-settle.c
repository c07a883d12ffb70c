/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Exact bits: slices that have more bits in the image than in memory get those
 * of memory.  It happens drained, before the image is closed, or where a bitmap
 * gets a new table.
 *
 *   bits all alike     no cluster: the entry says it
 *   a cluster, and     the armed regions of it, in place: outside of them the
 *   not loose          image has what memory has
 *   a cluster          all of it, in place
 *   none               a cluster of a run that is allocated for many
 *
 * Clusters that lie in a row go with one write.  Where there is no room for
 * one, the entry says "all ones".
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"
#include "util/iov.h"

#define QB(e) list_entry(e, struct qcow2_bitmap, in_image)

/* Bytes of bits that are written at once; one cluster at least. */
#define WRITE_MAX MiB

/* Exact bits that lie between two armed regions are written with these. */
#define GAP_MAX (4 * KiB)

/* Slices whose table entries are being found, and clusters on their way. */
struct sink {
    struct qcow2 *s;
    struct qcow2_bitmap *qb;
    const uint64_t *old;
    uint64_t *table;
    bool ones; /* without room, a slice gets "all ones" */

    unsigned char *buf; /* what is not written yet: `held`, of these slices */
    struct qcow2_run held;
    uint32_t *slices;
    uint64_t count;
    uint64_t most; /* of count */

    struct qcow2_run free; /* allocated for clusters that come */
    uint64_t to_come;
};

static bool is_cluster(uint64_t entry)
{
    return entry > QCOW2_BITMAP_ONES;
}

void qcow2_mark_stale(struct qcow2_bitmap *qb, uint64_t slice)
{
    bitmap_word_set(qb->loose, slice);
    bitmap_word_set(qb->stale, slice);
}

void qcow2_mark_exact(struct qcow2_bitmap *qb, uint64_t slice)
{
    bitmap_word_clear(qb->stale, slice);
    bitmap_word_clear(qb->loose, slice);
}

void qcow2_bitmap_slice(const struct qcow2 *s, const struct qcow2_bitmap *qb,
                        uint64_t slice, unsigned char *buf)
{
    uint64_t per_slice = s->cluster_size * 8;
    uint64_t first = slice * per_slice;
    uint64_t count = min_u64(per_slice, qb->granules - first);

    memset(buf, 0, s->cluster_size);
    bitmap_export(qb->bm, first, count, buf);
}

uint64_t qcow2_plain_entry(const struct qcow2 *s, const struct qcow2_bitmap *qb,
                           uint64_t slice)
{
    uint64_t bytes = UINT64_C(1) << qcow2_slice_bits(s, qb);
    uint64_t from = slice * bytes;
    uint64_t size = min_u64(hbitmap_size(qb->bm->bits),
                            qb->granules << qb->granularity_bits);
    uint64_t end = min_u64(from + bytes, size);
    bool dirty = false;

    if (bitmap_run(qb->bm, from, end, &dirty) < end - from) {
        return s->cluster_size;
    }
    return dirty ? QCOW2_BITMAP_ONES : QCOW2_BITMAP_ZEROES;
}

int qcow2_write_exact(struct qcow2 *s, const struct qcow2_bitmap *qb,
                      uint64_t slice, uint64_t host,
                      struct qcow2_regions regions)
{
    unsigned shift = qb->region_bits - qb->granularity_bits;
    uint64_t first = regions.first << shift;
    uint64_t count = min_u64((regions.end - regions.first) << shift,
                             qb->granules - first);
    CLEANUP_FREE unsigned char *bits = calloc(1, div_up(count, 8));

    if (!bits) {
        return -ENOMEM;
    }
    bitmap_export(qb->bm, first, count, bits);
    return node_pwrite(s->file, bits, div_up(count, 8),
                       host + (first - slice * s->cluster_size * 8) / 8, 0);
}

/* --- Armed regions, in place --- */

static uint64_t bytes_of_region(const struct qcow2_bitmap *qb)
{
    return UINT64_C(1) << (qb->region_bits - qb->granularity_bits - 3);
}

/* Is it known that only armed regions have more bits in the image, and are they
 * the smaller part of the cluster? */
static bool is_armed_in_part(const struct qcow2 *s,
                             const struct qcow2_bitmap *qb, uint64_t slice)
{
    const struct qcow2_regions all = qcow2_regions_of(s, qb, slice);
    uint64_t count = 0;

    if (bitmap_word_get(qb->loose, slice) ||
        bitmap_word_get(qb->doubt, slice) ||
        bitmap_word_get(qb->unflushed, slice)) {
        return false;
    }
    for (uint64_t w = all.first / 64; w * 64 < all.end; w++) {
        uint64_t armed = atomic_load(&qb->armed[w]) &
                         bitmap_word_mask(w, all.first, all.end);
        count += (uint64_t)__builtin_popcountll(armed);
    }
    return count * bytes_of_region(qb) <= s->cluster_size / 2;
}

static int write_armed(struct qcow2 *s, const struct qcow2_bitmap *qb,
                       uint64_t slice, uint64_t host)
{
    const struct qcow2_regions all = qcow2_regions_of(s, qb, slice);
    uint64_t gap = max_u64(GAP_MAX / bytes_of_region(qb), 1);
    struct qcow2_regions run = {0};
    int r = 0;

    for (uint64_t w = all.first / 64; w * 64 < all.end; w++) {
        uint64_t armed = atomic_load(&qb->armed[w]) &
                         bitmap_word_mask(w, all.first, all.end);

        for (; armed && r == 0; armed &= armed - 1) {
            uint64_t i = w * 64 + (uint64_t)__builtin_ctzll(armed);

            if (run.end > 0 && i > run.end + gap) {
                r = qcow2_write_exact(s, qb, slice, host, run);
                run.end = 0;
            }
            run.first = run.end > 0 ? run.first : i;
            run.end = i + 1;
        }
    }
    return r == 0 && run.end > 0 ? qcow2_write_exact(s, qb, slice, host, run)
                                 : r;
}

/* --- Clusters --- */

/* There is no room for the slice's bits. */
static void give_ones(struct sink *k, uint32_t slice)
{
    uint64_t host = k->table[slice];

    if (is_cluster(host) && host != k->old[slice]) {
        mutex_lock(&k->s->meta); /* what does not fit into limbo leaks */
        (void)qcow2_free_later(k->s, host, 1);
        mutex_unlock(&k->s->meta);
    }
    k->table[slice] = QCOW2_BITMAP_ONES;
    qcow2_mark_stale(k->qb, slice);
}

static int write_held(struct sink *k)
{
    int r = k->count == 0 ? 0
                          : node_pwrite(k->s->file, k->buf, k->held.bytes,
                                        k->held.host, 0);

    for (uint64_t i = 0; r == -ENOSPC && k->ones && i < k->count; i++) {
        give_ones(k, k->slices[i]);
    }
    k->count = 0;
    k->held.bytes = 0;
    return r == -ENOSPC && k->ones ? 0 : r;
}

static int hold_slice(struct sink *k, uint32_t slice, uint64_t host)
{
    int r = 0;

    if (k->count == k->most || host != k->held.host + k->held.bytes) {
        r = write_held(k);
    }
    k->held.host = k->count == 0 ? host : k->held.host;
    qcow2_bitmap_slice(k->s, k->qb, slice, k->buf + k->held.bytes);
    k->held.bytes += k->s->cluster_size;
    k->slices[k->count++] = slice;
    return r;
}

/* The place of a cluster that is new. */
static int take_place(struct sink *k, uint64_t *host)
{
    struct qcow2 *s = k->s;
    uint64_t count = min_u64(k->to_come, k->most);
    int r = 0;

    if (k->free.bytes == 0) {
        mutex_lock(&s->meta);
        r = qcow2_alloc_exact(s, QCOW2_META_BITMAP, count, &k->free.host);
        if (r < 0 && count > 1) {
            count = 1;
            r = qcow2_alloc_exact(s, QCOW2_META_BITMAP, count, &k->free.host);
        }
        mutex_unlock(&s->meta);
        k->free.bytes = r < 0 ? 0 : count << s->cluster_bits;
    }
    k->to_come--;
    if (r == 0) {
        *host = k->free.host;
        k->free.host += s->cluster_size;
        k->free.bytes -= s->cluster_size;
    }
    return r;
}

/* Failures of what was held before are told here, too. */
static int settle_slice(struct sink *k, uint32_t slice)
{
    uint64_t host = k->old[slice];
    bool in_part = is_cluster(host) && is_armed_in_part(k->s, k->qb, slice);
    int r = is_cluster(host) ? 0 : take_place(k, &host);

    if (r == 0) {
        k->table[slice] = host;
        qcow2_mark_exact(k->qb, slice);
        r = in_part ? write_armed(k->s, k->qb, slice, host)
                    : hold_slice(k, slice, host);
    } else {
        k->table[slice] = k->old[slice];
    }
    if (r == -ENOSPC && k->ones) {
        give_ones(k, slice);
        return 0;
    }
    return r;
}

/* What can be said without a cluster; the others stay "anew". */
static void settle_plain(struct sink *k, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t entry = k->table[i] == QCOW2_BITMAP_ANEW
                             ? qcow2_plain_entry(k->s, k->qb, i)
                             : 0;

        if (k->table[i] != QCOW2_BITMAP_ANEW) {
            continue;
        }
        if (is_cluster(entry)) {
            k->to_come += !is_cluster(k->old[i]);
        } else {
            k->table[i] = entry;
            qcow2_mark_exact(k->qb, i);
        }
    }
}

static int settle_slices(struct sink *k, uint32_t count)
{
    int r = 0;

    settle_plain(k, count);
    for (uint32_t i = 0; i < count; i++) {
        if (k->table[i] != QCOW2_BITMAP_ANEW) {
            continue;
        }
        if (r == 0) {
            r = settle_slice(k, i);
        } else {
            k->table[i] = k->old[i];
        }
    }
    r = r < 0 ? r : write_held(k);
    if (k->free.bytes > 0) {
        mutex_lock(&k->s->meta);
        qcow2_alloc_undo(k->s, k->free.host,
                         k->free.bytes >> k->s->cluster_bits);
        mutex_unlock(&k->s->meta);
    }
    return r;
}

int qcow2_settle_slices(struct qcow2 *s, struct qcow2_bitmap *qb,
                        const uint64_t *old, uint64_t *table, uint32_t count,
                        bool ones)
{
    uint64_t most = max_u64(WRITE_MAX >> s->cluster_bits, 1);
    CLEANUP_FREE unsigned char *buf = buf_alloc(most << s->cluster_bits);
    CLEANUP_FREE uint32_t *slices = calloc(most, sizeof(*slices));
    struct sink k = {
        .s = s,
        .qb = qb,
        .old = old,
        .table = table,
        .ones = ones,
        .buf = buf,
        .slices = slices,
        .most = most,
    };

    if (!buf || !slices) {
        for (uint32_t i = 0; i < count; i++) {
            table[i] = table[i] == QCOW2_BITMAP_ANEW ? old[i] : table[i];
        }
        return -ENOMEM;
    }
    return settle_slices(&k, count);
}

/* --- The table, in place --- */

/* Free the cluster of a new entry that nothing leads to. */
static void drop_entry(struct qcow2 *s, const struct qcow2_bitmap *qb,
                       uint64_t slice, uint64_t entry)
{
    if (entry != qb->table[slice]) {
        qcow2_free_bits(s, entry);
    }
}

/* Plan the table that the bitmap shall have.  A slice for whose bits there is
 * no room stays stale, with "all ones". */
static int plan_table(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t *fresh)
{
    for (uint32_t i = 0; i < qb->table_size; i++) {
        fresh[i] = bitmap_word_get(qb->stale, i) ? QCOW2_BITMAP_ANEW
                                                 : qb->table[i];
    }
    return qcow2_settle_slices(s, qb, qb->table, fresh, qb->table_size, true);
}

static bool is_new_entry(const struct qcow2_bitmap *qb, const uint64_t *fresh,
                         uint64_t slice)
{
    return fresh[slice] != qb->table[slice] ||
           bitmap_word_get(qb->doubt, slice) ||
           bitmap_word_get(qb->unflushed, slice);
}

/* The new table counts: memory takes it. */
static void take_table(struct qcow2 *s, struct qcow2_bitmap *qb,
                       const uint64_t *fresh) REQUIRES(s->bitmaps.arm_lock)
{
    for (uint32_t i = 0; i < qb->table_size; i++) {
        if (qb->table[i] != fresh[i]) {
            qcow2_free_shared_bits(s, qb->table[i]);
        }
        qb->table[i] = fresh[i];
        bitmap_word_clear(qb->doubt, i);
        bitmap_word_clear(qb->unflushed, i);
    }
}

/* Nobody knows which table is in the image, so both stay. */
static void doubt_table(struct qcow2 *s, struct qcow2_bitmap *qb,
                        const uint64_t *fresh) REQUIRES(s->bitmaps.arm_lock)
{
    for (uint32_t i = 0; i < qb->table_size; i++) {
        if (is_new_entry(qb, fresh, i)) {
            bitmap_word_set(qb->doubt, i);
            qcow2_mark_stale(qb, i);
            if (fresh[i] != qb->table[i] && is_cluster(fresh[i])) {
                qcow2_orphan(s, fresh[i], s->cluster_size);
            }
        }
    }
}

static int settle_table(struct qcow2 *s, struct qcow2_bitmap *qb,
                        const uint64_t *fresh) REQUIRES(s->bitmaps.arm_lock)
{
    int r = qcow2_flush(s->node);

    if (r < 0) { /* nothing leads to what is new */
        for (uint32_t i = 0; i < qb->table_size; i++) {
            drop_entry(s, qb, i, fresh[i]);
            qcow2_mark_stale(qb, i);
        }
        return r;
    }
    r = qcow2_write_table(s, qb, fresh);
    if (r == 0) {
        r = qcow2_flush_file(s);
    }
    if (r < 0) {
        doubt_table(s, qb, fresh);
    } else {
        take_table(s, qb, fresh);
    }
    return r;
}

static int settle_bitmap(struct qcow2 *s, struct qcow2_bitmap *qb)
    REQUIRES(s->bitmaps.arm_lock)
{
    CLEANUP_FREE uint64_t *fresh =
        malloc((qb->table_size + UINT64_C(1)) * sizeof(*fresh));

    if (!fresh) {
        return -ENOMEM;
    }
    int r = plan_table(s, qb, fresh);
    for (uint64_t i = 0; i <= qb->regions / 64; i++) {
        atomic_store(&qb->armed[i], 0);
    }
    bool changed = false;
    for (uint32_t i = 0; i < qb->table_size; i++) {
        changed |= is_new_entry(qb, fresh, i);
        if (r < 0) {
            drop_entry(s, qb, i, fresh[i]);
            qcow2_mark_stale(qb, i);
        }
    }
    return r == 0 && changed ? settle_table(s, qb, fresh) : r;
}

/* Store first what only a new directory can say; then write the bits. */
static int settle_all(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock)
{
    qcow2_reserve_drop(s);
    (void)qcow2_heal(s); /* it adds only, so it may come first */
    int r = qcow2_bitmaps_sync(s);
    int stored = 0;

    (void)qcow2_entries_begin(s, false);
    if (r == 0) {
        stored = qcow2_store_directory(s);
    }
    list_for_each (e, &s->bitmaps.list) {
        if (r == 0 && QB(e)->bm && !QB(e)->broken) {
            r = settle_bitmap(s, QB(e));
        }
    }
    return r < 0 ? r : stored;
}

int qcow2_bitmaps_settle(struct qcow2 *s)
{
    mutex_lock(&s->bitmaps.arm_lock);
    int r = settle_all(s);
    mutex_unlock(&s->bitmaps.arm_lock);
    return r;
}
