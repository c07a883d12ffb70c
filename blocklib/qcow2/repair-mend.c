/* SPDX-License-Identifier: BSD-3-Clause */
/* Step 5 of a repair: entries get what the plan says.  Bitmaps come first, so
 * that they never miss what changes then. */
#include "qcow2/l2.h"
#include "qcow2/repair.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/error.h"
#include "qcow2/bitmaps.h"

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
        } else if (f->lost && qcow2_repair_needs_zeroes(p)) {
            value = qcow2_repair_zero_table(p, zeroes++);
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
            taken = qcow2_repair_is_taken(p, r->host + at);
        }
        return taken ? 0 : fill_with_ones(p, r);
    }
    return !p->guest_changed && !qcow2_repair_is_taken(p, r->entry) &&
                   (r->wrong || qcow2_repair_is_taken(p, r->host))
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
        bool lost = r->kept != UINT32_MAX;
        f.how = lost && qcow2_repair_is_raw(p) ? FIX_OWN
                : r->bytes == 0                ? FIX_FLAGS
                                               : FIX_ZERO;
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
            qcow2_repair_zero_entry(p, t, f->offset, 1);
            continue;
        }
        if (f->how == FIX_OWN) { /* its place in a raw data file */
            qcow2_l2_mend_own(s, t, f->offset, f->to);
            continue;
        }
        qcow2_l2_look(s, t, f->offset, s->cluster_size, &at);
        if (f->how == FIX_MOVE) {
            at.host = f->to;
            at.packed.host = f->to;
            at.copied = false;
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

int qcow2_repair_mend(struct repair *p, struct error **errp)
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
