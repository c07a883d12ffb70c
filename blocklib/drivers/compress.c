/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * compress: a filter that has the image below compress what is written.
 *
 *      write        |--------------|
 *      clusters  |......|......|......|
 *                 read,         read,
 *                 merge         merge      each cluster is packed as a whole
 *
 * The image packs whole clusters.  Of a cluster of which a write has only a
 * part the rest is read first, so all that changes a cluster comes one after
 * the other (`clusters`).  Reads pass.
 *
 * What the image cannot pack is written as it is: an image that is encrypted or
 * has a data file, and everything while a job has put a filter of its own in
 * between, which has to see the write.
 */
#include <errno.h>

#include "core/node.h"
#include "core/opts.h"
#include "core/rangelock.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/option.h"
#include "util/iov.h"

struct compress {
    uint64_t cluster;           /* bytes; set at open */
    struct range_lock clusters; /* what changes them */
};

/* A cluster, or what the disk's end leaves of it. */
static int write_cluster(struct node *file, uint64_t offset, uint64_t bytes,
                         const void *buf)
{
    int r = file->drv->write_compressed
                ? node_write_compressed(file, buf, bytes, offset)
                : -ENOTSUP;

    return r == -ENOTSUP ? node_pwrite(file, buf, bytes, offset, 0) : r;
}

/* Write [offset, offset + bytes), which lies in the cluster at @start, of @iov
 * from @done on. */
static int write_part(struct node *n, uint64_t start, uint64_t offset,
                      uint64_t bytes, const struct iovec *iov, int cnt,
                      uint64_t done, char *buf)
{
    const struct compress *s = n->state;
    struct node *file = node_child(n, CHILD_FILE);
    uint64_t len = min_u64(s->cluster, node_size(n) - start);

    if (bytes < len) {
        int r = node_pread(file, buf, len, start, 0);
        if (r < 0) {
            return r;
        }
    }
    iov_to_buf(iov, cnt, done, buf + (offset - start), bytes);
    return write_cluster(file, start, len, buf);
}

static int write_clusters(struct node *n, uint64_t offset, uint64_t bytes,
                          const struct iovec *iov, int cnt, char *buf)
{
    const struct compress *s = n->state;
    uint64_t done = 0;
    int r = 0;

    while (r == 0 && done < bytes) {
        uint64_t at = offset + done;
        uint64_t start = align_down(at, s->cluster);
        uint64_t len = min_u64(bytes - done, start + s->cluster - at);

        r = write_part(n, start, at, len, iov, cnt, done, buf);
        done += len;
        if (r == 0 && done < bytes) {
            node_request_changed();
        }
    }
    return r;
}

static void lock_clusters(struct node *n, struct range_req *req,
                          uint64_t offset, uint64_t bytes)
{
    struct compress *s = n->state;
    uint64_t start = align_down(offset, s->cluster);

    range_lock(&s->clusters, req, start,
               align_up(offset + bytes, s->cluster) - start, true);
}

static void unlock_clusters(struct node *n, struct range_req *req)
{
    struct compress *s = n->state;

    range_unlock(&s->clusters, req);
}

static int compress_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                            const struct iovec *iov, int cnt, unsigned flags)
{
    const struct compress *s = n->state;
    struct range_req req;

    if (flags & REQ_NOWAIT) { /* packing takes its time */
        return -EAGAIN;
    }
    CLEANUP_FREE char *buf = buf_alloc(s->cluster);
    if (!buf) {
        return -ENOMEM;
    }
    lock_clusters(n, &req, offset, bytes);
    int r = write_clusters(n, offset, bytes, iov, cnt, buf);
    unlock_clusters(n, &req);
    return r;
}

static int compress_zero(struct node *n, uint64_t offset, uint64_t bytes,
                         unsigned flags)
{
    struct range_req req;

    lock_clusters(n, &req, offset, bytes);
    int r = node_zero(node_child(n, CHILD_FILE), offset, bytes, flags);
    unlock_clusters(n, &req);
    return r;
}

static int compress_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct range_req req;

    lock_clusters(n, &req, offset, bytes);
    int r = node_discard(node_child(n, CHILD_FILE), offset, bytes);
    unlock_clusters(n, &req);
    return r;
}

static const struct option compress_options[] = {
    OPTION("file", NODE, .required = true),
    OPTIONS_END,
};

static int compress_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct compress *s = n->state;
    int r = opts_has(opts, "file")
                ? node_open_child(n, opts, "file", CHILD_FILE, false, errp)
                : error_set(errp, EINVAL, "Parameter 'file' is missing");

    if (r < 0) {
        return r;
    }
    const struct node *file = node_child(n, CHILD_FILE);
    if (!file->drv->write_compressed) {
        return error_set(errp, ENOTSUP,
                         "Compression is not supported for underlying format: "
                         "%s",
                         node_driver(file));
    }
    n->size = node_size(file);
    s->cluster = file->limits.pref;
    range_lock_init(&s->clusters);
    return 0;
}

static void compress_close(struct node *n)
{
    struct compress *s = n->state;

    range_lock_destroy(&s->clusters);
}

static int compress_resize(struct node *n, uint64_t size, struct error **errp)
{
    return node_resize(node_child(n, CHILD_FILE), size, errp);
}

const struct driver driver_compress = {
    .name = "compress",
    .options = compress_options,
    .is_filter = true,
    .state_size = sizeof(struct compress),
    .flags_zero = REQ_MAY_UNMAP,
    .open = compress_open,
    .close = compress_close,
    .resize = compress_resize,
    .pwritev = compress_pwritev,
    .zero = compress_zero,
    .discard = compress_discard,
};
