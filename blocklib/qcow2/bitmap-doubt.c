/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Doubt: a write or a flush has failed, and nobody knows which of two states
 * the image has.
 *
 *  1. Memory takes a new state (an entry of a table, a directory with its
 *     flags, the disk's size) when the image has it.  A write or flush that
 *     fails leaves memory as it was, and what it wrote *in doubt*, from before
 *     the error is told.
 *  2. An entry in doubt (`doubt` of its bitmap): no region of its slice is
 *     armed, so a writer there has to arm, which writes the entry again.
 *  3. The node in doubt (node->bitmaps_doubt): which directory counts, its
 *     flags, a bitmap that the image has and memory has not, or bits that
 *     memory has and the image has not.  Then no data change at all
 *     (core/bitmap-mark.c).  The node is in doubt after each store that has
 *     failed, too, because that store may have been meant to undo one that had
 *     succeeded.
 *  4. Doubt ends when what memory has is written once more, and flushed.  That
 *     needs no room, and happens in place:
 *       header   the extension and the size that memory has
 *       entries  "all ones", so that nothing else matters
 *       flags    as in memory; in_use for a bitmap that memory has not
 *     Where that fails, the bitmaps concerned are marked in_use.  Where that
 *     fails, too, the guest's write fails.
 *  5. A flush that has failed may have lost what was written since the last
 *     one that succeeded, also when the next one succeeds: so entries that
 *     were written, and not flushed yet (`unflushed`), are in doubt then.
 *  6. Clusters that a state in doubt may lead to are not free (`orphans`).
 *
 * What is more in the image than in memory after that (all ones, in_use) goes
 * when the bitmap is next stored or settled (bitmap-store.c).
 */
#include <errno.h>
#include <stdlib.h>

#include "nbdelta/cleanup.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"

#define QB(e) list_entry(e, struct qcow2_bitmap, in_image)

/* --- Orphans --- */

void qcow2_orphan(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    struct qcow2_bitmaps *b = &s->bitmaps;

    if (host == 0 || bytes == 0) {
        return;
    }
    if (b->orphan_count == b->orphan_room) {
        size_t room = b->orphan_room ? b->orphan_room * 2 : 16;
        struct qcow2_run *more = realloc(b->orphans, room * sizeof(*more));
        if (!more) {
            return; /* it leaks */
        }
        b->orphans = more;
        b->orphan_room = room;
    }
    b->orphans[b->orphan_count++] = (struct qcow2_run){host, bytes};
}

static bool has_doubt(const struct qcow2_bitmap *qb)
{
    for (uint64_t i = 0; qb->doubt && i <= qb->table_size / 64; i++) {
        if (atomic_load(&qb->doubt[i]) || atomic_load(&qb->unflushed[i])) {
            return true;
        }
    }
    return false;
}

static bool any_doubt(const struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock)
{
    list_for_each (e, &s->bitmaps.list) {
        if (has_doubt(QB(e))) {
            return true;
        }
    }
    return false;
}

/* Free the orphans if nothing is in doubt. */
static void free_orphans(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock)
{
    if (s->bitmaps.orphan_count == 0 || atomic_load(&s->node->bitmaps_doubt) ||
        any_doubt(s)) {
        return;
    }
    mutex_lock(&s->meta);
    for (size_t i = 0; i < s->bitmaps.orphan_count; i++) {
        const struct qcow2_run *run = &s->bitmaps.orphans[i];
        (void)qcow2_free_later(s, run->host,
                               div_up(run->bytes, s->cluster_size));
    }
    mutex_unlock(&s->meta);
    s->bitmaps.orphan_count = 0;
}

/* --- Entries --- */

static void wrote_entry(struct qcow2 *s, struct qcow2_bitmap *qb,
                        uint64_t slice, int r) REQUIRES(s->bitmaps.arm_lock)
{
    bitmap_word_set(r == 0 ? qb->unflushed : qb->doubt, slice);
    if (r < 0) {
        bitmap_word_clear(qb->unflushed, slice);
    }
    s->bitmaps.entries_written = true;
}

/* They are one write, of a sector at most. */
static int put_entries(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t first,
                       unsigned count, uint64_t entry)
    REQUIRES(s->bitmaps.arm_lock)
{
    unsigned char be[QCOW2_ENTRIES_MAX * 8];
    uint64_t at = qb->table_offset + first * 8;
    bool through = s->bitmaps.through;

    for (unsigned i = 0; i < count; i++) {
        store_be64(be + i * 8UL, entry);
    }
    int r = through ? qcow2_write_through(s, be, count * 8UL, at)
                    : node_pwrite(s->file, be, count * 8UL, at, 0);
    for (uint64_t i = first; i < first + count; i++) {
        wrote_entry(s, qb, i, r);
        if (r == 0 && through) {
            bitmap_word_clear(qb->unflushed, i);
            bitmap_word_clear(qb->doubt, i);
        }
    }
    return r;
}

int qcow2_put_entry(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t slice,
                    uint64_t entry)
{
    int r = put_entries(s, qb, slice, 1, entry);

    if (r == 0) {
        qb->table[slice] = entry;
    }
    return r;
}

static void forget_cluster(struct qcow2 *s, uint64_t entry)
    REQUIRES(s->bitmaps.arm_lock)
{
    if (entry > QCOW2_BITMAP_ONES) {
        qcow2_orphan(s, entry, s->cluster_size);
    }
}

int qcow2_put_ones(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t slice)
{
    uint64_t old = qb->table[slice];

    if (old == QCOW2_BITMAP_ONES && !s->bitmaps.through &&
        bitmap_word_get(qb->unflushed, slice)) {
        return 0;
    }
    int r = qcow2_put_entry(s, qb, slice, QCOW2_BITMAP_ONES);
    if (r == 0) {
        forget_cluster(s, old);
    }
    return r;
}

int qcow2_put_zeroes(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t first,
                     unsigned count)
{
    int r = put_entries(s, qb, first, count, QCOW2_BITMAP_ZEROES);

    for (uint64_t i = first; r == 0 && i < first + count; i++) {
        forget_cluster(s, qb->table[i]);
        qb->table[i] = QCOW2_BITMAP_ZEROES;
    }
    return r;
}

int qcow2_write_table(struct qcow2 *s, const struct qcow2_bitmap *qb,
                      const uint64_t *table)
{
    uint64_t bytes = qb->table_size * UINT64_C(8);
    CLEANUP_FREE unsigned char *be = malloc(bytes + 1);

    if (!be) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < qb->table_size; i++) {
        store_be64(be + i * 8UL, table[i]);
    }
    return bytes == 0 ? 0
                      : node_pwrite(s->file, be, bytes, qb->table_offset, 0);
}

/* --- Flushes --- */

static void entries_flushed(struct qcow2 *s, bool ok)
    REQUIRES(s->bitmaps.arm_lock)
{
    if (!s->bitmaps.entries_written) {
        return;
    }
    s->bitmaps.entries_written = false;
    list_for_each (e, &s->bitmaps.list) {
        struct qcow2_bitmap *qb = QB(e);

        for (uint64_t i = 0; qb->doubt && i <= qb->table_size / 64; i++) {
            uint64_t w = atomic_exchange(&qb->unflushed[i], 0);
            if (ok) {
                atomic_fetch_and(&qb->doubt[i], ~w);
            } else {
                atomic_fetch_or(&qb->doubt[i], w);
            }
        }
    }
}

/* Disarm all regions: none that was armed without a flush is sure any more. */
static void disarm_all(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock)
{
    list_for_each (e, &s->bitmaps.list) {
        struct qcow2_bitmap *qb = QB(e);

        for (uint64_t i = 0; qb->doubt && i <= qb->regions / 64; i++) {
            atomic_store(&qb->armed[i], 0);
        }
        for (uint64_t i = 0; qb->doubt && i <= qb->table_size / 64; i++) {
            atomic_fetch_or(&qb->doubt[i], atomic_load(&qb->stale[i]));
        }
    }
}

void qcow2_flush_failed(struct qcow2 *s)
{
    atomic_store(&s->bitmaps.flush_failed, true);
    if (s->bitmaps.process_only) {
        atomic_store(&s->node->bitmaps_doubt, true);
    }
}

/* Exact bits that were written may be lost. */
static void loosen_all(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock)
{
    list_for_each (e, &s->bitmaps.list) {
        struct qcow2_bitmap *qb = QB(e);

        for (uint64_t i = 0; qb->doubt && i <= qb->table_size / 64; i++) {
            atomic_fetch_or(&qb->loose[i], atomic_load(&qb->stale[i]));
        }
    }
}

static void notice_failure(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock)
{
    if (atomic_exchange(&s->bitmaps.flush_failed, false)) {
        loosen_all(s);
        entries_flushed(s, false);
        if (s->bitmaps.process_only) {
            disarm_all(s);
        }
    }
}

bool qcow2_entries_begin(struct qcow2 *s, bool through)
{
    notice_failure(s);
    s->bitmaps.through = through && !s->bitmaps.process_only &&
                         qcow2_can_write_through(s);
    return s->bitmaps.through;
}

/* Of two concurrent flushes, only one may be told of an error that concerns
 * both.  So there is one flush at a time, and its failure is known before the
 * next one begins. */
static int flush_alone(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock)
{
    mutex_lock(&s->flush_lock);
    int r = qcow2_flush_file(s);
    mutex_unlock(&s->flush_lock);
    return r;
}

int qcow2_flush_entries(struct qcow2 *s)
{
    if (s->bitmaps.through) { /* there is nothing to flush */
        s->bitmaps.through = false;
        free_orphans(s);
        return 0;
    }
    int r = s->bitmaps.process_only ? 0 : flush_alone(s);

    if (r == 0 && atomic_load(&s->bitmaps.flush_failed)) {
        r = -EIO;
    }
    if (r < 0) {
        atomic_store(&s->bitmaps.flush_failed, true);
        notice_failure(s);
    } else {
        entries_flushed(s, true);
        free_orphans(s);
    }
    return r;
}

/* --- Flags --- */

/* Write the flags that differ from memory; with @all, all flags. */
static int write_flags(struct qcow2 *s, bool all) REQUIRES(s->bitmaps.arm_lock)
{
    uint64_t at = s->bitmaps.ext.dir_offset;
    unsigned char be[4];
    int r = 0;

    list_for_each (e, &s->bitmaps.list) {
        const struct qcow2_bitmap *qb = QB(e);

        if (r == 0 && (all || qb->wanted != qb->flags)) {
            store_be32(be, qb->wanted);
            r = node_pwrite(s->file, be, sizeof(be), at + QCOW2_BITMAP_FLAGS_AT,
                            0);
        }
        at += qcow2_bitmap_entry_size(qb);
    }
    return r;
}

static void take_flags(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock)
{
    list_for_each (e, &s->bitmaps.list) {
        QB(e)->flags = QB(e)->wanted;
        if (QB(e)->flags & QCOW2_BITMAP_IN_USE) {
            atomic_store(&QB(e)->voided, true);
        }
    }
}

int qcow2_bitmap_void(struct qcow2 *s)
{
    notice_failure(s);
    list_for_each (e, &s->bitmaps.list) {
        QB(e)->wanted = QB(e)->flags |
                        (QB(e)->broken ? QCOW2_BITMAP_IN_USE : 0);
    }
    int r = write_flags(s, false);
    if (r == 0) {
        r = qcow2_flush_entries(s);
    }
    if (r == 0) {
        take_flags(s);
    }
    return r;
}

/* --- The header --- */

void qcow2_bitmap_doubt(struct qcow2 *s)
{
    atomic_store(&s->node->bitmaps_doubt, true);
    if (!s->bitmaps.tightener && !s->bitmaps.closing) { /* it heals, too */
        (void)qcow2_tightener_start(s);
    }
}

static int write_size(struct qcow2 *s, uint64_t size)
{
    unsigned char be[8];

    store_be64(be, size);
    int r = node_pwrite(s->file, be, sizeof(be), QCOW2_HDR_SIZE, 0);
    return r < 0 ? r : qcow2_flush_file(s);
}

/* Write the header as memory has it.  Hold the flush lock: header fields that
 * others write are written with it. */
static int restore_header(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock)
{
    const struct qcow2_disk disk = {
        .size = s->node->size,
        .moves = s->bitmaps.l1_doubt,
        .l1_size = s->l1_size,
        .l1_offset = s->l1_offset,
    };
    const struct qcow2_disk *to = s->bitmaps.size_doubt ? &disk : NULL;
    int r = 0;

    if (s->bitmaps.header_doubt) {
        mutex_lock(&s->flush_lock);
        r = s->version < 3
                ? write_size(s, s->node->size)
                : qcow2_set_bitmaps_ext(s, &s->bitmaps.ext, to, false);
        mutex_unlock(&s->flush_lock);
    }
    if (r == 0) {
        s->bitmaps.header_doubt = false;
        s->bitmaps.size_doubt = false;
        s->bitmaps.l1_doubt = false;
    }
    return r;
}

static int header_failed(struct qcow2 *s, const struct qcow2_disk *to, int r)
    REQUIRES(s->bitmaps.arm_lock)
{
    s->bitmaps.header_doubt = true;
    s->bitmaps.size_doubt |= to != NULL;
    s->bitmaps.l1_doubt |= to && to->moves;
    qcow2_bitmap_doubt(s);
    (void)restore_header(s);
    return r;
}

int qcow2_switch_header(struct qcow2 *s, const struct qcow2_bitmaps_ext *x,
                        const struct qcow2_disk *to, bool through)
{
    int r = qcow2_set_bitmaps_ext(s, x, to, through);

    return r < 0 ? header_failed(s, to, r) : 0;
}

int qcow2_switch_size(struct qcow2 *s, uint64_t size)
{
    int r = write_size(s, size);

    if (r < 0) {
        mutex_lock(&s->bitmaps.arm_lock);
        (void)header_failed(s, &(struct qcow2_disk){.size = size}, r);
        mutex_unlock(&s->bitmaps.arm_lock);
    }
    return r;
}

void qcow2_bitmaps_sure(struct qcow2 *s)
{
    s->bitmaps.header_doubt = false;
    s->bitmaps.size_doubt = false;
    s->bitmaps.l1_doubt = false;
    /* A table that stays may lack bits that were armed without a flush. */
    atomic_store(&s->node->bitmaps_doubt,
                 s->bitmaps.process_only &&
                     (atomic_load(&s->bitmaps.flush_failed) || any_doubt(s)));
    free_orphans(s);
}

/* --- Healing --- */

static bool is_good(const struct qcow2_bitmap *qb)
{
    return qb->bm && !qb->broken && !atomic_load(&qb->voided);
}

/* May the image lack bits? */
static bool lacks(const struct qcow2_bitmap *qb, uint64_t slice)
{
    return qb->bm->rewrite || bitmap_word_get(qb->doubt, slice);
}

static bool lacks_any(const struct qcow2_bitmap *qb)
{
    for (uint64_t i = 0; i < qb->table_size; i++) {
        if (lacks(qb, i)) {
            return true;
        }
    }
    return false;
}

static uint32_t flags_for(const struct qcow2_bitmap *qb)
{
    if (!qb->bm) {
        return qb->flags | QCOW2_BITMAP_IN_USE;
    }
    return !is_good(qb) ? qb->flags
                        : (qb->flags & ~QCOW2_BITMAP_AUTO) |
                              (qb->bm->enabled ? QCOW2_BITMAP_AUTO : 0);
}

/* Write "all ones" for the slices that may lack bits. */
static int fill_table(struct qcow2 *s, struct qcow2_bitmap *qb)
    REQUIRES(s->bitmaps.arm_lock)
{
    CLEANUP_FREE uint64_t *fresh = calloc(qb->table_size + UINT64_C(1),
                                          sizeof(*fresh));

    if (!fresh) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < qb->table_size; i++) {
        fresh[i] = lacks(qb, i) ? QCOW2_BITMAP_ONES : qb->table[i];
    }
    int r = qcow2_write_table(s, qb, fresh);
    for (uint32_t i = 0; i < qb->table_size; i++) {
        if (!lacks(qb, i)) {
            continue;
        }
        wrote_entry(s, qb, i, r);
        qcow2_mark_stale(qb, i);
        if (r == 0) {
            forget_cluster(s, qb->table[i]);
            qb->table[i] = fresh[i];
        }
    }
    return r;
}

/* Write what is in doubt once more.  @give_up: mark bitmaps that may lack bits
 * as in_use. */
static int write_again(struct qcow2 *s, bool give_up)
    REQUIRES(s->bitmaps.arm_lock)
{
    int r = 0;

    list_for_each (e, &s->bitmaps.list) {
        struct qcow2_bitmap *qb = QB(e);

        qb->wanted = flags_for(qb);
        if (!is_good(qb) || !lacks_any(qb)) {
            continue;
        }
        if (give_up) {
            qb->wanted |= QCOW2_BITMAP_IN_USE;
        } else if (r == 0) {
            r = fill_table(s, qb);
        }
    }
    if (r == 0) {
        r = write_flags(s, true);
    }
    if (r == 0) {
        r = qcow2_flush_entries(s);
    }
    if (r == 0) {
        take_flags(s);
    }
    return r;
}

int qcow2_heal(struct qcow2 *s)
{
    struct node *n = s->node;

    if (!atomic_load(&n->bitmaps_doubt)) {
        return 0;
    }
    if (atomic_load(&s->corrupt) || n->flags.read_only) {
        return -EIO;
    }
    notice_failure(s);
    /* Do both, whatever the first gives: there may be no other chance before
     * the end. */
    int header = restore_header(s);
    int r = write_again(s, false);
    if (r < 0) {
        r = write_again(s, true);
    }
    r = header < 0 ? header : r;
    if (r == 0) {
        atomic_store(&n->bitmaps_doubt, false);
        if (s->bitmaps.process_only && atomic_load(&s->bitmaps.flush_failed)) {
            atomic_store(&n->bitmaps_doubt, true); /* once more, meanwhile */
        }
        free_orphans(s);
    }
    return r;
}

int qcow2_bitmap_heal(struct node *n, bool nowait)
{
    struct qcow2 *s = n->state;

    if (nowait) {
        return -EAGAIN;
    }
    mutex_lock(&s->bitmaps.arm_lock);
    int r = qcow2_heal(s);
    mutex_unlock(&s->bitmaps.arm_lock);
    return r;
}

/* --- What only a new directory can say --- */

static bool differs(const struct bitmap *bm)
{
    const struct qcow2_bitmap *qb = bm->stored;

    if (!qb || !bm->persistent) {
        return bm->persistent || qb;
    }
    return !qb->broken && (bm->rewrite || atomic_load(&qb->voided) ||
                           bm->enabled != !!(qb->flags & QCOW2_BITMAP_AUTO));
}

bool qcow2_needs_store(const struct qcow2 *s)
{
    uint32_t here = 0;
    uint32_t there = 0;

    list_for_each (e, &s->node->bitmaps) {
        const struct bitmap *bm = list_entry(e, struct bitmap, on_node);

        if (differs(bm)) {
            return true;
        }
        here += bm->persistent;
    }
    list_for_each (e, &s->bitmaps.list) {
        there++;
    }
    return here != there;
}
