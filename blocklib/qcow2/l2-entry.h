/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_L2_ENTRY_H
#define NBDELTA_QCOW2_L2_ENTRY_H

/*
 * What an entry of an L2 table looks like, for l2.c alone
 * =======================================================
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
 *   extended     the same word, with bit 0 clear, and a second one:
 *                32-63 zero    subclusters that read as zeroes
 *                0-31  alloc   subclusters that the cluster has the data of
 *                A subcluster with neither shows the backing file, whether
 *                there is a cluster or not.  One with both, and one with alloc
 *                where there is no cluster, contradicts itself.  A compressed
 *                cluster has no bits.
 *
 * An entry is loaded and stored as a whole.  A thread that loads one has the
 * table pinned; a thread that stores one holds meta.
 *
 * The two words of an extended entry must be of one moment: with the place of
 * one moment and the bits of another, a reader would go to the backing file for
 * what the guest has written, or take bytes of one cluster for those of
 * another.  No order of the two stores prevents that, because any state of the
 * one word can follow, and precede, any state of the other.  So a table has a
 * count of changes, which is odd while an entry is stored:
 *
 *   store    count odd | word | bits | count even
 *   load     count, even | word | bits | count as before, else once more
 *
 * All stores except the first are release, all loads except the last acquire.
 * A load that has seen one of the new words sees the odd count, too.  A loader
 * waits for two stores of the same processor at the most.
 *
 * On disk the two words lie in one sector of 512 bytes, because an entry has 16
 * bytes and begins at a multiple of 16: so a power cut never separates them.
 * They are written with the whole table (flush.c), after a barrier behind the
 * data.  A bit is added when the data is in the cache of the file already, and
 * the entry was like that in memory, too: a reader that sees it finds the data.
 */
#include <sched.h>

#include "qcow2/l2.h"
#include "qcow2/qcow2.h"

#define QCOW2_ENTRY_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ENTRY_ZERO       (UINT64_C(1) << 0)
#define QCOW2_ENTRY_RESERVED   UINT64_C(0x3f000000000001fe)

/* An entry in host byte order.  It is a type of its own, so that nobody
 * calculates with its flags as if they were part of an offset. */
struct qcow2_entry {
    uint64_t word;
    uint32_t alloc; /* extended: a bit per subcluster */
    uint32_t zero;
};

static inline struct qcow2_entry qcow2_entry_of(uint64_t word, uint64_t bits)
{
    return (struct qcow2_entry){word, (uint32_t)bits, (uint32_t)(bits >> 32)};
}

/* Both words of one moment. */
static inline struct qcow2_entry qcow2_entry_load_pair(
    const struct qcow2_table *t, const _Atomic uint64_t *e)
{
    for (unsigned i = 1;; i++) {
        uint32_t before = atomic_load_explicit(&t->changes,
                                               memory_order_acquire);
        uint64_t word = atomic_load_explicit(&e[0], memory_order_acquire);
        uint64_t bits = atomic_load_explicit(&e[1], memory_order_acquire);
        uint32_t after = atomic_load_explicit(&t->changes,
                                              memory_order_relaxed);

        if (before == after && before % 2 == 0) {
            return qcow2_entry_of(be64toh(word), be64toh(bits));
        }
        if (i % 64 == 0) { /* who stores does not run */
            (void)sched_yield();
        }
    }
}

static inline struct qcow2_entry qcow2_entry_load(const struct qcow2 *s,
                                                  const struct qcow2_table *t,
                                                  uint64_t index)
{
    const _Atomic uint64_t *e = t->data;

    if (s->extended) {
        return qcow2_entry_load_pair(t, &e[2 * index]);
    }
    return qcow2_entry_of(
        be64toh(atomic_load_explicit(&e[index], memory_order_acquire)), 0);
}

static inline void qcow2_entry_store(const struct qcow2 *s,
                                     struct qcow2_table *t, uint64_t index,
                                     struct qcow2_entry new)
{
    _Atomic uint64_t *e = t->data;
    uint64_t bits = (uint64_t) new.zero << 32 | new.alloc;

    if (!s->extended) {
        atomic_store_explicit(&e[index], htobe64(new.word),
                              memory_order_release);
        return;
    }
    uint32_t changes = atomic_load_explicit(&t->changes, memory_order_relaxed);
    atomic_store_explicit(&t->changes, changes + 1, memory_order_relaxed);
    atomic_store_explicit(&e[2 * index], htobe64(new.word),
                          memory_order_release);
    atomic_store_explicit(&e[2 * index + 1], htobe64(bits),
                          memory_order_release);
    atomic_store_explicit(&t->changes, changes + 2, memory_order_release);
}

static inline uint64_t qcow2_entry_host(struct qcow2_entry e)
{
    return e.word & QCOW2_OFFSET_MASK;
}

static inline bool qcow2_entry_packed(struct qcow2_entry e)
{
    return e.word & QCOW2_ENTRY_COMPRESSED;
}

/* Does it name a cluster that is not compressed?  The first cluster of a data
 * file is at offset 0. */
static inline bool qcow2_entry_has_cluster(const struct qcow2 *s,
                                           struct qcow2_entry e)
{
    bool first = s->external && (e.word & QCOW2_COPIED) &&
                 (s->extended || !(e.word & QCOW2_ENTRY_ZERO));

    return !qcow2_entry_packed(e) && (qcow2_entry_host(e) != 0 || first);
}

static inline bool qcow2_kind_has_place(enum qcow2_kind kind)
{
    return kind == QCOW2_KIND_NORMAL || kind == QCOW2_KIND_ZERO_ALLOC ||
           kind == QCOW2_KIND_UNALLOCATED_ALLOC;
}

static inline enum qcow2_kind qcow2_kind_of(bool packed, bool zero,
                                            bool cluster)
{
    return packed    ? QCOW2_KIND_COMPRESSED
           : zero    ? cluster ? QCOW2_KIND_ZERO_ALLOC : QCOW2_KIND_ZERO_PLAIN
           : cluster ? QCOW2_KIND_NORMAL
                     : QCOW2_KIND_UNALLOCATED;
}

/* What an entry of one word says.  @external, @zeroes (from version 3 on): of
 * the image, for a caller that looks at many. */
static inline enum qcow2_kind qcow2_word_kind(uint64_t word, bool external,
                                              bool zeroes)
{
    bool zero = word & QCOW2_ENTRY_ZERO;

    return qcow2_kind_of(word & QCOW2_ENTRY_COMPRESSED, zeroes && zero,
                         (word & QCOW2_OFFSET_MASK) ||
                             (external && (word & QCOW2_COPIED) && !zero));
}

/* What subcluster @sub is; of an entry that is not extended there is one. */
static inline enum qcow2_kind qcow2_entry_kind(const struct qcow2 *s,
                                               struct qcow2_entry e,
                                               unsigned sub)
{
    if (!s->extended) {
        return qcow2_word_kind(e.word, s->external, s->version >= 3);
    }
    enum qcow2_kind kind = qcow2_kind_of(qcow2_entry_packed(e),
                                         e.zero >> sub & 1,
                                         qcow2_entry_has_cluster(s, e));
    return kind == QCOW2_KIND_NORMAL && !(e.alloc >> sub & 1)
               ? QCOW2_KIND_UNALLOCATED_ALLOC
               : kind;
}

/* How many subclusters from @sub on, which is @kind, are as it is. */
static inline unsigned qcow2_entry_run(const struct qcow2 *s,
                                       struct qcow2_entry e,
                                       enum qcow2_kind kind, unsigned sub)
{
    unsigned left = (1U << (s->cluster_bits - s->sub_bits)) - sub;
    uint32_t alike = UINT32_MAX;

    switch (kind) {
    case QCOW2_KIND_ZERO_PLAIN:
    case QCOW2_KIND_ZERO_ALLOC:
        alike = e.zero;
        break;
    case QCOW2_KIND_NORMAL:
        alike = e.alloc & ~e.zero;
        break;
    case QCOW2_KIND_UNALLOCATED:
        alike = ~e.zero;
        break;
    case QCOW2_KIND_UNALLOCATED_ALLOC:
        alike = ~(e.alloc | e.zero);
        break;
    case QCOW2_KIND_COMPRESSED:
        break;
    }
    uint32_t other = s->extended ? ~(alike >> sub) : 0;
    unsigned run = other ? (unsigned)__builtin_ctz(other) : left;
    return run < left ? run : left;
}

/* Subclusters that are at odds with the rest of the entry.  What the guest has
 * there is not known. */
static inline uint32_t qcow2_entry_contradictions(const struct qcow2 *s,
                                                  struct qcow2_entry e)
{
    if (!s->extended || qcow2_entry_packed(e)) {
        return 0;
    }
    return qcow2_entry_has_cluster(s, e) ? e.alloc & e.zero : e.alloc;
}

/* A compressed cluster, of whole sectors. */
struct qcow2_entry qcow2_entry_of_packed(const struct qcow2 *s,
                                         const struct qcow2_run *packed);
/* Where compressed bytes begin, and how many there are at the most. */
struct qcow2_run qcow2_entry_packed_run(const struct qcow2 *s,
                                        struct qcow2_entry e);

/* @old with subclusters @mask made @kind, which is not COMPRESSED; its cluster
 * is at @host, if the kind has one. */
struct qcow2_entry qcow2_entry_put(const struct qcow2 *s,
                                   struct qcow2_entry old, uint32_t mask,
                                   enum qcow2_kind kind, uint64_t host);

/* @e without contradictions: what contradicts itself reads as zeroes. */
struct qcow2_entry qcow2_entry_settled(const struct qcow2 *s,
                                       struct qcow2_entry e);

/* What the entry has that its kind does not have, or NULL.  *lost: subclusters
 * with that. */
const char *qcow2_entry_odd(const struct qcow2 *s, struct qcow2_entry e,
                            uint32_t *lost);

#endif /* NBDELTA_QCOW2_L2_ENTRY_H */
