/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Metadata that are durable at once.
 *
 * A flush takes as long as all that guests have written since the last one, and
 * guests wait for some flushes: of the bits that arm a region, of a directory
 * that is stored in a drained section.  What these need is durable is a few
 * clusters.  So they are written through: with FUA, which takes as long as
 * these.
 *
 *   the clusters' refcount blocks, what is in them  -- through --
 *   what leads to them                              -- through --
 *
 * A refcount block may be written at any time, as memory has it: it covers all
 * that is on disk (alloc.c, invariant 1).  But a round of flush.c writes copies
 * that it has made when it began, so there is none meanwhile.  What the
 * refcount table does not have on disk yet needs a round.
 *
 * A write with FUA can meet an error of writing back, as a flush does, and
 * another user's flush can meet one of what is written here.  Either is then
 * known as a failed flush is (core/flush.c).
 */
#include <errno.h>
#include <string.h>

#include "core/flush.h"
#include "nbdelta/cleanup.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"
#include "util/iov.h"

bool qcow2_can_write_through(const struct qcow2 *s)
{
    return node_has_fua(s->file);
}

int qcow2_write_through(struct qcow2 *s, const void *buf, uint64_t bytes,
                        uint64_t host)
{
    int r = node_pwrite(s->file, buf, bytes, host, REQ_FUA);

    if (r == -ERESTART ||
        (r == 0 &&
         !node_flush_has_failed(s->file, atomic_load(&s->file_failed)))) {
        return r;
    }
    int lost = qcow2_flush_file(s); /* it tells all who have to know */
    return r < 0 ? r : lost;
}

/* Copy refcount block @index.  *host stays 0 if only a round can make it
 * durable. */
static int copy_block(struct qcow2 *s, uint64_t index, unsigned char *copy,
                      uint64_t *host) REQUIRES(s->meta)
{
    struct qcow2_table *t;

    if (!qcow2_span_empty(&s->reftable_dirty) || s->reftable_moved ||
        index >= s->reftable_size) {
        return 0;
    }
    uint64_t offset = s->reftable[index] & QCOW2_OFFSET_MASK;
    int r = qcow2_cache_get(s->refblocks, offset, false, &t);
    if (r == 0) {
        memcpy(copy, t->data, s->cluster_size);
        qcow2_cache_put(s->refblocks, t);
        *host = offset;
    }
    return r;
}

/* Write the refcount blocks of a run, except one that was written last.  A
 * block stays dirty in memory: the next round writes it once more. */
static int write_blocks(struct qcow2 *s, const struct qcow2_run *run,
                        uint64_t *last, unsigned char *copy, bool *all)
    REQUIRES(s->flush_lock)
{
    unsigned bits = s->cluster_bits + s->refblock_bits;
    uint64_t end = run->host + run->bytes;
    int r = 0;

    for (uint64_t i = run->host >> bits; r == 0 && *all && i << bits < end;
         i++) {
        uint64_t host = 0;

        if (i == *last) {
            continue;
        }
        mutex_lock(&s->meta);
        r = copy_block(s, i, copy, &host);
        mutex_unlock(&s->meta);
        if (r == 0 && host != 0) {
            node_event(s->file, EVENT_REFBLOCK_UPDATE_PART);
            r = qcow2_write_through(s, copy, s->cluster_size, host);
        }
        *all = host != 0;
        *last = i;
    }
    return r;
}

int qcow2_counts_through(struct qcow2 *s, const struct qcow2_run *runs,
                         size_t count)
{
    CLEANUP_FREE unsigned char *copy = buf_alloc(s->cluster_size);
    uint64_t last = UINT64_MAX;
    bool all = true;
    int r = 0;

    if (!copy) {
        return -ENOMEM;
    }
    mutex_lock(&s->flush_lock);
    for (size_t i = 0; i < count && r == 0 && all; i++) {
        r = write_blocks(s, &runs[i], &last, copy, &all);
    }
    mutex_unlock(&s->flush_lock);
    return r == 0 && !all ? qcow2_flush(s->node) : r;
}
