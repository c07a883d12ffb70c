/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Giving back the room behind the new end of a disk that shrinks; drained.
 *
 *   data clusters      unlinked and freed before the new size counts
 *   -- the new size is on disk --
 *   L2 tables          that describe nothing any more: unlinked, freed
 *   refcount blocks    that count nothing but themselves: unlinked
 *   -- flush --        nothing on disk leads there; if it fails, something may,
 *                      and the blocks are linked again
 *   the file           is cut behind the last cluster in use
 *
 * Freed clusters are discarded in spite of the discard option, because the user
 * has cut them off.  The disk has shrunk as soon as the new size counts; a
 * failure after that only keeps the file larger.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "qcow2/alloc.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"

/* Unlink the L2 tables from entry @first of the L1 table on. */
static int drop_l2_tables(struct qcow2 *s, uint64_t first) REQUIRES(s->meta)
{
    int r = qcow2_overlap_check(s, QCOW2_META_L1, s->l1_offset,
                                s->l1_size * UINT64_C(8));

    for (uint64_t i = first; i < s->l1_size && r == 0; i++) {
        uint64_t entry = atomic_load(&s->l1[i]);
        uint64_t host = entry & QCOW2_OFFSET_MASK;
        if (host == 0) {
            continue;
        }
        if (!qcow2_l2_is_table(s, entry)) {
            return qcow2_overlap_check(s, QCOW2_META_L2, host, s->cluster_size);
        }
        r = qcow2_free_later(s, host, 1);
        if (r == 0) {
            atomic_store(&s->l1[i], 0);
            qcow2_span_add(&s->l1_dirty, (uint32_t)i, (uint32_t)i + 1);
            qcow2_cache_forget(s->l2, host);
        }
    }
    return r;
}

/* The last cluster of block @index that is in use, besides its own if @but_own.
 * False: there is none. */
static int last_in_block(struct qcow2 *s, uint64_t index, bool but_own,
                         uint64_t *last, bool *found) REQUIRES(s->meta)
{
    uint64_t own = (s->reftable[index] & QCOW2_OFFSET_MASK) >> s->cluster_bits;
    uint64_t first = index << s->refblock_bits;
    uint64_t end = first + (UINT64_C(1) << s->refblock_bits);
    uint64_t count = 0;
    int r = qcow2_refcount_last(s, first, &end);

    if (r == 0 && but_own && end > first && end - 1 == own) {
        r = qcow2_refcount_get(s, own, &count);
        if (r == 0 && count == 1) {
            end = own;
            r = qcow2_refcount_last(s, first, &end);
        }
    }
    *found = end > first;
    *last = end - 1;
    return r;
}

int qcow2_empty_limbo(struct qcow2 *s, bool *empty)
{
    int r = 0;

    *empty = false;
    for (int i = 0; i < 3 && r == 0 && !*empty; i++) {
        r = qcow2_flush(s->node); /* releases what the last one has unlinked */
        mutex_lock(&s->meta);
        *empty = s->freed_count == 0 && i > 0;
        mutex_unlock(&s->meta);
    }
    return r;
}

/* Does refcount block @index, at @host, count its own cluster? */
static bool counts_itself(const struct qcow2 *s, uint64_t index, uint64_t host)
{
    return host >> s->cluster_bits >> s->refblock_bits == index;
}

/* Unlink refcount blocks at the end that count nothing but themselves. */
static int unlink_blocks(struct qcow2 *s) REQUIRES(s->meta)
{
    int r = qcow2_overlap_check(s, QCOW2_META_REFTABLE, s->reftable_offset,
                                s->reftable_size * UINT64_C(8));

    for (uint64_t i = s->reftable_size; i-- > 1 && r == 0;) {
        uint64_t host = s->reftable[i] & QCOW2_OFFSET_MASK;
        uint64_t last;
        bool used;

        if (host == 0) {
            continue;
        }
        r = last_in_block(s, i, true, &last, &used);
        if (r < 0 || used) {
            return r;
        }
        r = qcow2_overlap_check(s, QCOW2_META_REFBLOCK, host, s->cluster_size);
        if (r < 0) {
            return r;
        }
        if (counts_itself(s, i, host)) { /* that goes with it */
            qcow2_overlap_drop(s, host >> s->cluster_bits);
            s->free_hint = min_u64(s->free_hint, host >> s->cluster_bits);
        } else {
            r = qcow2_free_later(s, host, 1);
            if (r < 0) {
                return r;
            }
        }
        qcow2_cache_forget(s->refblocks, host);
        s->reftable[i] = 0;
        qcow2_span_add(&s->reftable_dirty, (uint32_t)i, (uint32_t)i + 1);
    }
    return r;
}

/* Link the blocks again as @before.  The table on disk may still lead to blocks
 * that count themselves, and nothing else keeps their clusters. */
static void link_again(struct qcow2 *s, const uint64_t *before)
    REQUIRES(s->meta)
{
    for (uint64_t i = 1; i < s->reftable_size; i++) {
        uint64_t host = before[i] & QCOW2_OFFSET_MASK;

        if (s->reftable[i] == 0 && host != 0 && counts_itself(s, i, host)) {
            (void)qcow2_overlap_add(s, QCOW2_META_REFBLOCK, host,
                                    s->cluster_size); /* it has a place */
            s->reftable[i] = before[i];
            qcow2_span_add(&s->reftable_dirty, (uint32_t)i, (uint32_t)i + 1);
        }
    }
}

static int drop_refblocks(struct qcow2 *s, bool *empty)
{
    size_t bytes = s->reftable_size * sizeof(*s->reftable);
    CLEANUP_FREE uint64_t *before = malloc(bytes);

    if (!before) {
        return -ENOMEM;
    }
    mutex_lock(&s->meta);
    memcpy(before, s->reftable, bytes);
    int r = unlink_blocks(s);
    mutex_unlock(&s->meta);
    if (r == 0) {
        r = qcow2_empty_limbo(s, empty);
    }
    if (r < 0) {
        mutex_lock(&s->meta);
        link_again(s, before);
        mutex_unlock(&s->meta);
    }
    return r;
}

/* The end of the last cluster that is in use. */
static int find_end(struct qcow2 *s, uint64_t *end) REQUIRES(s->meta)
{
    bool found = false;
    int r = 0;

    *end = s->cluster_size;
    for (uint64_t i = s->reftable_size; i-- > 0 && r == 0 && !found;) {
        uint64_t last;

        if (s->reftable[i] != 0) {
            r = last_in_block(s, i, false, &last, &found);
            *end = (last + 1) << s->cluster_bits;
        }
    }
    return r < 0 || found ? r : -EIO;
}

static int cut_file(struct qcow2 *s)
{
    struct node *file = s->file;
    uint64_t end;

    if (!file->drv->resize || !file->growable) {
        return 0;
    }
    mutex_lock(&s->meta);
    int r = find_end(s, &end);
    mutex_unlock(&s->meta);
    if (r < 0 || end >= node_size(file)) {
        return r;
    }
    r = node_resize(file, end, NULL);
    if (r == 0) {
        mutex_lock(&s->meta);
        s->virgin = end;
        mutex_unlock(&s->meta);
    }
    return r;
}

void qcow2_give_back(struct qcow2 *s, bool on)
{
    mutex_lock(&s->meta);
    s->give_back = on;
    mutex_unlock(&s->meta);
}

void qcow2_give_back_end(struct qcow2 *s, uint64_t size)
{
    bool empty = false;

    mutex_lock(&s->meta);
    int r = drop_l2_tables(s, div_up(size, qcow2_l2_span(s)));
    mutex_unlock(&s->meta);
    if (r == 0) {
        r = qcow2_empty_limbo(s, &empty);
    }
    if (r == 0 && empty) {
        r = drop_refblocks(s, &empty);
    }
    if (r == 0 && empty) {
        (void)cut_file(s);
    }
}
