/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_HEADER_H
#define NBDELTA_QCOW2_HEADER_H

/* The header of an image: what it says, as numbers and parsed. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbdelta/bytes.h"

struct error;
struct node;
struct qcow2;

#define QCOW2_MAGIC 0x514649fb /* "QFI\xfb" */

#define QCOW2_MIN_CLUSTER_BITS   9
#define QCOW2_MAX_CLUSTER_BITS   21
#define QCOW2_MAX_L1_BYTES       (32 * MiB)
#define QCOW2_MAX_REFTABLE_BYTES (8 * MiB)
#define QCOW2_MAX_LUKS_BYTES     (64 * MiB)
#define QCOW2_MAX_BACKING_NAME   1023

/* Extended L2 entries: the parts that a cluster has, each of a sector or
 * more. */
#define QCOW2_SUBCLUSTER_BITS   5
#define QCOW2_MIN_EXTENDED_BITS 14

/* Entries of tables: the place of the cluster that they lead to.  l2.c says
 * what else is in an L2 entry. */
#define QCOW2_COPIED      (UINT64_C(1) << 63) /* refcount is exactly one */
#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

/* Incompatible features. */
#define QCOW2_INCOMPAT_DIRTY       (UINT64_C(1) << 0)
#define QCOW2_INCOMPAT_CORRUPT     (UINT64_C(1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE   (UINT64_C(1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_INCOMPAT_EXTL2       (UINT64_C(1) << 4)
#define QCOW2_COMPAT_LAZY          (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_BITMAPS    (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_RAW        (UINT64_C(1) << 1)

#define QCOW2_EXT_END         0
#define QCOW2_EXT_BACKING_FMT 0xe2792aca
#define QCOW2_EXT_FEATURES    0x6803f857
#define QCOW2_EXT_BITMAPS     0x23852875
#define QCOW2_EXT_DATA_FILE   0x44415441
#define QCOW2_EXT_LUKS        0x0537be77
#define QCOW2_EXT_FILLER      0x6e626466 /* ours: it says nothing */

enum qcow2_crypt { QCOW2_PLAIN = 0, QCOW2_AES = 1, QCOW2_LUKS = 2 };

enum qcow2_compression { QCOW2_ZLIB = 0, QCOW2_ZSTD = 1 };

/* Byte offsets of header fields that are written on their own. */
#define QCOW2_HDR_SIZE      24
#define QCOW2_HDR_L1        36 /* l1_size 4, l1_table_offset 8: one write */
#define QCOW2_HDR_REFTABLE  48 /* offset 8, clusters 4: one write */
#define QCOW2_HDR_SNAPSHOTS 60 /* number 4, offset 8 */
#define QCOW2_HDR_INCOMPAT  72
#define QCOW2_HDR_COMPAT    80
#define QCOW2_HDR_AUTOCLEAR 88

/* The bitmaps extension; count 0: there is none. */
struct qcow2_bitmaps_ext {
    uint32_t count;
    uint64_t dir_size; /* bytes */
    uint64_t dir_offset;
    uint64_t entry; /* where in the file the offset stands; 0: not known */
};

/* The part of the header that says what the disk is; it is in the first
 * sector. */
struct qcow2_disk {
    uint64_t size;
    bool moves; /* the L1 table is another one, too */
    uint32_t l1_size;
    uint64_t l1_offset;
};

/* Put it into @header, the first QCOW2_HDR_DISK_END bytes at least. */
#define QCOW2_HDR_DISK_END 48
void qcow2_disk_put(const struct qcow2_disk *d, unsigned char *header);

/* A parsed header, in host byte order. */
struct qcow2_header {
    uint32_t version;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t l1_size; /* entries */
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    uint32_t refcount_order;
    uint32_t header_length;
    enum qcow2_compression compression;
    uint32_t crypt;       /* enum qcow2_crypt */
    bool has_luks;        /* the extension for LUKS is there */
    uint64_t luks_offset; /* of its header and key slots */
    uint64_t luks_bytes;
    bool names_backing; /* there is a backing file, whatever its name is */
    bool has_bitmaps;   /* the bitmaps extension is there */
    struct qcow2_bitmaps_ext bitmaps;
    char *backing;     /* malloc()ed, or NULL */
    char *backing_fmt; /* malloc()ed, or NULL */
    char *data_file;   /* malloc()ed, or NULL */
};

/* Read and check the header of @file.  Frees what it allocated on failure. */
int qcow2_header_read(struct node *file, struct qcow2_header *h,
                      struct error **errp);
/* The same, but tables may be missing, too large, or lead anywhere, and so may
 * the name of the backing file: for walk.h. */
int qcow2_header_read_any(struct node *file, struct qcow2_header *h,
                          struct error **errp);
/* Parse a header in memory, for the fuzzer: @head holds the first @len
 * bytes. */
int qcow2_header_parse(const unsigned char *head, size_t len,
                       struct qcow2_header *h, struct error **errp);
void qcow2_header_release(struct qcow2_header *h);

/* Guest bytes that one L2 table describes. */
uint64_t qcow2_header_span(const struct qcow2_header *h);
/* Take from it what says how tables are to be read. */
void qcow2_take_shape(struct qcow2 *s, const struct qcow2_header *h);

#endif /* NBDELTA_QCOW2_HEADER_H */
