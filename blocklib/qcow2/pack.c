/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writing compressed clusters.
 *
 *         host cluster           next, if it is free
 *   |  a  |  b  |   c ...|... c  |   d   |  (free)    |
 *                                        ^ packed
 *
 * Each compressed cluster takes whole sectors of 512 bytes, and counts as one
 * reference to each host cluster that it touches.  A cluster that does not
 * become smaller is written as it is.
 *
 * `packed` lies in (or at the end of) a cluster that has references.  When they
 * go, alloc.c resets it before the cluster can be used again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "nbdelta/cleanup.h"
#include "qcow2/alloc.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"

#define SECTOR UINT64_C(512)

/* Compress @in, a cluster.  Returns the length; 0: it is not smaller than
 * @room. */
static size_t deflate_raw(const void *in, size_t in_len, void *out, size_t room)
{
    z_stream z = {
        .next_in = (Bytef *)(uintptr_t)in,
        .avail_in = (uInt)in_len,
        .next_out = out,
        .avail_out = (uInt)room,
    };
    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9,
                     Z_DEFAULT_STRATEGY) != Z_OK) {
        return 0;
    }
    int r = deflate(&z, Z_FINISH);
    size_t len = room - z.avail_out;
    (void)deflateEnd(&z);
    return r == Z_STREAM_END ? len : 0;
}

static size_t zstd_pack(const void *in, size_t in_len, void *out, size_t room)
{
    size_t len = ZSTD_compress(out, room, in, in_len, ZSTD_CLEVEL_DEFAULT);

    return ZSTD_isError(len) ? 0 : len;
}

/* Compress, and pad to whole sectors; 0: it is not worth it. */
static size_t pack(const struct qcow2 *s, const void *in, unsigned char *out)
{
    size_t room = s->cluster_size - SECTOR;
    size_t len = s->compression == QCOW2_ZSTD
                     ? zstd_pack(in, s->cluster_size, out, room)
                     : deflate_raw(in, s->cluster_size, out, room);
    size_t padded = align_up(len, SECTOR);

    memset(out + len, 0, padded - len);
    return padded;
}

/* Allocate @bytes, at most a cluster, and count the references. */
static int alloc_packed(struct qcow2 *s, uint64_t bytes, uint64_t *host)
    REQUIRES(s->meta)
{
    uint64_t at = s->packed;
    uint64_t left = align_up(at, s->cluster_size) - at;
    uint64_t next;
    uint64_t got;
    bool fresh;

    if (bytes <= left && qcow2_ref_more(s, at) == 0) {
        *host = at;
        s->packed = at + bytes;
        return 0;
    }
    int r = qcow2_alloc(s, 1, &next, &got, &fresh);
    if (r < 0) {
        return r;
    }
    bool both = left > 0 && next == at + left && qcow2_ref_more(s, at) == 0;
    *host = both ? at : next;
    s->packed = *host + bytes;
    return 0;
}

/* The bytes are there: let the L2 entry say so.  A failure has changed
 * nothing. */
static int link_packed(struct qcow2 *s, uint64_t offset,
                       const struct qcow2_run *packed) REQUIRES(s->meta)
{
    struct qcow2_table *t;
    int r = qcow2_l2_get_writable(s, offset, &t);

    if (r < 0) {
        return r;
    }
    node_event(s->file, EVENT_L2_UPDATE_COMPRESSED);
    (void)qcow2_l2_put_packed(s, t, offset, packed);
    qcow2_cache_put(s->l2, t);
    return 0;
}

/* What was unpacked from the same place earlier is not there any more. */
static void forget_unpacked(struct qcow2 *s)
{
    mutex_lock(&s->unpacked.lock);
    s->unpacked.packed.bytes = 0;
    mutex_unlock(&s->unpacked.lock);
}

static int store_packed(struct qcow2 *s, uint64_t offset, const void *data,
                        uint64_t bytes)
{
    struct qcow2_run packed = {0, bytes};

    mutex_lock(&s->meta);
    node_event(s->file, EVENT_CLUSTER_ALLOC_BYTES);
    int r = alloc_packed(s, bytes, &packed.host);
    mutex_unlock(&s->meta);
    if (r < 0) {
        return r;
    }
    forget_unpacked(s);
    node_event(s->file, EVENT_WRITE_COMPRESSED);
    r = node_pwrite(s->file, data, bytes, packed.host, 0);
    mutex_lock(&s->meta);
    if (r == 0) {
        r = link_packed(s, offset, &packed);
    }
    if (r < 0) {
        qcow2_ref_undo(s, packed.host, bytes);
    }
    mutex_unlock(&s->meta);
    return r;
}

/* Write one whole cluster: @in, padded with zeroes. */
static int write_cluster(struct node *n, uint64_t offset, uint64_t bytes,
                         const void *in, unsigned char *out)
{
    struct qcow2 *s = n->state;
    size_t len = pack(s, in, out);
    uint64_t seen = atomic_load(&s->released);
    struct range_req req;
    int r;

    if (len == 0) {
        return node_pwrite(n, in, bytes, offset, 0);
    }
    range_lock(&s->range, &req, offset, s->cluster_size, true);
    do {
        r = store_packed(s, offset, out, len);
    } while (qcow2_try_again(s, &r, &seen));
    range_unlock(&s->range, &req);
    return r;
}

int qcow2_write_compressed(struct node *n, uint64_t offset, uint64_t bytes,
                           const void *buf)
{
    struct qcow2 *s = n->state;
    const unsigned char *in = buf;
    int r = 0;

    if (s->external || s->luks) {
        return -ENOTSUP;
    }
    if (atomic_load(&s->corrupt)) {
        return -EIO;
    }
    CLEANUP_FREE unsigned char *out = malloc(2 * s->cluster_size);
    if (!out) {
        return -ENOMEM;
    }
    for (uint64_t done = 0; done < bytes && r == 0; done += s->cluster_size) {
        uint64_t len = min_u64(bytes - done, s->cluster_size);
        const unsigned char *cluster = in + done;
        if (len < s->cluster_size) { /* the end of the disk */
            cluster = out + s->cluster_size;
            memset(out + s->cluster_size, 0, s->cluster_size);
            memcpy(out + s->cluster_size, in + done, len);
        }
        r = write_cluster(n, offset + done, len, cluster, out);
    }
    return r < 0 ? r : qcow2_relieve(s);
}
