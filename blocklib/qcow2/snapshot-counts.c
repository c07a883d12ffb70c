/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Are the counts high enough for a disk of the past to be dropped?
 *
 *   snapshots' L1 tables --> places of L2 tables, sorted: each is read once,
 * and counts for all disks that lead to it the disk's L1 table  --> its L2
 * tables; the guest goes on `upto`: what it changes below is followed each
 * cluster             count in the image >= references that were found
 *
 * A count that is lower would become 0, or 1, while another disk refers to the
 * cluster.  The cluster would be handed out, or written in place, and that disk
 * would show what is not its own.  Nothing has changed by then, so such an
 * image is refused.
 *
 * Memory: 2 bytes for each cluster of the file, 8 for each L2 table of each
 * snapshot.  Time: that of reading all L2 tables.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/alloc.h"
#include "qcow2/census.h"
#include "qcow2/snapshot-change.h"

/* Under one hold of the meta lock, and in one step. */
#define ENTRIES_AT_ONCE  1024
#define CLUSTERS_AT_ONCE 4096
#define TABLES_AT_ONCE   64
#define HOLDS_AT_ONCE    64

enum { COUNT_NOTHING, COUNT_SNAPSHOTS, COUNT_DISK, COUNT_COMPARE, COUNT_DONE };

void qcow2_counting_follow(struct qcow2 *s, uint64_t offset,
                           const struct qcow2_run *was,
                           const struct qcow2_run *is)
{
    struct qcow2_counting *n = s->counting;

    if (offset >= n->upto) {
        return;
    }
    for (uint64_t at = 0; at < is->bytes; at += s->cluster_size) {
        qcow2_census_add(n->census, (is->host + at) >> s->cluster_bits, 1, 0);
    }
    for (uint64_t at = 0; at < was->bytes; at += s->cluster_size) {
        qcow2_census_drop(n->census, (was->host + at) >> s->cluster_bits);
    }
}

/* --- Snapshots --- */

/* Can an L2 table of a snapshot be there? */
static bool may_be_table(struct qcow2 *s, uint64_t host)
{
    const unsigned own = QCOW2_META_L2 | QCOW2_META_INACTIVE_L2;

    return qcow2_in_cluster(s, host) == 0 &&
           host >> s->cluster_bits < qcow2_census_size(s->counting->census) &&
           (qcow2_overlap_others(s, own, host, s->cluster_size) &
            ~(unsigned)QCOW2_META_TWICE) == 0;
}

static int gather_l1(struct qcow2_counting *n, struct qcow2 *s,
                     const struct qcow2_snapshot *sn)
{
    uint64_t bytes = sn->l1_size * UINT64_C(8);

    if (!qcow2_snapshot_has_l1(s, sn) ||
        n->l1_bytes + bytes > node_size(s->file)) {
        return -EUCLEAN; /* L1 tables are in the file, and not twice */
    }
    CLEANUP_FREE uint64_t *l1 = malloc(bytes + 1);
    n->l1_bytes += bytes;
    uint64_t *more = realloc(n->tables,
                             (n->count + sn->l1_size + 1) * sizeof(*more));
    n->tables = more ? more : n->tables;
    if (!l1 || !more) {
        return -ENOMEM;
    }
    int r = sn->l1_size == 0 ? 0
                             : node_pread(s->file, l1, bytes, sn->l1_offset, 0);
    for (uint32_t i = 0; r == 0 && i < sn->l1_size; i++) {
        uint64_t host = be64toh(l1[i]) & QCOW2_OFFSET_MASK;

        if (host != 0) {
            n->tables[n->count++] = host;
        }
    }
    return r;
}

static int by_place(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static int gather(struct qcow2_counting *n, struct qcow2 *s)
{
    int r = 0;

    for (uint32_t i = 0; i < s->snapshots.count && r == 0; i++) {
        struct qcow2_snapshot sn;

        qcow2_snapshot_get(&s->snapshots, i, &sn);
        r = gather_l1(n, s, &sn);
    }
    if (r == 0 && n->count > 0) {
        qsort(n->tables, n->count, sizeof(*n->tables), by_place);
    }
    return r;
}

/* The table that is next in the list, for all that lead to it. */
static int count_next(struct qcow2_counting *n, struct qcow2 *s)
{
    uint64_t host = n->tables[n->at];
    uint32_t times = 0;
    struct qcow2_table *t;

    while (n->at < n->count && n->tables[n->at] == host) {
        n->at++;
        times++;
    }
    if (!may_be_table(s, host)) {
        return -EUCLEAN;
    }
    int r = qcow2_cache_get(s->l2, host, false, &t);
    if (r < 0) {
        return r;
    }
    /* Two snapshots may lead to one table for other parts of their disks: what
     * it leads to is the same. */
    bool sound = qcow2_refs_count(s, t, 0, qcow2_l2_span(s), times, n->census);
    qcow2_census_add(n->census, host >> s->cluster_bits, times, 0);
    qcow2_cache_put(s->l2, t);
    return sound ? 0 : -EUCLEAN;
}

static int count_snapshots(struct qcow2_counting *n, struct qcow2 *s)
{
    int r = 0;

    for (unsigned k = 0; k < TABLES_AT_ONCE && n->at < n->count && r == 0;
         k++) {
        r = count_next(n, s);
    }
    return r < 0 ? r : n->at < n->count;
}

/* --- The disk --- */

static int count_part(struct qcow2_counting *n, struct qcow2 *s)
{
    struct qcow2_table *ahead = NULL;
    struct qcow2_table *t = NULL;
    uint64_t bytes = min_u64(qcow2_l2_rest(s, n->upto),
                             (uint64_t)ENTRIES_AT_ONCE << s->cluster_bits);
    int r = qcow2_l2_get(s, n->upto, false, &ahead); /* without the lock */

    if (r < 0) {
        return r;
    }
    mutex_lock(&s->meta);
    r = qcow2_l2_get(s, n->upto, false, &t);
    if (r == 0 && t) {
        if (n->upto % qcow2_l2_span(s) == 0) {
            qcow2_census_add(n->census, t->offset >> s->cluster_bits, 1, 0);
        }
        r = qcow2_refs_count(s, t, n->upto, bytes, 1, n->census) ? 0 : -EUCLEAN;
        qcow2_cache_put(s->l2, t);
    } else if (r == 0) {
        bytes = qcow2_l2_rest(s, n->upto);
    }
    n->upto += bytes;
    mutex_unlock(&s->meta);
    if (ahead) {
        qcow2_cache_put(s->l2, ahead);
    }
    return r;
}

static int count_disk(struct qcow2_counting *n, struct qcow2 *s)
{
    uint64_t end = s->l1_size * qcow2_l2_span(s);
    int r = 0;

    for (unsigned k = 0; k < TABLES_AT_ONCE && n->upto < end && r == 0; k++) {
        r = count_part(n, s);
    }
    return r < 0 ? r : n->upto < end;
}

/* --- */

static int compare_some(struct qcow2_counting *n, struct qcow2 *s)
{
    uint64_t size = qcow2_census_size(n->census);
    uint64_t end = min_u64(n->compared + CLUSTERS_AT_ONCE, size);
    int r = 0;

    mutex_lock(&s->meta);
    for (; n->compared < end && r == 0; n->compared++) {
        uint64_t need = qcow2_census_count(n->census, n->compared);
        uint64_t count = 0;

        if (need > 0) {
            r = qcow2_refcount_get(s, n->compared, &count);
        }
        r = r == 0 && count < need ? -EUCLEAN : r;
    }
    mutex_unlock(&s->meta);
    return r;
}

static int compare(struct qcow2_counting *n, struct qcow2 *s)
{
    uint64_t size = qcow2_census_size(n->census);
    int r = 0;

    for (unsigned k = 0; k < HOLDS_AT_ONCE && n->compared < size && r == 0;
         k++) {
        r = compare_some(n, s);
    }
    return r < 0 ? r : n->compared < size;
}

static int begin(struct qcow2_counting *n, struct qcow2 *s)
{
    n->census = qcow2_census_new(
        (max_u64(node_size(s->file), s->virgin) >> s->cluster_bits) + 1);
    if (!n->census) {
        return -ENOMEM;
    }
    mutex_lock(&s->meta);
    s->counting = n;
    mutex_unlock(&s->meta);
    return gather(n, s);
}

static int step(struct qcow2_counting *n, struct qcow2 *s)
{
    switch (n->step) {
    case COUNT_NOTHING:
        return begin(n, s);
    case COUNT_SNAPSHOTS:
        return count_snapshots(n, s);
    case COUNT_DISK:
        return count_disk(n, s);
    default:
        return compare(n, s);
    }
}

int qcow2_counts_check(struct qcow2_change *c, struct error **errp)
{
    struct qcow2_counting *n = &c->counting;
    struct qcow2 *s = c->s;
    int r = n->step == COUNT_DONE ? 0 : step(n, s);

    if (r < 0) {
        return r == -EUCLEAN
                   ? error_set(errp, EUCLEAN,
                               "the reference counts of '%s' are too low for "
                               "what its disks refer to: run 'nbdelta check "
                               "-r all' on the image",
                               node_filename(s->node))
                   : error_set(errp, -r,
                               "cannot count the references of '%s': %s",
                               node_filename(s->node), strerror(-r));
    }
    if (r == 0 && n->step != COUNT_DONE) {
        n->step++;
    }
    if (n->step == COUNT_DONE) {
        qcow2_counts_end(c);
        return 0;
    }
    return 1;
}

void qcow2_counts_end(struct qcow2_change *c)
{
    struct qcow2_counting *n = &c->counting;

    mutex_lock(&c->s->meta);
    c->s->counting = NULL;
    mutex_unlock(&c->s->meta);
    qcow2_census_free(n->census);
    free(n->tables);
    n->census = NULL;
    n->tables = NULL;
}
