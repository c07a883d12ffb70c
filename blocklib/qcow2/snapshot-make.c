/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Making a snapshot while the guest goes on.
 *
 * Before the instant, each reference of the disk is counted twice: once for the
 * disk, and once for the snapshot that will be there.  A crash leaks, at worst.
 *
 *   flags   every L2 table and the L1 table are written without COPIED; memory
 *           keeps the flags, and the guest goes on writing in place.  From here
 *           to the end all that flush.c writes of them is without COPIED.
 *   counts  ---------- raised ---------->|         `raised`: a guest offset
 *           An entry that the guest changes below that place takes the second
 *           count from its old cluster to its new one (qcow2_making_follow).
 *
 * On disk COPIED goes before a count is raised, so no program that opens the
 * image after a crash writes in place to a cluster with two counts.
 *
 * At the instant nothing is left to do but to say so: the L1 entries in memory
 * lose COPIED, which makes all that they lead to shared (l2.c, map.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/alloc.h"
#include "qcow2/snapshot-change.h"

/* Entries whose references are raised under one hold of the meta lock, and L2
 * tables that are looked at in one step. */
#define ENTRIES_AT_ONCE 1024
#define TABLES_AT_ONCE  64

enum { STEP_FLAGS, STEP_COUNTS, STEP_DONE };

void qcow2_making_follow(struct qcow2 *s, uint64_t offset,
                         const struct qcow2_run *was,
                         const struct qcow2_run *is)
{
    struct qcow2_making *m = s->making;

    if (m->broken || offset >= m->raised) {
        return;
    }
    if (is->bytes > 0) {
        m->broken = qcow2_ref_add(s, is->host, is->bytes);
        if (m->broken < 0) {
            return; /* the snapshot will not be made */
        }
    }
    if (was->bytes > 0) {
        qcow2_ref_undo(s, was->host, was->bytes);
    }
}

/* Guest bytes that the L1 table has entries for. */
static uint64_t disk_end(const struct qcow2_change *c)
{
    return c->l1_size * qcow2_l2_span(c->s);
}

/* The L2 table for guest @offset, pinned, if the L1 entry has one. */
static int get_table(struct qcow2 *s, uint64_t offset, struct qcow2_table **tp)
{
    return qcow2_l2_get(s, offset, false, tp);
}

/* Have the table written, with or without its flags. */
static int touch_table(struct qcow2 *s, uint64_t index)
{
    uint64_t offset = index * qcow2_l2_span(s);
    uint64_t entry = atomic_load(&s->l1[index]);
    struct qcow2_table *t;
    int r = entry & QCOW2_COPIED ? get_table(s, offset, &t) : 0;

    if (r < 0 || !(entry & QCOW2_COPIED) || !t) {
        return r;
    }
    mutex_lock(&s->meta);
    entry = atomic_load(&s->l1[index]);
    if ((entry & QCOW2_OFFSET_MASK) == t->offset) { /* else it is new */
        r = qcow2_overlap_check(s, QCOW2_META_L2, t->offset, s->cluster_size);
        if (r == 0) {
            r = qcow2_keep_room(s, t);
        }
        if (r == 0) {
            qcow2_cache_mark_dirty(s->l2, t);
            qcow2_span_add(&s->l1_dirty, (uint32_t)index, (uint32_t)index + 1);
        }
    }
    mutex_unlock(&s->meta);
    qcow2_cache_put(s->l2, t);
    return r;
}

/* Call @fn for some L1 entries more, up to the end of the disk.  1: there are
 * others. */
static int go_on(struct qcow2_change *c,
                 int (*fn)(struct qcow2 *s, uint64_t index))
{
    struct qcow2 *s = c->s;
    int r = 0;

    for (unsigned n = 0; n < TABLES_AT_ONCE && c->next < c->l1_size && r == 0;
         n++) {
        r = fn(s, c->next++);
    }
    if (r == 0) {
        r = qcow2_relieve(s);
    }
    return r < 0 ? r : c->next < c->l1_size;
}

/* Raise the references of a part of a table, and at its beginning the one to
 * the table itself. */
static int raise_part(struct qcow2 *s, struct qcow2_making *m,
                      struct qcow2_table *t, uint64_t bytes) REQUIRES(s->meta)
{
    bool first = m->raised % qcow2_l2_span(s) == 0;
    int r = qcow2_overlap_others(s, QCOW2_META_L2, t->offset, s->cluster_size) &
                    ~(unsigned)QCOW2_META_TWICE
                ? qcow2_overlap_check(s, QCOW2_META_L2, t->offset,
                                      s->cluster_size)
                : 0;

    if (r == 0 && first) {
        r = qcow2_ref_add(s, t->offset, 1);
    }
    if (r == 0) {
        r = qcow2_refs_raise(s, t, m->raised, bytes);
        if (r < 0 && first) {
            qcow2_ref_undo(s, t->offset, 1);
        }
    }
    return r;
}

static int raise_some(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;
    struct qcow2_making *m = &c->making;
    struct qcow2_table *ahead = NULL;
    struct qcow2_table *t = NULL;
    uint64_t bytes = min_u64(qcow2_l2_rest(s, m->raised),
                             (uint64_t)ENTRIES_AT_ONCE << s->cluster_bits);
    int r = get_table(s, m->raised, &ahead); /* read without the lock */

    if (r < 0) {
        return r;
    }
    mutex_lock(&s->meta);
    r = m->broken < 0 ? m->broken : get_table(s, m->raised, &t);
    if (r == 0 && t) {
        r = raise_part(s, m, t, bytes);
        qcow2_cache_put(s->l2, t);
    } else if (r == 0) {
        bytes = qcow2_l2_rest(s, m->raised);
    }
    if (r == 0) {
        m->raised += bytes;
    }
    mutex_unlock(&s->meta);
    if (ahead) {
        qcow2_cache_put(s->l2, ahead);
    }
    return r;
}

static int raise_tables(struct qcow2_change *c)
{
    int r = 0;

    for (unsigned n = 0;
         n < TABLES_AT_ONCE && c->making.raised < disk_end(c) && r == 0; n++) {
        r = raise_some(c);
    }
    if (r == 0) {
        r = qcow2_relieve(c->s);
    }
    return r < 0 ? r : c->making.raised < disk_end(c);
}

int qcow2_make_begin(struct qcow2_change *c, struct error **errp)
{
    struct qcow2 *s = c->s;
    int r = 0;

    switch (c->step) {
    case STEP_FLAGS:
        mutex_lock(&s->meta);
        s->making = &c->making;
        mutex_unlock(&s->meta);
        c->begun = true;
        r = go_on(c, touch_table);
        if (r == 0) {
            c->step = STEP_COUNTS;
            r = qcow2_flush(s->node);
            r = r == 0 ? 1 : r;
        }
        break;
    case STEP_COUNTS:
        r = raise_tables(c);
        if (r == 0) {
            c->step = STEP_DONE;
            r = qcow2_flush(s->node);
        }
        break;
    default:
        break;
    }
    return qcow2_change_failed(c, r, errp);
}

/* --- The instant; drained --- */

void qcow2_make_share(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;

    mutex_lock(&s->meta);
    for (uint32_t i = 0; i < s->l1_size; i++) {
        atomic_store(&s->l1[i], c->l1[i] & ~QCOW2_COPIED);
    }
    s->making = NULL;
    mutex_unlock(&s->meta);
}

void qcow2_make_undo(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;

    mutex_lock(&s->meta);
    for (uint32_t i = 0; i < s->l1_size; i++) {
        atomic_store(&s->l1[i], c->l1[i]);
    }
    s->making = &c->making;
    mutex_unlock(&s->meta);
}

/* --- Giving up --- */

/* Lower the last references that were raised. */
static int lower_some(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;
    struct qcow2_making *m = &c->making;
    uint64_t begin = align_down(m->raised - 1, qcow2_l2_span(s));
    uint64_t part = min_u64(m->raised - begin,
                            (uint64_t)ENTRIES_AT_ONCE << s->cluster_bits);
    struct qcow2_table *t = NULL;

    mutex_lock(&s->meta);
    int r = m->broken < 0 ? m->broken : get_table(s, begin, &t);
    if (r == 0 && t) {
        r = qcow2_refs_lower(s, t, m->raised - part, part);
        if (r == 0 && m->raised - part == begin) {
            r = qcow2_ref_drop(s, t->offset, 1);
        }
        qcow2_cache_put(s->l2, t);
    } else if (r == 0) {
        part = m->raised - begin;
    }
    if (r == 0) {
        m->raised -= part;
    } else {
        m->broken = r; /* the rest leaks */
    }
    mutex_unlock(&s->meta);
    return r;
}

static int lower_tables(struct qcow2_change *c)
{
    int r = 0;

    for (unsigned n = 0; n < TABLES_AT_ONCE && c->making.raised > 0 && r == 0;
         n++) {
        r = lower_some(c);
    }
    if (r == 0) {
        r = qcow2_relieve(c->s);
    }
    return r < 0 ? r : c->making.raised > 0;
}

/* Nobody can tell which counts are too high.  So all is taken for shared, and
 * qcow2_own_entries() finds what is not.  The rest leaks. */
static void share_all(struct qcow2 *s) REQUIRES(s->meta)
{
    for (uint32_t i = 0; i < s->l1_size; i++) {
        atomic_fetch_and(&s->l1[i], ~QCOW2_COPIED);
    }
}

int qcow2_make_abort(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;

    if (!c->begun) {
        return 0;
    }
    if (s->making && c->making.raised > 0 && c->making.broken == 0) {
        (void)lower_tables(c);
        return 1;
    }
    if (s->making) {
        mutex_lock(&s->meta);
        s->making = NULL;
        if (c->making.broken < 0) {
            share_all(s);
        }
        mutex_unlock(&s->meta);
        c->next = 0;
    }
    /* The flags that memory has kept, or has anew, go to the disk again. */
    int r = go_on(c, c->making.broken < 0 ? qcow2_own_entries : touch_table);
    return r > 0 ? 1 : qcow2_flush(s->node);
}
