/* SPDX-License-Identifier: BSD-3-Clause */
/* Step 2 of a repair: what is lost, what has to be copied, what entries will
 * be. Nothing is written. */
#include "qcow2/repair.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

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

static void note_lost_bytes(struct repair *p, uint32_t disk, uint64_t guest,
                            uint64_t bytes)
{
    uint64_t size = p->k->im.h.size;

    p->guest_changed = true;
    if (disk != QCOW2_ACTIVE) {
        qcow2_check_tell(p->o, IMAGE_LOST,
                         "lost: %" PRIu64 " bytes at %" PRIu64
                         " of a snapshot read as zeroes",
                         bytes, guest);
        return;
    }
    if (guest >= size) {
        return;
    }
    if (p->lost_bytes == 0 || p->lost_from + p->lost_bytes != guest) {
        tell_lost(p);
        p->lost_from = guest;
    }
    p->lost_bytes += min_u64(bytes, size - guest);
}

/* All that it was for, or those parts of it that are not kept. */
static void note_lost(struct repair *p, const struct qcow2_ref *r)
{
    uint64_t part = r->guest_bytes / QCOW2_REF_PARTS;

    if (r->kept == 0) {
        note_lost_bytes(p, r->disk, r->guest, r->guest_bytes);
        return;
    }
    for (unsigned i = 0; i < QCOW2_REF_PARTS; i++) {
        if (!(r->kept >> i & 1)) {
            note_lost_bytes(p, r->disk, r->guest + i * part, part);
        }
    }
}

/* --- 2. Plan --- */

/* Is something else where a part of a structure is, that is no L2 table? */
bool qcow2_repair_is_taken(const struct repair *p, uint64_t host)
{
    unsigned flags = qcow2_census_flags(p->k->census,
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

    if (r->disk != QCOW2_ACTIVE && qcow2_repair_is_taken(p, r->entry)) {
        return 0;
    }
    if (f.lost) {
        note_lost(p, r);
        p->zero_tables++;
    }
    return add_l1_fix(p, &f);
}

/* Each cluster of a raw data file has what the guest sees there. */
bool qcow2_repair_is_raw(const struct repair *p)
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
        if (!qcow2_repair_is_raw(p)) {
            note_lost(p, r);
            p->zero_entries += r->bytes > 0;
        }
        return 0;
    }
    for (uint64_t c = r->host >> k->im.shape.cluster_bits;
         !r->external &&
         c <= (r->host + r->bytes - 1) >> k->im.shape.cluster_bits;
         c++) {
        unsigned flags = qcow2_census_flags(k->census, c);

        /* The old refcounts go. */
        clash |= (flags & (CENSUS_L2 | CENSUS_META)) != 0;
        many |= qcow2_census_count(k->census, c) > p->highest;
    }
    if (!clash && !many) {
        return 0;
    }
    if (k->im.h.crypt == QCOW2_LUKS && r->owner == QCOW2_OWN_DATA) {
        qcow2_check_tell(p->o, IMAGE_CORRUPT,
                         "encrypted data at 0x%" PRIx64 " would have to be "
                         "moved, which their encryption does not survive: copy "
                         "the disk to a new image",
                         r->host);
        return -ENOTSUP;
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
    unsigned flags = qcow2_census_flags(k->census,
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
        p->new_l1 |= qcow2_repair_is_taken(p, c << bits);
    }
}

static void plan_snapshots(struct repair *p, const struct qcow2_ref *r)
{
    if (r->wrong && p->snapshots > 0) {
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

int qcow2_repair_plan(struct repair *p)
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
