/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reading the bitmaps of an image.
 *
 * Nothing here keeps an image from opening.  A bitmap that cannot be trusted
 * goes into quarantine: users see it as inconsistent, with the reason, and can
 * remove it; its entry is kept until then.  If the directory itself cannot be
 * read, nobody can know what was in it.  The image is then treated as one whose
 * bitmaps are void.
 *
 * Clusters of bitmaps are written in place later, and freed with the bitmap.
 * So none of them may belong to anything else, or be free.  Each is looked up
 * once among the clusters of all bitmaps and of the tables that are in memory,
 * and in the refcounts.  A bitmap whose clusters pass is sound, even if it is
 * in quarantine for another reason.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/graph.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"
#include "util/iov.h"

#define QB(e) list_entry(e, struct qcow2_bitmap, in_image)

/* At least so much disk is armed at once. */
#define REGION_BITS_MIN 22

/* At least so much memory may be taken by bits that the image calls "all ones"
 * without having them in the file; see ones_max(). */
#define ONES_MAX (2 * GiB)

/* Bits are taken in so many bytes at a time: those of a huge page, and whole
 * clusters. */
#define LOAD_BYTES (2 * MiB)

/* --- Which bitmap or table owns a cluster --- */

struct owner {
    uint64_t from; /* host bytes */
    uint64_t to;
    struct qcow2_bitmap *qb; /* NULL: the image's own */
};

struct owners {
    struct owner *all;
    size_t count;
    size_t room;
};

static int own(struct owners *o, uint64_t from, uint64_t bytes,
               struct qcow2_bitmap *qb)
{
    if (bytes == 0) {
        return 0;
    }
    if (o->count == o->room) {
        size_t room = o->room ? o->room * 2 : 64;
        struct owner *more = realloc(o->all, room * sizeof(*more));

        if (!more) {
            return -ENOMEM;
        }
        o->all = more;
        o->room = room;
    }
    o->all[o->count++] = (struct owner){from, from + bytes, qb};
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct owner *x = a;
    const struct owner *y = b;

    return (x->from > y->from) - (x->from < y->from);
}

static void quarantine(struct qcow2_bitmap *qb, const char *why)
{
    if (qb && !qb->broken) {
        qb->broken = why;
    }
}

/* Note that the bitmap leads to clusters that are not its own. */
static void distrust(struct qcow2_bitmap *qb, const char *why)
{
    quarantine(qb, why);
    if (qb) {
        qb->sound = false;
        free(qb->table);
        qb->table = NULL;
    }
}

/* Do the refcounts say that each cluster of the run is in use? */
static bool is_counted(struct qcow2 *s, const struct owner *o)
{
    bool counted = true;

    mutex_lock(&s->meta);
    for (uint64_t at = o->from; counted && at < o->to; at += s->cluster_size) {
        uint64_t count = 0;

        counted = qcow2_refcount_get(s, at >> s->cluster_bits, &count) == 0 &&
                  count > 0;
    }
    mutex_unlock(&s->meta);
    return counted;
}

static void find_clashes(struct qcow2 *s, struct owners *o)
{
    if (o->count == 0) {
        return;
    }
    qsort(o->all, o->count, sizeof(*o->all), by_place);
    size_t widest = 0; /* of the owners before it, the one that ends last */
    for (size_t i = 0; i < o->count; i++) {
        if (i > 0 && o->all[i].from < o->all[widest].to) {
            distrust(o->all[i].qb, "its clusters belong to others, too");
            distrust(o->all[widest].qb, "its clusters belong to others, too");
        }
        if (o->all[i].to > o->all[widest].to) {
            widest = i;
        }
        if (o->all[i].qb && !is_counted(s, &o->all[i])) {
            distrust(o->all[i].qb, "its clusters count as free");
        }
    }
}

/* --- One bitmap --- */

static bool in_file(const struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    return offset != 0 && qcow2_in_cluster(s, offset) == 0 &&
           range_inside(offset, bytes,
                        align_up(node_size(s->file), s->cluster_size));
}

static const char *check_entries(const struct qcow2 *s, struct qcow2_bitmap *qb)
{
    for (uint32_t i = 0; i < qb->table_size; i++) {
        uint64_t entry = be64toh(qb->table[i]);

        qb->table[i] = entry;
        if (entry != QCOW2_BITMAP_ZEROES && entry != QCOW2_BITMAP_ONES &&
            ((entry & ~QCOW2_OFFSET_MASK) ||
             !in_file(s, entry, s->cluster_size))) {
            return "its table has bad entries";
        }
    }
    return NULL;
}

static int read_bitmap_table(struct qcow2 *s, struct qcow2_bitmap *qb)
{
    uint64_t bytes = qb->table_size * UINT64_C(8);
    const char *why = NULL;

    if (qb->table_size != qcow2_slices(s, qb, s->node->size) ||
        qb->table_size > QCOW2_BITMAP_TABLE_MAX) {
        why = "its table is of the wrong size";
    } else if (bytes > 0 && !in_file(s, qb->table_offset, bytes)) {
        why = "its table is outside of the file";
    } else if (bytes > 0) {
        qb->table = malloc(bytes);
        if (!qb->table) {
            return -ENOMEM;
        }
        why = node_pread(s->file, qb->table, bytes, qb->table_offset, 0) < 0
                  ? "its table cannot be read"
                  : check_entries(s, qb);
    }
    if (why) {
        distrust(qb, why);
    }
    return 0;
}

static int own_bitmap(struct qcow2 *s, struct owners *o,
                      struct qcow2_bitmap *qb)
{
    int r = own(o, qb->table_offset,
                align_up(qb->table_size * UINT64_C(8), s->cluster_size), qb);

    for (uint32_t i = 0; r == 0 && i < qb->table_size; i++) {
        uint64_t entry = qb->table[i];

        if (entry != QCOW2_BITMAP_ZEROES && entry != QCOW2_BITMAP_ONES) {
            r = own(o, entry, s->cluster_size, qb);
        }
    }
    return r;
}

/* Note one cluster, which an L1 or refcount table entry leads to, as owned. */
static int own_table(const struct qcow2 *s, struct owners *o, uint64_t entry)
{
    uint64_t host = entry & QCOW2_OFFSET_MASK;

    return host ? own(o, host, s->cluster_size, NULL) : 0;
}

/* Note as owned what memory knows of the rest of the image: not the data. */
static int own_rest(struct qcow2 *s, const struct qcow2_bitmaps_ext *x,
                    struct owners *o)
{
    int r = own(o, 0, s->cluster_size, NULL);

    for (uint64_t i = 0; r == 0 && i < s->l1_size; i++) {
        r = own_table(s, o, atomic_load(&s->l1[i]));
    }
    for (uint32_t i = 0; r == 0 && i < s->reftable_size; i++) {
        r = own_table(s, o, s->reftable[i]);
    }

    if (r == 0) {
        r = own(o, s->l1_offset,
                align_up(s->l1_size * UINT64_C(8), s->cluster_size), NULL);
    }
    if (r == 0) {
        r = own(o, s->reftable_offset, s->reftable_size * UINT64_C(8), NULL);
    }
    return r == 0 ? own(o, x->dir_offset,
                        align_up(x->dir_size, s->cluster_size), NULL)
                  : r;
}

static int check_clusters(struct qcow2 *s, const struct qcow2_bitmaps_ext *x)
{
    struct owners o = {NULL, 0, 0};
    int r = own_rest(s, x, &o);

    list_for_each (e, &s->bitmaps.list) {
        if (r == 0 && QB(e)->sound) {
            r = own_bitmap(s, &o, QB(e));
        }
    }
    if (r == 0) {
        find_clashes(s, &o);
    }
    free(o.all);
    return r;
}

static int by_name(const void *a, const void *b)
{
    struct qcow2_bitmap *const *x = a;
    struct qcow2_bitmap *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

static int find_twins(struct qcow2 *s)
{
    size_t count = 0;
    CLEANUP_FREE struct qcow2_bitmap **all =
        calloc(s->bitmaps.ext.count, sizeof(struct qcow2_bitmap *));

    if (!all) {
        return -ENOMEM;
    }
    list_for_each (e, &s->bitmaps.list) {
        all[count++] = QB(e);
    }
    qsort(all, count, sizeof(struct qcow2_bitmap *), by_name);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(all[i - 1]->name, all[i]->name) == 0) {
            quarantine(all[i - 1], "another bitmap has the same name");
            quarantine(all[i], "another bitmap has the same name");
        }
    }
    return 0;
}

static void limit_bits(struct qcow2 *s)
{
    list_for_each (e, &s->bitmaps.list) {
        if (QB(e)->sound &&
            qcow2_bitmap_too_large(s->node->size,
                                   UINT64_C(1) << QB(e)->granularity_bits)) {
            distrust(QB(e), "it is too large");
        }
    }
}

/* Half of the machine's memory, and at least ONES_MAX. */
static uint64_t ones_max(void)
{
    long pages = sysconf(_SC_PHYS_PAGES);
    long size = sysconf(_SC_PAGESIZE);

    return pages > 0 && size > 0
               ? max_u64(ONES_MAX, (uint64_t)pages * (uint64_t)size / 2)
               : ONES_MAX;
}

/*
 * Hostile images must not eat all memory.  Bits take memory only where they are
 * set, and bits that are set take room in the file, except for "all ones".  So
 * limit those.
 */
static void limit_ones(struct qcow2 *s)
{
    uint64_t left = ones_max();

    list_for_each (e, &s->bitmaps.list) {
        const struct qcow2_bitmap *qb = QB(e);
        uint64_t bytes = 0;

        for (uint32_t i = 0; qb->table && i < qb->table_size; i++) {
            bytes += qb->table[i] == QCOW2_BITMAP_ONES ? s->cluster_size : 0;
        }
        if (bytes > left) {
            quarantine(QB(e), "there is no memory for it");
        } else {
            left -= bytes;
        }
    }
}

int qcow2_bitmap_marks(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t size)
{
    unsigned bits = qb->granularity_bits + 3U; /* whole bytes of bits */
    qb->region_bits = (unsigned)max_u64(
        bits, min_u64(REGION_BITS_MIN, qcow2_slice_bits(s, qb)));
    uint64_t regions = div_up(size, UINT64_C(1) << qb->region_bits);
    uint64_t slices = qcow2_slices(s, qb, size);

    qb->regions = regions;
    qb->granules = div_up(size, UINT64_C(1) << qb->granularity_bits);
    qb->armed = calloc(regions / 64 + 1, sizeof(*qb->armed));
    qb->touched = calloc(regions / 64 + 1, sizeof(*qb->touched));
    qb->stale = calloc(slices / 64 + 1, sizeof(*qb->stale));
    qb->loose = calloc(slices / 64 + 1, sizeof(*qb->loose));
    qb->doubt = calloc(slices / 64 + 1, sizeof(*qb->doubt));
    qb->unflushed = calloc(slices / 64 + 1, sizeof(*qb->unflushed));
    if (qb->armed && qb->touched && qb->stale && qb->loose && qb->doubt &&
        qb->unflushed) {
        return 0;
    }
    free(qb->doubt); /* it has no marks, then */
    qb->doubt = NULL;
    return -ENOMEM;
}

/* Bring the first @bytes of a slice's bits into @buf.  *any: some may be ones.
 */
static int read_slice(struct qcow2 *s, const struct qcow2_bitmap *qb,
                      uint64_t slice, unsigned char *buf, size_t bytes,
                      bool *any)
{
    uint64_t entry = qb->table[slice];

    if (entry == QCOW2_BITMAP_ZEROES) {
        memset(buf, 0, bytes);
        return 0;
    }
    *any = true;
    if (entry == QCOW2_BITMAP_ONES) {
        memset(buf, 0xff, bytes);
        return 0;
    }
    return node_pread(s->file, buf, bytes, entry, 0);
}

/* Load the bits of *slice and of those behind it, as many as fit in @room
 * bytes. */
static int load_slices(struct qcow2 *s, const struct qcow2_bitmap *qb,
                       uint64_t *slice, unsigned char *buf, size_t room)
{
    struct hbitmap *bits = qb->bm->bits;
    uint64_t first = *slice * s->cluster_size * 8;
    uint64_t left = hbitmap_granules(bits) - first;
    uint64_t count = min_u64(left, room * UINT64_C(8));
    size_t bytes = (size_t)div_up(count, 8);
    bool any = false;
    int r = 0;

    for (size_t at = 0; r == 0 && at < bytes; at += s->cluster_size) {
        r = read_slice(s, qb, (*slice)++, buf + at,
                       min_u64(bytes - at, s->cluster_size), &any);
    }
    if (r == 0 && any) {
        hbitmap_import(bits, first, count, buf);
    }
    return r;
}

static int load_bits(struct qcow2 *s, struct qcow2_bitmap *qb)
{
    uint64_t all = qb->table_size * (uint64_t)s->cluster_size;
    size_t room = max_u64(min_u64(all, LOAD_BYTES), s->cluster_size);
    CLEANUP_FREE unsigned char *buf = buf_alloc(room);
    int r = buf ? 0 : -ENOMEM;

    for (uint64_t slice = 0; r == 0 && slice < qb->table_size;) {
        r = load_slices(s, qb, &slice, buf, room);
    }
    if (r < 0 && r != -ENOMEM) {
        hbitmap_reset_all(qb->bm->bits);
        qb->broken = "its bits cannot be read";
        r = 0;
    }
    return r;
}

/* Put a broken bitmap on the node, without bits. */
static int present_broken(struct qcow2 *s, struct qcow2_bitmap *qb)
{
    unsigned bits = qb->granularity_bits;
    bool sane = bits >= 9 && bits <= 31;

    return bitmap_attach_broken(s->node, qb->name,
                                UINT64_C(1) << (sane ? bits : s->cluster_bits),
                                qb->broken, &qb->bm);
}

static int present_good(struct qcow2 *s, struct qcow2_bitmap *qb)
{
    int r = bitmap_attach(s->node, qb->name,
                          UINT64_C(1) << qb->granularity_bits, &qb->bm, NULL);

    if (r == 0) {
        r = load_bits(s, qb);
    }
    if (r == 0 && !qb->broken) {
        r = qcow2_bitmap_marks(s, qb, s->node->size);
    }
    if (r < 0) {
        qb->broken = "there is no memory for it";
    }
    if (qb->broken && qb->bm) {
        bitmap_drop(qb->bm);
        qb->bm = NULL;
    }
    return qb->broken ? present_broken(s, qb) : 0;
}

/* Put the bitmap on the node. */
static int present(struct qcow2 *s, struct qcow2_bitmap *qb,
                   struct error **errp)
{
    int r = qb->broken ? present_broken(s, qb) : present_good(s, qb);

    if (r < 0) {
        return error_set(errp, -r, "no memory for bitmap '%s'", qb->name);
    }
    qb->bm->persistent = true;
    qb->bm->loaded = true;
    qb->bm->stored = qb;
    bool enabled = qb->flags & QCOW2_BITMAP_AUTO;
    qb->bm->recorded = qb->broken && enabled;
    qb->bm->enabled = !qb->broken && enabled;
    return 0;
}

/* --- All of them --- */

/* Read the entries of the directory, or -EINVAL. */
static int read_directory(struct qcow2 *s, const struct qcow2_bitmaps_ext *x)
{
    if (x->count == 0 || x->count > QCOW2_BITMAPS_MAX ||
        x->dir_size > QCOW2_BITMAP_DIR_MAX ||
        x->dir_size < (uint64_t)x->count * QCOW2_BITMAP_ENTRY_SIZE ||
        !in_file(s, x->dir_offset, x->dir_size)) {
        return -EINVAL;
    }
    CLEANUP_FREE unsigned char *dir = malloc(x->dir_size);
    if (!dir) {
        return -ENOMEM;
    }
    int r = node_pread(s->file, dir, x->dir_size, x->dir_offset, 0);
    return r < 0 ? -EINVAL
                 : qcow2_bitmap_dir_parse(dir, x->dir_size, x->count,
                                          &s->bitmaps.list);
}

static int load_all(struct qcow2 *s, struct error **errp)
{
    int r = find_twins(s);

    limit_bits(s);
    list_for_each (e, &s->bitmaps.list) {
        if (r == 0 && QB(e)->sound) {
            r = read_bitmap_table(s, QB(e));
        }
    }
    if (r == 0) {
        r = check_clusters(s, &s->bitmaps.ext);
    }
    if (r < 0) {
        return error_set(errp, -r, "no memory for the image's bitmaps");
    }
    limit_ones(s);
    list_for_each (e, &s->bitmaps.list) {
        r = present(s, QB(e), errp);
        if (r < 0) {
            return r;
        }
    }
    bitmap_nest(s->node, NULL);
    return 0;
}

json_t *qcow2_bitmaps_describe(const struct qcow2 *s)
{
    json_t *list = json_array();

    list_for_each (e, &s->bitmaps.list) {
        const struct qcow2_bitmap *qb = QB(e);
        CLEANUP_FREE char *name = text_as_utf8(qb->name);
        json_t *flags = json_array();

        if (qb->flags & QCOW2_BITMAP_IN_USE) {
            (void)json_array_append_new(flags, json_string("in-use"));
        }
        if (qb->flags & QCOW2_BITMAP_AUTO) {
            (void)json_array_append_new(flags, json_string("auto"));
        }
        (void)json_array_append_new(
            list, json_pack("{s:o, s:s*, s:I}", "flags", flags, "name", name,
                            "granularity",
                            (json_int_t)1 << qb->granularity_bits % 62));
    }
    return list;
}

static void forget_all(struct qcow2 *s)
{
    while (!list_empty(&s->bitmaps.list)) {
        qcow2_bitmap_free(QB(s->bitmaps.list.next));
    }
}

void qcow2_bitmaps_init(struct qcow2 *s)
{
    list_init(&s->bitmaps.list);
    list_init(&s->bitmaps.queue);
    mutex_init(&s->bitmaps.arm_lock, LOCK_QCOW2_ARM, s);
    mutex_init(&s->bitmaps.queue_lock, LOCK_QCOW2_ARM_QUEUE, NULL);
}

void qcow2_bitmaps_free(struct qcow2 *s)
{
    forget_all(s);
    free(s->bitmaps.orphans);
    mutex_destroy(&s->bitmaps.arm_lock);
    mutex_destroy(&s->bitmaps.queue_lock);
}

int qcow2_bitmaps_load(struct qcow2 *s, const struct qcow2_header *h,
                       struct error **errp)
{
    if (!h->has_bitmaps || !(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS)) {
        return 0;
    }
    s->bitmaps.ext = h->bitmaps;
    int r = read_directory(s, &s->bitmaps.ext);
    if (r == -ENOMEM) {
        return error_nomem(errp);
    }
    if (r < 0) {
        forget_all(s);
        s->bitmaps.ext = (struct qcow2_bitmaps_ext){0};
        return 0;
    }
    /* A caller that looks only at headers sees what the directory says, and no
     * bits: a small image may ask for a lot of memory. */
    return s->node->flags.read_only && graph_is_without_bitmaps(s->node->graph)
               ? 0
               : load_all(s, errp);
}
