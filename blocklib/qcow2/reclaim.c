/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Clusters that leaked in a crash are given back.
 *
 *     header, L1, L2 tables, refcount table and blocks, data
 *        |
 *        +--> references, counted from scratch, one number for each cluster
 *                |
 *                v  refcount > references: the difference leaked
 *             refcount = references, flush
 *
 * A refcount on disk is never lower than the references on disk (alloc.c,
 * invariant 1), so lowering it to them is safe at any time.  A refcount that is
 * lower is another fault, and is not touched.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/node.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "qcow2/bitmaps.h"
#include "qcow2/qcow2.h"

/* A crash can leave refcounts of clusters behind the end of the file. */
#define BEYOND_MAX 65536
/* It stays so when there are more, and such a cluster is left alone. */
#define MANY UINT16_MAX

struct counts {
    struct qcow2 *s;
    uint64_t clusters;
    uint16_t *refs;
    uint64_t leaked; /* clusters */
};

/* -EIO: it leads behind the end of the file. */
static int count_run(struct counts *c, uint64_t host, uint64_t bytes)
{
    unsigned bits = c->s->cluster_bits;

    if (bytes == 0) {
        return 0;
    }
    if (!range_inside(host, bytes, c->clusters << bits)) {
        return -EIO;
    }
    for (uint64_t i = host >> bits; i <= (host + bytes - 1) >> bits; i++) {
        c->refs[i] += c->refs[i] < MANY;
    }
    return 0;
}

/* --- References --- */

static int count_entry(struct counts *c, const struct qcow2_at *at)
{
    if (at->wrong) {
        return -EIO;
    }
    switch (at->kind) {
    case QCOW2_KIND_ZERO_ALLOC:
    case QCOW2_KIND_NORMAL:
        return c->s->external ? 0 : count_run(c, at->host, at->bytes);
    case QCOW2_KIND_COMPRESSED:
        return count_run(c, at->packed.host, at->packed.bytes);
    case QCOW2_KIND_UNALLOCATED:
    case QCOW2_KIND_ZERO_PLAIN:
        break;
    }
    return 0;
}

/* The table that entry @index of the L1 table leads to, and its data.  Each
 * compressed cluster has a place of its own, so these are looked at one by one;
 * of the others, so is each, which is fast enough. */
static int count_table(struct counts *c, uint64_t index)
{
    struct qcow2 *s = c->s;
    uint64_t host = atomic_load(&s->l1[index]) & QCOW2_OFFSET_MASK;
    uint64_t start = index * qcow2_l2_span(s);
    struct qcow2_table *t;

    if (host == 0) {
        return 0;
    }
    int r = qcow2_in_cluster(s, host) != 0
                ? -EIO
                : count_run(c, host, s->cluster_size);
    r = r < 0 ? r : qcow2_cache_get(s->l2, host, false, &t);
    if (r < 0) {
        return r;
    }
    for (uint64_t i = 0; r == 0 && i < UINT64_C(1) << s->l2_bits; i++) {
        struct qcow2_at at;

        qcow2_l2_look(s, t, start + (i << s->cluster_bits), s->cluster_size,
                      &at);
        r = count_entry(c, &at);
    }
    qcow2_cache_put(s->l2, t);
    return r;
}

static int count_all(struct counts *c) REQUIRES(c->s->meta)
{
    struct qcow2 *s = c->s;
    int r = count_run(c, 0, s->cluster_size);

    r = r < 0 ? r : count_run(c, s->l1_offset, s->l1_size * UINT64_C(8));
    r = r < 0
            ? r
            : count_run(c, s->reftable_offset, s->reftable_size * UINT64_C(8));
    for (uint64_t i = 0; r == 0 && i < s->reftable_size; i++) {
        uint64_t host = s->reftable[i] & QCOW2_OFFSET_MASK;
        r = host ? count_run(c, host, s->cluster_size) : 0;
    }
    for (uint64_t i = 0; r == 0 && i < s->l1_size; i++) {
        r = count_table(c, i);
    }
    return r;
}

/* --- Refcounts --- */

/* The last reference goes by way of limbo, which discards the cluster. */
static int lower(struct counts *c, uint64_t cluster, uint64_t count)
    REQUIRES(c->s->meta)
{
    uint64_t host = cluster << c->s->cluster_bits;
    uint64_t keep = c->refs[cluster] > 0 ? c->refs[cluster] : 1;

    for (uint64_t i = count; i > keep; i--) {
        qcow2_ref_undo(c->s, host, c->s->cluster_size);
    }
    c->leaked++;
    return c->refs[cluster] == 0 ? qcow2_free_later(c->s, host, 1) : 0;
}

static int lower_all(struct counts *c) REQUIRES(c->s->meta)
{
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < c->clusters; i++) {
        uint64_t count = 0;

        r = qcow2_refcount_get(c->s, i, &count);
        if (r == 0 && count > c->refs[i] && c->refs[i] < MANY) {
            r = lower(c, i, count);
        }
    }
    return r;
}

/* Until limbo has released what the first one has made durable. */
static int flush_all(struct qcow2 *s)
{
    int r = 0;

    for (int i = 0; r == 0 && i < 3; i++) {
        r = qcow2_flush(s->node);
    }
    return r;
}

/* A request: the tree is entered. */
static int reclaim(struct qcow2 *s, uint64_t *bytes)
{
    struct counts c = {.s = s};

    c.clusters = div_up(node_size(s->file), s->cluster_size) + BEYOND_MAX;
    CLEANUP_FREE uint16_t *refs = calloc(c.clusters, sizeof(*refs));
    int r = refs ? flush_all(s) : -ENOMEM;
    if (r < 0) {
        return r;
    }
    c.refs = refs;
    mutex_lock(&c.s->meta);
    r = count_all(&c);
    r = r < 0 ? r : lower_all(&c);
    mutex_unlock(&c.s->meta);
    *bytes = c.leaked << s->cluster_bits;
    return r < 0 || c.leaked == 0 ? r : flush_all(s);
}

int qcow2_reclaim(struct node *n, uint64_t *bytes, struct error **errp)
{
    struct qcow2 *s = n->state;

    *bytes = 0;
    if (n->flags.read_only || !list_empty(&s->bitmaps.list) ||
        s->bitmaps.ext.count > 0) {
        return error_set(errp, ENOTSUP, "the image %s",
                         n->flags.read_only ? "is read-only" : "has bitmaps");
    }
    struct tree *t = node_enter(n, false);
    int r = reclaim(s, bytes);
    node_leave(t);
    return r < 0 ? error_set(errp, -r, "cannot look for lost clusters: %s",
                             strerror(-r))
                 : 0;
}
