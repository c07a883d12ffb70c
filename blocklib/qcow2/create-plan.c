/* SPDX-License-Identifier: BSD-3-Clause */
/* The plan of a new image: what the user asks for, whether the format has that,
 * and how much room it takes. */
#include "qcow2/create-plan.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/image-name.h"
#include "core/opts.h"
#include "nbdelta/error.h"
#include "qcow2/alloc.h"
#include "qcow2/l2.h"

const char *const qcow2_create_options[] = {
    "size",
    "backing_file",
    "backing_fmt",
    "compat",
    "cluster_size",
    "refcount_bits",
    "lazy_refcounts",
    "compression_type",
    "preallocation",
    "data_file",
    "data_file_raw",
    "extended_l2",
    "encrypt.format",
    "encrypt.key-secret",
    "encrypt.cipher-alg",
    "encrypt.cipher-mode",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.hash-alg",
    "encrypt.iter-time",
    NULL,
};

/* --- What the user asked for --- */

static int take_options(struct opts *o, struct create_plan *p,
                        struct error **errp)
{
    static const char *const compat[] = {"0.10", "1.1", "v2", "v3", NULL};
    static const char *const compression[] = {"zlib", "zstd", NULL};
    static const char *const pre[] = {"off", "metadata", "falloc", "full",
                                      NULL};
    const char *backing = NULL;
    uint64_t bits = 16;
    unsigned version = 1;
    int r;

    p->cluster_size = 64 * KiB;
    if ((r = opts_uint(o, "size", UINT64_MAX, &p->size, errp)) < 0 ||
        (r = opts_uint(o, "cluster_size", UINT32_MAX, &p->cluster_size, errp)) <
            0 ||
        (r = opts_uint(o, "refcount_bits", 1024, &bits, errp)) < 0 ||
        (r = opts_bool(o, "lazy_refcounts", &p->lazy, errp)) < 0 ||
        (r = opts_bool(o, "extended_l2", &p->extended, errp)) < 0 ||
        (r = opts_enum(o, "compat", compat, &version, errp)) < 0 ||
        (r = opts_enum(o, "compression_type", compression, &p->compression,
                       errp)) < 0 ||
        (r = opts_enum(o, "preallocation", pre, &p->preallocation, errp)) < 0 ||
        (r = opts_str(o, "backing_file", &backing, errp)) < 0 ||
        (r = opts_str(o, "backing_fmt", &p->backing_fmt, errp)) < 0 ||
        (r = opts_str(o, "data_file", &p->data_file, errp)) < 0 ||
        (r = opts_bool(o, "data_file_raw", &p->data_raw, errp)) < 0 ||
        (r = opts_bool(o, "data_file_exists", &p->data_exists, errp)) < 0 ||
        (r = qcow2_create_luks_take(o, &p->luks, errp)) < 0 ||
        (r = opts_end(o, "qcow2 image creation", errp)) < 0) {
        return r;
    }
    p->version = version % 2 ? 3 : 2;
    if (p->data_file && p->data_file[0] == '\0') {
        p->data_file = NULL;
    }
    bool named = backing && backing[0] != '\0';
    p->backing = named ? image_name_write(backing) : NULL;
    p->data_name = p->data_file ? image_name_write(p->data_file) : NULL;
    if ((named && !p->backing) || (p->data_file && !p->data_name)) {
        return error_nomem(errp);
    }
    if (!is_pow2(bits) || bits > 64) {
        return error_set(errp, EINVAL,
                         "Refcount width must be a power of two "
                         "and may not exceed 64 bits");
    }
    p->refcount_order = (unsigned)__builtin_ctzll(bits);
    return 0;
}

/* Refuse what version 2 does not have. */
static int check_old(const struct create_plan *p, struct error **errp)
{
    if (p->lazy) {
        return error_set(errp, EINVAL,
                         "Lazy refcounts only supported with compatibility "
                         "level 1.1 and above (use version=v3 or greater)");
    }
    if (p->refcount_order != 4) {
        return error_set(errp, EINVAL,
                         "Different refcount widths than 16 bits require "
                         "compatibility level 1.1 or above (use version=v3 or "
                         "greater)");
    }
    if (p->compression != QCOW2_ZLIB) {
        return error_set(errp, EINVAL,
                         "Non-zlib compression type is only supported with "
                         "compatibility level 1.1 and above (use version=v3 "
                         "or greater)");
    }
    if (p->extended) {
        return error_set(errp, EINVAL,
                         "Extended L2 entries are only supported with "
                         "compatibility level 1.1 and above (use version=v3 "
                         "or greater)");
    }
    return 0;
}

static int check_backing(const struct create_plan *p, struct error **errp)
{
    if (!p->backing) {
        return p->backing_fmt ? error_set(errp, EINVAL,
                                          "Backing format cannot be used "
                                          "without backing file")
                              : 0;
    }
    if (strlen(p->backing) > QCOW2_MAX_BACKING_NAME) {
        return error_set(errp, EINVAL, "Backing file name too long");
    }
    /* A subcluster can have a place, and show the backing file. */
    return p->preallocation != PRE_OFF && !p->extended
               ? error_set(errp, EINVAL,
                           "Backing file and preallocation can only be used at "
                           "the same time if extended_l2 is on")
               : 0;
}

static int check_data_file(struct create_plan *p, struct error **errp)
{
    if (p->data_raw && !p->data_file) {
        return error_set(errp, EINVAL, "data-file-raw requires data-file");
    }
    if (p->data_raw && p->backing) {
        return error_set(errp, EINVAL,
                         "Backing file and data-file-raw cannot "
                         "be used at the same time");
    }
    if (p->data_file && p->version < 3) {
        return error_set(errp, EINVAL,
                         "External data files are only supported with "
                         "compatibility level 1.1 and above (use version=v3 "
                         "or greater)");
    }
    if (p->data_raw && p->luks.on) {
        return error_set(errp, EINVAL,
                         "Encryption and data-file-raw cannot be used at the "
                         "same time");
    }
    if (p->luks.on && p->data_file && p->preallocation != PRE_OFF) {
        return error_set(errp, EINVAL,
                         "Encryption and preallocation cannot be used at the "
                         "same time with data-file");
    }
    if (p->data_raw && p->preallocation == PRE_OFF) {
        p->preallocation = PRE_METADATA; /* it is as the tables say */
    }
    return 0;
}

/* Guest bytes of an L2 table. */
uint64_t qcow2_plan_span(const struct create_plan *p)
{
    return p->cluster_size << qcow2_l2_bits(p->cluster_bits, p->extended);
}

static int check_options(struct create_plan *p, struct error **errp)
{
    if (p->exact && !is_aligned(p->size, 512)) {
        return error_set(errp, EINVAL,
                         "Image size must be a multiple of 512 bytes");
    }
    if (p->size > INT64_MAX) {
        return error_set(errp, EINVAL,
                         "Could not resize image: Image size cannot be "
                         "negative");
    }
    if (p->size > BLK_SIZE_MAX) {
        return error_set(errp, EFBIG,
                         "Could not resize image: offset(%" PRIu64
                         ") exceeds maximum(%" PRIu64 ")",
                         p->size, BLK_SIZE_MAX);
    }
    if (!is_pow2(p->cluster_size) ||
        p->cluster_size < UINT64_C(1) << QCOW2_MIN_CLUSTER_BITS ||
        p->cluster_size > UINT64_C(1) << QCOW2_MAX_CLUSTER_BITS) {
        return error_set(errp, EINVAL,
                         "Cluster size must be a power of two "
                         "between 512 and 2048k");
    }
    p->cluster_bits = (unsigned)__builtin_ctzll(p->cluster_size);
    if (p->extended && p->cluster_bits < QCOW2_MIN_EXTENDED_BITS) {
        return error_set(errp, EINVAL,
                         "Extended L2 entries are only supported with cluster "
                         "sizes of at least 16384 bytes");
    }
    int r = p->version < 3 ? check_old(p, errp) : 0;
    if (r < 0) {
        return r;
    }
    r = check_data_file(p, errp);
    if (r == 0) {
        r = check_backing(p, errp);
    }
    if (r < 0) {
        return r;
    }
    r = qcow2_create_luks_plan(&p->luks, errp);
    if (r < 0) {
        return r;
    }
    p->luks_clusters = div_up(qcow2_create_luks_bytes(&p->luks),
                              p->cluster_size);
    p->size = align_up(p->size, 512);
    p->l1_entries = div_up(p->size, qcow2_plan_span(p));
    if (p->l1_entries * 8 > QCOW2_MAX_L1_BYTES) {
        return error_set(errp, EFBIG,
                         "The image size is too large for this cluster size "
                         "(try using a larger cluster size)");
    }
    if (p->data_file && p->preallocation != PRE_OFF) {
        p->l2 = p->l1_entries;
    }
    p->l1_entries = max_u64(p->l1_entries, 1);
    return 0;
}

static uint64_t refs_per_block(const struct create_plan *p)
{
    return p->cluster_size * 8 >> p->refcount_order;
}

/* Clusters of all but refcounts. */
static uint64_t clusters_counted(const struct create_plan *p)
{
    return 1 + p->l1 + p->luks_clusters + p->l2 + p->data;
}

static void lay_out(struct create_plan *p)
{
    uint64_t old;

    p->l1 = div_up(p->l1_entries * 8, p->cluster_size);
    p->reftable = 1;
    p->refblocks = 1;
    do {
        old = p->reftable + p->refblocks;
        p->refblocks = div_up(clusters_counted(p) + old, refs_per_block(p));
        p->reftable = div_up(p->refblocks * 8, p->cluster_size);
    } while (p->reftable + p->refblocks != old);
}

void qcow2_plan_drop(struct create_plan *p)
{
    qcow2_create_luks_forget(&p->luks);
    free(p->backing);
    free(p->data_name);
}

int qcow2_plan_make(struct opts *opts, struct create_plan *p,
                    struct error **errp)
{
    int r = take_options(opts, p, errp);

    if (r == 0) {
        r = check_options(p, errp);
    }
    if (r == 0) {
        lay_out(p);
    }
    return r;
}

/* --- How large it becomes --- */

/* A refcount table that grows leaves the old one behind.  Perhaps nothing comes
 * to lie there. */
uint64_t qcow2_plan_full(const struct create_plan *p)
{
    struct create_plan full = *p;
    struct qcow2 shape = {
        .cluster_bits = p->cluster_bits,
        .cluster_size = p->cluster_size,
        .refblock_bits = p->cluster_bits + 3 - p->refcount_order,
    };
    uint64_t tables = p->reftable;
    uint64_t last = p->reftable; /* the table that counts */
    uint64_t blocks = p->refblocks;
    uint64_t old;

    full.l2 = div_up(p->size, qcow2_plan_span(p));
    full.data = div_up(p->size, p->cluster_size);
    do {
        uint64_t more = 0;

        old = tables + blocks;
        blocks = div_up(clusters_counted(&full) + old, refs_per_block(p));
        shape.reftable_size = (uint32_t)(last * p->cluster_size / 8);
        if (blocks > shape.reftable_size) {
            (void)qcow2_measure_reftable(&shape, shape.reftable_size + 1, &more,
                                         &last);
            tables += last;
        }
    } while (tables + blocks != old);
    return (clusters_counted(&full) + old) << p->cluster_bits;
}
