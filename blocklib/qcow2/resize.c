/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changing the size of the disk, in a drained section.  To grow, the disk gets
 * a larger L1 table if it needs one, on disk before the header names it
 * (flush.c), and then the size.  To shrink, clusters behind the new end are
 * unlinked, then the size counts, and then the rest of what is not needed any
 * more goes (shrink.c).
 *
 * An external data file is never shorter than the disk, so it grows first.  It
 * shrinks first, too, because it may refuse (a block device), and what is cut
 * off from it reads as zeroes.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"
#include "qcow2/copied.h"
#include "qcow2/encrypt.h"

static int try_grow_l1(struct qcow2 *s, uint64_t needed)
{
    uint64_t entries = align_up(needed, s->cluster_size / 8);
    uint64_t clusters = entries * 8 >> s->cluster_bits;
    uint64_t host;
    _Atomic uint64_t *l1 = calloc(entries, sizeof(*l1));

    if (!l1) {
        return -ENOMEM;
    }
    mutex_lock(&s->meta);
    node_event(s->file, EVENT_L1_GROW_ALLOC_TABLE);
    int r = qcow2_alloc_exact(s, QCOW2_META_L1, clusters, &host);
    if (r == 0) {
        r = qcow2_take_room(s, host, clusters << s->cluster_bits);
        if (r < 0) {
            qcow2_alloc_undo(s, host, clusters);
        }
    }
    if (r == 0) {
        uint64_t old_bytes = s->l1_size * UINT64_C(8);
        for (uint32_t i = 0; i < s->l1_size; i++) {
            atomic_init(&l1[i], atomic_load(&s->l1[i]));
        }
        if (s->l1_offset != 0) {
            (void)qcow2_free_later(s, s->l1_offset,
                                   div_up(old_bytes, s->cluster_size));
        }
        free(s->l1);
        s->l1 = l1;
        s->l1_size = (uint32_t)entries;
        s->l1_offset = host;
        s->l1_moved = true;
        qcow2_span_add(&s->l1_dirty, 0, s->l1_size);
    } else {
        free(l1);
    }
    mutex_unlock(&s->meta);
    return r;
}

static int grow_l1(struct qcow2 *s, uint64_t needed)
{
    uint64_t seen = atomic_load(&s->released);
    int r;

    do {
        r = try_grow_l1(s, needed);
    } while (qcow2_try_again(s, &r, &seen));
    return r;
}

/* Zero the end, because old bytes must not come back when the disk grows
 * again. */
static int clear_end(struct qcow2 *s, uint64_t size)
{
    struct node *n = s->node;
    uint64_t whole = min_u64(align_up(size, s->cluster_size), n->size);
    bool partly = whole > size && !s->external;
    int r = partly ? node_zero(n, size, whole - size, 0) : 0;

    if (r == 0 && n->size > whole && !s->raw) {
        r = qcow2_cut_off(s, whole, n->size - whole);
    }
    return r;
}

/* Make the size count, with bitmaps of that length if there are some. */
static int switch_size(struct qcow2 *s, uint64_t size)
{
    return s->bitmaps.ext.count > 0
               ? qcow2_bitmaps_resize(s, &(struct qcow2_disk){.size = size})
               : qcow2_switch_size(s, size);
}

static int cut_tables(struct qcow2 *s, uint64_t size, struct error **errp)
{
    int r = clear_end(s, size);

    if (r == 0) {
        r = qcow2_flush(s->node);
    }
    if (r == 0) {
        r = switch_size(s, size);
    }
    return r < 0 ? error_set(errp, -r, "cannot shrink '%s': %s",
                             node_filename(s->node), strerror(-r))
                 : 0;
}

/*
 * Shrink the disk; the L1 table stays as long as it is.  Until the new size
 * counts, the disk has its end, and that has changed: the image says so before
 * it does.  Memory need not say it for an end that goes, bit by bit.
 */
static int cut_disk(struct qcow2 *s, uint64_t size, struct error **errp)
{
    uint64_t end = s->node->size;
    int r = bitmap_mark_ahead(s->node, size, end - size);

    if (r < 0) {
        return error_set(errp, -r, "cannot shrink '%s': %s",
                         node_filename(s->node), strerror(-r));
    }
    if (s->external && node_size(s->data) > size) {
        qcow2_copied_overwrite(s, size, node_size(s->data) - size);
        r = node_resize(s->data, size, errp);
    }
    if (r == 0) {
        r = cut_tables(s, size, errp);
    }
    if (r < 0) { /* nobody knows how much of the end is as it was */
        bitmap_mark_bits(s->node, size, end - size);
    }
    return r;
}

static int shrink(struct qcow2 *s, uint64_t size, struct error **errp)
{
    qcow2_give_back(s, true);
    int r = cut_disk(s, size, errp);

    if (r == 0) {
        qcow2_give_back_end(s, size);
    }
    qcow2_give_back(s, false);
    return r;
}

/* Grow the data file of an encrypted image, and write zeroes from the disk's
 * old end to the end of that cluster. */
static int grow_coded_data(struct qcow2 *s, uint64_t size, struct error **errp)
{
    uint64_t from = s->node->size;
    uint64_t len = min_u64(align_up(from, s->cluster_size), size) - from;
    CLEANUP_FREE void *zeroes = calloc(1, len + 1);
    struct iovec v = {zeroes, len};
    int r = zeroes ? 0 : error_nomem(errp);

    if (r == 0 && node_size(s->data) < size) {
        r = node_resize(s->data, size, errp);
    }
    qcow2_copied_overwrite(s, from, len);
    if (r == 0 && len > 0 &&
        (r = qcow2_write_data(s, from, len, &v, 1, 0)) < 0) {
        r = error_set(errp, -r, "cannot write zeroes at the end of '%s': %s",
                      node_filename(s->data), strerror(-r));
    }
    return r;
}

/*
 * Make the data file long enough.  If it was longer than the disk, the bytes
 * behind the disk's end are not the disk's.  A raw data file shows them,
 * though, as in QEMU.
 */
static int grow_data(struct qcow2 *s, uint64_t size, struct error **errp)
{
    uint64_t from = s->node->size;
    uint64_t have = node_size(s->data);
    uint64_t to = min_u64(align_up(from, s->cluster_size), have);
    int r = 0;

    if (s->luks) { /* clusters of the data file end with its zeroes encrypted */
        return grow_coded_data(s, size, errp);
    }
    if (!s->raw && from < to) {
        qcow2_copied_overwrite(s, from, to - from);
        r = node_zero(s->data, from, to - from, 0);
    }
    if (r < 0) {
        return error_set(errp, -r, "cannot write zeroes at the end of '%s': %s",
                         node_filename(s->data), strerror(-r));
    }
    return have < size ? node_resize(s->data, size, errp) : 0;
}

static int grow_tables(struct qcow2 *s, uint64_t size, uint64_t needed)
{
    struct node *n = s->node;
    int r = needed > s->l1_size ? grow_l1(s, needed) : 0;

    if (r == 0 && s->raw) { /* none of it leaves anything to the tables */
        r = qcow2_preallocate(n, n->size, size - n->size);
    }
    return r < 0 ? r : qcow2_flush(n);
}

int qcow2_resize(struct node *n, uint64_t size, struct error **errp)
{
    struct qcow2 *s = n->state;
    uint64_t needed = div_up(size, qcow2_l2_span(s));
    int r = 0;

    if (!is_aligned(size, 512)) {
        return error_set(errp, EINVAL,
                         "The new size must be a multiple of 512");
    }
    if (!s->data || qcow2_is_locked(s)) {
        return error_set(errp, ENOMEDIUM, "the data file is not open");
    }
    if (s->version < 3 && s->snapshots.count > 0) {
        return error_set(errp, ENOTSUP,
                         "Can't resize a version 2 image which has snapshots");
    }
    if (size == 0 && s->bitmaps.ext.count > 0) {
        /* An empty disk would have empty tables, and QEMU would not open the
         * image. */
        return error_set(errp, ENOTSUP,
                         "cannot shrink '%s' to nothing: it has persistent "
                         "bitmaps",
                         node_filename(n));
    }
    if (atomic_load(&s->corrupt)) { /* before the data file is cut */
        return error_set(errp, EIO, "image '%s' is corrupt", node_filename(n));
    }
    if (size < n->size) {
        return shrink(s, size, errp);
    }
    if (needed * 8 > QCOW2_MAX_L1_BYTES) {
        return error_set(errp, EFBIG,
                         "a size of %" PRIu64 " is too large for clusters of "
                         "%" PRIu64 " bytes",
                         size, s->cluster_size);
    }
    r = qcow2_check_bitmaps_fit(n, size, errp);
    if (r < 0) {
        return r;
    }
    if (s->external) {
        r = grow_data(s, size, errp);
        if (r < 0) {
            return r;
        }
    }
    r = grow_tables(s, size, needed);
    if (r == 0) {
        r = switch_size(s, size);
    }
    return r < 0 ? error_set(errp, -r, "cannot grow '%s': %s", node_filename(n),
                             strerror(-r))
                 : 0;
}
