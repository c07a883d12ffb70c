/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Repairing an image.
 *
 *   1. look      what is wrong: check.c
 *   2. plan      another walk: which entries lead nowhere, what has to be
 *                copied because it lies on something else
 *      bar       entries that lead behind the end get a place where no file
 * ever ends, because the file is about to grow; flush
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
#include "qcow2/l2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "nbdelta/error.h"

/* --- Bar --- */

/* A place that is behind the end of any file, and the start of no cluster that
 * is larger than a sector. */
#define NOWHERE QCOW2_OFFSET_MASK

/* A compressed cluster has no bits of subclusters, so it gets them: else
 * nothing would say any more that there was data. */
static int bar_ref(const struct qcow2_ref *r, void *opaque)
{
    struct repair *p = opaque;
    bool bits = r->owner == QCOW2_OWN_PACKED && p->k->im.shape.extended;
    unsigned char be[16];

    if (!r->behind || r->entry == 0) {
        return 0;
    }
    store_be64(be, NOWHERE);
    store_be64(be + 8, UINT32_MAX);
    return node_pwrite(p->file, be, bits ? 16 : 8, r->entry, 0);
}

/* What leads behind the end must not lead into what is written there. */
static int bar_entries(struct repair *p)
{
    const struct qcow2_walker w = {.refer = bar_ref, .opaque = p};
    int r = qcow2_walk(&p->k->im, &w);

    return r == 0 ? node_flush(p->file) : r;
}

/* --- 4. Switch --- */

static int switch_header(struct repair *p,
                         const struct qcow2_new_refcounts *new)
{
    unsigned char be[QCOW2_HDR_SNAPSHOTS + 12 - QCOW2_HDR_L1];
    const struct qcow2_header *h = &p->k->im.h;
    int r = node_flush(p->file);

    store_be32(be, p->new_l1 ? p->l1_size : h->l1_size);
    store_be64(be + 4, p->new_l1 ? p->l1_host : h->l1_offset);
    store_be64(be + (QCOW2_HDR_REFTABLE - QCOW2_HDR_L1), new->host);
    store_be32(be + (QCOW2_HDR_REFTABLE + 8 - QCOW2_HDR_L1), new->clusters);
    store_be32(be + (QCOW2_HDR_SNAPSHOTS - QCOW2_HDR_L1), p->snapshots);
    store_be64(be + (QCOW2_HDR_SNAPSHOTS + 4 - QCOW2_HDR_L1),
               p->snapshots ? h->snapshots_offset : 0);
    if (r == 0) {
        r = node_pwrite(p->file, be, sizeof(be), QCOW2_HDR_L1, 0);
    }
    return r == 0 ? node_flush(p->file) : r;
}

/* --- Steps 2 to 5 --- */

static int rebuild(struct repair *p, struct error **errp)
{
    struct qcow2_new_refcounts new;
    int r = qcow2_repair_plan(p);

    if (r == 0 && p->l1_size * UINT64_C(8) > QCOW2_MAX_L1_BYTES) {
        return error_set(errp, EFBIG, "the disk is too large for its clusters");
    }
    if (r == 0) {
        r = bar_entries(p);
    }
    if (r == 0) {
        r = qcow2_repair_write(p);
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
                 : qcow2_repair_mend(p, errp);
}

static bool can_grow(const struct node *file)
{
    struct stat st;

    return file->drv->fstat && file->drv->fstat(file, &st) == 0 &&
           S_ISREG(st.st_mode);
}

/* Where the annex begins.  Nothing can be behind the end of a file, whatever
 * counts say; but on a device they may be of something that cannot be read. */
static uint64_t first_free(const struct qcow2_check *k, const struct node *file)
{
    uint64_t clusters = div_up(k->im.file_size, k->im.shape.cluster_size);

    return can_grow(file) ? max_u64(k->referred, clusters) : k->end;
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

    p.annex.first = first_free(k, file);
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
    uint64_t count = qcow2_census_count(f->k->census,
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
        if ((at.kind == QCOW2_KIND_NORMAL || at.kind == QCOW2_KIND_ZERO_ALLOC ||
             at.kind == QCOW2_KIND_UNALLOCATED_ALLOC) &&
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
    /* A count that goes down to one leaves an entry that has to say so. */
    bool flags = all || k->corruptions == k->claims;
    int r = all ? repair_all_structures(k, file, errp) : 0;

    if (r == 0) {
        r = repair_leaks(k, file, errp);
    }
    if (r == 0 && flags && k->flags) {
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
