/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Working out entries of L2 tables: see l2-entry.h.
 *
 * Changing a part of the subclusters of an extended entry:
 *
 *   to                    its bits        the cluster
 *   normal                alloc           the new one
 *   zero with a place     zero            the new one
 *   zero                  zero            gone when no alloc bit is left
 *   unallocated           none            gone when no alloc bit is left
 *   unallocated, a place  as they were    the new one
 *
 * Before a place changes, the data of all subclusters that keep their alloc bit
 * has been copied to the new one.  That is true for a compressed cluster as for
 * one that has all bits.
 */
#include "qcow2/l2-entry.h"
#include "qcow2/l2.h"

#define SECTOR UINT64_C(512)

static bool is_zero(enum qcow2_kind kind)
{
    return kind == QCOW2_KIND_ZERO_ALLOC || kind == QCOW2_KIND_ZERO_PLAIN;
}

static unsigned sectors_shift(const struct qcow2 *s)
{
    return 62 - (s->cluster_bits - 8);
}

struct qcow2_run qcow2_entry_packed_run(const struct qcow2 *s,
                                        struct qcow2_entry e)
{
    unsigned shift = sectors_shift(s);
    uint64_t more = e.word >> shift & ((UINT64_C(1) << (62 - shift)) - 1);
    uint64_t host = e.word & ((UINT64_C(1) << shift) - 1);

    return (struct qcow2_run){host, (more + 1) * SECTOR - host % SECTOR};
}

struct qcow2_entry qcow2_entry_of_packed(const struct qcow2 *s,
                                         const struct qcow2_run *packed)
{
    uint64_t more = div_up(packed->host % SECTOR + packed->bytes, SECTOR) - 1;

    return (struct qcow2_entry){.word = QCOW2_ENTRY_COMPRESSED |
                                        more << sectors_shift(s) |
                                        packed->host};
}

static struct qcow2_entry put_extended(const struct qcow2 *s,
                                       struct qcow2_entry old, uint32_t mask,
                                       enum qcow2_kind kind, uint64_t host)
{
    struct qcow2_entry new = old;

    if (qcow2_entry_packed(old)) {
        new.word = 0;
        new.zero = 0;
        new.alloc = kind == QCOW2_KIND_NORMAL ? UINT32_MAX : 0;
        mask = UINT32_MAX;
    }
    if (kind != QCOW2_KIND_UNALLOCATED_ALLOC) {
        new.alloc &= ~mask;
        new.zero &= ~mask;
    }
    new.alloc |= kind == QCOW2_KIND_NORMAL ? mask : 0;
    new.zero |= is_zero(kind) ? mask : 0;
    if (qcow2_kind_has_place(kind)) {
        new.word = host | QCOW2_COPIED;
    } else if (!qcow2_entry_has_cluster(s, old) || new.alloc == 0) {
        new.word = 0;
    }
    return new;
}

struct qcow2_entry qcow2_entry_put(const struct qcow2 *s,
                                   struct qcow2_entry old, uint32_t mask,
                                   enum qcow2_kind kind, uint64_t host)
{
    struct qcow2_entry new = {0};

    if (s->extended) {
        return put_extended(s, old, mask, kind, host);
    }
    new.word = qcow2_kind_has_place(kind) ? host | QCOW2_COPIED : 0;
    new.word |= is_zero(kind) ? QCOW2_ENTRY_ZERO : 0;
    return new;
}

struct qcow2_entry qcow2_entry_settled(const struct qcow2 *s,
                                       struct qcow2_entry e)
{
    if (!s->extended || qcow2_entry_packed(e)) {
        e.alloc = e.zero = 0;
        return e;
    }
    e.zero |= qcow2_entry_contradictions(s, e);
    e.alloc &= ~e.zero;
    return e;
}

const char *qcow2_entry_odd(const struct qcow2 *s, struct qcow2_entry e,
                            uint32_t *lost)
{
    *lost = qcow2_entry_contradictions(s, e);
    if (qcow2_entry_packed(e)) {
        return e.word & QCOW2_COPIED
                   ? "is compressed, and has the flag of one that is not"
               : e.alloc || e.zero ? "is compressed, and has bits of parts"
                                   : NULL;
    }
    if (*lost) {
        return qcow2_entry_has_cluster(s, e)
                   ? "has parts that are data and zeroes at once"
                   : "has parts that are data, and no cluster";
    }
    if (s->version < 3 && (e.word & QCOW2_ENTRY_ZERO)) {
        return "has a flag of version 3";
    }
    if ((e.word & QCOW2_ENTRY_RESERVED) ||
        (s->extended && (e.word & QCOW2_ENTRY_ZERO))) {
        return "has reserved bits";
    }
    return !qcow2_entry_has_cluster(s, e) && (e.word & QCOW2_COPIED)
               ? "has a flag of a cluster, and no cluster"
               : NULL;
}
