/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Parsing the header and its extensions, whose bytes are untrusted.
 *
 *   0     magic, version, backing file name (offset, length)
 *   20    cluster_bits, size, crypt method, L1, refcount table, snapshots
 *   72    version 3: features, refcount order, header length
 *   104   compression type, if the header is that long
 *   then  extensions (type, length, data, padded to 8) up to type 0, all
 *         within the first cluster, before the backing file name
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/qcow2.h"

#define V2_HEADER_LENGTH 72
#define V3_HEADER_LENGTH 104

/* One entry of the feature name table: type, bit, 46 bytes of name. */
#define FEATURE_ENTRY 48

struct extensions {
    const unsigned char *head;     /* the bytes of the header */
    const unsigned char *features; /* points into the caller's bytes */
    size_t features_len;
};

/* The text of @len foreign bytes, malloc()ed. */
static int copy_text(const unsigned char *from, size_t len, char **to,
                     const char *what, struct error **errp)
{
    if (memchr(from, '\0', len)) {
        return error_set(errp, EINVAL, "the %s contains a NUL byte", what);
    }
    free(*to);
    *to = strndup((const char *)from, len);
    return *to ? 0 : error_nomem(errp);
}

static int parse_extension(uint32_t type, const unsigned char *data,
                           uint32_t len, struct qcow2_header *h,
                           struct extensions *x, struct error **errp)
{
    switch (type) {
    case QCOW2_EXT_BACKING_FMT:
        if (len > 15) {
            return error_set(errp, EINVAL,
                             "the backing format name has %" PRIu32
                             " bytes, at most 15 are allowed",
                             len);
        }
        return copy_text(data, len, &h->backing_fmt, "backing format", errp);
    case QCOW2_EXT_FEATURES:
        x->features = data;
        x->features_len = len;
        return 0;
    case QCOW2_EXT_DATA_FILE:
        return len == 0 ? 0
                        : copy_text(data, len, &h->data_file, "data file name",
                                    errp);
    case QCOW2_EXT_LUKS:
        if (len != 16) {
            return error_set(errp, EINVAL,
                             "the extension for encryption has %" PRIu32
                             " bytes, not 16",
                             len);
        }
        h->has_luks = true;
        h->luks_offset = load_be64(data);
        h->luks_bytes = load_be64(data + 8);
        return 0;
    case QCOW2_EXT_BITMAPS:
        if (len >= 24) { /* else it is broken, and they are void */
            h->has_bitmaps = true;
            h->bitmaps.count = load_be32(data);
            h->bitmaps.dir_size = load_be64(data + 8);
            h->bitmaps.dir_offset = load_be64(data + 16);
            h->bitmaps.entry = (uint64_t)(data - x->head) + 16;
        }
        return 0;
    default:
        return 0; /* unknown ones are to be ignored */
    }
}

static int parse_extensions(const unsigned char *head, size_t from, size_t end,
                            struct qcow2_header *h, struct extensions *x,
                            struct error **errp)
{
    while (end - from >= 8) {
        uint32_t type = load_be32(head + from);
        uint32_t len = load_be32(head + from + 4);

        from += 8;
        if (type == QCOW2_EXT_END) {
            return 0;
        }
        if (len > end - from) {
            return error_set(errp, EINVAL,
                             "header extension 0x%" PRIx32
                             " is larger than the header",
                             type);
        }
        int r = parse_extension(type, head + from, len, h, x, errp);
        if (r < 0) {
            return r;
        }
        from += min_u64(align_up(len, 8), end - from);
    }
    return 0;
}

/* Name the incompatible features that are not ours, as the image does. */
static int refuse_features(uint64_t bits, const struct extensions *x,
                           struct error **errp)
{
    unsigned bit = (unsigned)__builtin_ctzll(bits);
    for (size_t at = 0; at + FEATURE_ENTRY <= x->features_len;
         at += FEATURE_ENTRY) {
        if (x->features[at] == 0 && x->features[at + 1] == bit) {
            return error_set(errp, ENOTSUP,
                             "Unsupported qcow2 feature(s): %.46s",
                             (const char *)x->features + at + 2);
        }
    }
    return error_set(errp, ENOTSUP,
                     "Unsupported qcow2 feature(s): Unknown incompatible "
                     "feature: %" PRIx64,
                     UINT64_C(1) << bit);
}

static int check_table(const struct qcow2_header *h, const char *what,
                       uint64_t offset, uint64_t bytes, uint64_t max,
                       struct error **errp)
{
    uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;

    if (bytes > max) {
        return error_set(errp, EFBIG, "%s is too large (%" PRIu64 " bytes)",
                         what, bytes);
    }
    if (!is_aligned(offset, cluster_size) || offset > BLK_SIZE_MAX - bytes ||
        (offset == 0 && bytes > 0)) {
        return error_set(errp, EINVAL, "invalid offset 0x%" PRIx64 " of the %s",
                         offset, what);
    }
    return 0;
}

static int check_crypt(const struct qcow2_header *h, struct error **errp)
{
    if (h->crypt == QCOW2_AES) {
        return error_set(errp, ENOTSUP,
                         "AES-CBC encrypted qcow2 images are not supported: "
                         "convert it to one with LUKS, or without encryption, "
                         "by 'qemu-img convert'");
    }
    if (h->has_luks != (h->crypt == QCOW2_LUKS)) {
        return error_set(errp, EINVAL,
                         h->has_luks ? "CRYPTO header extension only expected "
                                       "with LUKS encryption method"
                                     : "the image is encrypted, and does not "
                                       "say where its LUKS header is");
    }
    return h->has_luks ? check_table(h, "LUKS header", h->luks_offset,
                                     h->luks_bytes, QCOW2_MAX_LUKS_BYTES, errp)
                       : 0;
}

uint64_t qcow2_header_span(const struct qcow2_header *h)
{
    bool extended = h->incompatible & QCOW2_INCOMPAT_EXTL2;

    return UINT64_C(1) << (h->cluster_bits +
                           qcow2_l2_bits(h->cluster_bits, extended));
}

static int check_sizes(const struct qcow2_header *h, struct error **errp)
{
    uint64_t span = qcow2_header_span(h);
    int r;

    if (h->size > BLK_SIZE_MAX) {
        return error_set(errp, EFBIG, "the disk is too large");
    }
    if (div_up(h->size, span) > h->l1_size) {
        return error_set(errp, EINVAL,
                         "the L1 table is too small for the disk's size");
    }
    r = check_table(h, "L1 table", h->l1_offset, h->l1_size * UINT64_C(8),
                    QCOW2_MAX_L1_BYTES, errp);
    if (r < 0) {
        return r;
    }
    if (h->reftable_clusters == 0) {
        return error_set(errp, EINVAL,
                         "the image has no reference count table");
    }
    return check_table(
        h, "reference count table", h->reftable_offset,
        (uint64_t)h->reftable_clusters << h->cluster_bits,
        max_u64(QCOW2_MAX_REFTABLE_BYTES, UINT64_C(1) << h->cluster_bits),
        errp);
}

static int parse_v3(const unsigned char *head, size_t len,
                    struct qcow2_header *h, struct error **errp)
{
    if (len < V3_HEADER_LENGTH) {
        return error_set(errp, EINVAL, "the qcow2 header is cut off");
    }
    h->incompatible = load_be64(head + 72);
    h->compatible = load_be64(head + 80);
    h->autoclear = load_be64(head + 88);
    h->refcount_order = load_be32(head + 96);
    h->header_length = load_be32(head + 100);
    if (h->header_length < V3_HEADER_LENGTH ||
        h->header_length > UINT32_C(1) << h->cluster_bits ||
        h->header_length > len) {
        return error_set(errp, EINVAL, "invalid qcow2 header length %" PRIu32,
                         h->header_length);
    }
    if ((h->incompatible & QCOW2_INCOMPAT_EXTL2) &&
        h->cluster_bits < QCOW2_MIN_EXTENDED_BITS) {
        return error_set(errp, EINVAL,
                         "extended L2 entries need clusters of 16 KiB or more");
    }
    if (h->refcount_order > 6) {
        return error_set(errp, EINVAL, "reference counts of more than 64 bits");
    }
    if (h->header_length > V3_HEADER_LENGTH) {
        unsigned type = head[V3_HEADER_LENGTH];
        if (type > QCOW2_ZSTD) {
            return error_set(errp, ENOTSUP, "unknown compression type %u",
                             type);
        }
        h->compression = type;
    }
    if ((h->compression != QCOW2_ZLIB) !=
        !!(h->incompatible & QCOW2_INCOMPAT_COMPRESSION)) {
        return error_set(errp, EINVAL,
                         "the compression type and the header's compression "
                         "type bit contradict each other");
    }
    return 0;
}

static int parse_backing(const unsigned char *head, size_t len,
                         struct qcow2_header *h, struct error **errp)
{
    uint64_t offset = load_be64(head + 8);
    uint32_t name_len = load_be32(head + 16);

    if (offset == 0 || name_len == 0) {
        return 0;
    }
    if (name_len > QCOW2_MAX_BACKING_NAME ||
        !range_inside(offset, name_len,
                      min_u64(len, UINT64_C(1) << h->cluster_bits))) {
        return error_set(errp, EINVAL, "invalid backing file name");
    }
    return copy_text(head + offset, name_len, &h->backing, "backing file name",
                     errp);
}

static int parse_fixed(const unsigned char *head, size_t len,
                       struct qcow2_header *h, struct error **errp)
{
    if (len < V2_HEADER_LENGTH || load_be32(head) != QCOW2_MAGIC) {
        return error_set(errp, EINVAL, "Image is not in qcow2 format");
    }
    h->version = load_be32(head + 4);
    h->names_backing = load_be64(head + 8) != 0 && load_be32(head + 16) != 0;
    h->cluster_bits = load_be32(head + 20);
    h->size = load_be64(head + 24);
    h->l1_size = load_be32(head + 36);
    h->l1_offset = load_be64(head + 40);
    h->reftable_offset = load_be64(head + 48);
    h->reftable_clusters = load_be32(head + 56);
    h->snapshots = load_be32(head + 60);
    h->snapshots_offset = load_be64(head + 64);
    h->refcount_order = 4;
    h->header_length = V2_HEADER_LENGTH;
    if (h->version != 2 && h->version != 3) {
        return error_set(errp, ENOTSUP, "Unsupported qcow2 version %" PRIu32,
                         h->version);
    }
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
        h->cluster_bits > QCOW2_MAX_CLUSTER_BITS) {
        return error_set(errp, EINVAL, "Unsupported cluster size: 2^%" PRIu32,
                         h->cluster_bits);
    }
    h->crypt = load_be32(head + 32);
    if (h->crypt > QCOW2_LUKS) {
        return error_set(errp, ENOTSUP,
                         "Unsupported encryption method %" PRIu32, h->crypt);
    }
    return h->version == 3 ? parse_v3(head, len, h, errp) : 0;
}

/* All except what tables and names are checked for. */
static int parse_any(const unsigned char *head, size_t len,
                     struct qcow2_header *h, struct error **errp)
{
    struct extensions x = {.head = head};
    int r = parse_fixed(head, len, h, errp);
    if (r < 0) {
        return r;
    }
    uint64_t end = min_u64(len, UINT64_C(1) << h->cluster_bits);
    uint64_t backing = load_be64(head + 8);
    if (backing > h->header_length && backing < end) {
        end = backing;
    }
    r = parse_extensions(head, h->header_length, end, h, &x, errp);
    if (r < 0) {
        return r;
    }
    uint64_t unknown = h->incompatible &
                       ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT |
                         QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_DATA_FILE |
                         QCOW2_INCOMPAT_EXTL2);
    if (unknown) {
        return refuse_features(unknown, &x, errp);
    }
    if ((h->autoclear & QCOW2_AUTOCLEAR_RAW) &&
        !(h->incompatible & QCOW2_INCOMPAT_DATA_FILE)) {
        return error_set(errp, EINVAL, "data-file-raw requires a data file");
    }
    return 0;
}

static int parse_all(const unsigned char *head, size_t len,
                     struct qcow2_header *h, struct error **errp)
{
    int r = parse_any(head, len, h, errp);

    if (r == 0) {
        r = check_sizes(h, errp);
    }
    if (r == 0) {
        r = check_crypt(h, errp);
    }
    return r < 0 ? r : parse_backing(head, len, h, errp);
}

/* A parser of the whole header. */
typedef int parse_fn(const unsigned char *head, size_t len,
                     struct qcow2_header *h, struct error **errp);

static int parse(parse_fn *fn, const unsigned char *head, size_t len,
                 struct qcow2_header *h, struct error **errp)
{
    *h = (struct qcow2_header){0};
    int r = fn(head, len, h, errp);
    if (r < 0) {
        qcow2_header_release(h);
    }
    return r;
}

void qcow2_header_release(struct qcow2_header *h)
{
    free(h->backing);
    free(h->backing_fmt);
    free(h->data_file);
    h->backing = NULL;
    h->backing_fmt = NULL;
    h->data_file = NULL;
}

int qcow2_header_parse(const unsigned char *head, size_t len,
                       struct qcow2_header *h, struct error **errp)
{
    return parse(parse_all, head, len, h, errp);
}

void qcow2_take_shape(struct qcow2 *s, const struct qcow2_header *h)
{
    s->version = h->version;
    s->cluster_bits = h->cluster_bits;
    s->cluster_size = UINT64_C(1) << h->cluster_bits;
    s->extended = h->incompatible & QCOW2_INCOMPAT_EXTL2;
    s->sub_bits = h->cluster_bits - (s->extended ? QCOW2_SUBCLUSTER_BITS : 0);
    s->l2_bits = qcow2_l2_bits(h->cluster_bits, s->extended);
    s->refcount_order = h->refcount_order;
    s->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
    s->external = h->incompatible & QCOW2_INCOMPAT_DATA_FILE;
}

/* The cluster size is known only after the first bytes are read. */
static int read_header(struct node *file, parse_fn *fn, struct qcow2_header *h,
                       struct error **errp)
{
    unsigned char first[V2_HEADER_LENGTH];
    uint64_t size = node_size(file);

    if (size < sizeof(first)) {
        return error_set(errp, EINVAL, "Image is not in qcow2 format");
    }
    int r = node_pread(file, first, sizeof(first), 0, 0);
    if (r < 0) {
        return error_set(errp, -r, "cannot read the qcow2 header: %s",
                         strerror(-r));
    }
    if (load_be32(first) != QCOW2_MAGIC) {
        return error_set(errp, EINVAL, "Image is not in qcow2 format");
    }
    uint32_t bits = load_be32(first + 20);
    if (bits < QCOW2_MIN_CLUSTER_BITS || bits > QCOW2_MAX_CLUSTER_BITS) {
        return error_set(errp, EINVAL, "Unsupported cluster size: 2^%" PRIu32,
                         bits);
    }
    uint64_t len = min_u64(size, UINT64_C(1) << bits);
    CLEANUP_FREE unsigned char *head = malloc(len);
    if (!head) {
        return error_nomem(errp);
    }
    r = node_pread(file, head, len, 0, 0);
    if (r < 0) {
        return error_set(errp, -r, "cannot read the qcow2 header: %s",
                         strerror(-r));
    }
    return parse(fn, head, len, h, errp);
}

int qcow2_header_read(struct node *file, struct qcow2_header *h,
                      struct error **errp)
{
    return read_header(file, parse_all, h, errp);
}

int qcow2_header_read_any(struct node *file, struct qcow2_header *h,
                          struct error **errp)
{
    return read_header(file, parse_any, h, errp);
}

void qcow2_disk_put(const struct qcow2_disk *d, unsigned char *header)
{
    store_be64(header + QCOW2_HDR_SIZE, d->size);
    if (d->moves) {
        store_be32(header + QCOW2_HDR_L1, d->l1_size);
        store_be64(header + QCOW2_HDR_L1 + 4, d->l1_offset);
    }
}
