/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The set of metadata clusters: a hash table with open addressing.
 *
 *   slot:  [ cluster + 1 | kinds ]   0: never used
 *                          kinds 0: it was dropped, and can be taken again
 *
 * A slot is one word, so a thread that asks needs no lock: it sees a cluster
 * with its kinds or does not see it.  A full table is replaced by one twice as
 * large, and kept until the end, because a thread may still look at it.  All
 * old tables together are smaller than the last.  (Slots of dropped clusters
 * are found again by the same clusters, which the allocator takes first.)
 *
 * An image can name more tables than there is memory for.  The set takes
 * SLOTS_MAX; then it remembers no further cluster, and those are not looked
 * after.  What guests' data depend on most goes in first.
 */
#include "qcow2/overlap.h"
#include "qcow2/encrypt.h"

#include <errno.h>
#include <stdlib.h>

#include "core/opts.h"
#include "nbdelta/cleanup.h"
#include "qcow2/bitmaps.h"

#define KIND_BITS 12
#define KIND_MASK UINT64_C(0xfff)

#define SLOTS_MIN 64
#define SLOTS_MAX (UINT64_C(1) << 21) /* 16 MiB */

struct qcow2_overlap {
    struct qcow2_overlap *before; /* the table that it has replaced */
    uint64_t mask;                /* slots - 1 */
    uint64_t used;                /* slots that are not 0; meta lock */
    _Atomic uint64_t slot[];
};

static struct qcow2_overlap *new_set(uint64_t slots)
{
    struct qcow2_overlap *o = calloc(1,
                                     sizeof(*o) + slots * sizeof(o->slot[0]));

    if (o) {
        o->mask = slots - 1;
    }
    return o;
}

static uint64_t hash_cluster(uint64_t cluster)
{
    return cluster * UINT64_C(0x9e3779b97f4a7c15) >> 20;
}

/* The slot of @cluster and what is in it, or NULL and 0.  Without the meta lock
 * only the word counts: the slot may be another cluster's by now. */
static _Atomic uint64_t *find_slot(struct qcow2_overlap *o, uint64_t cluster,
                                   uint64_t *wordp)
{
    *wordp = 0;
    for (uint64_t i = hash_cluster(cluster);; i++) {
        _Atomic uint64_t *at = &o->slot[i & o->mask];
        uint64_t word = atomic_load_explicit(at, memory_order_relaxed);

        if (word == 0) {
            return NULL;
        }
        if (word >> KIND_BITS == cluster + 1) {
            *wordp = word;
            return at;
        }
    }
}

/* Put in a cluster that is not there; there is room. */
static void insert_cluster(struct qcow2_overlap *o, uint64_t cluster,
                           unsigned kinds)
{
    uint64_t i = hash_cluster(cluster);

    while (atomic_load(&o->slot[i & o->mask]) & KIND_MASK) {
        i++;
    }
    o->used += atomic_load(&o->slot[i & o->mask]) == 0;
    atomic_store(&o->slot[i & o->mask], (cluster + 1) << KIND_BITS | kinds);
}

/* A quarter stays unused, so that each search ends soon. */
static bool has_room(const struct qcow2_overlap *o)
{
    return o->used < (o->mask + 1) / 4 * 3;
}

static int make_slots(struct qcow2 *s) REQUIRES(s->meta)
{
    struct qcow2_overlap *o = atomic_load(&s->overlap);
    uint64_t slots = o->mask + 1;

    if (has_room(o) || slots == SLOTS_MAX) {
        return 0;
    }
    struct qcow2_overlap *more = new_set(slots * 2);
    if (!more) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < slots; i++) {
        uint64_t word = atomic_load(&o->slot[i]);
        if (word & KIND_MASK) {
            insert_cluster(more, (word >> KIND_BITS) - 1, word & KIND_MASK);
        }
    }
    more->before = o;
    atomic_store(&s->overlap, more);
    return 0;
}

static int add_cluster(struct qcow2 *s, unsigned kind, uint64_t cluster)
    REQUIRES(s->meta)
{
    int r = make_slots(s);

    if (r < 0) {
        return r;
    }
    struct qcow2_overlap *o = atomic_load(&s->overlap);
    uint64_t word;
    _Atomic uint64_t *at = find_slot(o, cluster, &word);
    if (!at) {
        if (has_room(o)) {
            insert_cluster(o, cluster, kind);
        }
        return 0;
    }
    unsigned twice = word & kind ? QCOW2_META_TWICE : 0;
    if (kind == QCOW2_META_L2) { /* it has become active */
        word &= ~(uint64_t)QCOW2_META_INACTIVE_L2;
    }
    atomic_store(at, word | kind | twice);
    return 0;
}

int qcow2_overlap_add(struct qcow2 *s, unsigned kind, uint64_t host,
                      uint64_t bytes) REQUIRES(s->meta)
{
    uint64_t end = div_up(host + bytes, s->cluster_size);
    int r = 0;

    for (uint64_t c = host >> s->cluster_bits; c < end && r == 0; c++) {
        r = add_cluster(s, kind, c);
    }
    return r;
}

void qcow2_overlap_drop(struct qcow2 *s, uint64_t cluster)
{
    struct qcow2_overlap *o = atomic_load(&s->overlap);
    uint64_t word;
    _Atomic uint64_t *at = o ? find_slot(o, cluster, &word) : NULL;

    if (at && (word & KIND_MASK)) {
        atomic_store(at, (cluster + 1) << KIND_BITS);
    }
}

unsigned qcow2_overlap_find(const struct qcow2 *s, uint64_t host,
                            uint64_t bytes)
{
    struct qcow2_overlap *o = atomic_load(&s->overlap);
    uint64_t end = div_up(host + bytes, s->cluster_size);
    uint64_t kinds = 0;

    for (uint64_t c = host >> s->cluster_bits; o && c < end; c++) {
        uint64_t word;

        (void)find_slot(o, c, &word);
        kinds |= word & KIND_MASK;
    }
    return (unsigned)kinds;
}

/* --- Asking before a write --- */

unsigned qcow2_overlap_others(const struct qcow2 *s, unsigned own,
                              uint64_t host, uint64_t bytes)
{
    /* An entry that leads to the header would say that there is nothing. */
    unsigned checked = atomic_load(&s->overlap_checked) | QCOW2_META_HEADER;
    unsigned twice = checked & own ? QCOW2_META_TWICE : 0;

    return qcow2_overlap_find(s, host, bytes) & ((checked & ~own) | twice);
}

static const char *name_kinds(unsigned kinds)
{
    static const char *const names[] = {
        "the header",
        "the L1 table",
        "an L2 table",
        "the refcount table",
        "a refcount block",
        "the snapshot table",
        "a snapshot's L1 table",
        "a snapshot's L2 table",
        "a bitmap",
        "a second table",
    };

    return kinds ? names[__builtin_ctz(kinds)] : "nothing";
}

int qcow2_overlap_check(struct qcow2 *s, unsigned own, uint64_t host,
                        uint64_t bytes)
{
    unsigned kinds = qcow2_overlap_others(s, own, host, bytes);

    return kinds == 0 ? 0 : qcow2_overlap_corrupt(s, kinds, host, bytes);
}

int qcow2_overlap_corrupt(struct qcow2 *s, unsigned kinds, uint64_t host,
                          uint64_t bytes)
{
    return qcow2_corrupt_at(s, host, bytes,
                            "prevented a write to what is also %s",
                            name_kinds(kinds));
}

/* --- The option --- */

const char *const qcow2_overlap_words[] = {"none", "constant", "cached", "all",
                                           NULL};
enum { WORD_CACHED = 2 };

#define CONSTANT                                               \
    (QCOW2_META_HEADER | QCOW2_META_L1 | QCOW2_META_REFTABLE | \
     QCOW2_META_SNAPSHOT | QCOW2_META_BITMAP)
#define CACHED \
    (CONSTANT | QCOW2_META_L2 | QCOW2_META_REFBLOCK | QCOW2_META_INACTIVE_L1)

static const unsigned kinds_of_word[] = {0, CONSTANT, CACHED,
                                         CACHED | QCOW2_META_INACTIVE_L2};

const struct option qcow2_overlap_members[] = {
    OPTION("template", ENUM, .words = qcow2_overlap_words),
    OPTION("main-header", BOOL),
    OPTION("active-l1", BOOL),
    OPTION("active-l2", BOOL),
    OPTION("refcount-table", BOOL),
    OPTION("refcount-block", BOOL),
    OPTION("snapshot-table", BOOL),
    OPTION("inactive-l1", BOOL),
    OPTION("inactive-l2", BOOL),
    OPTION("bitmap-directory", BOOL),
    OPTIONS_END,
};

int qcow2_overlap_take(struct opts *o, unsigned *kinds, struct error **errp)
{
    static const struct {
        const char *key;
        unsigned kind;
    } flags[] = {
        {"overlap-check.main-header", QCOW2_META_HEADER},
        {"overlap-check.active-l1", QCOW2_META_L1},
        {"overlap-check.active-l2", QCOW2_META_L2},
        {"overlap-check.refcount-table", QCOW2_META_REFTABLE},
        {"overlap-check.refcount-block", QCOW2_META_REFBLOCK},
        {"overlap-check.snapshot-table", QCOW2_META_SNAPSHOT},
        {"overlap-check.inactive-l1", QCOW2_META_INACTIVE_L1},
        {"overlap-check.inactive-l2", QCOW2_META_INACTIVE_L2},
        {"overlap-check.bitmap-directory", QCOW2_META_BITMAP},
    };
    unsigned word = WORD_CACHED;
    int r = opts_enum(o, "overlap-check.template", qcow2_overlap_words, &word,
                      errp);

    *kinds = kinds_of_word[word];
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]) && r == 0; i++) {
        bool on = *kinds & flags[i].kind;

        r = opts_bool(o, flags[i].key, &on, errp);
        *kinds = on ? *kinds | flags[i].kind : *kinds & ~flags[i].kind;
    }
    if (r == 0 && opts_has(o, "overlap-check")) { /* it is no object */
        r = opts_enum(o, "overlap-check", qcow2_overlap_words, &word, errp);
        *kinds = kinds_of_word[word];
    }
    return r;
}

/* --- Filling it --- */

/* An entry that leads to no cluster is left to the code that follows it. */
static int add_table(struct qcow2 *s, unsigned kind, uint64_t entry)
    REQUIRES(s->meta)
{
    uint64_t host = entry & QCOW2_OFFSET_MASK;

    return host && qcow2_in_cluster(s, host) == 0
               ? qcow2_overlap_add(s, kind, host, s->cluster_size)
               : 0;
}

static int cover_bitmap(struct qcow2 *s, const struct qcow2_bitmap *qb)
    REQUIRES(s->meta)
{
    int r = qcow2_overlap_add(s, QCOW2_META_BITMAP, qb->table_offset,
                              qb->table_size * UINT64_C(8));

    for (uint32_t i = 0; r == 0 && i < qb->table_size; i++) {
        r = add_table(s, QCOW2_META_BITMAP,
                      qb->table[i] == QCOW2_BITMAP_ONES ? 0 : qb->table[i]);
    }
    return r;
}

static int add_bitmaps(struct qcow2 *s) REQUIRES(s->meta)
{
    int r = s->bitmaps.ext.count == 0
                ? 0
                : qcow2_overlap_add(s, QCOW2_META_BITMAP,
                                    s->bitmaps.ext.dir_offset,
                                    s->bitmaps.ext.dir_size);

    list_for_each (e, &s->bitmaps.list) {
        const struct qcow2_bitmap *qb = list_entry(e, struct qcow2_bitmap,
                                                   in_image);
        if (r == 0 && qb->sound && qb->table) {
            r = cover_bitmap(s, qb);
        }
    }
    return r;
}

/* So many clusters of snapshots are remembered, and not more: an image may
 * claim to have 65536 tables of 32 MiB. */
#define SNAPSHOT_CLUSTERS_MAX (UINT64_C(1) << 19)

/* Entries of L1 tables that are read at once. */
#define ENTRIES 4096

/* The L2 tables of a snapshot that the active disk has not, as far as *left
 * entries go.  An L1 table that cannot be read is left out. */
static int add_inactive_l2(struct qcow2 *s, const struct qcow2_snapshot *sn,
                           uint64_t *left) REQUIRES(s->meta)
{
    CLEANUP_FREE unsigned char *be = malloc((size_t)ENTRIES * 8);
    uint32_t entries = (uint32_t)min_u64(sn->l1_size, *left);
    int r = be ? 0 : -ENOMEM;

    *left -= entries;
    for (uint32_t i = 0; i < entries && r == 0; i += ENTRIES) {
        uint32_t some = (uint32_t)min_u64(entries - i, ENTRIES);

        if (node_pread(s->file, be, some * UINT64_C(8),
                       sn->l1_offset + i * UINT64_C(8), 0) < 0) {
            return 0;
        }
        for (uint32_t e = 0; e < some && r == 0; e++) {
            uint64_t host = load_be64(be + e * 8UL) & QCOW2_OFFSET_MASK;
            r = qcow2_overlap_find(s, host, 1)
                    ? 0
                    : add_table(s, QCOW2_META_INACTIVE_L2, host);
        }
    }
    return r;
}

/* The snapshot table, and the L1 tables of snapshots.  A snapshot's L2 tables
 * are read if the option asks for them; those that the active disk shares are
 * in the set anyway. */
static int add_snapshots(struct qcow2 *s) REQUIRES(s->meta)
{
    const struct qcow2_snapshots *t = &s->snapshots;
    bool inactive_l2 = atomic_load(&s->overlap_checked) &
                       QCOW2_META_INACTIVE_L2;
    uint64_t left = SNAPSHOT_CLUSTERS_MAX;
    uint64_t entries_left = SNAPSHOT_CLUSTERS_MAX;
    int r = t->count == 0 ? 0
                          : qcow2_overlap_add(s, QCOW2_META_SNAPSHOT, t->offset,
                                              t->bytes);

    for (uint32_t i = 0; i < t->count && r == 0; i++) {
        struct qcow2_snapshot sn;

        qcow2_snapshot_get(t, i, &sn);
        uint64_t bytes = sn.l1_size * UINT64_C(8);
        uint64_t clusters = div_up(bytes, s->cluster_size);
        if (qcow2_snapshot_has_l1(s, &sn) && clusters <= left) {
            left -= clusters;
            r = qcow2_overlap_add(s, QCOW2_META_INACTIVE_L1, sn.l1_offset,
                                  bytes);
            if (r == 0 && inactive_l2) {
                r = add_inactive_l2(s, &sn, &entries_left);
            }
        }
    }
    return r;
}

/* An empty set that need not grow for the tables that the image has now. */
static int start_set(struct qcow2 *s) REQUIRES(s->meta)
{
    uint64_t tables = 0;
    uint64_t slots = SLOTS_MIN;

    for (uint32_t i = 0; i < s->l1_size; i++) {
        tables += atomic_load(&s->l1[i]) != 0;
    }
    for (uint32_t i = 0; i < s->reftable_size; i++) {
        tables += s->reftable[i] != 0;
    }
    while (slots / 4 * 3 < tables && slots < SLOTS_MAX) {
        slots *= 2;
    }
    struct qcow2_overlap *o = new_set(slots);
    atomic_store(&s->overlap, o);
    return o ? 0 : -ENOMEM;
}

static int add_all(struct qcow2 *s) REQUIRES(s->meta)
{
    int r = qcow2_overlap_add(s, QCOW2_META_HEADER, 0, s->cluster_size);

    if (r == 0 && s->luks) {
        r = qcow2_luks_cover(s);
    }
    if (r == 0) {
        r = qcow2_overlap_add(s, QCOW2_META_L1, s->l1_offset,
                              s->l1_size * UINT64_C(8));
    }
    if (r == 0) {
        r = qcow2_overlap_add(s, QCOW2_META_REFTABLE, s->reftable_offset,
                              s->reftable_size * UINT64_C(8));
    }
    for (uint32_t i = 0; i < s->reftable_size && r == 0; i++) {
        r = add_table(s, QCOW2_META_REFBLOCK, s->reftable[i]);
    }
    for (uint32_t i = 0; i < s->l1_size && r == 0; i++) {
        r = add_table(s, QCOW2_META_L2, atomic_load(&s->l1[i]));
    }
    if (r == 0) {
        r = add_snapshots(s);
    }
    return r < 0 ? r : add_bitmaps(s);
}

int qcow2_overlap_load(struct qcow2 *s)
{
    qcow2_overlap_free(s);
    mutex_lock(&s->meta);
    int r = start_set(s);
    if (r == 0) {
        r = add_all(s);
    }
    mutex_unlock(&s->meta);
    return r;
}

void qcow2_overlap_free(struct qcow2 *s)
{
    struct qcow2_overlap *o = atomic_exchange(&s->overlap, NULL);

    while (o) {
        struct qcow2_overlap *before = o->before;
        free(o);
        o = before;
    }
}
