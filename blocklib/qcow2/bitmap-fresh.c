/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Storing a bitmap that is new, while guests are held up.
 *
 * Its clusters lie in a row, and are written through at once (through.c):
 *
 *   ahead     a reserve of clusters, of zeroes  -- flush --
 *   drained   | bits | bits | ... | table |        one write
 *             | directory |                        one write
 *             the header's extension               one write
 *
 * Where the reserve is too small, clusters are allocated, and their refcounts
 * take one write more.  The reserve is there for the file system, too: writing
 * where a file has bytes does not wait for its journal.
 *
 * So this takes as long at any size of the disk, and however much guests have
 * written that is not durable yet.  That has to be durable only as far as it
 * was written before the bitmap began: if a power cut takes it back, that is a
 * change that the bitmap does not have.  The flush ahead of the drained section
 * has seen to that where the bitmap is older than it.
 *
 * A region that is armed in an older bitmap is one that a guest writes to now.
 * It begins armed here, too: its bits are ones.
 *
 * Only some slices get exact bits.  The others that have some get "all ones":
 * they are armed from the start, and the tightener makes them exact
 * (bitmap-tighten.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"
#include "util/iov.h"

/* Bytes of exact bits; at least one cluster. */
#define EXACT_MAX MiB

/* What a directory grows by, at most. */
#define DIR_MORE (QCOW2_BITMAP_ENTRY_SIZE + BITMAP_NAME_MAX + 1)

/* --- The reserve --- */

static uint64_t exact_max(const struct qcow2 *s)
{
    return max_u64(EXACT_MAX >> s->cluster_bits, 1);
}

/* How many clusters of bits would the bitmap have now? */
static uint64_t exact_now(const struct qcow2 *s, struct bitmap *bm)
{
    struct qcow2_bitmap qb = {
        .bm = bm,
        .granularity_bits = (uint8_t)__builtin_ctzll(bm->granularity),
        .granules = div_up(s->node->size, bm->granularity),
    };
    uint64_t slices = qcow2_slices(s, &qb, s->node->size);
    uint64_t count = 0;

    for (uint64_t i = 0; i < slices && count < exact_max(s); i++) {
        count += qcow2_plain_entry(s, &qb, i) > QCOW2_BITMAP_ONES;
    }
    return count + div_up(slices * 8, s->cluster_size);
}

/* What a new bitmap may need, with a directory.  Guests may go on to other
 * slices meanwhile. */
static uint64_t wanted(const struct qcow2 *s)
{
    uint64_t most = 0;

    list_for_each (e, &s->node->bitmaps) {
        struct bitmap *bm = list_entry(e, struct bitmap, on_node);

        if (bm->name && !bm->persistent && bm->enabled && !bm->successor &&
            !atomic_load(&bm->inconsistent)) {
            most = max_u64(most, exact_now(s, bm));
        }
    }
    return most == 0 ? 0
                     : most + 1 +
                           div_up(s->bitmaps.ext.dir_size + DIR_MORE,
                                  s->cluster_size);
}

static void give_back(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    mutex_lock(&s->meta);
    qcow2_alloc_undo(s, host, bytes >> s->cluster_bits);
    mutex_unlock(&s->meta);
}

void qcow2_reserve_drop(struct qcow2 *s)
{
    struct qcow2_run *v = &s->bitmaps.reserve;

    if (v->bytes > 0) {
        give_back(s, v->host, v->bytes);
    }
    *v = (struct qcow2_run){0};
    s->bitmaps.reserve_sure = false;
}

static int take(struct qcow2 *s, uint64_t clusters)
    REQUIRES(s->bitmaps.arm_lock)
{
    uint64_t bytes = clusters << s->cluster_bits;
    CLEANUP_FREE unsigned char *zeroes = buf_alloc(bytes);
    uint64_t host;

    if (!zeroes) {
        return -ENOMEM;
    }
    memset(zeroes, 0, bytes);
    mutex_lock(&s->meta);
    int r = qcow2_alloc_exact(s, QCOW2_META_BITMAP, clusters, &host);
    mutex_unlock(&s->meta);
    if (r < 0) {
        return r;
    }
    r = node_pwrite(s->file, zeroes, bytes, host, 0);
    if (r < 0) {
        give_back(s, host, bytes);
        return r;
    }
    s->bitmaps.reserve = (struct qcow2_run){host, bytes};
    return 0;
}

/* Without one, a store takes longer. */
void qcow2_reserve_take(struct qcow2 *s)
{
    uint64_t clusters = qcow2_can_write_through(s) ? wanted(s) : 0;

    mutex_lock(&s->bitmaps.arm_lock);
    qcow2_reserve_drop(s);
    if (clusters > 0) {
        (void)take(s, clusters);
    }
    mutex_unlock(&s->bitmaps.arm_lock);
}

void qcow2_reserve_flushed(struct qcow2 *s)
{
    mutex_lock(&s->bitmaps.arm_lock);
    s->bitmaps.reserve_sure = s->bitmaps.reserve.bytes > 0;
    mutex_unlock(&s->bitmaps.arm_lock);
}

int qcow2_fresh_clusters(struct qcow2 *s, uint64_t count, uint64_t *host,
                         bool *counts)
{
    struct qcow2_run *v = &s->bitmaps.reserve;
    uint64_t bytes = count << s->cluster_bits;

    *counts = s->bitmaps.reserve_sure && bytes <= v->bytes;
    if (*counts) {
        *host = v->host;
        v->host += bytes;
        v->bytes -= bytes;
        return 0;
    }
    mutex_lock(&s->meta);
    int r = qcow2_alloc_exact(s, QCOW2_META_BITMAP, count, host);
    mutex_unlock(&s->meta);
    return r;
}

/* --- The table --- */

/* Has all that was written before the bitmap began been flushed? */
static bool is_fresh(const struct qcow2 *s, const struct bitmap *bm)
{
    return !bm->stored && bm->enabled && !bm->successor &&
           !atomic_load(&bm->inconsistent) &&
           bm->since_ns < atomic_load(&s->bitmaps.ahead_ns);
}

/* Is it stored as it is? */
static bool is_stored(const struct bitmap *bm)
{
    const struct qcow2_bitmap *qb = bm->stored;

    return qb &&
           (qb->broken || (!bm->rewrite && !atomic_load(&qb->voided) &&
                           bm->enabled == !!(qb->flags & QCOW2_BITMAP_AUTO)));
}

bool qcow2_store_is_fresh(const struct qcow2 *s)
{
    if (!qcow2_can_write_through(s) || atomic_load(&s->node->bitmaps_doubt) ||
        s->bitmaps.header_doubt) {
        return false;
    }
    list_for_each (e, &s->node->bitmaps) {
        const struct bitmap *bm = list_entry(e, struct bitmap, on_node);

        if (bm->persistent && !is_stored(bm) && !is_fresh(s, bm)) {
            return false;
        }
    }
    return true;
}

/* Plan the entries.  One with a cluster is `cluster_size` for now; *count says
 * how many there are. */
static void plan_entries(const struct qcow2 *s, struct qcow2_bitmap *qb,
                         uint64_t *count)
{
    uint64_t most = exact_max(s);
    unsigned per = qcow2_regions_bits(s, qb);

    *count = 0;
    for (uint64_t i = 0; i < qb->table_size; i++) {
        qb->table[i] = qcow2_plain_entry(s, qb, i);
        if (qb->table[i] <= QCOW2_BITMAP_ONES || (*count)++ < most) {
            continue;
        }
        --*count;
        qb->table[i] = QCOW2_BITMAP_ONES;
        qcow2_mark_stale(qb, i);
        uint64_t end = min_u64((i + 1) << per, qb->regions);
        for (uint64_t k = i << per; k < end; k++) {
            bitmap_word_set(qb->armed, k);
            bitmap_word_set(qb->touched, k);
        }
    }
}

/* Is the region armed in a bitmap with such regions? */
static bool is_armed(const struct qcow2 *s, const struct qcow2_bitmap *qb,
                     uint64_t region)
{
    list_for_each (e, &s->bitmaps.list) {
        const struct qcow2_bitmap *old = list_entry(e, struct qcow2_bitmap,
                                                    in_image);

        if (old->bm && old->bm->enabled && !old->broken &&
            !atomic_load(&old->voided) && old->region_bits == qb->region_bits &&
            region < old->regions && bitmap_word_get(old->armed, region)) {
            return true;
        }
    }
    return false;
}

/* Arm regions of a slice whose bits are @bits. */
static void arm_regions(const struct qcow2 *s, struct qcow2_bitmap *qb,
                        uint64_t slice, unsigned char *bits)
{
    unsigned per = qcow2_regions_bits(s, qb);
    uint64_t bytes = UINT64_C(1)
                     << (qb->region_bits - qb->granularity_bits - 3);
    uint64_t last = qb->granules / 8; /* bits behind the end stay zeroes */
    uint64_t end = min_u64((slice + 1) << per, qb->regions);

    for (uint64_t k = slice << per; k < end; k++) {
        if ((k + 1) * bytes <= last && is_armed(s, qb, k)) {
            memset(bits + (k - (slice << per)) * bytes, 0xff, bytes);
            bitmap_word_set(qb->armed, k);
            bitmap_word_set(qb->touched, k);
            bitmap_word_set(qb->stale, slice);
        }
    }
}

/* Fill in the clusters' places, from @host on, and their bits. */
static void fill_bits(const struct qcow2 *s, struct qcow2_bitmap *qb,
                      uint64_t host, unsigned char *bits)
{
    for (uint64_t i = 0; i < qb->table_size; i++) {
        if (qb->table[i] > QCOW2_BITMAP_ONES) {
            qcow2_bitmap_slice(s, qb, i, bits);
            arm_regions(s, qb, i, bits);
            qb->table[i] = host;
            host += s->cluster_size;
            bits += s->cluster_size;
        }
    }
}

static void fill_table(const struct qcow2_bitmap *qb, unsigned char *be)
{
    for (uint32_t i = 0; i < qb->table_size; i++) {
        store_be64(be + i * UINT64_C(8), qb->table[i]);
    }
}

static uint64_t table_clusters(const struct qcow2 *s,
                               const struct qcow2_bitmap *qb)
{
    return div_up(qb->table_size * UINT64_C(8), s->cluster_size);
}

/* No entry leads to a cluster that is not allocated. */
static int forget_entries(struct qcow2_bitmap *qb, int r)
{
    qb->table_size = 0;
    return r;
}

/* Its size is such that there are some slices. */
int qcow2_make_fresh_table(struct qcow2 *s, struct qcow2_bitmap *qb,
                           bool *counts)
{
    uint64_t slices = qcow2_slices(s, qb, s->node->size);
    uint64_t count;
    uint64_t host;

    free(qb->table);
    qb->table = calloc(slices + 1, sizeof(*qb->table));
    if (!qb->table) {
        return -ENOMEM;
    }
    int r = qcow2_bitmap_marks(s, qb, s->node->size);
    if (r < 0 || slices == 0) {
        return r;
    }
    qb->table_size = (uint32_t)slices;
    plan_entries(s, qb, &count);
    uint64_t clusters = count + table_clusters(s, qb);
    CLEANUP_FREE unsigned char *buf = buf_alloc(clusters << s->cluster_bits);
    if (!buf) {
        return forget_entries(qb, -ENOMEM);
    }
    r = qcow2_fresh_clusters(s, clusters, &host, counts);
    if (r < 0) {
        return forget_entries(qb, r);
    }
    qb->table_offset = host + (count << s->cluster_bits);
    memset(buf, 0, clusters << s->cluster_bits);
    fill_bits(s, qb, host, buf);
    fill_table(qb, buf + (count << s->cluster_bits));
    return qcow2_write_through(s, buf, clusters << s->cluster_bits, host);
}

struct qcow2_run qcow2_fresh_run(const struct qcow2 *s,
                                 const struct qcow2_bitmap *qb)
{
    uint64_t host = qb->table_offset;

    for (uint32_t i = 0; i < qb->table_size; i++) {
        if (qb->table[i] > QCOW2_BITMAP_ONES) {
            host = min_u64(host, qb->table[i]);
        }
    }
    return (struct qcow2_run){host,
                              qb->table_offset - host +
                                  (table_clusters(s, qb) << s->cluster_bits)};
}
