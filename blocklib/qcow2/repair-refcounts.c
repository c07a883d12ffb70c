/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Refcounts of a repair: a new structure behind everything, or lower counts in
 * the old one.
 *
 *   | the image as it is ...          | annex: moved clusters | blocks | table
 * | 0                             annex.first
 *
 * A new structure counts itself.  It never counts less than the old one did: a
 * cluster that nothing seems to refer to is freed by qcow2_lower_refcounts(),
 * after another look at the whole image.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/alloc.h"
#include "qcow2/repair.h"

/* --- The annex --- */

int qcow2_annex_take(struct qcow2_annex *a, uint64_t clusters, uint64_t count,
                     uint64_t *first)
{
    if (clusters > a->room - a->count) {
        size_t room = (a->room + clusters) * 2;
        uint64_t *more = realloc(a->counts, room * sizeof(*more));

        if (!more) {
            return -ENOMEM;
        }
        a->counts = more;
        a->room = room;
    }
    *first = a->first + a->count;
    for (uint64_t i = 0; i < clusters; i++) {
        a->counts[a->count++] = count;
    }
    return 0;
}

static uint64_t annex_end(const struct qcow2_annex *a)
{
    return a->first + a->count;
}

/* --- A new structure --- */

struct builder {
    const struct qcow2_check *k;
    const struct qcow2_annex *a;
    uint64_t *old; /* the old refcount table */
    uint64_t old_count;
    unsigned char *block;
    unsigned char *before; /* the block that there was */
    uint64_t *table;       /* the new one, big-endian */
};

static uint64_t highest_count(const struct qcow2 *s)
{
    unsigned bits = 1U << s->refcount_order;

    return bits == 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
}

static uint64_t count_of(const struct builder *b, uint64_t cluster,
                         uint64_t index)
{
    const struct qcow2 *s = &b->k->im.shape;

    if (cluster >= b->a->first) {
        return b->a->counts[cluster - b->a->first];
    }
    uint64_t stored = qcow2_refcount_load(b->before, s->refcount_order, index);
    uint64_t counted = qcow2_census_count(b->k->census, cluster);
    return min_u64(max_u64(stored, counted), highest_count(s));
}

static int build_block(struct builder *b, uint64_t index, uint64_t host)
{
    const struct qcow2 *s = &b->k->im.shape;
    uint64_t first = index << s->refblock_bits;
    uint64_t count = min_u64(UINT64_C(1) << s->refblock_bits,
                             annex_end(b->a) - first);
    uint64_t old = index < b->old_count ? b->old[index] : 0;
    int r = 0;

    if (old == 0 || qcow2_in_cluster(s, old) != 0) {
        memset(b->before, 0, s->cluster_size);
    } else {
        r = qcow2_image_pread(&b->k->im, b->before, s->cluster_size, old);
    }
    if (r < 0) {
        return r;
    }
    memset(b->block, 0, s->cluster_size);
    for (uint64_t i = 0; i < count; i++) {
        qcow2_refcount_store(b->block, s->refcount_order, i,
                             count_of(b, first + i, i));
    }
    store_be64(&b->table[index], host);
    return node_pwrite(b->k->im.file, b->block, s->cluster_size, host, 0);
}

/* Room for blocks and table, which they count themselves. */
static int plan_room(const struct qcow2 *s, struct qcow2_annex *a,
                     uint64_t *blocks, uint64_t *table_clusters,
                     uint64_t *first)
{
    uint64_t total = annex_end(a);
    uint64_t before;

    do {
        before = total;
        *blocks = div_up(total, UINT64_C(1) << s->refblock_bits);
        *table_clusters = div_up(*blocks * 8, s->cluster_size);
        total = annex_end(a) + *blocks + *table_clusters;
    } while (total != before);
    return qcow2_annex_take(a, *blocks + *table_clusters, 1, first);
}

static int build(struct builder *b, struct qcow2_annex *a,
                 struct qcow2_new_refcounts *new)
{
    const struct qcow2 *s = &b->k->im.shape;
    uint64_t blocks;
    uint64_t clusters;
    uint64_t first;
    int r = plan_room(s, a, &blocks, &clusters, &first);

    if (r == 0) {
        r = qcow2_image_reftable(&b->k->im, &b->old, &b->old_count);
    }
    b->block = malloc(s->cluster_size);
    b->before = malloc(s->cluster_size);
    b->table = r == 0 ? calloc(clusters, s->cluster_size) : NULL;
    if (r < 0 || !b->block || !b->before || !b->table) {
        return r < 0 ? r : -ENOMEM;
    }
    for (uint64_t i = 0; r == 0 && i < blocks; i++) {
        r = build_block(b, i, (first + i) << s->cluster_bits);
    }
    new->host = (first + blocks) << s->cluster_bits;
    new->clusters = (uint32_t)clusters;
    return r < 0 ? r
                 : node_pwrite(b->k->im.file, b->table,
                               clusters << s->cluster_bits, new->host, 0);
}

int qcow2_rebuild_refcounts(const struct qcow2_check *k, struct qcow2_annex *a,
                            struct qcow2_new_refcounts *new,
                            struct error **errp)
{
    struct builder b = {.k = k, .a = a};
    int r = build(&b, a, new);

    free(b.old);
    free(b.block);
    free(b.before);
    free(b.table);
    return r < 0 ? error_set(errp, -r, "cannot write new refcounts: %s",
                             strerror(-r))
                 : 0;
}

/* --- Lower counts --- */

struct lowering {
    const struct qcow2_check *k;
    uint64_t lowered;
};

static int lower_block(struct qcow2_refblock *b, void *opaque)
{
    struct lowering *l = opaque;
    const struct qcow2 *s = &l->k->im.shape;
    bool changed = false;

    for (uint64_t i = 0; b->host != 0 && i < b->count; i++) {
        uint64_t stored = qcow2_refcount_load(b->bytes, s->refcount_order, i);
        uint64_t counted = qcow2_census_count(l->k->census, b->first + i);

        if (stored > counted) {
            qcow2_refcount_store(b->bytes, s->refcount_order, i, counted);
            l->lowered++;
            changed = true;
        }
    }
    return changed ? node_pwrite(l->k->im.file, b->bytes, s->cluster_size,
                                 b->host, 0)
                   : 0;
}

int qcow2_lower_refcounts(const struct qcow2_check *k, uint64_t *lowered,
                          struct error **errp)
{
    struct lowering l = {.k = k};
    int r = qcow2_each_refblock(&k->im, 0, lower_block, &l);

    if (r == 0) {
        r = node_flush(k->im.file);
    }
    *lowered = l.lowered;
    return r < 0
               ? error_set(errp, -r, "cannot write refcounts: %s", strerror(-r))
               : 0;
}
