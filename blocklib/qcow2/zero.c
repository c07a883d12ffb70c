/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Making clusters, or subclusters, read as zeroes, by their L2 entries alone.
 *
 *   entry now          zero                 zero, may unmap     discard
 *   unallocated        ZERO                 ZERO                ZERO (*)
 *   normal, COPIED     host | ZERO          ZERO, host freed    the same
 *   other normal       ZERO, freed          ZERO, freed         the same
 *   compressed         ZERO, freed          ZERO, freed         the same
 *   unallocated, with  host | ZERO          ZERO, host freed    the same (**)
 *   a place
 *
 *   ("freed" in an external data file: discarded there, unless it is encrypted:
 *   a reader that is on its way, and a crash before the entry is on disk, would
 *   find a hole and decode that)
 *
 *   (*) stays as it is without a backing file: a discard leaves open what is
 *       read afterwards.
 *   (**) without a backing file: unallocated, host freed
 *
 * The subclusters of an entry have one host, which is freed when none of them
 * has data any more.  A part of a compressed cluster cannot be made zeroes
 * here: the core writes them.  A discard leaves it as it is.
 *
 * With the option discard-no-unref ("may unmap" and "discard") a cluster that
 * is COPIED keeps its host, as if nothing might be unmapped, and its bytes are
 * discarded there.  That comes after the entry has changed, with the clusters
 * locked, so it hits nothing that is written later.  A crash before the entry
 * is on disk leaves old data or zeroes, as any discard may.  The bytes of an
 * encrypted image stay: such a crash would leave neither.
 *
 * Zeroes that a user writes are stored, even where an unallocated cluster reads
 * as zeroes now: an image may be opened without the backing file that it names,
 * and may get one later.  Whether there is a backing *node* says nothing about
 * that.
 *
 * Version 2 has no ZERO: there, zero is not supported; a discard makes entries
 * unallocated if there is no backing file, and else does nothing.
 *
 * A raw data file has to read as zeroes itself.  Then its zeroes count, and the
 * entries stay as they are.
 */
#include <errno.h>

#include "qcow2/alloc.h"
#include "qcow2/copied.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"

struct zeroing {
    bool unmap;
    bool keep;  /* in spite of unmap: clusters, not what is in them */
    bool fill;  /* what is unallocated becomes ZERO */
    bool exact; /* nothing may stay as it is */
};

/* What a cluster of @kind becomes; false: it stays as it is. */
static bool becomes(const struct qcow2 *s, const struct zeroing *z,
                    const struct qcow2_at *at, enum qcow2_kind *to)
{
    bool keeps = at->copied && (!z->unmap || z->keep);

    *to = s->version >= 3 ? QCOW2_KIND_ZERO_PLAIN : QCOW2_KIND_UNALLOCATED;
    switch (at->kind) {
    case QCOW2_KIND_ZERO_PLAIN:
        return false;
    case QCOW2_KIND_UNALLOCATED:
        return z->fill;
    case QCOW2_KIND_UNALLOCATED_ALLOC:
        if (!z->fill) {
            *to = QCOW2_KIND_UNALLOCATED;
        } else if (keeps) {
            *to = QCOW2_KIND_ZERO_ALLOC;
        }
        return z->fill || (z->unmap && !keeps);
    case QCOW2_KIND_NORMAL:
    case QCOW2_KIND_ZERO_ALLOC:
        if (keeps && s->version >= 3) {
            *to = QCOW2_KIND_ZERO_ALLOC;
        }
        return at->kind != *to;
    case QCOW2_KIND_COMPRESSED:
        break;
    }
    return true;
}

/* Cut [*offset, *offset + *bytes), compressed clusters, to whole ones, which
 * the last one of the disk always is.  False: nothing is left. */
static bool cut_to_whole(const struct qcow2 *s, uint64_t *offset,
                         uint64_t *bytes)
{
    uint64_t from = align_up(*offset, s->cluster_size);
    uint64_t end = *offset + *bytes;
    uint64_t to = end == s->node->size ? end : align_down(end, s->cluster_size);

    *offset = from;
    *bytes = from < to ? to - from : 0;
    return *bytes > 0;
}

static void zero_run(struct qcow2 *s, const struct zeroing *z,
                     struct qcow2_table *t, uint64_t offset,
                     const struct qcow2_at *at) REQUIRES(s->meta)
{
    uint64_t bytes = at->bytes;
    enum qcow2_kind to;

    if (becomes(s, z, at, &to) && (at->kind != QCOW2_KIND_COMPRESSED ||
                                   cut_to_whole(s, &offset, &bytes))) {
        (void)qcow2_l2_put(s, t, offset, bytes, to, at->host);
    }
}

/* Change the entries for the part of the range that one L2 table describes. */
static int zero_in_l2(struct qcow2 *s, const struct zeroing *z, uint64_t offset,
                      uint64_t bytes) REQUIRES(s->meta)
{
    uint64_t l1 = atomic_load(&s->l1[offset / qcow2_l2_span(s)]);
    struct qcow2_table *t;
    struct qcow2_at at;

    if (!(l1 & QCOW2_OFFSET_MASK) && !z->fill) {
        return 0;
    }
    int r = qcow2_l2_get_writable(s, offset, &t);
    if (r < 0) {
        return r;
    }
    for (uint64_t done = 0; done < bytes; done += at.bytes) {
        qcow2_l2_look(s, t, offset + done, bytes - done, &at);
        if (at.contradicts) {
            r = qcow2_l2_check(s, &at);
            break;
        }
        zero_run(s, z, t, offset + done, &at);
    }
    qcow2_cache_put(s->l2, t);
    return r;
}

/* Clip [@offset, @offset + *@bytes) to the data file; bytes behind its end read
 * as zeroes.  False: nothing is left. */
static bool clip_to_data(const struct qcow2 *s, uint64_t offset,
                         uint64_t *bytes)
{
    uint64_t size = node_size(s->data);

    *bytes = offset < size ? min_u64(*bytes, size - offset) : 0;
    return *bytes > 0;
}

/* With the clusters locked. */
static int discard_data(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    if (!clip_to_data(s, offset, &bytes)) {
        return 0;
    }
    qcow2_copied_overwrite(s, offset, bytes);
    return node_discard(s->data, offset, bytes);
}

/* Discard what is in the clusters that zeroes have kept.  With the clusters
 * locked.  A discard that fails is no failure of the zeroes. */
static int discard_kept(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    struct qcow2_table *t = NULL;
    struct qcow2_at at;
    int r = qcow2_l2_get(s, offset, false, &t);

    if (r < 0 || !t) {
        return r;
    }
    for (uint64_t done = 0; done < bytes && r == 0; done += at.bytes) {
        qcow2_l2_look(s, t, offset + done, bytes - done, &at);
        if (at.kind != QCOW2_KIND_ZERO_ALLOC || !at.copied || at.wrong ||
            at.contradicts) {
            continue;
        }
        r = qcow2_overlap_check(s, 0, at.host, at.bytes);
        if (r == 0) {
            (void)node_discard(s->data, at.host, at.bytes);
        }
    }
    qcow2_cache_put(s->l2, t);
    return r;
}

static int zero_clusters(struct qcow2 *s, const struct zeroing *z,
                         uint64_t offset, uint64_t bytes)
{
    uint64_t seen = atomic_load(&s->released);
    int r;

    do {
        mutex_lock(&s->meta);
        r = zero_in_l2(s, z, offset, bytes);
        mutex_unlock(&s->meta);
    } while (qcow2_try_again(s, &r, &seen));
    return r;
}

/* Is the boundary of a range at @offset inside of a compressed cluster?
 * -errno. */
static int cuts_packed(struct qcow2 *s, uint64_t offset)
{
    struct qcow2_table *t = NULL;
    struct qcow2_at at;

    if (qcow2_in_cluster(s, offset) == 0 || offset == s->node->size) {
        return false;
    }
    int r = qcow2_l2_get(s, offset, false, &t);
    if (r < 0 || !t) {
        return r;
    }
    qcow2_l2_look(s, t, offset, 1, &at);
    qcow2_cache_put(s->l2, t);
    return at.kind == QCOW2_KIND_COMPRESSED;
}

/* Can all of the range be made zeroes here? */
static int check_exact(struct qcow2 *s, uint64_t offset, uint64_t end)
{
    int r = cuts_packed(s, offset);

    if (r == 0) {
        r = cuts_packed(s, end);
    }
    return r > 0 ? -ENOTSUP : r;
}

static void lock_clusters(struct qcow2 *s, struct range_req *req,
                          uint64_t offset, uint64_t bytes)
{
    uint64_t start = align_down(offset, s->cluster_size);

    range_lock(&s->range, req, start,
               align_up(offset + bytes, s->cluster_size) - start, true);
}

static int zero_range(struct qcow2 *s, const struct zeroing *z, uint64_t offset,
                      uint64_t bytes)
{
    struct range_req req;
    uint64_t end = offset + bytes;

    if (atomic_load(&s->corrupt)) {
        return -EIO;
    }
    lock_clusters(s, &req, offset, bytes);
    int r = z->exact ? check_exact(s, offset, end) : 0;
    while (offset < end && r == 0) {
        uint64_t len = min_u64(end - offset, qcow2_l2_rest(s, offset));
        r = zero_clusters(s, z, offset, len);
        if (r == 0 && offset + len < end) {
            node_request_changed();
        }
        if (r == 0 && s->external && z->unmap && !s->luks) {
            r = discard_data(s, offset, len);
        } else if (r == 0 && z->unmap && z->keep && !s->luks) {
            r = discard_kept(s, offset, len);
        }
        if (r == 0) { /* a long range must not fill the memory */
            r = qcow2_relieve(s);
        }
        offset += len;
    }
    range_unlock(&s->range, &req);
    return r;
}

/* Would the backing node show somewhere in the range? */
static int shows_backing(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    while (bytes > 0) {
        struct mapping m;
        int r = qcow2_map(s->node, offset, bytes, 0, &m);

        if (r < 0) {
            return r;
        }
        qcow2_map_put(s->node, &m);
        if (m.kind == MAP_UNALLOCATED) {
            return true;
        }
        offset += m.length;
        bytes -= m.length;
    }
    return false;
}

static int zero_raw(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                    unsigned flags)
{
    unsigned fast = s->data->limits.fast_zero ? REQ_NO_FALLBACK : 0;
    struct range_req req;

    if (atomic_load(&s->corrupt)) {
        return -EIO;
    }
    if (node_may_have_backing(s->node)) {
        int r = shows_backing(s, offset, bytes);
        if (r != 0) {
            return r < 0 ? r : -ENOTSUP;
        }
    }
    if (!clip_to_data(s, offset, &bytes)) {
        return 0;
    }
    lock_clusters(s, &req, offset, bytes);
    qcow2_copied_overwrite(s, offset, bytes);
    int r = node_zero(s->data, offset, bytes, flags | fast);
    range_unlock(&s->range, &req);
    return r;
}

int qcow2_zero(struct node *n, uint64_t offset, uint64_t bytes, unsigned flags)
{
    struct qcow2 *s = n->state;
    struct zeroing z = {
        .unmap = flags & REQ_MAY_UNMAP,
        .keep = atomic_load(&s->keep_clusters),
        .fill = true,
        .exact = true,
    };

    if (!s->data) {
        return -ENOMEDIUM;
    }
    if (s->raw) {
        return zero_raw(s, offset, bytes, flags);
    }
    if (s->version < 3) {
        return -ENOTSUP;
    }
    return zero_range(s, &z, offset, bytes);
}

int qcow2_cut_off(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    struct zeroing z = {.unmap = true};

    return zero_range(s, &z, offset, bytes);
}

static int note_zero(const struct extent *e, void *opaque)
{
    bool *zero = opaque;

    *zero = e->flags & EXTENT_ZERO;
    return !*zero;
}

/* Make an unallocated subcluster that reads as zeroes a ZERO one.  A request
 * that writes to it meanwhile would need the range lock. */
static int zero_unallocated(struct qcow2 *s, uint64_t start)
{
    struct node *n = s->node;
    struct zeroing z = {.fill = true};
    uint64_t length = min_u64(qcow2_sub_size(s), n->size - start);
    struct mapping m;
    bool zero = false;

    int r = qcow2_map(n, start, length, 0, &m);
    if (r < 0) {
        return r;
    }
    qcow2_map_put(n, &m);
    if (m.kind != MAP_UNALLOCATED) {
        return m.kind == MAP_ZERO ? 0 : -ENOTSUP;
    }
    r = node_extents(n, start, length, 0, note_zero, &zero);
    if (r < 0) {
        return r;
    }
    return zero ? zero_clusters(s, &z, start, length) : -ENOTSUP;
}

int qcow2_zero_copied_up(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    const struct zeroing z = {.fill = true};
    int r = 0;

    for (uint64_t done = 0, len; done < bytes && r == 0; done += len) {
        len = min_u64(bytes - done, qcow2_l2_rest(s, offset + done));
        r = zero_clusters(s, &z, offset + done, len);
    }
    return r;
}

int qcow2_zero_part(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct qcow2 *s = n->state;
    uint64_t start = align_down(offset, qcow2_sub_size(s));
    struct range_req req;

    (void)bytes; /* the rest of the subcluster is the same */
    if (!s->data || s->raw || s->version < 3) {
        return -ENOTSUP;
    }
    if (atomic_load(&s->corrupt)) {
        return -EIO;
    }
    lock_clusters(s, &req, start, 1);
    int r = zero_unallocated(s, start);
    range_unlock(&s->range, &req);
    return r < 0 ? r : qcow2_relieve(s);
}

int qcow2_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct qcow2 *s = n->state;
    struct zeroing z = {
        .unmap = true,
        .keep = atomic_load(&s->keep_clusters),
        .fill = node_may_have_backing(n),
    };
    struct range_req req;

    if (!s->data) {
        return -ENOMEDIUM;
    }
    if (s->raw) {
        lock_clusters(s, &req, offset, bytes);
        int r = discard_data(s, offset, bytes);
        range_unlock(&s->range, &req);
        return r;
    }
    if (s->version < 3 && z.fill) {
        return 0;
    }
    return zero_range(s, &z, offset, bytes);
}
