/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * L2 tables: looking up what is at a guest offset, and changing it.  Nothing
 * outside of this file knows what an entry looks like, or how long it is:
 * l2-entry.h has the picture.
 *
 * An extended entry describes 32 subclusters, which are looked at and changed
 * each on its own; any other entry describes one, the cluster.  All of them
 * have one place, so it is by clusters that places are given out and free.
 */
#include <errno.h>
#include <string.h>

#include "qcow2/alloc.h"
#include "qcow2/l2-entry.h"
#include "qcow2/l2.h"

static uint64_t index_of(const struct qcow2 *s, uint64_t offset)
{
    return (offset & (qcow2_l2_span(s) - 1)) >> s->cluster_bits;
}

static unsigned sub_of(const struct qcow2 *s, uint64_t offset)
{
    return (unsigned)(qcow2_in_cluster(s, offset) >> s->sub_bits);
}

static unsigned subs(const struct qcow2 *s)
{
    return 1U << (s->cluster_bits - s->sub_bits);
}

/* --- Looking --- */

/* Does the entry for @offset, which is @kind, lead to a place where no cluster
 * can be? */
static inline bool is_wrong(const struct qcow2 *s, uint64_t host,
                            enum qcow2_kind kind, uint64_t offset)
{
    if (qcow2_kind_has_place(kind)) {
        return s->external ? host != align_down(offset, s->cluster_size)
                           : qcow2_in_cluster(s, host) != 0;
    }
    return kind == QCOW2_KIND_COMPRESSED && s->external; /* it has none */
}

/* How many subclusters of @next continue the run of @kind that began in @first,
 * @clusters before it? */
static unsigned continues(const struct qcow2 *s, struct qcow2_entry first,
                          enum qcow2_kind kind, struct qcow2_entry next,
                          uint64_t clusters)
{
    bool placed = !qcow2_entry_packed(first) &&
                  qcow2_entry_has_cluster(s, first);
    bool follows = !placed ||
                   next.word == first.word + (clusters << s->cluster_bits);

    return follows && qcow2_entry_kind(s, next, 0) == kind &&
                   !qcow2_entry_contradictions(s, next)
               ? qcow2_entry_run(s, next, kind, 0)
               : 0;
}

/* The length of the run that begins with the subcluster of @offset, from the
 * start of that on; it is enough if that is @enough. */
static uint64_t run_length(const struct qcow2 *s, const struct qcow2_table *t,
                           uint64_t offset, uint64_t enough,
                           struct qcow2_entry first, enum qcow2_kind kind)
{
    unsigned sub = sub_of(s, offset);
    unsigned run = qcow2_entry_run(s, first, kind, sub);
    uint64_t index = index_of(s, offset);
    uint64_t length = (uint64_t)run << s->sub_bits;
    bool on = sub + run == subs(s) && !qcow2_entry_contradictions(s, first);

    for (uint64_t i = 1; on && length < enough; i++) {
        run = continues(s, first, kind, qcow2_entry_load(s, t, index + i), i);
        length += (uint64_t)run << s->sub_bits;
        on = run == subs(s);
    }
    return length;
}

static inline uint64_t word_at(const struct qcow2_table *t, uint64_t index)
{
    const _Atomic uint64_t *words = t->data;

    return be64toh(atomic_load_explicit(&words[index], memory_order_acquire));
}

/* A walk along entries of one word. */
struct words {
    const struct qcow2_table *t;
    uint64_t index;
    uint64_t word;
    enum qcow2_kind kind;
    bool external;
    bool zeroes;
};

/* Go on to the first entry that does not continue this one, @bytes from the
 * start at most; @length: up to the next entry.  Returns how far that is. */
static inline uint64_t next_word(struct words *w, uint64_t cluster,
                                 uint64_t length, uint64_t bytes)
{
    const enum qcow2_kind kind = w->kind;
    const bool placed = qcow2_kind_has_place(kind);

    for (uint64_t follows = w->word; length < bytes; length += cluster) {
        w->word = word_at(w->t, ++w->index);
        follows += placed ? cluster : 0;
        if (w->word != follows) {
            w->kind = qcow2_word_kind(w->word, w->external, w->zeroes);
            if (placed || w->kind != kind) {
                break;
            }
        }
    }
    return length;
}

/* qcow2_l2_look_many() for entries of one word, which are clusters: all that
 * such an entry says of a place is in the word.  Each entry is worked out once.
 */
static unsigned look_at_words(const struct qcow2 *s,
                              const struct qcow2_table *t, uint64_t offset,
                              uint64_t bytes, struct qcow2_at *at,
                              unsigned most)
{
    struct words w = {.t = t,
                      .index = index_of(s, offset),
                      .external = s->external,
                      .zeroes = s->version >= 3};
    uint64_t inside = qcow2_in_cluster(s, offset);

    w.word = word_at(t, w.index);
    w.kind = qcow2_word_kind(w.word, w.external, w.zeroes);
    for (unsigned n = 0;;) {
        const uint64_t word = w.word;
        const enum qcow2_kind kind = w.kind;
        const uint64_t host = word & QCOW2_OFFSET_MASK;
        uint64_t length = next_word(&w, s->cluster_size,
                                    s->cluster_size - inside, bytes);

        at[n] = (struct qcow2_at){
            .kind = kind,
            .copied = word & QCOW2_COPIED,
            .wrong = is_wrong(s, host, kind, offset),
            .bytes = min_u64(length, bytes),
            .host = host + inside,
        };
        if (kind == QCOW2_KIND_COMPRESSED) {
            at[n].packed = qcow2_entry_packed_run(s, qcow2_entry_of(word, 0));
        }
        if (++n == most || length >= bytes) {
            return n;
        }
        offset += length;
        bytes -= length;
        inside = 0;
    }
}

static void look_at_parts(const struct qcow2 *s, const struct qcow2_table *t,
                          uint64_t offset, uint64_t bytes, struct qcow2_at *at)
{
    struct qcow2_entry e = qcow2_entry_load(s, t, index_of(s, offset));
    enum qcow2_kind kind = qcow2_entry_kind(s, e, sub_of(s, offset));
    uint64_t in_sub = offset & (qcow2_sub_size(s) - 1);
    uint64_t length = run_length(s, t, offset, in_sub + bytes, e, kind);

    *at = (struct qcow2_at){
        .kind = kind,
        .copied = e.word & QCOW2_COPIED,
        .wrong = is_wrong(s, qcow2_entry_host(e), kind, offset),
        .contradicts = qcow2_entry_contradictions(s, e) != 0,
        .bytes = min_u64(bytes, length - in_sub),
        .host = qcow2_entry_host(e) + qcow2_in_cluster(s, offset),
    };
    if (kind == QCOW2_KIND_COMPRESSED) {
        at->packed = qcow2_entry_packed_run(s, e);
    }
}

unsigned qcow2_l2_look_many(const struct qcow2 *s, const struct qcow2_table *t,
                            uint64_t offset, uint64_t bytes,
                            struct qcow2_at *at, unsigned most)
{
    unsigned n = 0;

    bytes = min_u64(bytes, qcow2_l2_rest(s, offset));
    if (!s->extended) {
        return look_at_words(s, t, offset, bytes, at, most);
    }
    do {
        look_at_parts(s, t, offset, bytes, &at[n]);
        offset += at[n].bytes;
        bytes -= at[n].bytes;
    } while (++n < most && bytes > 0);
    return n;
}

void qcow2_l2_look(const struct qcow2 *s, const struct qcow2_table *t,
                   uint64_t offset, uint64_t bytes, struct qcow2_at *at)
{
    (void)qcow2_l2_look_many(s, t, offset, bytes, at, 1);
}

void qcow2_l2_look_whole(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t offset, uint64_t bytes, struct qcow2_at *at)
{
    if (s->extended) { /* one by one: a run would be measured from each again */
        bytes = min_u64(bytes, s->cluster_size);
    }
    qcow2_l2_look(s, t, offset, bytes, at);
    if (s->extended) { /* as if the cluster were one */
        at->bytes = bytes;
        at->kind = at->kind == QCOW2_KIND_ZERO_PLAIN ? QCOW2_KIND_UNALLOCATED
                   : at->kind == QCOW2_KIND_ZERO_ALLOC ||
                           at->kind == QCOW2_KIND_UNALLOCATED_ALLOC
                       ? QCOW2_KIND_NORMAL
                       : at->kind;
    }
}

int qcow2_l2_check(struct qcow2 *s, const struct qcow2_at *at)
{
    return at->wrong ? qcow2_corrupt_at(s, at->host, s->cluster_size,
                                        "an L2 entry leads to no cluster")
           : at->contradicts
               ? qcow2_corrupt_at(s, at->host, s->cluster_size,
                                  "an L2 entry has bits that contradict each "
                                  "other")
               : 0;
}

uint32_t qcow2_l2_data_parts(const struct qcow2 *s, const struct qcow2_table *t,
                             uint64_t offset)
{
    struct qcow2_entry e = qcow2_entry_load(s, t, index_of(s, offset));

    return s->extended && !qcow2_entry_packed(e) ? e.alloc : UINT32_MAX;
}

const char *qcow2_l2_odd(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t offset, uint32_t *lost)
{
    return qcow2_entry_odd(s, qcow2_entry_load(s, t, index_of(s, offset)),
                           lost);
}

/* --- Changing --- */

/* The whole clusters that the entry leads to; without bytes: none. */
static struct qcow2_run referred(const struct qcow2 *s, struct qcow2_entry e)
{
    struct qcow2_run run = {qcow2_entry_host(e), s->cluster_size};

    if (s->external ||
        (!qcow2_entry_has_cluster(s, e) && !qcow2_entry_packed(e))) {
        return (struct qcow2_run){0, 0};
    }
    if (qcow2_entry_packed(e)) {
        run = qcow2_entry_packed_run(s, e);
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
                         uint64_t offset, struct qcow2_entry new)
    REQUIRES(s->meta)
{
    struct qcow2_entry old = qcow2_entry_load(s, t, index_of(s, offset));
    bool same = qcow2_entry_has_cluster(s, new) &&
                qcow2_entry_has_cluster(s, old) &&
                qcow2_entry_host(new) == qcow2_entry_host(old);
    const struct qcow2_run was = referred(s, old);
    const struct qcow2_run is = referred(s, new);

    qcow2_entry_store(s, t, index_of(s, offset), new);
    if (!same && s->making) {
        qcow2_making_follow(s, align_down(offset, s->cluster_size), &was, &is);
    }
    if (!same && s->counting) {
        qcow2_counting_follow(s, align_down(offset, s->cluster_size), &was,
                              &is);
    }
    int r = same ? 0 : free_referred(s, &was);
    return r == -ENOMEM ? 0 : r; /* it leaks; no harm done */
}

/* The subclusters of the cluster at @offset that are in @bytes from there on.
 */
static uint32_t mask_of(const struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    unsigned from = sub_of(s, offset);
    uint64_t to = min_u64(
        from + (align_up(bytes, qcow2_sub_size(s)) >> s->sub_bits), subs(s));
    uint32_t below = (UINT32_C(1) << from) - 1;

    return (to == 32 ? UINT32_MAX : (UINT32_C(1) << to) - 1) & ~below;
}

int qcow2_l2_put(struct qcow2 *s, struct qcow2_table *t, uint64_t offset,
                 uint64_t bytes, enum qcow2_kind kind, uint64_t host)
{
    uint64_t end = offset + bytes;
    uint64_t cluster = host - qcow2_in_cluster(s, offset);
    int r = 0;

    for (uint64_t next; offset < end; offset = next) {
        struct qcow2_entry old = qcow2_entry_load(s, t, index_of(s, offset));

        next = align_down(offset, s->cluster_size) + s->cluster_size;
        int one = replace_entry(
            s, t, offset,
            qcow2_entry_put(s, old, mask_of(s, offset, end - offset), kind,
                            cluster));
        r = r < 0 ? r : one;
        cluster += s->cluster_size;
    }
    qcow2_cache_mark_dirty(s->l2, t);
    return r;
}

int qcow2_l2_put_packed(struct qcow2 *s, struct qcow2_table *t, uint64_t offset,
                        const struct qcow2_run *packed)
{
    int r = replace_entry(s, t, offset, qcow2_entry_of_packed(s, packed));

    qcow2_cache_mark_dirty(s->l2, t);
    return r;
}

uint64_t qcow2_l2_place(const struct qcow2 *s, uint64_t offset)
{
    return index_of(s, offset) << (s->extended ? 4 : 3);
}

/* --- For a repair, and for a new image --- */

void qcow2_l2_mend(const struct qcow2 *s, struct qcow2_table *t,
                   uint64_t offset, const struct qcow2_at *at)
{
    uint64_t index = index_of(s, offset);
    struct qcow2_entry new = qcow2_entry_settled(s,
                                                 qcow2_entry_load(s, t, index));

    new.word = 0;
    switch (at->kind) {
    case QCOW2_KIND_COMPRESSED:
        new = qcow2_entry_of_packed(s, &at->packed);
        break;
    case QCOW2_KIND_UNALLOCATED_ALLOC:
    case QCOW2_KIND_NORMAL:
    case QCOW2_KIND_ZERO_ALLOC:
        new.word = at->host | (at->copied ? QCOW2_COPIED : 0);
        break;
    case QCOW2_KIND_UNALLOCATED:
    case QCOW2_KIND_ZERO_PLAIN:
        break;
    }
    if (!s->extended && (at->kind == QCOW2_KIND_ZERO_ALLOC ||
                         at->kind == QCOW2_KIND_ZERO_PLAIN)) {
        new.word |= QCOW2_ENTRY_ZERO;
    }
    qcow2_entry_store(s, t, index, new);
}

void qcow2_l2_share(const struct qcow2 *s, struct qcow2_table *t)
{
    for (uint64_t i = 0; i < UINT64_C(1) << s->l2_bits; i++) {
        struct qcow2_entry e = qcow2_entry_load(s, t, i);

        if (e.word & QCOW2_COPIED) {
            e.word &= ~QCOW2_COPIED;
            qcow2_entry_store(s, t, i, e);
        }
    }
}

void qcow2_l2_mend_zero(const struct qcow2 *s, struct qcow2_table *t,
                        uint64_t offset)
{
    uint64_t index = index_of(s, offset);
    struct qcow2_entry e = qcow2_entry_load(s, t, index);

    if (!s->extended) {
        e.word = QCOW2_ENTRY_ZERO;
    } else {
        bool all = qcow2_entry_packed(e) || e.word == 0;
        e.zero |= all ? UINT32_MAX : e.alloc;
        e.word = e.alloc = 0;
    }
    qcow2_entry_store(s, t, index, e);
}

void qcow2_l2_mend_own(const struct qcow2 *s, struct qcow2_table *t,
                       uint64_t offset, uint64_t host)
{
    qcow2_entry_store(s, t, index_of(s, offset),
                      qcow2_entry_put(s, (struct qcow2_entry){0}, UINT32_MAX,
                                      QCOW2_KIND_NORMAL, host));
}

void qcow2_l2_fill(const struct qcow2 *s, struct qcow2_table *t,
                   uint64_t offset, uint64_t size, enum qcow2_kind kind)
{
    uint64_t entries = UINT64_C(1) << s->l2_bits;

    for (uint64_t i = 0; i < entries; i++) {
        uint64_t host = offset + (i << s->cluster_bits);
        struct qcow2_entry new = {0};

        if (host < size) {
            new = qcow2_entry_put(s, new, UINT32_MAX, kind, host);
        }
        qcow2_entry_store(s, t, i, new);
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

/* The L1 entry has led to a table at @old, or to none (0). */
static void tell_new_table(struct qcow2 *s, uint64_t index, uint64_t old,
                           uint64_t host) REQUIRES(s->meta)
{
    const struct qcow2_run was = {old, old ? s->cluster_size : 0};
    const struct qcow2_run is = {host, s->cluster_size};

    if (s->making) {
        qcow2_making_follow(s, index * qcow2_l2_span(s), &was, &is);
    }
    if (s->counting) {
        qcow2_counting_follow(s, index * qcow2_l2_span(s), &was, &is);
    }
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
    if (s->making || s->counting) {
        tell_new_table(s, index, from ? old & QCOW2_OFFSET_MASK : 0, host);
    }
    qcow2_span_add(&s->l1_dirty, (uint32_t)index, (uint32_t)index + 1);
    *tp = to;
    return 0;
}

int qcow2_l2_get_ready(struct qcow2 *s, uint64_t offset,
                       struct qcow2_table **tp)
{
    uint64_t entry = atomic_load(&s->l1[offset / qcow2_l2_span(s)]);
    int r = entry & QCOW2_COPIED ? qcow2_l2_get(s, offset, true, tp) : -EAGAIN;

    if (r < 0 || !*tp) {
        return -EAGAIN;
    }
    if (!(*tp)->has_room || !qcow2_l2_is_table(s, entry)) {
        qcow2_cache_put(s->l2, *tp);
        return -EAGAIN;
    }
    return 0;
}
