/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writing the directory of bitmaps, and exact bits.  All of it happens drained.
 *
 *   new directory (and tables, and bits) in free clusters
 *   -- refcounts, flush --
 *   the header's extension leads to it, in one write
 *   -- flush --
 *   the old directory, and what only it led to, are free
 *
 * Where the directory differs by new bitmaps only, no flush is needed: all that
 * is new is written through (bitmap-fresh.c), and guests wait for less.
 *
 * A crash leaves one of the two directories.  So may a failure: then memory has
 * the old one, and the header is in doubt until it leads there again
 * (bitmap-doubt.c).  A bitmap that stays never has fewer bits in the image than
 * in memory: bits that changed other than by writes (a merge, a clear) are in a
 * new table.  The flush before the header also makes durable what was written
 * before bits were cleared.
 *
 * When the disk changes its size, each bitmap gets a new table that keeps the
 * clusters of the old one, except at the ends of the two disks.  Both tables
 * lead to them until one of the two counts for certain.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/flush.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"
#include "util/iov.h"

#define QB(e) list_entry(e, struct qcow2_bitmap, in_image)

/* What the image shall say. */
struct plan {
    uint64_t size;               /* of the disk */
    const struct qcow2_disk *to; /* NULL: it stays as it is */
    uint32_t count;
    struct qcow2_bitmap **dir; /* in order; includes the ones in `fresh` */
    struct bitmap **bms;       /* the bitmaps that they are */
    uint32_t *old_flags;
    struct list fresh; /* bitmaps with a new table */
    bool through;      /* all that is new is written through */
    bool counts;       /* and counts durably, as far as it has been made */
    struct qcow2_bitmaps_ext ext;
};

static bool is_cluster(uint64_t entry)
{
    return entry > QCOW2_BITMAP_ONES;
}

static void free_bytes(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    if (bytes > 0 && host != 0) {
        mutex_lock(&s->meta); /* what does not fit into limbo leaks */
        (void)qcow2_free_later(s, host, div_up(bytes, s->cluster_size));
        mutex_unlock(&s->meta);
    }
}

void qcow2_free_bits(struct qcow2 *s, uint64_t entry)
{
    if (is_cluster(entry)) {
        free_bytes(s, entry, s->cluster_size);
    }
}

void qcow2_free_shared_bits(struct qcow2 *s, uint64_t entry)
{
    if (is_cluster(entry) && s->bitmaps.header_doubt) {
        qcow2_orphan(s, entry, s->cluster_size);
    } else {
        qcow2_free_bits(s, entry);
    }
}

void qcow2_bitmap_relaxed(struct node *n, struct bitmap *bm)
{
    struct qcow2_bitmap *qb = bm->stored;
    struct qcow2 *s = n->state;

    atomic_store(&s->bitmaps.relaxed, true);
    for (uint32_t i = 0; qb && !qb->broken && i < qb->table_size; i++) {
        qcow2_mark_stale(qb, i);
    }
}

void qcow2_bitmap_gone(struct bitmap *bm)
{
    struct qcow2_bitmap *qb = bm->stored;
    struct qcow2 *s = bm->node->state;

    qb->bm = NULL;
    mutex_lock(&s->bitmaps.arm_lock);
    qcow2_bitmap_doubt(s);
    mutex_unlock(&s->bitmaps.arm_lock);
}

/* --- A bitmap that is new, or has more bits or another size --- */

static int describe_bitmap(struct qcow2_bitmap *qb, const struct bitmap *bm)
{
    const struct qcow2_bitmap *old = bm->stored;
    uint32_t extra_len = old ? old->extra_len : 0;

    qb->name = strdup(bm->name);
    qb->extra = calloc(1, extra_len + 1UL);
    if (!qb->name || !qb->extra) {
        return -ENOMEM;
    }
    if (extra_len > 0) { /* known to do no harm; it stays as it is */
        memcpy(qb->extra, old->extra, extra_len);
        qb->extra_len = extra_len;
        qb->flags = old->flags & QCOW2_BITMAP_EXTRA;
    }
    qb->sound = true;
    qb->name_len = (uint32_t)strlen(bm->name);
    qb->type = 1;
    qb->granularity_bits = (uint8_t)__builtin_ctzll(bm->granularity);
    if (atomic_load(&bm->inconsistent)) {
        qb->flags |= QCOW2_BITMAP_IN_USE |
                     (bm->recorded ? QCOW2_BITMAP_AUTO : 0);
        qb->broken = bm->why;
    }
    return 0;
}

/* Can the bits of a slice stay where the old table has them, when the disk gets
 * @size?  Not those of the last granule of one of the two disks. */
static bool stays(const struct qcow2 *s, const struct qcow2_bitmap *old,
                  uint64_t slice, uint64_t size)
{
    uint64_t end = (slice + 1) << qcow2_slice_bits(s, old);
    uint64_t last = old->granules - 1;

    return slice < old->table_size && end <= size &&
           end <= last << old->granularity_bits &&
           !bitmap_word_get(old->doubt, slice) &&
           !bitmap_word_get(old->unflushed, slice);
}

/* Take over a slice with what is known of it. */
static void inherit_slice(const struct qcow2 *s, struct qcow2_bitmap *qb,
                          uint64_t slice)
{
    const struct qcow2_bitmap *old = qb->heir_of;
    unsigned per = qcow2_slice_bits(s, qb) - qb->region_bits;
    uint64_t first = slice << per;
    uint64_t end = (slice + 1) << per;

    qb->table[slice] = old->table[slice];
    if (!bitmap_word_get(old->stale, slice)) {
        return; /* no region is armed */
    }
    bitmap_word_set(qb->stale, slice);
    if (bitmap_word_get(old->loose, slice)) {
        bitmap_word_set(qb->loose, slice);
    }
    for (uint64_t w = first / 64; w * 64 < end; w++) {
        uint64_t armed = atomic_load(&old->armed[w]) &
                         bitmap_word_mask(w, first, end);

        if (armed) {
            atomic_fetch_or(&qb->armed[w], armed);
            atomic_fetch_or(&qb->touched[w], armed);
        }
    }
}

/* Make a table, in a place that nothing leads to yet, with exact bits where it
 * inherits none.  A bitmap in quarantine gets none. */
static int make_table(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t size)
{
    uint64_t slices = qcow2_slices(s, qb, size);
    CLEANUP_FREE uint64_t *none = calloc(slices + 1, sizeof(*none));
    int r;

    free(qb->table);
    qb->table = calloc(slices + 1, sizeof(*qb->table));
    if (!none || !qb->table) {
        return -ENOMEM;
    }
    r = qcow2_bitmap_marks(s, qb, size);
    qb->table_size = (uint32_t)slices;
    qb->table_offset = 0;
    if (r == 0 && slices > 0) {
        mutex_lock(&s->meta);
        r = qcow2_alloc_exact(s, QCOW2_META_BITMAP,
                              div_up(slices * 8, s->cluster_size),
                              &qb->table_offset);
        mutex_unlock(&s->meta);
    }
    for (uint64_t i = 0; r == 0 && i < slices && !qb->broken; i++) {
        if (qb->heir_of && stays(s, qb->heir_of, i, size)) {
            inherit_slice(s, qb, i);
        } else {
            qb->table[i] = QCOW2_BITMAP_ANEW;
        }
    }
    if (r == 0 && !qb->broken) {
        r = qcow2_settle_slices(s, qb, none, qb->table, qb->table_size, false);
    }
    return r < 0 ? r : qcow2_write_table(s, qb, qb->table);
}

/* The cluster of a slice that only this table leads to; else no cluster. */
static uint64_t own_entry(const struct qcow2_bitmap *qb, uint64_t slice)
{
    const struct qcow2_bitmap *old = qb->heir_of;
    bool shared = old && slice < old->table_size &&
                  old->table[slice] == qb->table[slice];

    return shared ? QCOW2_BITMAP_ZEROES : qb->table[slice];
}

static void free_table(struct qcow2 *s, const struct qcow2_bitmap *qb)
{
    for (uint32_t i = 0; qb->table && i < qb->table_size; i++) {
        qcow2_free_bits(s, own_entry(qb, i));
    }
    free_bytes(s, qb->table_offset, qb->table_size * UINT64_C(8));
}

/* --- The directory --- */

static uint32_t count_persistent(const struct node *n)
{
    uint32_t count = 0;

    list_for_each (e, &n->bitmaps) {
        count += list_entry(e, struct bitmap, on_node)->persistent;
    }
    return count;
}

/* May a bitmap that only changes its length keep clusters of @bm's old table?
 * Not if something may be lost that the old table has been given. */
static bool may_inherit(const struct qcow2 *s, const struct plan *p,
                        const struct bitmap *bm)
{
    const struct qcow2_bitmap *old = bm->stored;

    return p->to && old && old->sound && !old->broken && !bm->rewrite &&
           !atomic_load(&old->voided) && !atomic_load(&bm->inconsistent) &&
           !atomic_load(&s->node->bitmaps_doubt) &&
           !atomic_load(&s->bitmaps.flush_failed);
}

static int plan_new(struct qcow2 *s, struct plan *p, struct bitmap *bm,
                    struct qcow2_bitmap **qbp) REQUIRES(s->bitmaps.arm_lock)
{
    struct qcow2_bitmap *qb = calloc(1, sizeof(*qb));

    if (!qb) {
        return -ENOMEM;
    }
    list_append(&p->fresh, &qb->in_image);
    int r = describe_bitmap(qb, bm);
    if (r == 0) {
        qb->bm = bm;
        qb->heir_of = may_inherit(s, p, bm) ? bm->stored : NULL;
        bool counts = true;
        r = p->through ? qcow2_make_fresh_table(s, qb, &counts)
                       : make_table(s, qb, p->size);
        p->counts &= counts;
        qb->bm = NULL;
    }
    *qbp = qb;
    return r;
}

/* Give the bitmap its place in the directory, and a new table if the old one
 * does not fit. */
static int plan_bitmap(struct qcow2 *s, struct plan *p, struct bitmap *bm)
    REQUIRES(s->bitmaps.arm_lock)
{
    struct qcow2_bitmap *qb = bm->stored;
    int r = 0;

    if (!qb ||
        (!qb->broken && (p->to || bm->rewrite || atomic_load(&qb->voided)))) {
        r = plan_new(s, p, bm, &qb);
    }
    if (r < 0) {
        return r;
    }
    p->dir[p->count] = qb;
    p->bms[p->count] = bm;
    p->old_flags[p->count] = qb->flags;
    p->count++;
    if (qb->broken && p->to) { /* it lacks what the disk grows */
        qb->flags |= QCOW2_BITMAP_IN_USE;
    }
    if (!qb->broken) {
        qb->flags &= ~QCOW2_BITMAP_AUTO;
        qb->flags |= bm->enabled ? QCOW2_BITMAP_AUTO : 0;
    }
    return 0;
}

static int plan_directory(struct qcow2 *s, struct plan *p)
    REQUIRES(s->bitmaps.arm_lock)
{
    uint32_t count = count_persistent(s->node);
    int r = 0;

    list_init(&p->fresh);
    p->dir = calloc(count + 1UL, sizeof(struct qcow2_bitmap *));
    p->bms = calloc(count + 1UL, sizeof(struct bitmap *));
    p->old_flags = calloc(count + 1UL, sizeof(*p->old_flags));
    if (!p->dir || !p->bms || !p->old_flags) {
        return -ENOMEM;
    }
    /* The order is QEMU's: stored bitmaps, then the others, newest first. */
    struct list *all = &s->node->bitmaps;
    for (struct list *e = all->next; e != all && r == 0; e = e->next) {
        struct bitmap *bm = list_entry(e, struct bitmap, on_node);
        r = bm->persistent && bm->loaded ? plan_bitmap(s, p, bm) : 0;
    }
    for (struct list *e = all->prev; e != all && r == 0; e = e->prev) {
        struct bitmap *bm = list_entry(e, struct bitmap, on_node);
        r = bm->persistent && !bm->loaded ? plan_bitmap(s, p, bm) : 0;
    }
    return r;
}

/* Write the new directory to where nothing leads yet. */
static int write_directory(struct qcow2 *s, struct plan *p)
    REQUIRES(s->bitmaps.arm_lock)
{
    uint64_t bytes = qcow2_bitmap_dir_size(p->dir, p->count);

    if (p->count == 0) {
        return 0;
    }
    if (bytes > QCOW2_BITMAP_DIR_MAX) {
        return -EFBIG;
    }
    CLEANUP_FREE unsigned char *dir = malloc(bytes);
    if (!dir) {
        return -ENOMEM;
    }
    qcow2_bitmap_dir_write(p->dir, p->count, dir);
    bool counts;
    int r = qcow2_fresh_clusters(s, div_up(bytes, s->cluster_size),
                                 &p->ext.dir_offset, &counts);
    if (r < 0) {
        return r;
    }
    p->counts &= counts;
    p->ext.count = p->count;
    p->ext.dir_size = bytes;
    return p->through ? qcow2_write_through(s, dir, bytes, p->ext.dir_offset)
                      : node_pwrite(s->file, dir, bytes, p->ext.dir_offset, 0);
}

/* What is new is durable, except that it counts. */
static int count_through(struct qcow2 *s, const struct plan *p)
{
    size_t count = 0;

    if (p->counts) {
        return 0;
    }
    list_for_each (e, &p->fresh) {
        count++;
    }
    CLEANUP_FREE struct qcow2_run *runs = calloc(count + 1, sizeof(*runs));
    if (!runs) {
        return -ENOMEM;
    }
    count = 0;
    list_for_each (e, &p->fresh) {
        runs[count++] = qcow2_fresh_run(s, QB(e));
    }
    if (p->count > 0) {
        runs[count++] = (struct qcow2_run){p->ext.dir_offset, p->ext.dir_size};
    }
    return qcow2_counts_through(s, runs, count);
}

/* What the heir has is not its predecessor's any more. */
static void hand_over(struct qcow2_bitmap *old, struct qcow2_bitmap *heir)
{
    for (uint32_t i = 0; i < min_u64(old->table_size, heir->table_size); i++) {
        if (old->table[i] == heir->table[i]) {
            old->table[i] = QCOW2_BITMAP_ZEROES;
        }
    }
    heir->width = old->width;
    heir->armed_at = old->armed_at;
    heir->heir_of = NULL;
}

/* The new directory counts.  Free what only the old one led to.  A bitmap that
 * is not sound may lead to clusters of others, so its clusters leak. */
static void adopt(struct qcow2 *s, struct plan *p)
{
    struct list old;

    list_init(&old);
    while (!list_empty(&s->bitmaps.list)) {
        struct list *e = s->bitmaps.list.next;
        list_remove(e);
        list_append(&old, e);
    }
    for (uint32_t i = 0; i < p->count; i++) {
        struct qcow2_bitmap *before = p->bms[i]->stored;

        list_remove(&p->dir[i]->in_image);
        list_append(&s->bitmaps.list, &p->dir[i]->in_image);
        if (before && before != p->dir[i]) {
            before->bm = NULL;
            if (p->dir[i]->heir_of) { /* that is @before */
                hand_over(before, p->dir[i]);
            }
        }
        if (p->dir[i]->flags & QCOW2_BITMAP_IN_USE) {
            atomic_store(&p->dir[i]->voided, true);
        }
        p->dir[i]->bm = p->bms[i];
        p->bms[i]->stored = p->dir[i];
        p->bms[i]->rewrite = false;
    }
    while (!list_empty(&old)) {
        struct qcow2_bitmap *qb = QB(old.next);
        if (qb->sound) {
            free_table(s, qb);
        }
        qcow2_bitmap_free(qb);
    }
    free_bytes(s, s->bitmaps.ext.dir_offset, s->bitmaps.ext.dir_size);
    s->bitmaps.ext = p->ext;
}

static void forget_plan(struct plan *p)
{
    for (uint32_t i = 0; i < p->count; i++) {
        p->dir[i]->flags = p->old_flags[i];
    }
    while (!list_empty(&p->fresh)) {
        qcow2_bitmap_free(QB(p->fresh.next));
    }
}

/* Nothing leads to the new directory: free it. */
static void give_up(struct qcow2 *s, struct plan *p)
{
    list_for_each (e, &p->fresh) {
        free_table(s, QB(e));
    }
    free_bytes(s, p->ext.dir_offset, p->ext.dir_size);
    forget_plan(p);
}

/* The new directory may count, so its clusters stay. */
static void keep_orphans(struct qcow2 *s, struct plan *p)
    REQUIRES(s->bitmaps.arm_lock)
{
    list_for_each (e, &p->fresh) {
        const struct qcow2_bitmap *qb = QB(e);

        for (uint32_t i = 0; i < qb->table_size; i++) {
            if (is_cluster(own_entry(qb, i))) {
                qcow2_orphan(s, qb->table[i], s->cluster_size);
            }
        }
        qcow2_orphan(s, qb->table_offset, qb->table_size * UINT64_C(8));
    }
    qcow2_orphan(s, p->ext.dir_offset, p->ext.dir_size);
    forget_plan(p);
}

static int write_plan(struct qcow2 *s, struct plan *p)
    REQUIRES(s->bitmaps.arm_lock)
{
    int r = plan_directory(s, p);

    if (r == 0) {
        r = write_directory(s, p);
    }
    if (r == 0) {
        r = p->through ? count_through(s, p) : qcow2_flush(s->node);
    }
    if (r < 0) {
        give_up(s, p);
    }
    return r;
}

static int switch_to(struct qcow2 *s, struct plan *p)
    REQUIRES(s->bitmaps.arm_lock)
{
    int r = qcow2_switch_header(s, &p->ext, p->to, p->through);

    if (r < 0) {
        keep_orphans(s, p);
        return r;
    }
    adopt(s, p);
    qcow2_bitmaps_sure(s);
    return 0;
}

/* Heal in place first what is in doubt from earlier, because a new directory
 * may fail. */
static int store_directory(struct qcow2 *s, struct plan *p)
    REQUIRES(s->bitmaps.arm_lock)
{
    int healed = qcow2_heal(s);

    if (!p->to && !qcow2_needs_store(s)) {
        return healed;
    }
    p->through = !p->to && qcow2_store_is_fresh(s);
    p->counts = true;
    /* A slice whose entry may be lost is not inherited, but written anew. */
    int r = p->to && s->bitmaps.entries_written ? qcow2_flush_entries(s) : 0;
    if (r == 0) {
        r = write_plan(s, p);
    }
    if (r == 0) {
        r = switch_to(s, p);
    }
    s->bitmaps.behind |= p->through;
    free(p->dir);
    free(p->bms);
    free(p->old_flags);
    return r;
}

int qcow2_store_directory(struct qcow2 *s)
{
    struct plan p = {.size = s->node->size};

    return store_directory(s, &p);
}

int qcow2_store_bitmaps(struct node *n, struct error **errp)
{
    struct qcow2 *s = n->state;
    struct plan p = {.size = n->size};

    mutex_lock(&s->bitmaps.arm_lock);
    int r = atomic_load(&s->corrupt) ? -EIO : store_directory(s, &p);
    if (r < 0) { /* it may have been to undo what had been stored */
        qcow2_bitmap_doubt(s);
    }
    qcow2_reserve_drop(s);
    mutex_unlock(&s->bitmaps.arm_lock);

    return r < 0 ? error_set(errp, -r, "cannot store the bitmaps of '%s': %s",
                             node_name(n), strerror(-r))
                 : 0;
}

/* Flush what guests have written, so that a flush in the drained section is
 * short.  The tightener makes way. */
int qcow2_store_ahead(struct node *n, bool more)
{
    struct qcow2 *s = n->state;
    uint64_t begin = 0;

    atomic_fetch_add(&s->bitmaps.ahead, 1);
    if (!more && s->bitmaps.ext.count == 0) {
        return 0;
    }
    if (more) {
        qcow2_reserve_take(s);
    }
    int r = node_flush_ahead(n, qcow2_flush, &begin);
    if (r == 0) {
        atomic_store(&s->bitmaps.ahead_ns, begin);
        qcow2_reserve_flushed(s);
    }
    return r;
}

/* Bits that went go from the image.  And only a flush writes that the old
 * directory, and what is left of the reserve, is free. */
int qcow2_store_behind(struct node *n)
{
    struct qcow2 *s = n->state;

    qcow2_bitmaps_relax(s);
    mutex_lock(&s->bitmaps.arm_lock);
    bool behind = s->bitmaps.behind || s->bitmaps.reserve.bytes > 0;
    qcow2_reserve_drop(s); /* if nothing was stored in the end */
    mutex_unlock(&s->bitmaps.arm_lock);
    int r = behind ? qcow2_flush(n) : 0;
    mutex_lock(&s->bitmaps.arm_lock);
    s->bitmaps.behind = r < 0; /* the next one tries again */
    mutex_unlock(&s->bitmaps.arm_lock);
    return r;
}

int qcow2_bitmaps_resize(struct qcow2 *s, const struct qcow2_disk *to)
{
    struct plan p = {.size = to->size, .to = to};

    mutex_lock(&s->bitmaps.arm_lock);
    int r = store_directory(s, &p);
    mutex_unlock(&s->bitmaps.arm_lock);
    return r;
}

/* --- What can be stored --- */

bool qcow2_bitmap_too_large(uint64_t size, uint64_t granularity)
{
    return div_up(div_up(size, granularity), 8) > QCOW2_BITMAP_BITS_MAX;
}

int qcow2_check_bitmaps_fit(struct node *n, uint64_t size, struct error **errp)
{
    list_for_each (e, &n->bitmaps) {
        const struct bitmap *bm = list_entry(e, struct bitmap, on_node);

        if (bm->persistent && bitmap_readable(bm) &&
            qcow2_bitmap_too_large(size, bm->granularity)) {
            return error_set(errp, EFBIG,
                             "Bitmap '%s' of '%s', which is stored, would be "
                             "too large for a disk of %" PRIu64 " bytes: it "
                             "needs a larger granularity",
                             bm->name, node_name(n), size);
        }
    }
    return 0;
}

/* Size of the directory with one bitmap more. */
static uint64_t dir_size_with(const struct node *n, const char *name)
{
    uint64_t size = QCOW2_BITMAP_ENTRY_SIZE + align_up(strlen(name), 8);

    list_for_each (e, &n->bitmaps) {
        const struct bitmap *bm = list_entry(e, struct bitmap, on_node);
        const struct qcow2_bitmap *qb = bm->stored;

        if (bm->persistent) {
            size += qb ? qcow2_bitmap_entry_size(qb)
                       : QCOW2_BITMAP_ENTRY_SIZE +
                             align_up(strlen(bm->name), 8);
        }
    }
    return size;
}

int qcow2_check_bitmap(struct node *n, const char *name, uint64_t granularity,
                       struct error **errp)
{
    const struct qcow2 *s = n->state;
    const char *why = NULL;

    if (s->version < 3) {
        why = "Cannot store dirty bitmaps in qcow2 v2 files";
    } else if (n->size == 0) {
        why = "An empty disk has no place for bitmaps";
    } else if (count_persistent(n) >= QCOW2_BITMAPS_MAX) {
        why = "Maximum number of persistent bitmaps is already reached";
    } else if (dir_size_with(n, name) > QCOW2_BITMAP_DIR_MAX) {
        why = "Not enough space in the bitmap directory";
    } else if (qcow2_bitmap_too_large(n->size, granularity)) {
        why = "Too much space will be occupied by the bitmap. Use larger "
              "granularity";
    }
    return why ? error_set(errp, EINVAL,
                           "Can't make bitmap '%s' persistent in '%s': %s",
                           name, node_name(n), why)
               : 0;
}
