/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Clusters: allocating, freeing, counting.
 *
 * Invariants, at every instant, and for every subset of the writes to the
 * file that are not yet flushed:
 *
 *   1. Every reference to a cluster that is on disk is covered by the
 *      refcount on disk.  A crash can leak clusters; it cannot corrupt.
 *   2. A cluster is not handed out while anything on disk may refer to it, or
 *      while a request moves bytes of it (map.c: tickets).
 *   3. A refcount block describes itself: the entry for its own cluster is
 *      in it, or in a block that is older.
 *
 * Nothing in an external data file is allocated, counted or freed: each guest
 * cluster has a place of its own there.  So two other invariants hold:
 *
 *   4. What an L2 entry on disk leads to was flushed in the data file before.
 *   5. A raw data file reads as the guest sees the disk (zero.c, resize.c).
 *
 * How 1 and 2 are kept: allocating raises the refcount in memory, and flush.c
 * writes refcounts, with a barrier, before the tables that refer.  Freeing
 * goes through limbo:
 *
 *   unlinked in memory -> L2/L1 on disk (flush) -> tickets dropped
 *                      -> discarded in the file -> refcount lowered -> free
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/alloc.h"
#include "qcow2/qcow2.h"

#define COUNTS_AS_FREE "a cluster in use counts as free"

static uint64_t refs_per_block(const struct qcow2 *s)
{
    return UINT64_C(1) << s->refblock_bits;
}

/* The block that counts @cluster, pinned; NULL when there is none, and all
 * its clusters are free. */
static int block_get(struct qcow2 *s, uint64_t cluster, struct qcow2_table **tp)
    REQUIRES(s->meta)
{
    uint64_t index = cluster >> s->refblock_bits;
    uint64_t host = index < s->reftable_size
                        ? s->reftable[index] & QCOW2_OFFSET_MASK
                        : 0;

    *tp = NULL;
    if (host == 0) {
        return 0;
    }
    if (qcow2_in_cluster(s, host) != 0) {
        return qcow2_corrupt_at(s, host, s->cluster_size,
                                "a refcount block has no cluster of its own");
    }
    return qcow2_cache_get(s->refblocks, host, false, tp);
}

/* As block_get(); the block is going to be changed. */
static int block_get_writable(struct qcow2 *s, uint64_t cluster,
                              struct qcow2_table **tp) REQUIRES(s->meta)
{
    int r = block_get(s, cluster, tp);

    if (r < 0 || !*tp) {
        return r;
    }
    r = qcow2_overlap_check(s, QCOW2_META_REFBLOCK, (*tp)->offset,
                            s->cluster_size);
    if (r == 0) {
        r = qcow2_keep_room(s, *tp);
    }
    if (r < 0) {
        qcow2_cache_put(s->refblocks, *tp);
    }
    return r;
}

static uint64_t count_in(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t cluster)
{
    return qcow2_refcount_load(t->data, s->refcount_order,
                               cluster & (refs_per_block(s) - 1));
}

static void set_run(struct qcow2 *s, struct qcow2_table *t, uint64_t cluster,
                    uint64_t clusters, uint64_t count) REQUIRES(s->meta)
{
    uint64_t first = cluster & (refs_per_block(s) - 1);

    for (uint64_t i = 0; i < clusters; i++) {
        qcow2_refcount_store(t->data, s->refcount_order, first + i, count);
    }
    qcow2_cache_mark_dirty(s->refblocks, t);
}

static void set_in(struct qcow2 *s, struct qcow2_table *t, uint64_t cluster,
                   uint64_t count) REQUIRES(s->meta)
{
    set_run(s, t, cluster, 1, count);
}

int qcow2_refcount_get(struct qcow2 *s, uint64_t cluster, uint64_t *count)
{
    struct qcow2_table *t;
    int r = block_get(s, cluster, &t);
    if (r < 0) {
        return r;
    }
    *count = t ? count_in(s, t, cluster) : 0;
    if (t) {
        qcow2_cache_put(s->refblocks, t);
    }
    return 0;
}

/* Are all counts of the 8 bytes zero that end before @end's? */
static bool no_counts_before(const struct qcow2 *s, const struct qcow2_table *t,
                             uint64_t end)
{
    uint64_t bit = ((end - 1) & (refs_per_block(s) - 1)) << s->refcount_order;
    uint64_t word;

    memcpy(&word, (const char *)t->data + bit / 64 * 8, sizeof(word));
    return word == 0;
}

int qcow2_refcount_last(struct qcow2 *s, uint64_t first, uint64_t *end)
{
    const uint64_t per = UINT64_C(64) >> s->refcount_order;
    struct qcow2_table *t;
    int r = block_get(s, first, &t);

    if (r < 0 || !t) {
        *end = first;
        return r;
    }
    while (*end > first) {
        if (*end % per == 0 && *end - first >= per &&
            no_counts_before(s, t, *end)) {
            *end -= per;
        } else if (count_in(s, t, *end - 1) > 0) {
            break;
        } else {
            --*end;
        }
    }
    qcow2_cache_put(s->refblocks, t);
    return 0;
}

/* The clusters in use may end so many clusters behind the end of the file: they
 * were counted before a crash, and not written. */
#define BEYOND_MAX 65536
#define TOO_FAR    "all clusters count as used, far behind the end of the file"

/*
 * An image lies if a cluster counts as free and yet holds metadata, which would
 * be overwritten.  It also lies if everything counts as used up to far behind
 * the end of the file.
 */
static int check_unused(struct qcow2 *s, uint64_t cluster, uint64_t clusters)
    REQUIRES(s->meta)
{
    uint64_t end = max_u64(node_size(s->file), s->virgin) >> s->cluster_bits;

    return cluster > 2 * end + BEYOND_MAX
               ? qcow2_corrupt_at(s, cluster << s->cluster_bits,
                                  s->cluster_size, TOO_FAR)
               : qcow2_overlap_check(s, 0, cluster << s->cluster_bits,
                                     clusters << s->cluster_bits);
}

static void drop_metadata(struct qcow2 *s, uint64_t cluster, uint64_t clusters)
    REQUIRES(s->meta)
{
    for (uint64_t c = cluster; c < cluster + clusters; c++) {
        qcow2_overlap_drop(s, c);
    }
}

/* --- New refcount blocks --- */

/*
 * Grow the refcount table.  The new one, and the blocks that count it, lie in
 * clusters that no block of the old table counts, so that nothing else can be
 * there:
 *
 *     end of what is counted -> [ blocks ][ new table ] -> free
 *
 * flush.c writes them before it points the header at the new table.
 */
int qcow2_measure_reftable(const struct qcow2 *s, uint64_t needed,
                           uint64_t *blocks, uint64_t *clusters)
{
    uint64_t per_cluster = s->cluster_size / 8;
    uint64_t more = 1;

    do {
        *blocks = more;
        *clusters =
            div_up(max_u64(needed + needed / 2, s->reftable_size + *blocks),
                   per_cluster);
        more = div_up(*blocks + *clusters, refs_per_block(s));
    } while (more > *blocks);
    return *clusters << s->cluster_bits >
                   max_u64(QCOW2_MAX_REFTABLE_BYTES, s->cluster_size)
               ? -EFBIG
               : 0;
}

/* Refcount block @index at the host cluster @at, which has room, with ones for
 * the clusters [@start, @start + @used) as far as it counts them. */
static int add_block(struct qcow2 *s, uint64_t index, uint64_t at,
                     uint64_t start, uint64_t used) REQUIRES(s->meta)
{
    struct qcow2_table *t;
    int r = qcow2_cache_new_table(s->refblocks, at << s->cluster_bits, &t);
    if (r < 0) {
        return r;
    }
    t->has_room = true;
    uint64_t first = index << s->refblock_bits;
    uint64_t end = min_u64(first + refs_per_block(s), start + used);
    for (uint64_t c = max_u64(first, start); c < end; c++) {
        set_in(s, t, c, 1);
    }
    qcow2_cache_put(s->refblocks, t);
    return 0;
}

/* Forget new blocks, which nothing refers to, from the host cluster @at on. */
static void drop_blocks(struct qcow2 *s, uint64_t at, uint64_t count)
    REQUIRES(s->meta)
{
    for (uint64_t b = 0; b < count; b++) {
        qcow2_cache_forget(s->refblocks, (at + b) << s->cluster_bits);
        qcow2_overlap_drop(s, at + b);
    }
}

/* Make @count blocks in a row at the host cluster @at, with room in the
 * file. */
static int add_blocks(struct qcow2 *s, uint64_t index, uint64_t at,
                      uint64_t count, uint64_t used) REQUIRES(s->meta)
{
    int r = qcow2_take_room(s, at << s->cluster_bits, count << s->cluster_bits);

    if (r == 0) {
        r = qcow2_overlap_add(s, QCOW2_META_REFBLOCK, at << s->cluster_bits,
                              count << s->cluster_bits);
    }
    for (uint64_t b = 0; b < count && r == 0; b++) {
        r = add_block(s, index + b, at + b, at, used);
    }
    if (r < 0) {
        drop_blocks(s, at, count);
    }
    return r;
}

/* Let the refcount table lead to blocks that add_blocks() made. */
static int hook_up(struct qcow2 *s, uint64_t index, uint64_t at, uint64_t count)
    REQUIRES(s->meta)
{
    const _Atomic uint64_t *table = (const _Atomic uint64_t *)s->reftable;
    int r = 0;

    for (uint64_t b = 0; b < count && r == 0; b++) {
        r = qcow2_keep_entry_room(s, s->reftable_offset, table,
                                  s->reftable_size, index + b);
    }
    for (uint64_t b = 0; b < count && r == 0; b++) {
        s->reftable[index + b] = (at + b) << s->cluster_bits;
    }
    if (r == 0) {
        qcow2_span_add(&s->reftable_dirty, (uint32_t)index,
                       (uint32_t)(index + count));
    } else {
        drop_blocks(s, at, count);
    }
    return r;
}

static int grow_reftable(struct qcow2 *s, uint64_t needed) REQUIRES(s->meta)
{
    node_event(s->file, EVENT_REFTABLE_GROW);
    uint64_t first = s->reftable_size; /* the first block that is new */
    uint64_t start = first << s->refblock_bits;
    uint64_t blocks;
    uint64_t clusters;
    int r = qcow2_measure_reftable(s, needed, &blocks, &clusters);
    if (r < 0) {
        return r;
    }
    r = check_unused(s, start, blocks + clusters);
    if (r < 0) {
        return r;
    }
    uint64_t entries = clusters << s->cluster_bits >> 3;
    uint64_t *table = calloc(entries, sizeof(*table));
    if (!table) {
        return -ENOMEM;
    }
    memcpy(table, s->reftable, s->reftable_size * sizeof(*table));
    for (uint64_t b = 0; b < blocks; b++) {
        table[first + b] = (start + b) << s->cluster_bits;
    }
    r = qcow2_take_room(s, (start + blocks) << s->cluster_bits,
                        clusters << s->cluster_bits);
    if (r == 0) {
        r = qcow2_overlap_add(s, QCOW2_META_REFTABLE,
                              (start + blocks) << s->cluster_bits,
                              clusters << s->cluster_bits);
    }
    if (r == 0) {
        r = add_blocks(s, first, start, blocks, blocks + clusters);
    }
    if (r < 0) {
        drop_metadata(s, start + blocks, clusters);
        free(table);
        return r;
    }
    uint64_t old = s->reftable_offset;
    uint64_t old_clusters = s->reftable_size * UINT64_C(8) >> s->cluster_bits;
    free(s->reftable);
    s->reftable = table;
    s->reftable_size = (uint32_t)entries;
    s->reftable_offset = (start + blocks) << s->cluster_bits;
    s->reftable_moved = true;
    qcow2_span_add(&s->reftable_dirty, 0, (uint32_t)entries);
    s->virgin = max_u64(s->virgin, (start + blocks + clusters)
                                       << s->cluster_bits);
    return qcow2_free_later(s, old, old_clusters);
}

/* Make a refcount block for the clusters around @cluster.  @cluster is the
 * first of them that is wanted, and becomes the block. */
static int new_block(struct qcow2 *s, uint64_t cluster) REQUIRES(s->meta)
{
    uint64_t index = cluster >> s->refblock_bits;

    node_event(s->file, EVENT_REFBLOCK_ALLOC);
    if (index >= s->reftable_size) {
        return grow_reftable(s, index + 1);
    }
    int r = check_unused(s, cluster, 1);
    if (r == 0) {
        r = add_blocks(s, index, cluster, 1, 1);
    }
    if (r == 0) {
        r = hook_up(s, index, cluster, 1);
    }
    if (r < 0) {
        return r;
    }
    s->virgin = max_u64(s->virgin, (cluster + 1) << s->cluster_bits);
    return 0;
}

/* --- Allocating --- */

/* So many blocks are searched before the meta lock is given up. */
#define SEARCH_MAX 32

/* A block says that all clusters up to @cluster are in use.  Is it a refcount
 * block, and can that be true? */
static int check_full(struct qcow2 *s, uint64_t cluster) REQUIRES(s->meta)
{
    uint64_t host = s->reftable[cluster >> s->refblock_bits] &
                    QCOW2_OFFSET_MASK;
    uint64_t end = max_u64(node_size(s->file), s->virgin) >> s->cluster_bits;

    if (qcow2_overlap_find(s, host, s->cluster_size) & QCOW2_META_TWICE) {
        return qcow2_corrupt_at(s, host, s->cluster_size,
                                "a refcount block is there twice");
    }
    if (cluster > 2 * end + BEYOND_MAX + refs_per_block(s)) {
        return qcow2_corrupt_at(s, cluster << s->cluster_bits, s->cluster_size,
                                TOO_FAR);
    }
    return qcow2_overlap_check(s, QCOW2_META_REFBLOCK, host, s->cluster_size);
}

/* The length of the free run at @cluster, at most @want, within its block.  0:
 * *skip clusters from @cluster on are taken. */
static uint64_t free_run(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t cluster, uint64_t want, uint64_t *skip)
{
    uint64_t end = (cluster | (refs_per_block(s) - 1)) + 1;
    uint64_t at = cluster;

    while (at < end && count_in(s, t, at) != 0) {
        at++;
    }
    *skip = at - cluster;
    if (*skip > 0) {
        return 0;
    }
    while (at < end && at - cluster < want && count_in(s, t, at) == 0) {
        at++;
    }
    return at - cluster;
}

/*
 * Find a free run of 1 to @want clusters at or after @from.  A full block is
 * looked at only once.  Each block that the refcount table leads to is in a
 * cluster of its own, so the size of the image bounds the work.  -EINPROGRESS:
 * @blocks_max blocks were searched, up to *start.
 */
static int find_free(struct qcow2 *s, uint64_t from, uint64_t want,
                     unsigned blocks_max, uint64_t *start, uint64_t *run)
    REQUIRES(s->meta)
{
    for (unsigned blocks = 0;; blocks++) {
        struct qcow2_table *t;
        uint64_t skip;

        *start = from;
        if (blocks > blocks_max) {
            return -EINPROGRESS;
        }
        if (from >= QCOW2_OFFSET_MASK >> s->cluster_bits ||
            from >= BLK_SIZE_MAX >> s->cluster_bits) {
            return -EFBIG;
        }
        int r = block_get(s, from, &t);
        if (r < 0) {
            return r;
        }
        if (!t) {
            r = new_block(s, from);
            if (r < 0) {
                return r;
            }
            continue;
        }
        *run = free_run(s, t, from, want, &skip);
        qcow2_cache_put(s->refblocks, t);
        if (*run > 0) {
            return check_unused(s, from, *run);
        }
        from += skip;
        if (skip > 0 && from % refs_per_block(s) == 0) { /* it was full */
            r = check_full(s, from - 1);
            if (r < 0) {
                return r;
            }
        }
    }
}

/* Set the counts of @clusters.  On failure *done of them were set. */
static int set_some(struct qcow2 *s, uint64_t cluster, uint64_t clusters,
                    uint64_t count, uint64_t *done) REQUIRES(s->meta)
{
    for (*done = 0; *done < clusters;) {
        struct qcow2_table *t;
        uint64_t at = cluster + *done;
        int r = block_get_writable(s, at, &t);
        if (r < 0 || !t) {
            return r < 0 ? r : -EIO;
        }
        uint64_t end = (at | (refs_per_block(s) - 1)) + 1;
        uint64_t len = min_u64(clusters - *done, end - at);
        set_run(s, t, at, len, count);
        qcow2_cache_put(s->refblocks, t);
        *done += len;
    }
    return 0;
}

/* Count a run of free clusters, all or none. */
static int take_run(struct qcow2 *s, uint64_t cluster, uint64_t clusters)
    REQUIRES(s->meta)
{
    uint64_t done;
    uint64_t undone;
    int r = set_some(s, cluster, clusters, 1, &done);

    if (r < 0) {
        (void)set_some(s, cluster, done, 0, &undone);
    }
    return r;
}

/* Hand out a run of free clusters, of @want, that was found. */
static int hand_out(struct qcow2 *s, uint64_t start, uint64_t run,
                    uint64_t want, uint64_t *host, bool *fresh)
    REQUIRES(s->meta)
{
    int r = take_run(s, start, run);

    if (r < 0) {
        return r;
    }
    if (start == s->free_hint || run == want) {
        s->free_hint = start + run;
    }
    *host = start << s->cluster_bits;
    *fresh = s->file_grows_zero && *host >= s->virgin;
    s->virgin = max_u64(s->virgin, *host + (run << s->cluster_bits));
    return 0;
}

int qcow2_alloc(struct qcow2 *s, uint64_t want, uint64_t *host, uint64_t *got,
                bool *fresh)
{
    uint64_t start;

    node_event(s->file, EVENT_CLUSTER_ALLOC);
    int r = find_free(s, s->free_hint, want, SEARCH_MAX, &start, got);
    if (r == -EINPROGRESS) {
        s->free_hint = start; /* there is none below */
    }
    return r < 0 ? r : hand_out(s, start, *got, want, host, fresh);
}

/* The block that counts @cluster, pinned, if it is in memory, and can be
 * changed there without further ado. */
static int block_get_ready(struct qcow2 *s, uint64_t cluster,
                           struct qcow2_table **tp) REQUIRES(s->meta)
{
    uint64_t index = cluster >> s->refblock_bits;
    uint64_t host = index < s->reftable_size
                        ? s->reftable[index] & QCOW2_OFFSET_MASK
                        : 0;

    if (host == 0 || qcow2_in_cluster(s, host) != 0 ||
        qcow2_cache_get(s->refblocks, host, true, tp) < 0) {
        return -EAGAIN;
    }
    if (!(*tp)->has_room) {
        qcow2_cache_put(s->refblocks, *tp);
        return -EAGAIN;
    }
    return 0;
}

int qcow2_alloc_nowait(struct qcow2 *s, uint64_t want, uint64_t *host,
                       uint64_t *got, bool *fresh)
{
    uint64_t start = s->free_hint;
    struct qcow2_table *t;
    uint64_t skip;
    int r = block_get_ready(s, start, &t);

    if (r < 0) {
        return r;
    }
    *got = free_run(s, t, start, want, &skip);
    if (*got == 0 && (start + skip) % refs_per_block(s) != 0) {
        start += skip;
        *got = free_run(s, t, start, want, &skip);
    }
    if (*got == 0) {
        r = -EAGAIN;
    } else {
        r = check_unused(s, start, *got);
        r = r < 0 ? r : hand_out(s, start, *got, want, host, fresh);
    }
    qcow2_cache_put(s->refblocks, t);
    return r;
}

/* Find room behind the last block, at *index, for blocks that count themselves
 * and @count clusters more. */
static int room_for_blocks(struct qcow2 *s, uint64_t count, uint64_t *index,
                           uint64_t *blocks) REQUIRES(s->meta)
{
    *blocks = 1;
    while (*blocks < div_up(*blocks + count, refs_per_block(s))) {
        *blocks = div_up(*blocks + count, refs_per_block(s));
    }
    for (;;) {
        *index = s->reftable_size;
        while (*index > 0 && s->reftable[*index - 1] == 0) {
            --*index;
        }
        if (*index + *blocks <= s->reftable_size) {
            return 0;
        }
        int r = grow_reftable(s, *index + *blocks);
        if (r < 0) {
            return r;
        }
    }
}

/*
 * Allocate a run that is longer than what one block counts.  A block usually
 * lies in the first of the clusters that it counts, which would split the run.
 * So new blocks are put in front of it.
 *
 *     end of what is counted -> [ blocks ][ run ]
 */
static int alloc_long(struct qcow2 *s, uint64_t count, uint64_t *host)
    REQUIRES(s->meta)
{
    uint64_t index;
    uint64_t blocks;
    int r = room_for_blocks(s, count, &index, &blocks);
    if (r < 0) {
        return r;
    }
    uint64_t start = index << s->refblock_bits;
    if (start + blocks + count > BLK_SIZE_MAX >> s->cluster_bits) {
        return -EFBIG;
    }
    r = check_unused(s, start, blocks + count);
    if (r == 0) {
        node_event(s->file, EVENT_REFBLOCK_ALLOC);
        r = add_blocks(s, index, start, blocks, blocks + count);
    }
    if (r == 0) {
        r = hook_up(s, index, start, blocks);
    }
    if (r == 0) {
        *host = (start + blocks) << s->cluster_bits;
        s->virgin = max_u64(s->virgin, (start + blocks + count)
                                           << s->cluster_bits);
    }
    return r;
}

static int alloc_run(struct qcow2 *s, uint64_t count, unsigned blocks_max,
                     uint64_t *host) REQUIRES(s->meta)
{
    uint64_t from = s->free_hint;
    uint64_t begin = 0;
    uint64_t found = 0;

    node_event(s->file, EVENT_CLUSTER_ALLOC);
    if (count >= refs_per_block(s)) {
        return alloc_long(s, count, host);
    }
    while (found < count) {
        uint64_t start;
        uint64_t run;
        int r = find_free(s, from, count - found, blocks_max, &start, &run);
        if (r == -EINPROGRESS && found == 0) {
            s->free_hint = start;
        }
        if (r < 0) {
            return r;
        }
        if (found == 0 || start != begin + found) {
            begin = start;
            found = 0;
        }
        found += run;
        from = start + run;
    }
    int r = take_run(s, begin, count);
    if (r < 0) {
        return r;
    }
    if (begin == s->free_hint) {
        s->free_hint = begin + count;
    }
    *host = begin << s->cluster_bits;
    s->virgin = max_u64(s->virgin, *host + (count << s->cluster_bits));
    return 0;
}

int qcow2_alloc_exact(struct qcow2 *s, unsigned kind, uint64_t count,
                      uint64_t *host)
{
    unsigned blocks_max = kind == QCOW2_META_L2 ? SEARCH_MAX : UINT_MAX;
    int r = alloc_run(s, count, blocks_max, host);

    if (r == 0) {
        r = qcow2_overlap_add(s, kind, *host, count << s->cluster_bits);
        if (r < 0) {
            qcow2_alloc_undo(s, *host, count);
        }
    }
    return r;
}

void qcow2_alloc_undo(struct qcow2 *s, uint64_t host, uint64_t clusters)
{
    uint64_t first = host >> s->cluster_bits;
    uint64_t done;

    (void)set_some(s, first, clusters, 0, &done); /* or they leak */
    if (done > 0) {
        s->free_hint = min_u64(s->free_hint, first);
    }
    drop_metadata(s, first, done);
}

void qcow2_alloc_undo_unwritten(struct qcow2 *s, uint64_t host,
                                uint64_t clusters, bool fresh)
{
    qcow2_alloc_undo(s, host, clusters);
    if (fresh && s->virgin == host + (clusters << s->cluster_bits)) {
        s->virgin = host;
    }
}

uint64_t qcow2_refcount_max(const struct qcow2 *s)
{
    unsigned bits = 1U << s->refcount_order;

    return bits == 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
}

int qcow2_ref_more(struct qcow2 *s, uint64_t host)
{
    uint64_t cluster = host >> s->cluster_bits;
    struct qcow2_table *t;
    int r = block_get_writable(s, cluster, &t);

    if (r < 0 || !t) {
        return r < 0
                   ? r
                   : qcow2_corrupt_at(s, host, s->cluster_size, COUNTS_AS_FREE);
    }
    uint64_t count = count_in(s, t, cluster);
    if (count == 0) {
        r = qcow2_corrupt_at(s, host, s->cluster_size, COUNTS_AS_FREE);
    } else if (count == qcow2_refcount_max(s)) {
        r = -EOVERFLOW;
    } else {
        set_in(s, t, cluster, count + 1);
    }
    qcow2_cache_put(s->refblocks, t);
    return r;
}

int qcow2_ref_add(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    uint64_t first = align_down(host, s->cluster_size);
    int r = 0;

    for (uint64_t at = first; at < host + bytes; at += s->cluster_size) {
        r = qcow2_ref_more(s, at);
        if (r < 0) {
            qcow2_ref_undo(s, first, at - first);
            break;
        }
    }
    return r;
}

int qcow2_refcount_highest(struct qcow2 *s, uint64_t *highest)
{
    int r = 0;

    *highest = 0;
    for (uint64_t i = 0; i < s->reftable_size && r == 0; i++) {
        struct qcow2_table *t;

        mutex_lock(&s->meta);
        r = block_get(s, i << s->refblock_bits, &t);
        for (uint64_t c = 0; r == 0 && t && c < refs_per_block(s); c++) {
            *highest = max_u64(*highest, count_in(s, t, c));
        }
        mutex_unlock(&s->meta);
        if (r == 0 && t) {
            qcow2_cache_put(s->refblocks, t);
        }
    }
    return r;
}

/* --- Freeing --- */

static int add_to_limbo(struct qcow2 *s, const struct qcow2_freed *f)
    REQUIRES(s->meta)
{
    if (s->freed_count == s->freed_room) {
        size_t room = s->freed_room ? s->freed_room * 2 : 64;
        struct qcow2_freed *more = realloc(s->freed, room * sizeof(*more));
        if (!more) {
            return -ENOMEM; /* they leak; check finds them */
        }
        s->freed = more;
        s->freed_room = room;
    }
    s->freed[s->freed_count++] = *f;
    s->freed_clusters += f->clusters;
    return 0;
}

int qcow2_free_later(struct qcow2 *s, uint64_t host, uint64_t clusters)
{
    struct qcow2_freed f = {
        .host = host,
        .clusters = clusters,
        .epoch = atomic_load(&s->epoch),
    };

    if (s->freed_count > s->freed_sealed) {
        struct qcow2_freed *last = &s->freed[s->freed_count - 1];
        if (!last->durable && last->epoch == f.epoch &&
            last->host + (last->clusters << s->cluster_bits) == host) {
            last->clusters += clusters;
            s->freed_clusters += clusters;
            return 0;
        }
    }
    return add_to_limbo(s, &f);
}

/* Take one reference from a cluster.  1: it is free now. */
static int lower(struct qcow2 *s, uint64_t cluster) REQUIRES(s->meta)
{
    struct qcow2_table *t;
    int r = block_get_writable(s, cluster, &t);

    if (r < 0) {
        return r;
    }
    uint64_t count = t ? count_in(s, t, cluster) : 0;
    if (count > 0) {
        set_in(s, t, cluster, count - 1);
    }
    if (t) {
        qcow2_cache_put(s->refblocks, t);
    }
    if (count == 0) {
        return qcow2_corrupt_at(s, cluster << s->cluster_bits, s->cluster_size,
                                COUNTS_AS_FREE);
    }
    if (count == 1) {
        qcow2_overlap_drop(s, cluster);
        s->free_hint = min_u64(s->free_hint, cluster);
        if (s->packed > 0 && (s->packed - 1) >> s->cluster_bits == cluster) {
            s->packed = 0;
        }
    }
    return count == 1;
}

void qcow2_ref_undo(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    uint64_t end = div_up(host + bytes, s->cluster_size);

    for (uint64_t c = host >> s->cluster_bits; c < end; c++) {
        (void)lower(s, c); /* or it leaks */
    }
}

/* Take one reference from each cluster of a run.  Clusters for whose refcounts
 * there is no room go back to limbo: that is no reason for a flush to fail. */
static int lower_run(struct qcow2 *s, struct qcow2_freed f) REQUIRES(s->meta)
{
    int r = 0;

    node_event(s->file, EVENT_CLUSTER_FREE);
    while (f.clusters > 0 && r == 0) {
        int freed = lower(s, f.host >> s->cluster_bits);
        if (freed < 0) {
            r = freed;
        } else {
            atomic_fetch_add(&s->released, (uint64_t)freed);
            f.host += s->cluster_size;
            f.clusters--;
        }
    }
    return r == -ENOSPC ? add_to_limbo(s, &f) : r;
}

/* Are all clusters of the run about to become free?  Then nothing is packed
 * into them any more. */
static bool is_last_reference(struct qcow2 *s, const struct qcow2_freed *f)
    REQUIRES(s->meta)
{
    uint64_t first = f->host >> s->cluster_bits;

    for (uint64_t i = 0; i < f->clusters; i++) {
        uint64_t count;
        if (qcow2_refcount_get(s, first + i, &count) < 0 || count != 1) {
            return false;
        }
    }
    if (s->packed > f->host &&
        s->packed <= f->host + (f->clusters << s->cluster_bits)) {
        s->packed = 0;
    }
    return true;
}

static void advance_epoch(struct qcow2 *s) REQUIRES(s->meta)
{
    for (int i = 0; i < 2; i++) {
        uint64_t next = atomic_load(&s->epoch) + 1;
        if (atomic_load(&s->users[next & 1]) > 0) {
            return;
        }
        atomic_store(&s->epoch, next);
    }
}

/* Take the runs that are due out of limbo.  Returns their number. */
static size_t take_due(struct qcow2 *s, struct qcow2_freed *due)
    REQUIRES(s->meta)
{
    size_t taken = 0;
    size_t kept = 0;

    for (size_t i = 0; i < s->freed_count; i++) {
        struct qcow2_freed *f = &s->freed[i];
        if (f->durable && f->epoch + 2 <= atomic_load(&s->epoch)) {
            s->freed_clusters -= f->clusters;
            due[taken++] = *f;
        } else {
            s->freed[kept++] = *f;
        }
    }
    s->freed_count = s->freed_sealed = kept;
    return taken;
}

int qcow2_release_freed(struct qcow2 *s)
{
    int r = 0;

    mutex_lock(&s->meta);
    bool give_back = s->give_back;
    if (s->freed_count == 0) {
        mutex_unlock(&s->meta);
        return 0;
    }
    advance_epoch(s);
    struct qcow2_freed *due = malloc(s->freed_count * sizeof(*due));
    size_t count = due ? take_due(s, due) : 0;
    mutex_unlock(&s->meta);

    for (size_t i = 0; i < count; i++) {
        mutex_lock(&s->meta);
        bool last = is_last_reference(s, &due[i]);
        mutex_unlock(&s->meta);
        if (last) { /* still counted: nobody else can get it yet */
            uint64_t bytes = due[i].clusters << s->cluster_bits;
            (void)(give_back ? node_give_back(s->file, due[i].host, bytes)
                             : node_discard(s->file, due[i].host, bytes));
        }
        mutex_lock(&s->meta);
        int one = lower_run(s, due[i]);
        mutex_unlock(&s->meta);
        r = r < 0 ? r : one;
    }
    free(due);
    return r;
}
