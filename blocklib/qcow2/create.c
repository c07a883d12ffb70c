/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Making an image:
 *
 *   header | refcount table | refcount blocks | L1 table (all zero)
 *
 * one after the other, every cluster counted once.  What the caller asks to
 * be preallocated is then written through the driver itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/create_file.h"
#include "core/graph.h"
#include "core/opts.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/qcow2.h"

#define HEADER_LENGTH 112

enum preallocation { PRE_OFF, PRE_METADATA, PRE_FALLOC, PRE_FULL };

struct plan {
    /* Asked for. */
    uint64_t size;
    uint64_t cluster_size;
    unsigned cluster_bits;
    unsigned version;
    unsigned refcount_order;
    unsigned compression;
    unsigned preallocation;
    bool lazy;
    const char *backing;
    const char *backing_fmt;

    /* Worked out: clusters, in the order in which they lie. */
    uint64_t l1_entries;
    uint64_t reftable;
    uint64_t refblocks;
    uint64_t l1;
};

const char *const qcow2_create_options[] = {
    "size",          "backing_file",  "backing_fmt",
    "compat",        "cluster_size",  "refcount_bits",
    "lazy_refcounts", "compression_type", "preallocation",
    NULL,
};

static const struct {
    unsigned char type;
    unsigned char bit;
    const char *name;
} feature_names[] = {
    { 0, 0, "dirty bit" },          { 0, 1, "corrupt bit" },
    { 0, 2, "external data file" }, { 0, 3, "compression type" },
    { 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
    { 2, 0, "bitmaps" },            { 2, 1, "raw external data" },
};
#define FEATURE_ENTRY 48

/* --- What was asked for --- */

static int take_options(struct opts *o, struct plan *p, struct error **errp)
{
    static const char *const compat[] = { "0.10", "1.1", "v2", "v3", NULL };
    static const char *const compression[] = { "zlib", "zstd", NULL };
    static const char *const pre[] = { "off", "metadata", "falloc", "full",
                                       NULL };
    uint64_t bits = 16;
    unsigned version = 1;
    int r;

    p->cluster_size = 64 * KiB;
    if ((r = opts_uint(o, "size", BLK_SIZE_MAX, &p->size, errp)) < 0 ||
        (r = opts_uint(o, "cluster_size", UINT32_MAX, &p->cluster_size,
                       errp)) < 0 ||
        (r = opts_uint(o, "refcount_bits", 1024, &bits, errp)) < 0 ||
        (r = opts_bool(o, "lazy_refcounts", &p->lazy, errp)) < 0 ||
        (r = opts_enum(o, "compat", compat, &version, errp)) < 0 ||
        (r = opts_enum(o, "compression_type", compression, &p->compression,
                       errp)) < 0 ||
        (r = opts_enum(o, "preallocation", pre, &p->preallocation, errp)) <
            0 ||
        (r = opts_str(o, "backing_file", &p->backing, errp)) < 0 ||
        (r = opts_str(o, "backing_fmt", &p->backing_fmt, errp)) < 0 ||
        (r = opts_end(o, "qcow2 image creation", errp)) < 0) {
        return r;
    }
    p->version = version % 2 ? 3 : 2;
    if (p->backing && p->backing[0] == '\0') {
        p->backing = NULL;
    }
    if (!is_pow2(bits) || bits > 64) {
        return error_set(errp, EINVAL, "Refcount width must be a power of two "
                                       "and may not exceed 64 bits");
    }
    p->refcount_order = (unsigned)__builtin_ctzll(bits);
    return 0;
}

static int check_options(struct plan *p, struct error **errp)
{
    if (!is_pow2(p->cluster_size) ||
        p->cluster_size < UINT64_C(1) << QCOW2_MIN_CLUSTER_BITS ||
        p->cluster_size > UINT64_C(1) << QCOW2_MAX_CLUSTER_BITS) {
        return error_set(errp, EINVAL, "Cluster size must be a power of two "
                                       "between 512 and 2048k");
    }
    p->cluster_bits = (unsigned)__builtin_ctzll(p->cluster_size);
    if (p->version < 3 && (p->refcount_order != 4 || p->lazy ||
                           p->compression != QCOW2_ZLIB)) {
        return error_set(errp, EINVAL,
                         "refcount_bits other than 16, lazy_refcounts and "
                         "compression_type need compat=1.1");
    }
    if (p->backing && strlen(p->backing) > QCOW2_MAX_BACKING_NAME) {
        return error_set(errp, EINVAL, "Backing file name too long");
    }
    if (p->backing && p->preallocation != PRE_OFF) {
        return error_set(errp, EINVAL, "Backing file and preallocation "
                                       "cannot be used at the same time");
    }
    p->size = align_up(p->size, 512);
    p->l1_entries = div_up(p->size, p->cluster_size * p->cluster_size / 8);
    if (p->l1_entries * 8 > QCOW2_MAX_L1_BYTES) {
        return error_set(errp, EFBIG,
                         "The image size is too large for this cluster size "
                         "(try using a larger cluster size)");
    }
    p->l1_entries = max_u64(p->l1_entries, 1);
    return 0;
}

static void lay_out(struct plan *p)
{
    uint64_t per_block = p->cluster_size * 8 >> p->refcount_order;
    uint64_t old;

    p->l1 = div_up(p->l1_entries * 8, p->cluster_size);
    p->reftable = 1;
    p->refblocks = 1;
    do {
        old = p->reftable + p->refblocks;
        uint64_t all = 1 + p->reftable + p->refblocks + p->l1;
        p->refblocks = div_up(all, per_block);
        p->reftable = div_up(p->refblocks * 8, p->cluster_size);
    } while (p->reftable + p->refblocks != old);
}

/* --- The header cluster --- */

static unsigned char *put_extension(unsigned char *at, uint32_t type,
                                    const void *data, size_t len)
{
    store_be32(at, type);
    store_be32(at + 4, (uint32_t)len);
    memcpy(at + 8, data, len);
    return at + 8 + align_up(len, 8);
}

static unsigned char *put_features(unsigned char *at)
{
    unsigned char table[ARRAY_SIZE(feature_names) * FEATURE_ENTRY] = { 0 };

    for (size_t i = 0; i < ARRAY_SIZE(feature_names); i++) {
        unsigned char *e = table + i * FEATURE_ENTRY;
        e[0] = feature_names[i].type;
        e[1] = feature_names[i].bit;
        memcpy(e + 2, feature_names[i].name, strlen(feature_names[i].name));
    }
    return put_extension(at, 0x6803f857, table, sizeof(table));
}

static int fill_header(const struct plan *p, unsigned char *h,
                       struct error **errp)
{
    size_t length = p->version >= 3 ? HEADER_LENGTH : 72;
    size_t name = p->backing ? strlen(p->backing) : 0;
    size_t fmt = p->backing && p->backing_fmt ? strlen(p->backing_fmt) : 0;
    size_t features = 8 + ARRAY_SIZE(feature_names) * FEATURE_ENTRY;
    size_t fixed = length + (fmt ? 8 + align_up(fmt, 8) : 0) + 8 + name;
    unsigned char *at = h + length;

    if (fixed > p->cluster_size) {
        return error_set(errp, EINVAL, "Backing file name too long for the "
                                       "header of %" PRIu64 " bytes",
                         p->cluster_size);
    }
    store_be32(h, QCOW2_MAGIC);
    store_be32(h + 4, p->version);
    store_be32(h + 20, p->cluster_bits);
    store_be64(h + 24, p->size);
    store_be32(h + 36, (uint32_t)p->l1_entries);
    store_be64(h + 40, (1 + p->reftable + p->refblocks) * p->cluster_size);
    store_be64(h + 48, p->cluster_size);
    store_be32(h + 56, (uint32_t)p->reftable);
    if (p->version >= 3) {
        store_be64(h + QCOW2_HDR_INCOMPAT,
                   p->compression ? QCOW2_INCOMPAT_COMPRESSION : 0);
        store_be64(h + 80, p->lazy ? QCOW2_COMPAT_LAZY : 0);
        store_be32(h + 96, p->refcount_order);
        store_be32(h + 100, HEADER_LENGTH);
        h[104] = (unsigned char)p->compression;
    }
    if (fmt) {
        at = put_extension(at, QCOW2_EXT_BACKING_FMT, p->backing_fmt, fmt);
    }
    if (p->version >= 3 && fixed + features <= p->cluster_size) {
        at = put_features(at);
    }
    at += 8; /* the end of the extensions: zeroes */
    if (name) {
        store_be64(h + 8, (uint64_t)(at - h));
        store_be32(h + 16, (uint32_t)name);
        memcpy(at, p->backing, name);
    }
    return 0;
}

/* --- Writing it --- */

static int write_image(int fd, const struct plan *p, struct error **errp)
{
    uint64_t used = 1 + p->reftable + p->refblocks + p->l1;
    uint64_t per_block = p->cluster_size * 8 >> p->refcount_order;
    CLEANUP_FREE unsigned char *image = calloc(used, p->cluster_size);
    if (!image) {
        return error_set(errp, ENOMEM, "no memory for the new image");
    }
    int r = fill_header(p, image, errp);
    if (r < 0) {
        return r;
    }
    unsigned char *reftable = image + p->cluster_size;
    unsigned char *blocks = reftable + p->reftable * p->cluster_size;
    for (uint64_t b = 0; b < p->refblocks; b++) {
        store_be64(reftable + b * 8, (1 + p->reftable + b) * p->cluster_size);
    }
    for (uint64_t c = 0; c < used; c++) {
        qcow2_refcount_store(blocks + c / per_block * p->cluster_size,
                             p->refcount_order, c % per_block, 1);
    }
    /* The L1 table, too: a block device is not all zeroes. */
    r = file_create_write(fd, image, used * p->cluster_size, 0);
    return r < 0 ? error_set(errp, -r, "cannot write the new image: %s",
                             strerror(-r))
                 : 0;
}

/* --- Preallocation --- */

static int write_all(struct node *n, struct error **errp)
{
    int r = node_zero(n, 0, n->size, 0);
    if (r == 0) {
        CLEANUP_FREE char *zeroes = calloc(1, 1 * MiB);
        r = zeroes ? 0 : -ENOMEM;
        for (uint64_t at = 0; at < n->size && r == 0; at += 1 * MiB) {
            r = node_pwrite(n, zeroes, min_u64(1 * MiB, n->size - at), at, 0);
        }
    }
    return r < 0 ? error_set(errp, -r, "cannot write the data of '%s': %s",
                             node_filename(n), strerror(-r))
                 : 0;
}

static int preallocate_node(struct node *n, const struct plan *p,
                            struct error **errp)
{
    struct qcow2 *s = n->state;
    int r = qcow2_preallocate(n, 0, n->size);

    if (r == 0) {
        r = qcow2_flush(n);
    }
    if (r == 0) {
        mutex_lock(&s->meta);
        uint64_t end = s->virgin;
        mutex_unlock(&s->meta);
        CLEANUP_CLOSE int fd = open(node_filename(n), O_RDWR | O_CLOEXEC);
        r = fd < 0 ? -errno
                   : file_create_extend(fd, end,
                                        p->preallocation == PRE_FALLOC);
    }
    if (r < 0) {
        return error_set(errp, -r, "cannot preallocate '%s': %s",
                         node_filename(n), strerror(-r));
    }
    return p->preallocation == PRE_FULL ? write_all(n, errp) : 0;
}

static int preallocate(const char *filename, const struct plan *p,
                       struct error **errp)
{
    CLEANUP_JSON json_t *options =
        json_pack("{s:s, s:{s:s, s:s}}", "driver", "qcow2", "file", "driver",
                  "file", "filename", filename);
    struct graph *g = graph_new();
    struct node *n;
    int r;

    if (!g || !options) {
        graph_free(g);
        return error_set(errp, ENOMEM, "no memory to preallocate '%s'",
                         filename);
    }
    r = graph_open(g, options, &n, errp);
    if (r == 0) {
        graph_lock(g);
        graph_drain(g, n);
        r = preallocate_node(n, p, errp);
        if (r == 0) {
            r = node_flush(n);
            r = r < 0 ? error_set(errp, -r, "cannot flush '%s'", filename) : 0;
        }
        graph_unlock(g);
    }
    graph_free(g);
    return r;
}

int qcow2_create(const char *filename, struct opts *opts, struct error **errp)
{
    struct plan p = { 0 };
    bool existed;
    int fd;

    int r = take_options(opts, &p, errp);
    if (r == 0) {
        r = check_options(&p, errp);
    }
    if (r == 0) {
        lay_out(&p);
        r = file_create_begin(filename, &fd, &existed, errp);
    }
    if (r < 0) {
        return r;
    }
    r = write_image(fd, &p, errp);
    r = file_create_finish(filename, fd, existed, r, errp);
    if (r == 0 && p.preallocation != PRE_OFF && p.size > 0) {
        r = preallocate(filename, &p, errp);
        if (r < 0 && !existed) {
            (void)unlink(filename);
        }
    }
    return r;
}
