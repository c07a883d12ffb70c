/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writing metadata back, in the order that keeps invariant 1 (alloc.c):
 *
 *   -- flush of the data file, if there is one --  invariant 4
 *   refcount blocks
 *   -- barrier, if the refcount table changed --   a table entry leads to a
 *   refcount table                                 block that is there
 *   -- barrier --                                  refcounts and data first
 *   L2 tables
 *   -- barrier, if L1 changed --                   an L1 entry leads to an
 *   L1 table                                       L2 table that is there
 *   -- flush --
 *   clusters in limbo whose unlinking was in this round may be released
 *
 * All of it is copied at one instant under meta, then written without it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"
#include "qcow2/copied.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"
#include "util/iov.h"

/* Freed clusters are released, at the latest, when limbo has so many bytes. */
#define LIMBO_MAX (64 * MiB)

/* How often a round is tried that finds that something has to be mended. */
#define TRIES 8

/* The sectors of the L1 or the refcount table that have changed, and the
 * header's fields for the table if it has moved. */
struct table_piece {
    enum node_event write_event;  /* before the piece is written */
    enum node_event switch_event; /* before the header's fields are */
    unsigned char *copy;          /* of the sectors, one after the other */
    uint64_t table_offset;
    uint64_t entries; /* of the whole table */
    struct qcow2_span span;
    bool moved;
    unsigned char field[12];
    uint64_t field_offset;
};

struct round {
    struct qcow2_dirty_set blocks;
    struct qcow2_dirty_set l2;
    struct table_piece reftable;
    struct table_piece l1;
    size_t copied; /* notes of copied.c */
    bool freed;    /* something is in limbo */
    bool making;   /* a snapshot */
};

/* The end of a sector of the table, in entries. */
static uint64_t sector_end(const struct table_piece *p, uint64_t sector)
{
    return min_u64((sector + 1) * QCOW2_SECTOR_ENTRIES, p->entries);
}

/* The first sector from @from on that has changed, or has not. */
static uint64_t next_sector(const struct table_piece *p, uint64_t from,
                            bool changed)
{
    uint64_t end = div_up(p->entries, QCOW2_SECTOR_ENTRIES);

    while (from < end && qcow2_span_has(&p->span, from) != changed) {
        bool skip = changed && from % 64 == 0 && !p->span.sectors[from / 64];
        from += skip ? 64 : 1;
    }
    return min_u64(from, end);
}

/* Take what has changed of the table, without the bits @clear. */
static int take_piece(struct table_piece *p, const _Atomic uint64_t *table,
                      uint64_t clear, struct qcow2_span *dirty, bool *moved)
{
    unsigned char *to;

    if (qcow2_span_empty(dirty)) {
        return 0;
    }
    to = p->copy = malloc((size_t)dirty->count * QCOW2_SECTOR);
    if (!p->copy) {
        return -ENOMEM;
    }
    p->span = *dirty;
    p->moved = *moved;
    memset(dirty, 0, sizeof(*dirty));
    *moved = false;
    for (uint64_t i = next_sector(p, 0, true);
         i * QCOW2_SECTOR_ENTRIES < p->entries;
         i = next_sector(p, i + 1, true)) {
        for (uint64_t e = i * QCOW2_SECTOR_ENTRIES; e < sector_end(p, i); e++) {
            store_be64(to, atomic_load(&table[e]) & ~clear);
            to += 8;
        }
    }
    return 0;
}

static int take_reftable(struct qcow2 *s, struct table_piece *p)
    REQUIRES(s->meta)
{
    p->table_offset = s->reftable_offset;
    p->entries = s->reftable_size;
    int r = take_piece(p, (const _Atomic uint64_t *)s->reftable, 0,
                       &s->reftable_dirty, &s->reftable_moved);

    p->write_event = p->moved ? EVENT_REFBLOCK_ALLOC_WRITE_TABLE
                              : EVENT_REFBLOCK_ALLOC_HOOKUP;
    p->switch_event = EVENT_REFBLOCK_ALLOC_SWITCH_TABLE;
    p->field_offset = QCOW2_HDR_REFTABLE;
    store_be64(p->field, s->reftable_offset);
    store_be32(p->field + 8,
               (uint32_t)(s->reftable_size * UINT64_C(8) >> s->cluster_bits));
    return r;
}

static int take_l1(struct qcow2 *s, struct table_piece *p) REQUIRES(s->meta)
{
    p->table_offset = s->l1_offset;
    p->entries = s->l1_size;
    int r = take_piece(p, s->l1, s->making ? QCOW2_COPIED : 0, &s->l1_dirty,
                       &s->l1_moved);

    p->write_event = p->moved ? EVENT_L1_GROW_WRITE_TABLE : EVENT_L1_UPDATE;
    p->switch_event = EVENT_L1_GROW_ACTIVATE_TABLE;
    p->field_offset = QCOW2_HDR_L1;
    store_be32(p->field, s->l1_size);
    store_be64(p->field + 4, s->l1_offset);
    return r;
}

static int collect(struct qcow2 *s, struct round *w) REQUIRES(s->meta)
{
    int r = qcow2_cache_collect(s->refblocks, &w->blocks);
    if (r == 0) {
        r = qcow2_cache_collect(s->l2, &w->l2);
    }
    w->making = s->making;
    if (r == 0) {
        r = take_reftable(s, &w->reftable);
    }
    if (r == 0) {
        r = take_l1(s, &w->l1);
    }
    w->copied = s->copied.count;
    w->freed = s->freed_count > 0;
    s->freed_sealed = s->freed_count;
    return r;
}

/* Flush one of the two files.  *@known: its failures that we have acted upon.
 * One that another user of the file was told is one for us, too. */
static int flush_one(struct qcow2 *s, struct node *n, flush_mark *known)
{
    int r = node_flush_since(n, atomic_load(known));

    if (r < 0) {
        atomic_store(known, node_flush_failures(n));
        qcow2_flush_failed(s);
        qcow2_copied_lost(s);
    }
    return r;
}

int qcow2_flush_file(struct qcow2 *s)
{
    return flush_one(s, s->file, &s->file_failed);
}

/* The new file may have failures that nobody was told, or the old one may have
 * had them. */
static void files_changed(struct qcow2 *s, const struct edge *e,
                          flush_mark *known)
{
    uint64_t failed = node_flush_failures(e->child);

    atomic_store(known, failed);
    if (failed != atomic_load(&e->seen)) {
        qcow2_flush_failed(s);
        qcow2_copied_lost(s);
    }
}

void qcow2_files_changed(struct qcow2 *s)
{
    files_changed(s, s->node->child[CHILD_FILE], &s->file_failed);
    if (s->external && s->data) {
        files_changed(s, s->node->child[CHILD_DATA], &s->data_failed);
    }
}

static int flush_data(struct qcow2 *s)
{
    return s->external && s->data ? flush_one(s, s->data, &s->data_failed) : 0;
}

/* Write the bytes [@first, @end) of the table, except pages of zeroes where the
 * file has a hole.  The hole reads as they do, and the file may have no room
 * for them. */
static int write_run(struct qcow2 *s, uint64_t table_offset, uint64_t first,
                     uint64_t end, const unsigned char *copy)
{
    uint64_t begun = first; /* what is to be written begins there */
    int r = 0;

    for (uint64_t at = first, next; at < end && r == 0; at = next) {
        next = min_u64(align_down(at, QCOW2_TABLE_PAGE) + QCOW2_TABLE_PAGE,
                       end);
        bool skip = bytes_are_zero(copy + (at - first), next - at) &&
                    qcow2_is_hole(s->file, table_offset + at, next - at);
        uint64_t to = skip ? at : next;
        if ((skip || next == end) && begun < to) {
            r = node_pwrite(s->file, copy + (begun - first), to - begun,
                            table_offset + begun, 0);
        }
        begun = skip ? next : begun;
    }
    return r;
}

/* Write runs of sectors that have changed, lowest first. */
static int write_entries(struct qcow2 *s, const struct table_piece *p)
{
    const unsigned char *copy = p->copy;
    uint64_t bytes = p->entries * 8;
    uint64_t to;
    int r = 0;

    for (uint64_t from = next_sector(p, 0, true);
         from * QCOW2_SECTOR < bytes && r == 0;
         from = next_sector(p, to, true)) {
        to = next_sector(p, from, false);
        uint64_t first = from * QCOW2_SECTOR;
        uint64_t end = min_u64(to * QCOW2_SECTOR, bytes);

        r = write_run(s, p->table_offset, first, end, copy);
        copy += end - first;
    }
    return r;
}

/* Write a piece after a barrier of its own, so that what it refers to is
 * there. */
static int write_table_piece(struct qcow2 *s, const struct table_piece *p)
{
    if (qcow2_span_empty(&p->span)) {
        return 0;
    }
    int r = qcow2_flush_file(s);
    if (r == 0) {
        node_event(s->file, p->write_event);
        r = write_entries(s, p);
    }
    if (r == 0 && p->moved) {
        r = qcow2_flush_file(s);
    }
    if (r == 0 && p->moved) {
        node_event(s->file, p->switch_event);
        r = node_pwrite(s->file, p->field, sizeof(p->field), p->field_offset,
                        0);
    }
    return r;
}

/* While a snapshot is made, tables are written without COPIED: snapshot-make.c
 * says why. */
static void share_copies(const struct qcow2 *s, const struct round *w)
{
    for (size_t i = 0; w->making && i < w->l2.count; i++) {
        struct qcow2_table copy = {.data = w->l2.list[i].copy};
        qcow2_l2_share(s, &copy);
    }
}

static int check_copies(struct qcow2 *s, const struct round *w)
{
    return w->copied > 0 && qcow2_copied_are_lost(s) ? -EINPROGRESS : 0;
}

/* Another user's flush may have failed meanwhile. */
static int flush_copies(struct qcow2 *s, const struct round *w)
{
    int r = qcow2_flush_file(s);

    return r < 0 ? r : check_copies(s, w);
}

static int write_round(struct qcow2 *s, const struct round *w, bool to_disk)
{
    int r = flush_data(s);

    if (r == 0) {
        r = check_copies(s, w);
    }
    if (r < 0) {
        return r;
    }
    if (!qcow2_span_empty(&w->reftable.span)) { /* blocks that are new */
        node_event(s->file, w->reftable.moved
                                ? EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS
                                : EVENT_REFBLOCK_ALLOC_WRITE);
    }
    r = qcow2_cache_write(s->refblocks, &w->blocks);
    if (r == 0) {
        r = write_table_piece(s, &w->reftable);
    }
    if (r == 0 && (w->l2.count > 0 || !qcow2_span_empty(&w->l1.span))) {
        r = flush_copies(s, w);
    }
    if (r == 0) {
        r = qcow2_cache_write(s->l2, &w->l2);
    }
    if (r == 0) {
        r = write_table_piece(s, &w->l1);
    }
    if (r == 0 && to_disk) {
        node_event(s->file, EVENT_FLUSH_TO_DISK);
    }
    return r < 0 ? r : flush_copies(s, w);
}

/* The sectors differ still. */
static void give_back(const struct table_piece *p, struct qcow2_span *dirty,
                      bool *moved)
{
    uint32_t count = 0;

    for (unsigned i = 0; i < QCOW2_SECTOR_WORDS; i++) {
        dirty->sectors[i] |= p->span.sectors[i];
        count += (uint32_t)__builtin_popcountll(dirty->sectors[i]);
    }
    dirty->count = count;
    *moved |= p->moved;
}

/* After a success, clusters that were in limbo when the round was collected are
 * unlinked on disk.  After a failure everything is dirty again. */
static void finish(struct qcow2 *s, struct round *w, size_t in_limbo, int r)
    REQUIRES(s->flush_lock)
{
    qcow2_cache_release(s->refblocks, &w->blocks, r < 0);
    qcow2_cache_release(s->l2, &w->l2, r < 0);
    mutex_lock(&s->meta);
    if (r < 0) {
        give_back(&w->reftable, &s->reftable_dirty, &s->reftable_moved);
        give_back(&w->l1, &s->l1_dirty, &s->l1_moved);
    } else {
        qcow2_copied_durable(s, w->copied);
        for (size_t i = 0; i < in_limbo; i++) {
            s->freed[i].durable = true;
        }
    }
    mutex_unlock(&s->meta);
    free(w->reftable.copy);
    free(w->l1.copy);
}

static int flush_locked(struct qcow2 *s, bool to_disk) REQUIRES(s->flush_lock)
{
    struct round w = {0};

    qcow2_cache_make_room(s->refblocks, &w.blocks);
    qcow2_cache_make_room(s->l2, &w.l2);
    mutex_lock(&s->meta);
    int r = collect(s, &w);
    size_t in_limbo = s->freed_count;
    mutex_unlock(&s->meta);
    if (r == 0) {
        share_copies(s, &w);
        r = write_round(s, &w, to_disk);
    }
    finish(s, &w, in_limbo, r);
    return r == 0 && w.freed ? qcow2_release_freed(s) : r;
}

/* Something may be lost after it was mended, and before the round.  After a
 * failure guests are not to see it, as far as storage lets us. */
static int flush(struct qcow2 *s, bool to_disk)
{
    int r = -EINPROGRESS;

    mutex_lock(&s->flush_lock);
    for (unsigned i = 0; i < TRIES && r == -EINPROGRESS; i++) {
        r = qcow2_copied_mend(s);
        r = r < 0 ? r : flush_locked(s, to_disk);
    }
    if (r < 0) {
        (void)qcow2_copied_mend(s);
    }
    mutex_unlock(&s->flush_lock);
    return r == -EINPROGRESS ? -EIO : r;
}

int qcow2_flush(struct node *n)
{
    return flush(n->state, false);
}

int qcow2_flush_to_disk(struct node *n)
{
    return flush(n->state, !n->flags.no_flush);
}

bool qcow2_is_pressed(struct qcow2 *s)
{
    return s->freed_clusters << s->cluster_bits > LIMBO_MAX ||
           qcow2_copied_many(s) || qcow2_cache_pressed(s->l2) ||
           qcow2_cache_pressed(s->refblocks);
}

int qcow2_relieve(struct qcow2 *s)
{
    mutex_lock(&s->meta);
    bool pressed = qcow2_is_pressed(s);
    mutex_unlock(&s->meta);
    return pressed ? qcow2_flush(s->node) : 0;
}
