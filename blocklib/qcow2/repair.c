/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Repairing an image.
 *
 *   1. look      what is wrong: check.c
 *   2. plan      another walk: which entries lead nowhere, what has to be
 *                copied because it lies on something else
 *   3. write     the copies, tables of zeroes, new refcounts: all of it behind
 *                the end, where nobody looks; flush
 *   4. switch    one write into the header; flush.  From here on everything
 *                counts at least as often as it is referred to, by old entries
 *                and by new ones
 *   5. mend      the entries; flush
 *   6. look again, and write refcounts down to what is left; flush
 *   7. flags     COPIED, now that counts are exact; the header's bits; flush
 *
 * A crash at any moment leaves an image that is no worse than before: before 4
 * nothing has changed, after it clusters are wasted at the most.  Entries are
 * only changed once both their old and their new place are counted.  Where a
 * table has to be changed and something else lies in the same place, the table
 * goes elsewhere, too: until all entries are mended, the place is as it was.
 *
 * Nothing is guessed.  A part of the disk whose entry leads nowhere becomes
 * zeroes, and the report says so.  Bitmaps are all ones after that, never
 * empty.  A structure that cannot be followed is kept, and then nothing is
 * freed: what seems to leak may be what it leads to.
 */
#include "qcow2/repair.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/bitmaps.h"

#define COPY_STEP (1 * MiB)

/* An L1 entry that gets another value. */
struct l1_fix {
    uint64_t at;   /* where it stands in the file */
    bool lost;     /* it leads nowhere */
    uint64_t from; /* else the L2 table that it leads to, perhaps copied */
};

/* A change to an entry of the L2 table that the walk is at. */
struct l2_fix {
    uint64_t offset; /* guest byte, in the table */
    enum { FIX_ZERO, FIX_FLAGS, FIX_MOVE, FIX_OWN } how;
    uint64_t to;
};

struct repair {
    const struct qcow2_check *k; /* the first look */
    const struct image_check_options *o;
    struct node *file;
    struct qcow2_annex annex;
    struct qcow2_moves moves;
    struct l1_fix *l1_fixes;
    size_t l1_count;
    size_t l1_room;
    struct l2_fix *l2_fixes; /* of one table */
    size_t l2_count;
    size_t l2_room;

    bool backing;       /* what is unallocated shows another image */
    bool guest_changed; /* something reads as zeroes that could not be read */
    uint64_t highest;   /* refcount */

    bool new_l1;
    uint64_t l1_host;
    uint32_t l1_size;      /* entries, after the repair */
    bool l1_lost;          /* the old one cannot be read */
    uint32_t snapshots;    /* that are left */
    uint64_t zero_tables;  /* L1 entries that will lead to a table of zeroes */
    uint64_t zero_table;   /* host of the first of these tables */
    uint64_t zero_entries; /* of version 2: that lead to a cluster of zeroes */
    uint64_t zero_cluster; /* host of the first of these clusters */
    uint64_t zero_used;    /* references to it that were given out */
    uint64_t lost_from;    /* a range that was lost, not yet told */
    uint64_t lost_bytes;
};

/* --- What is lost --- */

static void tell_lost(struct repair *p)
{
    char text[160];
    struct image_finding f = {.fault = IMAGE_LOST,
                              .text = text,
                              .guest = p->lost_from,
                              .guest_bytes = p->lost_bytes};

    if (p->lost_bytes > 0 && p->o->found) {
        (void)snprintf(text, sizeof(text),
                       "lost: bytes %" PRIu64 " to %" PRIu64
                       " of the disk read as zeroes",
                       p->lost_from, p->lost_from + p->lost_bytes - 1);
        p->o->found(&f, p->o->opaque);
    }
    p->lost_bytes = 0;
}

static void note_lost(struct repair *p, const struct qcow2_ref *r)
{
    uint64_t size = p->k->im.h.size;

    p->guest_changed = true;
    if (r->disk != QCOW2_ACTIVE) {
        qcow2_check_tell(p->o, IMAGE_LOST,
                         "lost: %" PRIu64 " bytes at %" PRIu64
                         " of a snapshot read as zeroes",
                         r->guest_bytes, r->guest);
        return;
    }
    if (r->guest >= size) {
        return;
    }
    uint64_t bytes = min_u64(r->guest_bytes, size - r->guest);
    if (p->lost_bytes == 0 || p->lost_from + p->lost_bytes != r->guest) {
        tell_lost(p);
        p->lost_from = r->guest;
    }
    p->lost_bytes += bytes;
}

/* --- 2. Plan --- */

/* Is something else where a part of a structure is, that is no L2 table? */
static bool is_taken(const struct repair *p, uint64_t host)
{
    unsigned flags = census_flags(p->k->census,
                                  host >> p->k->im.shape.cluster_bits);

    return (flags & (CENSUS_DATA | CENSUS_L2 | CENSUS_TWICE)) != 0;
}

static int add_l1_fix(struct repair *p, const struct l1_fix *f)
{
    if (p->l1_count == p->l1_room) {
        size_t room = p->l1_room ? p->l1_room * 2 : 64;
        struct l1_fix *more = realloc(p->l1_fixes, room * sizeof(*more));

        if (!more) {
            return -ENOMEM;
        }
        p->l1_fixes = more;
        p->l1_room = room;
    }
    p->l1_fixes[p->l1_count++] = *f;
    return 0;
}

/* Plan another value for an L1 entry.  One of a snapshot stays as it is where
 * something else is in the same place. */
static int fix_l1(struct repair *p, const struct qcow2_ref *r)
{
    const struct l1_fix f = {
        .at = r->entry, .lost = r->wrong && r->bytes > 0, .from = r->host};

    if (r->disk != QCOW2_ACTIVE && is_taken(p, r->entry)) {
        return 0;
    }
    if (f.lost) {
        note_lost(p, r);
        p->zero_tables++;
    }
    return add_l1_fix(p, &f);
}

/* Each cluster of a raw data file has what the guest sees there. */
static bool is_raw(const struct repair *p)
{
    return p->k->im.h.autoclear & QCOW2_AUTOCLEAR_RAW;
}

static int plan_data(struct repair *p, const struct qcow2_ref *r)
{
    const struct qcow2_check *k = p->k;
    struct qcow2_move m = {
        .key = r->host, .from = r->host, .bytes = r->bytes, .times = r->times};
    bool clash = false;
    bool many = false;

    if (r->wrong) {
        if (r->bytes > 0 && !is_raw(p)) {
            note_lost(p, r);
            p->zero_entries++;
        }
        return 0;
    }
    for (uint64_t c = r->host >> k->im.shape.cluster_bits;
         !r->external &&
         c <= (r->host + r->bytes - 1) >> k->im.shape.cluster_bits;
         c++) {
        unsigned flags = census_flags(k->census, c);

        /* The old refcounts go. */
        clash |= (flags & (CENSUS_L2 | CENSUS_META)) != 0;
        many |= census_count(k->census, c) > p->highest;
    }
    if (!clash && !many) {
        return 0;
    }
    if (many || r->times > p->highest) {
        m.of = QCOW2_MOVE_ENTRY;
        m.key = r->entry;
    }
    return qcow2_moves_add(&p->moves, &m);
}

static int plan_l2(struct repair *p, const struct qcow2_ref *r)
{
    const struct qcow2_check *k = p->k;
    struct qcow2_move m = {.of = QCOW2_MOVE_TABLES,
                           .key = r->host,
                           .from = r->host,
                           .bytes = r->bytes,
                           .times = 1};

    if (r->wrong) {
        return fix_l1(p, r);
    }
    unsigned flags = census_flags(k->census,
                                  r->host >> k->im.shape.cluster_bits);
    if (!(flags & (CENSUS_META | CENSUS_DATA))) {
        return 0;
    }
    int result = qcow2_moves_add(&p->moves, &m);
    return result < 0 ? result : fix_l1(p, r);
}

static void plan_l1(struct repair *p, const struct qcow2_ref *r)
{
    const struct qcow2_check *k = p->k;
    unsigned bits = k->im.shape.cluster_bits;

    if (r->disk != QCOW2_ACTIVE) {
        return; /* it is kept */
    }
    if (r->wrong && r->bytes > 0) {
        struct qcow2_ref all = {.guest_bytes = k->im.h.size};

        p->l1_lost = true;
        note_lost(p, &all);
    } else if (r->wrong) {
        note_lost(p, r);
    }
    p->new_l1 |= r->wrong != NULL;
    for (uint64_t c = r->host >> bits;
         !r->wrong && c <= (r->host + r->bytes - 1) >> bits; c++) {
        p->new_l1 |= is_taken(p, c << bits);
    }
}

static void plan_snapshots(struct repair *p, const struct qcow2_ref *r)
{
    if (r->wrong) {
        qcow2_check_tell(p->o, IMAGE_MENDED,
                         "the snapshot table ends after %" PRIu32
                         " entries; %" PRIu32 " that cannot be read are gone",
                         r->readable, p->snapshots - r->readable);
        p->snapshots = r->readable;
    }
}

static int plan_ref(const struct qcow2_ref *r, void *opaque)
{
    struct repair *p = opaque;

    switch (r->owner) {
    case QCOW2_OWN_DATA:
    case QCOW2_OWN_PACKED:
        return plan_data(p, r);
    case QCOW2_OWN_L2:
        return plan_l2(p, r);
    case QCOW2_OWN_L1:
        plan_l1(p, r);
        return 0;
    case QCOW2_OWN_SNAPSHOTS:
        plan_snapshots(p, r);
        return 0;
    default:
        return 0;
    }
}

/* --- 3. Write behind the end --- */

static int copy_bytes(struct repair *p, uint64_t from, uint64_t to,
                      uint64_t bytes)
{
    CLEANUP_FREE void *buf = malloc(min_u64(bytes, COPY_STEP));
    int r = buf ? 0 : -ENOMEM;

    for (uint64_t at = 0; r == 0 && at < bytes; at += COPY_STEP) {
        uint64_t n = min_u64(bytes - at, COPY_STEP);

        r = qcow2_image_pread(&p->k->im, buf, n, from + at);
        if (r == 0) {
            r = node_pwrite(p->file, buf, n, to + at, 0);
        }
    }
    return r;
}

static int write_moves(struct repair *p)
{
    unsigned bits = p->k->im.shape.cluster_bits;
    uint64_t size = p->k->im.shape.cluster_size;
    int r = 0;

    qcow2_moves_sort(&p->moves);
    for (size_t i = 0; r == 0 && i < p->moves.count; i++) {
        struct qcow2_move *m = &p->moves.all[i];
        uint64_t first;

        if (m->times > p->highest) {
            qcow2_check_tell(p->o, IMAGE_CORRUPT,
                             "what is at 0x%" PRIx64 " stays there: %" PRIu64
                             " references are more than this image can count",
                             m->from, m->times);
            continue;
        }
        r = qcow2_annex_take(&p->annex, div_up(m->bytes, size), m->times,
                             &first);
        if (r == 0) {
            m->to = first << bits;
            r = copy_bytes(p, m->from, m->to, m->bytes);
        }
    }
    return r;
}

/* Clusters of zeroes, for entries of version 2; each may have `highest`
 * references, and is never filled by more than half with one of them. */
static int write_zero_clusters(struct repair *p, uint64_t references)
{
    uint64_t count = references / (p->highest / 2 + 1) + 1;
    uint64_t first;
    int r = qcow2_annex_take(&p->annex, count, p->highest, &first);

    p->zero_cluster = first << p->k->im.shape.cluster_bits;
    for (uint64_t i = 0; r == 0 && i < count; i++) {
        r = node_zero(p->file,
                      p->zero_cluster + (i << p->k->im.shape.cluster_bits),
                      p->k->im.shape.cluster_size, 0);
    }
    return r;
}

/* The next reference to such a cluster. */
static uint64_t take_zero_cluster(struct repair *p, uint64_t times)
{
    uint64_t half = p->highest / 2 + 1;
    uint64_t index = p->zero_used / half;

    p->zero_used += times;
    return p->zero_cluster + (index << p->k->im.shape.cluster_bits);
}

/* Must a part of the disk that was lost be said to be zeroes? */
static bool needs_zeroes(const struct repair *p)
{
    return p->backing;
}

static void zero_entry(struct repair *p, struct qcow2_table *t, uint64_t offset,
                       uint64_t times)
{
    const struct qcow2 *s = &p->k->im.shape;
    struct qcow2_at at = {.kind = QCOW2_KIND_UNALLOCATED};

    if (s->version >= 3) {
        at.kind = QCOW2_KIND_ZERO_PLAIN;
    } else if (needs_zeroes(p)) {
        at.kind = QCOW2_KIND_NORMAL;
        at.host = take_zero_cluster(p, times);
    }
    qcow2_l2_mend(s, t, offset, &at);
}

/* The place of the table of zeroes for the @user-th L1 entry. */
static uint64_t zero_table_of(const struct repair *p, uint64_t user)
{
    return p->zero_table +
           (user / (p->highest / 2 + 1) << p->k->im.shape.cluster_bits);
}

/* L2 tables of nothing but zeroes, each for as many L1 entries as it may have
 * clusters of zeroes in common with. */
static int write_zero_tables(struct repair *p)
{
    const struct qcow2 *s = &p->k->im.shape;
    uint64_t share = p->highest / 2 + 1;
    uint64_t count = div_up(p->zero_tables, share);
    CLEANUP_FREE void *bytes = calloc(1, s->cluster_size);
    struct qcow2_table t = {.data = bytes};
    uint64_t first;
    int r = bytes ? qcow2_annex_take(&p->annex, count, p->highest, &first)
                  : -ENOMEM;

    p->zero_table = first << s->cluster_bits;
    for (uint64_t i = 0; r == 0 && i < count; i++) {
        for (uint64_t at = 0; at < qcow2_l2_span(s); at += s->cluster_size) {
            zero_entry(p, &t, at, min_u64(p->zero_tables - i * share, share));
        }
        r = node_pwrite(p->file, bytes, s->cluster_size,
                        p->zero_table + (i << s->cluster_bits), 0);
    }
    return r;
}

static int write_zeroes(struct repair *p)
{
    const struct qcow2 *s = &p->k->im.shape;
    uint64_t per_table = qcow2_l2_span(s) >> s->cluster_bits;
    int r = 0;

    if (!needs_zeroes(p)) {
        return 0;
    }
    if (s->version < 3 && p->zero_entries + p->zero_tables > 0) {
        r = write_zero_clusters(p,
                                p->zero_entries + p->zero_tables * per_table);
    }
    return r == 0 && p->zero_tables > 0 ? write_zero_tables(p) : r;
}

/* The active L1 table at another place, longer or empty. */
static int write_l1(struct repair *p)
{
    const struct qcow2_image *im = &p->k->im;
    uint64_t bytes = p->l1_size * UINT64_C(8);
    uint64_t room = align_up(max_u64(bytes, 1), im->shape.cluster_size);
    uint64_t old = p->l1_lost ? 0 : im->h.l1_size;
    CLEANUP_FREE unsigned char *l1 = calloc(1, room);
    uint64_t first;
    int r = l1 ? qcow2_annex_take(&p->annex, room >> im->shape.cluster_bits, 1,
                                  &first)
               : -ENOMEM;

    if (r == 0 && old > 0) {
        r = qcow2_image_pread(im, l1, old * 8, im->h.l1_offset);
    }
    for (uint64_t i = old; r == 0 && needs_zeroes(p) && i < p->l1_size; i++) {
        store_be64(l1 + i * 8, zero_table_of(p, i - old));
    }
    p->l1_host = first << im->shape.cluster_bits;
    return r == 0 ? node_pwrite(p->file, l1, room, p->l1_host, 0) : r;
}

/* --- 4. Switch --- */

static int switch_header(struct repair *p,
                         const struct qcow2_new_refcounts *new)
{
    unsigned char be[QCOW2_HDR_SNAPSHOTS + 4 - QCOW2_HDR_L1];
    const struct qcow2_header *h = &p->k->im.h;
    int r = node_flush(p->file);

    store_be32(be, p->new_l1 ? p->l1_size : h->l1_size);
    store_be64(be + 4, p->new_l1 ? p->l1_host : h->l1_offset);
    store_be64(be + QCOW2_HDR_REFTABLE - QCOW2_HDR_L1, new->host);
    store_be32(be + QCOW2_HDR_REFTABLE + 8 - QCOW2_HDR_L1, new->clusters);
    store_be32(be + QCOW2_HDR_SNAPSHOTS - QCOW2_HDR_L1, p->snapshots);
    if (r == 0) {
        r = node_pwrite(p->file, be, sizeof(be), QCOW2_HDR_L1, 0);
    }
    return r == 0 ? node_flush(p->file) : r;
}

/* --- 5. Mend --- */

static int put_word(struct repair *p, uint64_t at, uint64_t value)
{
    unsigned char be[8];

    store_be64(be, value);
    return node_pwrite(p->file, be, sizeof(be), at, 0);
}

/* The active L1 table may be at another place than where the plan saw it. */
static uint64_t l1_place(const struct repair *p, uint64_t at)
{
    const struct qcow2_header *h = &p->k->im.h;

    return p->new_l1 && at >= h->l1_offset &&
                   at < h->l1_offset + h->l1_size * UINT64_C(8)
               ? p->l1_host + (at - h->l1_offset)
               : at;
}

static int mend_l1(struct repair *p)
{
    uint64_t zeroes = p->l1_size > p->k->im.h.l1_size && !p->l1_lost
                          ? p->l1_size - p->k->im.h.l1_size
                          : 0; /* were given out by write_l1 */
    int r = 0;

    for (size_t i = 0; r == 0 && i < p->l1_count; i++) {
        const struct l1_fix *f = &p->l1_fixes[i];
        uint64_t value = 0;

        if (!f->lost && f->from != 0) {
            const struct qcow2_move *m =
                qcow2_moves_find(&p->moves, QCOW2_MOVE_TABLES, f->from);
            value = m && m->to ? m->to : f->from;
        } else if (f->lost && needs_zeroes(p)) {
            value = zero_table_of(p, zeroes++);
        }
        r = put_word(p, l1_place(p, f->at), value);
    }
    return r;
}

static int add_l2_fix(struct repair *p, const struct l2_fix *f)
{
    if (p->l2_count == p->l2_room) {
        size_t room = p->l2_room ? p->l2_room * 2 : 64;
        struct l2_fix *more = realloc(p->l2_fixes, room * sizeof(*more));

        if (!more) {
            return -ENOMEM;
        }
        p->l2_fixes = more;
        p->l2_room = room;
    }
    p->l2_fixes[p->l2_count++] = *f;
    return 0;
}

static int fill_with_ones(struct repair *p, const struct qcow2_ref *table)
{
    unsigned char ones[4096];
    int r = 0;

    for (size_t i = 0; i < sizeof(ones); i += 8) {
        store_be64(ones + i, QCOW2_BITMAP_ONES);
    }
    for (uint64_t at = 0; r == 0 && at < table->bytes; at += sizeof(ones)) {
        r = node_pwrite(p->file, ones, min_u64(sizeof(ones), table->bytes - at),
                        table->host + at, 0);
    }
    return r;
}

/* A table that shares its clusters with something else stays as it is: nobody
 * trusts such a bitmap. */
static int mend_bitmap(struct repair *p, const struct qcow2_ref *r)
{
    uint64_t size = p->k->im.shape.cluster_size;

    if (r->owner == QCOW2_OWN_BITMAP_TABLE) {
        bool taken = !p->guest_changed || r->wrong;

        for (uint64_t at = 0; !taken && at < r->bytes; at += size) {
            taken = is_taken(p, r->host + at);
        }
        return taken ? 0 : fill_with_ones(p, r);
    }
    return !p->guest_changed && !is_taken(p, r->entry) &&
                   (r->wrong || is_taken(p, r->host))
               ? put_word(p, r->entry, QCOW2_BITMAP_ONES)
               : 0;
}

/* Bitmaps first: they must not miss what the entries then change. */
static int mend_bitmap_ref(const struct qcow2_ref *r, void *opaque)
{
    return r->owner == QCOW2_OWN_BITMAP_TABLE || r->owner == QCOW2_OWN_BITMAP
               ? mend_bitmap(opaque, r)
               : 0;
}

static int mend_ref(const struct qcow2_ref *r, void *opaque)
{
    struct repair *p = opaque;
    struct l2_fix f = {.offset = r->guest &
                                 (qcow2_l2_span(&p->k->im.shape) - 1),
                       .how = FIX_MOVE};
    const struct qcow2_move *m;

    if (r->owner != QCOW2_OWN_DATA && r->owner != QCOW2_OWN_PACKED) {
        return 0;
    }
    if (r->wrong) {
        f.how = r->bytes == 0 ? FIX_FLAGS : is_raw(p) ? FIX_OWN : FIX_ZERO;
        f.to = r->guest;
        return add_l2_fix(p, &f);
    }
    m = qcow2_moves_find(&p->moves, QCOW2_MOVE_ENTRY, r->entry);
    m = m ? m : qcow2_moves_find(&p->moves, QCOW2_MOVE_DATA, r->host);
    if (!m || m->to == 0) {
        return 0;
    }
    f.to = m->to;
    return add_l2_fix(p, &f);
}

static int mend_table(const struct qcow2_ref *table, struct qcow2_table *t,
                      void *opaque)
{
    struct repair *p = opaque;
    const struct qcow2 *s = &p->k->im.shape;
    int r = 0;

    for (size_t i = 0; i < p->l2_count; i++) {
        const struct l2_fix *f = &p->l2_fixes[i];
        struct qcow2_at at;

        if (f->how == FIX_ZERO) {
            zero_entry(p, t, f->offset, 1);
            continue;
        }
        qcow2_l2_look(s, t, f->offset, s->cluster_size, &at);
        if (f->how == FIX_MOVE) {
            at.host = f->to;
            at.packed.host = f->to;
            at.copied = false;
        }
        if (f->how == FIX_OWN) { /* its place in a raw data file */
            at.kind = QCOW2_KIND_NORMAL;
            at.host = f->to;
            at.copied = true;
        }
        qcow2_l2_mend(s, t, f->offset, &at);
    }
    if (p->l2_count > 0) {
        r = node_pwrite(p->file, t->data, s->cluster_size, table->host, 0);
    }
    p->l2_count = 0;
    return r;
}

static int walk_again(struct repair *p, const struct qcow2_walker *w,
                      struct error **errp)
{
    struct qcow2_image im;
    int r = qcow2_image_read(p->file, &im, errp);

    if (r < 0) {
        return r;
    }
    r = qcow2_walk(&im, w);
    qcow2_image_release(&im);
    if (r == 0) {
        r = node_flush(p->file);
    }
    return r < 0 ? error_set(errp, -r, "cannot repair the image: %s",
                             strerror(-r))
                 : 0;
}

static int mend(struct repair *p, struct error **errp)
{
    const struct qcow2_walker bitmaps = {.refer = mend_bitmap_ref, .opaque = p};
    const struct qcow2_walker entries = {
        .refer = mend_ref, .table = mend_table, .opaque = p};
    int r = walk_again(p, &bitmaps, errp);

    if (r == 0) {
        r = mend_l1(p);
        r = r < 0 ? error_set(errp, -r, "cannot write an L1 table: %s",
                              strerror(-r))
                  : 0;
    }
    return r == 0 ? walk_again(p, &entries, errp) : r;
}

/* --- Steps 2 to 5 --- */

static int plan(struct repair *p)
{
    const struct qcow2_walker w = {.refer = plan_ref, .opaque = p};
    const struct qcow2_image *im = &p->k->im;
    uint64_t needed = div_up(im->h.size, qcow2_l2_span(&im->shape));
    int r = qcow2_walk(im, &w);

    tell_lost(p);
    p->l1_size = p->l1_lost ? (uint32_t)needed
                            : (uint32_t)max_u64(im->h.l1_size, needed);
    if (p->new_l1) {
        p->zero_tables += p->l1_size - (p->l1_lost ? 0 : im->h.l1_size);
    }
    return r;
}

static int write_behind(struct repair *p)
{
    int r = write_moves(p);

    if (r == 0) {
        r = write_zeroes(p);
    }
    return r == 0 && p->new_l1 ? write_l1(p) : r;
}

static int rebuild(struct repair *p, struct error **errp)
{
    struct qcow2_new_refcounts new;
    int r = plan(p);

    if (r == 0 && p->l1_size * UINT64_C(8) > QCOW2_MAX_L1_BYTES) {
        return error_set(errp, EFBIG, "the disk is too large for its clusters");
    }
    if (r == 0) {
        r = write_behind(p);
    }
    if (r < 0) {
        return error_set(errp, -r, "cannot repair the image: %s", strerror(-r));
    }
    r = qcow2_rebuild_refcounts(p->k, &p->annex, &new, errp);
    if (r < 0) {
        return r;
    }
    r = switch_header(p, &new);
    return r < 0 ? error_set(errp, -r, "cannot write the header: %s",
                             strerror(-r))
                 : mend(p, errp);
}

static int repair_structures(const struct qcow2_check *k, struct node *file,
                             const struct image_check_options *o,
                             struct error **errp)
{
    unsigned width = 1U << k->im.shape.refcount_order;
    struct repair p = {
        .k = k,
        .o = o,
        .file = file,
        .backing = k->im.h.names_backing,
        .highest = width == 64 ? UINT64_MAX / 4 : (UINT64_C(1) << width) - 1,
        .snapshots = k->im.h.snapshots,
    };

    p.annex.first =
        file->growable
            ? max_u64(k->end, div_up(k->im.file_size, k->im.shape.cluster_size))
            : k->end;
    int r = rebuild(&p, errp);
    free(p.annex.counts);
    free(p.moves.all);
    free(p.l1_fixes);
    free(p.l2_fixes);
    return r;
}

/* --- 7. Flags --- */

struct flags {
    const struct qcow2_check *k;
    struct node *file;
};

/* A structure that cannot be read may refer to the cluster, too: then no entry
 * becomes the only one. */
static bool is_flag_wrong(const struct flags *f, uint64_t host, bool copied)
{
    uint64_t count = census_count(f->k->census,
                                  host >> f->k->im.shape.cluster_bits);

    return copied ? count != 1 : count == 1 && !f->k->unknown;
}

static int flag_l1(const struct qcow2_ref *r, void *opaque)
{
    struct flags *f = opaque;
    unsigned char be[8];

    if (r->owner != QCOW2_OWN_L2 || r->disk != QCOW2_ACTIVE || r->wrong ||
        !is_flag_wrong(f, r->host, r->copied)) {
        return 0;
    }
    store_be64(be, r->host | (r->copied ? 0 : QCOW2_COPIED));
    return node_pwrite(f->file, be, sizeof(be), r->entry, 0);
}

static int flag_table(const struct qcow2_ref *table, struct qcow2_table *t,
                      void *opaque)
{
    struct flags *f = opaque;
    const struct qcow2 *s = &f->k->im.shape;
    bool changed = false;

    if (table->disk != QCOW2_ACTIVE || s->external) {
        return 0;
    }
    for (uint64_t o = 0; o < qcow2_l2_span(s); o += s->cluster_size) {
        struct qcow2_at at;

        qcow2_l2_look(s, t, o, s->cluster_size, &at);
        if ((at.kind == QCOW2_KIND_NORMAL ||
             at.kind == QCOW2_KIND_ZERO_ALLOC) &&
            !at.wrong && is_flag_wrong(f, at.host, at.copied)) {
            at.copied = !at.copied;
            qcow2_l2_mend(s, t, o, &at);
            changed = true;
        }
    }
    return changed
               ? node_pwrite(f->file, t->data, s->cluster_size, table->host, 0)
               : 0;
}

static int repair_flags(const struct qcow2_check *k, struct node *file,
                        struct error **errp)
{
    struct flags f = {k, file};
    const struct qcow2_walker w = {
        .refer = flag_l1, .table = flag_table, .opaque = &f};
    int r = qcow2_walk(&k->im, &w);

    if (r == 0) {
        r = node_flush(file);
    }
    return r < 0 ? error_set(errp, -r, "cannot write flags: %s", strerror(-r))
                 : 0;
}

/* The image is clean: it need not be looked at again. */
static int clear_marks(const struct qcow2_check *k, struct node *file,
                       struct error **errp)
{
    const uint64_t marks = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    const struct qcow2_header *h = &k->im.h;
    unsigned char be[8];

    if (h->version < 3 || !(h->incompatible & marks)) {
        return 0;
    }
    store_be64(be, h->incompatible & ~marks);
    int r = node_pwrite(file, be, sizeof(be), QCOW2_HDR_INCOMPAT, 0);
    if (r == 0) {
        r = node_flush(file);
    }
    return r < 0 ? error_set(errp, -r, "cannot write the header: %s",
                             strerror(-r))
                 : 0;
}

/* --- The whole --- */

/* Look again, without a word. */
static int look_again(struct qcow2_check *k, struct node *file,
                      struct error **errp)
{
    const struct image_check_options *o = k->o;

    qcow2_check_release(k);
    return qcow2_check_run(k, file, o, true, errp);
}

/* Refcounts that are too high go down, unless something may refer to these
 * clusters that nobody can read. */
static int repair_leaks(struct qcow2_check *k, struct node *file,
                        struct error **errp)
{
    uint64_t lowered;
    bool may = k->leaks > 0 && !k->unknown && !k->broken && !k->clash;

    if (!may) {
        return 0;
    }
    int r = qcow2_lower_refcounts(k, &lowered, errp);
    return r < 0 ? r : look_again(k, file, errp);
}

/* What was moved may uncover something else: once more, while it helps. */
static int repair_all_structures(struct qcow2_check *k, struct node *file,
                                 struct error **errp)
{
    uint64_t before = UINT64_MAX;
    int r = 0;

    while (r == 0 && (k->low || k->broken || k->clash) &&
           k->corruptions < before) {
        before = k->corruptions;
        r = repair_structures(k, file, k->o, errp);
        if (r == 0) {
            r = look_again(k, file, errp);
        }
    }
    return r;
}

static int repair(struct qcow2_check *k, struct node *file, struct error **errp)
{
    bool all = k->o->repair == IMAGE_REPAIR_ALL;
    int r = all ? repair_all_structures(k, file, errp) : 0;

    if (r == 0) {
        r = repair_leaks(k, file, errp);
    }
    if (r == 0 && all && k->flags) {
        r = repair_flags(k, file, errp);
        if (r == 0) {
            r = look_again(k, file, errp);
        }
    }
    return r == 0 && k->corruptions == 0 ? clear_marks(k, file, errp) : r;
}

int qcow2_check(struct node *file, const struct image_check_options *o,
                struct image_check *c, struct error **errp)
{
    struct qcow2_check k;
    int r = qcow2_check_run(&k, file, o, false, errp);
    uint64_t corruptions = k.corruptions;
    uint64_t leaks = k.leaks;

    if (r == 0 && o->repair != IMAGE_REPAIR_NONE) {
        r = repair(&k, file, errp);
    }
    if (r == 0) {
        *c = k.stats;
        c->corruptions_fixed = corruptions -
                               min_u64(corruptions, k.corruptions);
        c->leaks_fixed = leaks - min_u64(leaks, k.leaks);
    }
    qcow2_check_release(&k);
    return r;
}
