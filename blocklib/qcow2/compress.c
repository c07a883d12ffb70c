/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reading compressed clusters.
 *
 * The data begins anywhere in a sector and ends somewhere in the last one;
 * what follows it there is to be ignored.  The last cluster that was unpacked
 * is kept, so that small sequential reads unpack each cluster once.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "nbdelta/cleanup.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"
#include "util/iov.h"

static int inflate_raw(const void *in, size_t in_len, void *out, size_t out_len)
{
    z_stream z = {
        .next_in = (Bytef *)(uintptr_t)in,
        .avail_in = (uInt)in_len,
        .next_out = out,
        .avail_out = (uInt)out_len,
    };
    if (inflateInit2(&z, -12) != Z_OK) {
        return -ENOMEM;
    }
    int r = inflate(&z, Z_FINISH);
    bool whole = z.avail_out == 0 && (r == Z_STREAM_END || r == Z_BUF_ERROR);
    (void)inflateEnd(&z);
    return whole ? 0 : -EIO;
}

static int unzstd(const void *in, size_t in_len, void *out, size_t out_len)
{
    ZSTD_inBuffer src = {in, in_len, 0};
    ZSTD_outBuffer dst = {out, out_len, 0};
    ZSTD_DStream *d = ZSTD_createDStream();
    size_t r = 0;

    if (!d) {
        return -ENOMEM;
    }
    while (dst.pos < dst.size) {
        size_t in_before = src.pos;
        size_t out_before = dst.pos;
        r = ZSTD_decompressStream(d, &dst, &src);
        if (ZSTD_isError(r) ||
            (src.pos == in_before && dst.pos == out_before)) {
            break;
        }
    }
    (void)ZSTD_freeDStream(d);
    return dst.pos == dst.size && !ZSTD_isError(r) ? 0 : -EIO;
}

static int unpack(struct qcow2 *s, const struct qcow2_run *packed, void *out)
{
    CLEANUP_FREE void *in = malloc(packed->bytes);

    if (!in) {
        return -ENOMEM;
    }
    node_event(s->file, EVENT_READ_COMPRESSED);
    int r = node_pread(s->file, in, packed->bytes, packed->host, 0);
    if (r < 0) {
        return r;
    }
    return s->compression == QCOW2_ZSTD
               ? unzstd(in, packed->bytes, out, s->cluster_size)
               : inflate_raw(in, packed->bytes, out, s->cluster_size);
}

/* Copy @bytes from @in_cluster on of the cluster that is @packed. */
static int read_cluster(struct qcow2 *s, const struct qcow2_run *packed,
                        uint64_t in_cluster, uint64_t bytes,
                        const struct iovec *iov, int cnt, uint64_t iov_offset)
{
    struct qcow2_unpacked *u = &s->unpacked;

    mutex_lock(&u->lock);
    if (u->packed.host == packed->host && u->packed.bytes == packed->bytes) {
        iov_from_buf(iov, cnt, iov_offset, u->cluster + in_cluster, bytes);
        mutex_unlock(&u->lock);
        return 0;
    }
    mutex_unlock(&u->lock);

    unsigned char *out = malloc(s->cluster_size);
    if (!out) {
        return -ENOMEM;
    }
    int r = unpack(s, packed, out);
    if (r < 0) {
        free(out);
        return r;
    }
    iov_from_buf(iov, cnt, iov_offset, out + in_cluster, bytes);

    mutex_lock(&u->lock);
    unsigned char *old = u->cluster;
    u->cluster = out;
    u->packed = *packed;
    mutex_unlock(&u->lock);
    free(old);
    return 0;
}

int qcow2_read_packed(struct qcow2 *s, const struct qcow2_run *packed,
                      uint64_t in_cluster, uint64_t bytes, void *buf)
{
    struct iovec v = {buf, bytes};

    return read_cluster(s, packed, in_cluster, bytes, &v, 1, 0);
}

int qcow2_read_compressed(struct node *n, uint64_t offset, uint64_t bytes,
                          const struct iovec *iov, int cnt, unsigned flags)
{
    struct qcow2 *s = n->state;

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    for (uint64_t done = 0; done < bytes;) {
        uint64_t at = offset + done;
        uint64_t in_cluster = qcow2_in_cluster(s, at);
        uint64_t len = min_u64(bytes - done, s->cluster_size - in_cluster);
        struct qcow2_table *t;
        struct qcow2_at found = {.kind = QCOW2_KIND_UNALLOCATED};
        int r = qcow2_l2_get(s, at, false, &t);
        if (r < 0) {
            return r;
        }
        if (t) {
            qcow2_l2_look(s, t, at, len, &found);
            qcow2_cache_put(s->l2, t);
        }
        if (found.kind == QCOW2_KIND_COMPRESSED) {
            r = read_cluster(s, &found.packed, in_cluster, len, iov, cnt, done);
        } else { /* it was overwritten since it was mapped */
            struct iovec part[IOV_MAX_INNER];
            int parts = iov_slice(part, iov, cnt, done, len);
            r = node_preadv(n, at, len, part, parts, flags);
        }
        if (r < 0) {
            return r;
        }
        done += len;
    }
    return 0;
}
