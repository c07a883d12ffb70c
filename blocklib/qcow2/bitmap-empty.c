/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Slices that have no bits any more: a bitmap was cleared, or a backup has
 * succeeded.
 *
 *   drained    memory has fewer bits, the image has what it had: slices are
 *              loose
 *   then       -- flush: what was written before --
 *              no bits? disarm -- still none? the entry says "zeroes"
 *
 * So guests wait for memory only, and a crash in between leaves the bits that
 * there were.  bitmap-arm.c numbers what has to hold.  A guest that sets a bit
 * after we have looked for it finds its region disarmed, and waits for the arm
 * lock.  That is held for one short write at a time, of entries in a row.
 *
 * A cluster that an entry has led to is free when the new entry is durable.
 */
#include "qcow2/bitmaps.h"

/* Slices in a row. */
struct row {
    uint64_t first;
    unsigned count;
};

/* Is the slice loose, and has memory no bit of it?  Then it is disarmed, and
 * its entry is to be written. */
static bool is_empty(const struct qcow2 *s, struct qcow2_bitmap *qb,
                     uint64_t slice) REQUIRES(s->bitmaps.arm_lock)
{
    if (!bitmap_word_get(qb->loose, slice) ||
        bitmap_word_get(qb->doubt, slice) ||
        qcow2_plain_entry(s, qb, slice) != QCOW2_BITMAP_ZEROES) {
        return false;
    }
    qcow2_disarm(qb, qcow2_regions_of(s, qb, slice));
    if (qcow2_plain_entry(s, qb, slice) != QCOW2_BITMAP_ZEROES) {
        return false;
    }
    bool sure = qb->table[slice] == QCOW2_BITMAP_ZEROES &&
                !bitmap_word_get(qb->unflushed, slice);
    if (sure) {
        qcow2_mark_exact(qb, slice);
    }
    return !sure;
}

/* Find the next empty slices of [@from, @end), which lie in a row. */
static struct row next_row(const struct qcow2 *s, struct qcow2_bitmap *qb,
                           uint64_t from, uint64_t end)
    REQUIRES(s->bitmaps.arm_lock)
{
    struct row row = {from, 0};

    for (uint64_t i = from; i < end; i++) {
        bool empty = is_empty(s, qb, i);

        if (!empty && row.count > 0) {
            break;
        }
        row.first = empty && row.count == 0 ? i : row.first;
        row.count += empty;
    }
    return row;
}

/* They stay loose until it is certain that the image has the entries. */
static int empty_row(struct qcow2 *s, struct qcow2_bitmap *qb, struct row row,
                     bool *left) REQUIRES(s->bitmaps.arm_lock)
{
    bool through = qcow2_entries_begin(s, true);
    int r = qcow2_put_zeroes(s, qb, row.first, row.count);

    if (!through) {
        *left = true;
        return r;
    }
    for (unsigned i = 0; r == 0 && i < row.count; i++) {
        qcow2_mark_exact(qb, row.first + i);
    }
    (void)qcow2_flush_entries(s);
    return r;
}

/* The next row of [*@at, @end), and go behind it. */
static int empty_next(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t *at,
                      uint64_t end, bool *left)
{
    int r = 0;

    qcow2_take_arm_lock(s);
    if (atomic_load(&qb->voided)) {
        *at = end;
    } else {
        struct row row = next_row(s, qb, *at, end);

        r = row.count > 0 ? empty_row(s, qb, row, left) : 0;
        *at = row.count > 0 ? row.first + row.count : end;
    }
    mutex_unlock(&s->bitmaps.arm_lock);
    return r;
}

static int flush_left(struct qcow2 *s)
{
    qcow2_take_arm_lock(s);
    (void)qcow2_entries_begin(s, false);
    int r = qcow2_flush_entries(s);
    mutex_unlock(&s->bitmaps.arm_lock);
    return r;
}

int qcow2_empty_slices(const struct qcow2_look *k, struct qcow2_bitmap *qb)
{
    bool left = false; /* entries that are not durable */
    int r = 0;

    for (uint64_t w = 0; w * 64 < qb->table_size && r == 0; w++) {
        uint64_t at = w * 64;
        uint64_t end = min_u64(at + 64, qb->table_size);

        while (atomic_load(&qb->loose[w]) && at < end && r == 0 &&
               !qcow2_look_ends(k)) {
            r = empty_next(k->s, qb, &at, end, &left);
        }
    }
    return r == 0 && left ? flush_left(k->s) : r;
}
