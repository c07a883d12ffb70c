/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * L2 tables: looking up what is at a guest offset, and changing it.  Nothing
 * outside of this file knows what an entry looks like, or how long it is.
 *
 *   entry        63 COPIED: nobody else refers to its cluster
 *                62 COMPRESSED: 0
 *                9-55 host offset of a cluster; 0: there is none
 *                0 ZERO: the cluster reads as zeroes (version 3)
 *
 *   compressed   63 0
 *                62 COMPRESSED: 1
 *                [ additional sectors of 512 bytes | host offset in bytes ]
 *                   <- cluster_bits - 8 bits ->      <- the rest of 62 ->
 *
 * An entry is loaded and stored as a whole.  A thread that loads one has the
 * table pinned; a thread that stores one holds meta.
 */
#include <errno.h>
#include <string.h>

#include "qcow2/qcow2.h"

#define COMPRESSED (UINT64_C(1) << 62)
#define ZERO       (UINT64_C(1) << 0)
#define RESERVED   UINT64_C(0x3f000000000001fe) /* of one without COMPRESSED */

#define SECTOR UINT64_C(512)

/* An entry in host byte order.  It is a type of its own, so that nobody
 * calculates with its flags as if they were part of an offset. */
struct entry {
    uint64_t word;
};

static uint64_t index_of(const struct qcow2 *s, uint64_t offset)
{
    return (offset & (qcow2_l2_span(s) - 1)) >> s->cluster_bits;
}

static struct entry load_entry(const struct qcow2_table *t, uint64_t index)
{
    const _Atomic uint64_t *e = t->data;
    uint64_t word = atomic_load_explicit(&e[index], memory_order_acquire);

    return (struct entry){be64toh(word)};
}

static void store_entry(struct qcow2_table *t, uint64_t index, struct entry new)
{
    _Atomic uint64_t *e = t->data;

    atomic_store_explicit(&e[index], htobe64(new.word), memory_order_release);
}

static uint64_t cluster_of(struct entry e)
{
    return e.word & QCOW2_OFFSET_MASK;
}

static enum qcow2_kind kind_of(const struct qcow2 *s, struct entry e)
{
    if (e.word & COMPRESSED) {
        return QCOW2_KIND_COMPRESSED;
    }
    bool host = cluster_of(e) != 0;
    if (s->version >= 3 && (e.word & ZERO)) {
        return host ? QCOW2_KIND_ZERO_ALLOC : QCOW2_KIND_ZERO_PLAIN;
    }
    if (s->external && (e.word & QCOW2_COPIED)) {
        return QCOW2_KIND_NORMAL; /* the first cluster is at offset 0 */
    }
    return host ? QCOW2_KIND_NORMAL : QCOW2_KIND_UNALLOCATED;
}

static bool has_cluster(enum qcow2_kind kind)
{
    return kind == QCOW2_KIND_NORMAL || kind == QCOW2_KIND_ZERO_ALLOC;
}

static unsigned sectors_shift(const struct qcow2 *s)
{
    return 62 - (s->cluster_bits - 8);
}

/* Where compressed bytes begin, and how many there are at the most. */
static struct qcow2_run packed_run(const struct qcow2 *s, struct entry e)
{
    unsigned shift = sectors_shift(s);
    uint64_t more = e.word >> shift & ((UINT64_C(1) << (62 - shift)) - 1);
    uint64_t host = e.word & ((UINT64_C(1) << shift) - 1);

    return (struct qcow2_run){host, (more + 1) * SECTOR - host % SECTOR};
}

/* --- Looking --- */

/* Does the entry for @offset lead to a place where no cluster can be? */
static bool is_wrong(const struct qcow2 *s, struct entry e, uint64_t offset)
{
    return s->external ? cluster_of(e) != align_down(offset, s->cluster_size)
                       : qcow2_in_cluster(s, cluster_of(e)) != 0;
}

/* Does @next continue the run that began with @first, @clusters before it? */
static bool continues(const struct qcow2 *s, struct entry first,
                      enum qcow2_kind kind, struct entry next,
                      uint64_t clusters)
{
    return has_cluster(kind)
               ? next.word == first.word + (clusters << s->cluster_bits)
               : kind_of(s, next) == kind;
}

void qcow2_l2_look(const struct qcow2 *s, const struct qcow2_table *t,
                   uint64_t offset, uint64_t bytes, struct qcow2_at *at)
{
    uint64_t index = index_of(s, offset);
    uint64_t in_cluster = qcow2_in_cluster(s, offset);
    struct entry first = load_entry(t, index);
    enum qcow2_kind kind = kind_of(s, first);
    uint64_t alike = s->cluster_size - in_cluster;

    bytes = min_u64(bytes, qcow2_l2_rest(s, offset));
    for (uint64_t i = 1; alike < bytes &&
                         continues(s, first, kind, load_entry(t, index + i), i);
         i++) {
        alike += s->cluster_size;
    }
    at->kind = kind;
    at->copied = first.word & QCOW2_COPIED;
    at->wrong = has_cluster(kind) && is_wrong(s, first, offset);
    at->bytes = min_u64(bytes, alike);
    at->host = cluster_of(first) + in_cluster;
    if (kind == QCOW2_KIND_COMPRESSED) { /* a data file has none */
        at->wrong = s->external;
        at->packed = packed_run(s, first);
    }
}

const char *qcow2_l2_odd(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t offset)
{
    struct entry e = load_entry(t, index_of(s, offset));
    enum qcow2_kind kind = kind_of(s, e);

    if (kind == QCOW2_KIND_COMPRESSED) {
        return e.word & QCOW2_COPIED
                   ? "is compressed, and has the flag of one that is not"
                   : NULL;
    }
    if (s->version < 3 && (e.word & ZERO)) {
        return "has a flag of version 3";
    }
    if (e.word & RESERVED) {
        return "has reserved bits";
    }
    return !has_cluster(kind) && (e.word & QCOW2_COPIED)
               ? "has a flag of a cluster, and no cluster"
               : NULL;
}

/* --- Changing --- */

/* The whole clusters that the entry leads to; without bytes: none. */
static struct qcow2_run referred(const struct qcow2 *s, struct entry e)
{
    enum qcow2_kind kind = kind_of(s, e);
    struct qcow2_run run = {cluster_of(e), s->cluster_size};

    if (s->external || (!has_cluster(kind) && kind != QCOW2_KIND_COMPRESSED)) {
        return (struct qcow2_run){0, 0};
    }
    if (kind == QCOW2_KIND_COMPRESSED) {
        run = packed_run(s, e);
    }
    uint64_t from = align_down(run.host, s->cluster_size);
    return (struct qcow2_run){
        from, align_up(run.host + run.bytes, s->cluster_size) - from};
}

/* Free what an entry led to. */
static int free_referred(struct qcow2 *s, const struct qcow2_run *run)
    REQUIRES(s->meta)
{
    int r = run->bytes == 0 ? 0
                            : qcow2_overlap_check(s, 0, run->host, run->bytes);

    return r < 0 || run->bytes == 0
               ? r
               : qcow2_free_later(s, run->host, run->bytes >> s->cluster_bits);
}

/* Change the entry for guest @offset. */
static int replace_entry(struct qcow2 *s, struct qcow2_table *t,
                         uint64_t offset, struct entry new) REQUIRES(s->meta)
{
    struct entry old = load_entry(t, index_of(s, offset));
    bool same = has_cluster(kind_of(s, new)) && has_cluster(kind_of(s, old)) &&
                cluster_of(new) == cluster_of(old);
    const struct qcow2_run was = referred(s, old);
    const struct qcow2_run is = referred(s, new);

    store_entry(t, index_of(s, offset), new);
    if (!same && s->making) {
        qcow2_making_follow(s, offset, &was, &is);
    }
    int r = same ? 0 : free_referred(s, &was);
    return r == -ENOMEM ? 0 : r; /* it leaks; no harm done */
}

int qcow2_l2_put(struct qcow2 *s, struct qcow2_table *t, uint64_t offset,
                 uint64_t bytes, enum qcow2_kind kind, uint64_t host)
{
    uint64_t end = offset + align_up(bytes, s->cluster_size);
    struct entry new = {0};
    int r = 0;

    if (has_cluster(kind)) {
        new.word = host | QCOW2_COPIED;
    }
    if (kind == QCOW2_KIND_ZERO_ALLOC || kind == QCOW2_KIND_ZERO_PLAIN) {
        new.word |= ZERO;
    }
    for (; offset < end; offset += s->cluster_size) {
        int one = replace_entry(s, t, offset, new);

        r = r < 0 ? r : one;
        new.word += has_cluster(kind) ? s->cluster_size : 0;
    }
    qcow2_cache_mark_dirty(s->l2, t);
    return r;
}

int qcow2_l2_put_packed(struct qcow2 *s, struct qcow2_table *t, uint64_t offset,
                        const struct qcow2_run *packed)
{
    uint64_t more = div_up(packed->host % SECTOR + packed->bytes, SECTOR) - 1;
    struct entry new = {COMPRESSED | more << sectors_shift(s) | packed->host};
    int r = replace_entry(s, t, offset, new);

    qcow2_cache_mark_dirty(s->l2, t);
    return r;
}

uint64_t qcow2_l2_place(const struct qcow2 *s, uint64_t offset)
{
    return index_of(s, offset) * sizeof(struct entry);
}

void qcow2_l2_mend(const struct qcow2 *s, struct qcow2_table *t,
                   uint64_t offset, const struct qcow2_at *at)
{
    struct entry new = {0};

    if (has_cluster(at->kind)) {
        new.word = at->host | (at->copied ? QCOW2_COPIED : 0);
    }
    if (at->kind == QCOW2_KIND_ZERO_ALLOC ||
        at->kind == QCOW2_KIND_ZERO_PLAIN) {
        new.word |= ZERO;
    }
    if (at->kind == QCOW2_KIND_COMPRESSED) {
        uint64_t end = at->packed.host + at->packed.bytes;
        uint64_t more = div_up(end, SECTOR) - at->packed.host / SECTOR - 1;

        new.word = COMPRESSED | more << sectors_shift(s) | at->packed.host;
    }
    store_entry(t, index_of(s, offset), new);
}

void qcow2_l2_share(const struct qcow2 *s, struct qcow2_table *t)
{
    for (uint64_t i = 0; i < UINT64_C(1) << s->l2_bits; i++) {
        struct entry e = load_entry(t, i);

        if (e.word & QCOW2_COPIED) {
            e.word &= ~QCOW2_COPIED;
            store_entry(t, i, e);
        }
    }
}

void qcow2_l2_fill(void *table, unsigned cluster_bits, uint64_t offset,
                   uint64_t size)
{
    uint64_t entries = UINT64_C(1) << qcow2_l2_bits(cluster_bits);
    unsigned char *at = table;

    for (uint64_t i = 0; i < entries; i++) {
        uint64_t host = offset + (i << cluster_bits);
        store_be64(at + i * 8, host < size ? host | QCOW2_COPIED : 0);
    }
}

/* --- Tables that can be changed --- */

/* Take all room that L2 table @index, at @host, needs, and make the table. */
static int new_table(struct qcow2 *s, uint64_t index, uint64_t host,
                     struct qcow2_table **tp) REQUIRES(s->meta)
{
    int r = qcow2_keep_entry_room(s, s->l1_offset, s->l1, s->l1_size, index);

    node_event(s->file, EVENT_L2_ALLOC_WRITE);
    if (r == 0) {
        r = qcow2_take_room(s, host, s->cluster_size);
    }
    if (r == 0) {
        r = qcow2_cache_new_table(s->l2, host, tp);
    }
    if (r == 0) {
        (*tp)->has_room = true;
    }
    return r;
}

bool qcow2_l2_is_table(const struct qcow2 *s, uint64_t entry)
{
    unsigned shared = entry & QCOW2_COPIED ? 0 : QCOW2_META_TWICE;
    unsigned others = qcow2_overlap_others(
        s, QCOW2_META_L2, entry & QCOW2_OFFSET_MASK, s->cluster_size);

    return (others & ~shared) == 0;
}

int qcow2_l2_get_writable(struct qcow2 *s, uint64_t offset,
                          struct qcow2_table **tp)
{
    uint64_t index = offset / qcow2_l2_span(s);
    uint64_t old = atomic_load(&s->l1[index]);
    struct qcow2_table *from = NULL;
    struct qcow2_table *to = NULL;
    uint64_t host;

    int r = qcow2_l2_get(s, offset, false, &from);
    if (r < 0) {
        return r;
    }
    if (from && !qcow2_l2_is_table(s, old)) {
        r = qcow2_overlap_check(s, QCOW2_META_L2, from->offset,
                                s->cluster_size);
        qcow2_cache_put(s->l2, from);
        return r;
    }
    if (from && (old & QCOW2_COPIED)) {
        r = qcow2_keep_room(s, from);
        if (r < 0) {
            qcow2_cache_put(s->l2, from);
        }
        *tp = from;
        return r;
    }
    r = qcow2_alloc_exact(s, QCOW2_META_L2, 1, &host);
    if (r == 0) {
        r = new_table(s, index, host, &to);
        if (r < 0) {
            qcow2_alloc_undo(s, host, 1);
        }
    }
    if (from && r == 0) {
        node_event(s->file, EVENT_L2_ALLOC_COW_READ);
    }
    if (from) {
        if (r == 0) {
            memcpy(to->data, from->data, s->cluster_size);
            if (!s->external) {
                qcow2_l2_share(s, to);
            }
            (void)qcow2_free_later(s, old & QCOW2_OFFSET_MASK, 1);
        }
        qcow2_cache_put(s->l2, from);
    }
    if (r < 0 || !to) {
        return r < 0 ? r : -ENOMEM;
    }
    atomic_store(&s->l1[index], host | QCOW2_COPIED);
    if (s->making) {
        const struct qcow2_run was = {old & QCOW2_OFFSET_MASK,
                                      from ? s->cluster_size : 0};
        const struct qcow2_run is = {host, s->cluster_size};

        qcow2_making_follow(s, index * qcow2_l2_span(s), &was, &is);
    }
    qcow2_span_add(&s->l1_dirty, (uint32_t)index, (uint32_t)index + 1);
    *tp = to;
    return 0;
}
