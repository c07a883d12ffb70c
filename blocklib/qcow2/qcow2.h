/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_QCOW2_H
#define NBDELTA_QCOW2_QCOW2_H

/*
 * The inside of the qcow2 driver.  Nothing outside of this folder sees it.
 *
 * What an image looks like, and which file keeps which part:
 *
 *   header --> L1 table --> L2 tables --> data clusters      map.c write.c
 *     |                        (s->l2)
 *     +------> refcount table --> refcount blocks            alloc.c
 *                                    (s->refblocks)
 *
 * An external data file, if there is one, has the data clusters, each at its
 * guest offset, and nothing counts them.  A raw data file also reads as the
 * guest sees the disk at any time.
 *
 * Metadata lives in write-back caches (cache.c).  flush.c writes it in the
 * order that keeps invariant 1 (see there).
 *
 * Locks: flush_lock, then meta, then the locks inside of the caches.
 *   range  (guest clusters) held while the mapping of a range is changed
 *   meta   held while L1, L2, refcounts are changed; no data I/O under it
 * Readers take none of them: they pin an L2 table and load its entries
 * atomically, and hold a ticket (extents in hand) until the bytes are moved.
 */
#include "core/node.h"
#include "nbdelta/bytes.h"
#include "nbdelta/option.h"
#include "qcow2/cache.h"
#include "qcow2/overlap.h"
#include "qcow2/snapshots.h"

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
#define QCOW2_HDR_AUTOCLEAR 88

/* The bitmaps extension; count 0: there is none. */
struct qcow2_bitmaps_ext {
    uint32_t count;
    uint64_t dir_size; /* bytes */
    uint64_t dir_offset;
    uint64_t entry; /* where in the file the offset stands; 0: not known */
};

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

/* The sectors of a table that differ from the disk; none at first. */
#define QCOW2_SECTOR         512
#define QCOW2_SECTOR_ENTRIES (QCOW2_SECTOR / 8)
#define QCOW2_SECTOR_WORDS   (QCOW2_MAX_L1_BYTES / QCOW2_SECTOR / 64)
struct qcow2_span {
    uint32_t count;
    uint64_t sectors[QCOW2_SECTOR_WORDS]; /* a bit for each */
};

static inline bool qcow2_span_empty(const struct qcow2_span *p)
{
    return p->count == 0;
}
static inline bool qcow2_span_has(const struct qcow2_span *p, uint64_t sector)
{
    return sector / 64 < QCOW2_SECTOR_WORDS &&
           (p->sectors[sector / 64] >> sector % 64 & 1);
}
/* Entries [@from, @to) differ. */
static inline void qcow2_span_add(struct qcow2_span *p, uint32_t from,
                                  uint32_t to)
{
    uint64_t end = div_up(to, QCOW2_SECTOR_ENTRIES);

    for (uint64_t i = from / QCOW2_SECTOR_ENTRIES; i < end; i++) {
        p->count += !qcow2_span_has(p, i);
        p->sectors[i / 64] |= UINT64_C(1) << i % 64;
    }
}

/* A run of clusters that nothing refers to any more, in memory: alloc.c. */
struct qcow2_freed {
    uint64_t host;
    uint64_t clusters;
    uint64_t epoch; /* when it was unlinked */
    bool durable;   /* that it was unlinked is on disk */
};

/* A part of the file. */
struct qcow2_run {
    uint64_t host;
    uint64_t bytes;
};

/* The persistent bitmaps of an image: bitmaps.h. */
struct qcow2_bitmaps {
    bool process_only; /* set at open: bitmap-durability=process */

    /* --- Tree lock. --- */
    struct list list; /* of struct qcow2_bitmap.in_image */
    struct qcow2_bitmaps_ext ext;
    struct tightener *tightener; /* or NULL */
    bool closing;                /* no tightener any more */

    mutex_t arm_lock; /* before flush_lock: their clusters are written */

    /* --- Guarded by arm_lock: doubt (bitmap-doubt.c). --- */
    bool entries_written;      /* some, since the last flush */
    bool header_doubt;         /* it may lead to another directory, */
    bool size_doubt;           /* or have another size of the disk */
    struct qcow2_run *orphans; /* what states in doubt may lead to */
    size_t orphan_count;
    size_t orphan_room;

    mutex_t queue_lock;

    /* --- Guarded by queue_lock. --- */
    struct list queue; /* of requests to arm regions */

    /* --- Atomic. --- */
    _Atomic bool relaxed;      /* bits went; see qcow2_bitmaps_sync */
    _Atomic bool flush_failed; /* since the flag was last looked at */
};

/* The last cluster that was unpacked: compress.c. */
struct qcow2_unpacked {
    mutex_t lock;

    /* --- Guarded by lock. --- */
    struct qcow2_run packed; /* what it was unpacked from; no bytes: none */
    unsigned char *cluster;
};

struct qcow2 {
    /* --- Set at open. --- */
    struct node *node;
    struct node *file;
    struct node *data; /* where data clusters are: file, or the data file;
                          NULL: that is not open (graph_without_data) */
    bool external;     /* there is a data file */
    bool raw;          /* which is raw */
    char *data_name;   /* as the image names it, or NULL */
    uint32_t version;
    unsigned cluster_bits;
    uint64_t cluster_size;
    bool extended;     /* entries of L2 tables describe subclusters */
    unsigned sub_bits; /* log2 of bytes in one; without them, in a cluster */
    unsigned l2_bits;  /* log2 of entries in an L2 table */
    unsigned refcount_order;
    unsigned refblock_bits; /* log2 of entries in a refcount block */
    enum qcow2_compression compression;
    uint64_t compatible;
    bool file_grows_zero;

    /* --- Changed by a reopen, which has drained the tree. --- */
    uint64_t l2_bytes; /* options, 0: default */
    uint64_t refcount_bytes;
    struct qcow2_wanted *wanted; /* by the reopen that goes on, or NULL */

    struct qcow2_cache *l2;
    struct qcow2_cache *refblocks;
    struct range_lock range;

    /* --- Control section (drained), and set at open. --- */
    _Atomic uint64_t *l1; /* entries change under meta */
    uint32_t l1_size;
    uint64_t l1_offset;
    struct qcow2_snapshots snapshots;
    bool shows_snapshot; /* set at open: not the disk as it is now */
    bool changing;       /* a snapshot is being made or removed; monitor lock */

    mutex_t flush_lock; /* one write-back at a time */
    mutex_t meta;

    /* --- Guarded by meta. --- */
    struct qcow2_span l1_dirty;
    bool l1_moved; /* the header on disk names another place and size */
    uint64_t *reftable;
    uint32_t reftable_size; /* entries */
    uint64_t reftable_offset;
    struct qcow2_span reftable_dirty;
    bool reftable_moved;
    uint64_t free_hint;        /* no free cluster (index) lies below it */
    uint64_t virgin;           /* host bytes from here on were never written */
    struct qcow2_freed *freed; /* in limbo */
    size_t freed_count;
    size_t freed_room;
    size_t freed_sealed; /* runs before this index are in a round of flush.c */
    uint64_t freed_clusters;
    bool give_back;  /* discard released clusters in spite of the options */
    uint64_t packed; /* host byte where the next compressed data may go, in a
                        cluster that has some; or at the end of one */
    uint64_t incompatible;
    struct qcow2_making *making; /* a snapshot, or NULL */

    /* --- Atomic. --- */
    _Atomic uint64_t epoch;
    _Atomic uint64_t users[2]; /* extents in hand, by parity of the epoch */
    _Atomic uint64_t released; /* clusters that became free out of limbo */
    _Atomic bool corrupt;      /* no more writes */
    struct qcow2_overlap *_Atomic overlap; /* NULL while read-only */
    _Atomic unsigned overlap_checked;      /* enum qcow2_meta: the option */

    struct qcow2_bitmaps bitmaps;
    struct qcow2_unpacked unpacked;
    struct qcow2_luks *luks; /* set at open; NULL: it is not encrypted */
};

/* log2 of the entries in an L2 table. */
static inline unsigned qcow2_l2_bits(unsigned cluster_bits, bool extended)
{
    return cluster_bits - (extended ? 4 : 3);
}
static inline uint64_t qcow2_sub_size(const struct qcow2 *s)
{
    return UINT64_C(1) << s->sub_bits;
}
/* Guest bytes that one L2 table describes. */
static inline uint64_t qcow2_l2_span(const struct qcow2 *s)
{
    return s->cluster_size << s->l2_bits;
}
/* The part of these bytes from guest @offset on. */
static inline uint64_t qcow2_l2_rest(const struct qcow2 *s, uint64_t offset)
{
    return qcow2_l2_span(s) - (offset & (qcow2_l2_span(s) - 1));
}
static inline uint64_t qcow2_in_cluster(const struct qcow2 *s, uint64_t offset)
{
    return offset & (s->cluster_size - 1);
}

/* --- header.c --- */

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

/* --- map.c --- */

int qcow2_map(struct node *n, uint64_t offset, uint64_t bytes, unsigned flags,
              struct mapping *m);
void qcow2_map_put(struct node *n, struct mapping *m);

/* The L2 table that describes guest @offset, pinned; *tp is NULL when there
 * is none.  -EAGAIN with @nowait, -EIO for a damaged L1 entry. */
int qcow2_l2_get(struct qcow2 *s, uint64_t offset, bool nowait,
                 struct qcow2_table **tp);

/* Hold, or release, the clusters that L2 entries lead to. */
unsigned qcow2_ticket_take(struct qcow2 *s);
void qcow2_ticket_drop(struct qcow2 *s, unsigned ticket);

/* --- corrupt.c --- */

/*
 * The image contradicts itself: remember that, on disk too, write to it no
 * more, and tell somebody, once.  The phrase says what is wrong at these bytes
 * of the file.  Any thread, with any of the locks.  Returns -EIO.
 */
int qcow2_corrupt_at(struct qcow2 *s, uint64_t host, uint64_t bytes,
                     const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The same where nobody knows a place. */
int qcow2_mark_corrupt(struct qcow2 *s);

/* --- l2.c --- */

/* What is at a guest offset. */
enum qcow2_kind {
    QCOW2_KIND_UNALLOCATED,       /* nothing: what the backing file has */
    QCOW2_KIND_UNALLOCATED_ALLOC, /* the same, with a place for data */
    QCOW2_KIND_ZERO_PLAIN,        /* zeroes */
    QCOW2_KIND_ZERO_ALLOC,        /* zeroes, with a place for data */
    QCOW2_KIND_NORMAL,            /* data */
    QCOW2_KIND_COMPRESSED,
};

struct qcow2_at {
    enum qcow2_kind kind;
    bool copied;      /* nobody else refers to its cluster */
    bool wrong;       /* it leads to a place where there can be none */
    bool contradicts; /* its bits say what cannot be of some subcluster */
    uint64_t bytes;   /* of the disk are alike, and in a row */
    uint64_t host;    /* of all that have a place: where the offset itself is */
    struct qcow2_run packed; /* the compressed bytes of this cluster, at most */
};

/* What is at guest @offset, which @t describes, and for how many of @bytes; not
 * beyond the end of the table. */
void qcow2_l2_look(const struct qcow2 *s, const struct qcow2_table *t,
                   uint64_t offset, uint64_t bytes, struct qcow2_at *at);

/* The same for what only asks where clusters are, and how many: @offset is the
 * start of one, and its subclusters are not told apart. */
void qcow2_l2_look_whole(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t offset, uint64_t bytes, struct qcow2_at *at);
/* -EIO, and the image is corrupt: what was found cannot be followed. */
int qcow2_l2_check(struct qcow2 *s, const struct qcow2_at *at);

/* The table that describes guest @offset, pinned, to be changed: made if it is
 * missing, copied if it is shared. */
int qcow2_l2_get_writable(struct qcow2 *s, uint64_t offset,
                          struct qcow2_table **tp) REQUIRES(s->meta);

/*
 * Make whole subclusters (or the end of the disk) in such a table @kind, which
 * is not COMPRESSED.  Kinds that have a place are at @host on.  A cluster that
 * gets another place takes all of its data there: the caller has copied what
 * is not in these bytes.  A compressed cluster becomes one kind as a whole.
 * UNALLOCATED_ALLOC gives a place, and changes nothing else.  Clusters that
 * were there before, if they are others, or nothing is in them any more, are
 * free later.  -EIO: one of the old clusters is not data; all is changed
 * nonetheless.
 */
int qcow2_l2_put(struct qcow2 *s, struct qcow2_table *t, uint64_t offset,
                 uint64_t bytes, enum qcow2_kind kind, uint64_t host)
    REQUIRES(s->meta);
/* Make one cluster a compressed one, as qcow2_l2_put() does for others. */
int qcow2_l2_put_packed(struct qcow2 *s, struct qcow2_table *t, uint64_t offset,
                        const struct qcow2_run *packed) REQUIRES(s->meta);

/* Does the L1 entry lead to a cluster that is an L2 table and nothing else?  A
 * table that is shared will be copied, and loses a reference. */
bool qcow2_l2_is_table(const struct qcow2 *s, uint64_t entry);

/* Take COPIED from all entries: what they lead to is shared. */
void qcow2_l2_share(const struct qcow2 *s, struct qcow2_table *t);

/* What the entry for guest @offset has that its kind does not have, or NULL.
 * *lost: subclusters, a bit each, of which nobody knows therefore what they
 * are. */
const char *qcow2_l2_odd(const struct qcow2 *s, const struct qcow2_table *t,
                         uint64_t offset, uint32_t *lost);
/* The subclusters of guest @offset's cluster that have data, a bit each; all
 * if the entry does not say. */
uint32_t qcow2_l2_data_parts(const struct qcow2 *s, const struct qcow2_table *t,
                             uint64_t offset);

/* Where in its table the entry for guest @offset begins, in bytes. */
uint64_t qcow2_l2_place(const struct qcow2 *s, uint64_t offset);

/* For a repair: change the entry for guest @offset, the start of a cluster, in
 * a table that no cache has.  Nothing is freed. */

/* It leads where @at says.  Subclusters stay as they are; one that contradicts
 * itself reads as zeroes. */
void qcow2_l2_mend(const struct qcow2 *s, struct qcow2_table *t,
                   uint64_t offset, const struct qcow2_at *at);
/* What it leads to is lost, and reads as zeroes; also if it is empty.  Not of
 * version 2. */
void qcow2_l2_mend_zero(const struct qcow2 *s, struct qcow2_table *t,
                        uint64_t offset);
/* It leads to data at @host, all of it. */
void qcow2_l2_mend_own(const struct qcow2 *s, struct qcow2_table *t,
                       uint64_t offset, uint64_t host);

/* Fill a table of a new image, for guest @offset on: each cluster of a disk of
 * @size bytes is @kind, and has the same place in the data file. */
void qcow2_l2_fill(const struct qcow2 *s, struct qcow2_table *t,
                   uint64_t offset, uint64_t size, enum qcow2_kind kind);

/* --- alloc.c --- */

/*
 * Allocate up to @want clusters in a row; *got >= 1.  *fresh: they were never
 * written and read as zeroes.  Refcounts are set in memory.  Where the search
 * takes long, it ends with -EINPROGRESS, so that others get the meta lock:
 * qcow2_try_again.
 */
int qcow2_alloc(struct qcow2 *s, uint64_t want, uint64_t *host, uint64_t *got,
                bool *fresh) REQUIRES(s->meta);
/* Allocate exactly @count in a row, for metadata of @kind (enum qcow2_meta).
 * Only the search for an L2 table's one cluster may end with -EINPROGRESS. */
int qcow2_alloc_exact(struct qcow2 *s, unsigned kind, uint64_t count,
                      uint64_t *host) REQUIRES(s->meta);

/* Take back an allocation that nothing has referred to, on disk or here. */
void qcow2_alloc_undo(struct qcow2 *s, uint64_t host, uint64_t clusters)
    REQUIRES(s->meta);

/* A reference to these clusters is gone from memory: drop their refcount as
 * soon as that is on disk and nobody moves their bytes any more. */
int qcow2_free_later(struct qcow2 *s, uint64_t host, uint64_t clusters)
    REQUIRES(s->meta);

/* Drop refcounts of runs that are due.  Discards first. */
int qcow2_release_freed(struct qcow2 *s) EXCLUDES(s->meta);

/* Add one reference to a cluster that has some.  -EOVERFLOW: its refcount is at
 * its maximum. */
int qcow2_ref_more(struct qcow2 *s, uint64_t host) REQUIRES(s->meta);
/* Take back one reference, that nothing has used, to each cluster of these
 * bytes.  They do not go through limbo: a caller that tries again for want of
 * room would find there what it has just left itself, for ever. */
void qcow2_ref_undo(struct qcow2 *s, uint64_t host, uint64_t bytes)
    REQUIRES(s->meta);

/* One reference more to each cluster of these bytes.  A failure, as of
 * qcow2_ref_more(), has changed nothing. */
int qcow2_ref_add(struct qcow2 *s, uint64_t host, uint64_t bytes)
    REQUIRES(s->meta);

/* The highest refcount that there is, and that there can be. */
int qcow2_refcount_highest(struct qcow2 *s, uint64_t *highest)
    EXCLUDES(s->meta);
uint64_t qcow2_refcount_max(const struct qcow2 *s);

/* The refcount of a cluster. */
int qcow2_refcount_get(struct qcow2 *s, uint64_t cluster, uint64_t *count)
    REQUIRES(s->meta);

/* refcount.c: one entry of a block of 2^@order bit wide refcounts. */
uint64_t qcow2_refcount_load(const void *block, unsigned order, uint64_t index);
void qcow2_refcount_store(void *block, unsigned order, uint64_t index,
                          uint64_t count);

/* --- room.c --- */

/* The L1 and the refcount table have room in the file by pages of so many
 * bytes. */
#define QCOW2_TABLE_PAGE UINT64_C(4096)

/* Has @file nothing at all there?  Then it reads as zeroes. */
bool qcow2_is_hole(struct node *file, uint64_t host, uint64_t bytes);

/* Give new metadata blocks in the file, which read as zeroes then.  -ENOSPC. */
int qcow2_take_room(struct qcow2 *s, uint64_t host, uint64_t bytes)
    REQUIRES(s->meta);
/* Give blocks to a table of the caches that is about to be changed. */
int qcow2_keep_room(struct qcow2 *s, struct qcow2_table *t) REQUIRES(s->meta);
/* Give blocks to entry @index of the L1 or the refcount table.  -EIO: there is
 * something else. */
int qcow2_keep_entry_room(struct qcow2 *s, uint64_t table_offset,
                          const _Atomic uint64_t *table, uint64_t entries,
                          uint64_t index) REQUIRES(s->meta);

/*
 * Is an operation that ended with *r, and has changed nothing, worth another
 * try?  It is if it found no room and clusters have been freed since *seen,
 * which is `released` as it was before the first try.  It also is if it has to
 * go on with a search (-EINPROGRESS).  Flushes, and waits a limited time for
 * requests that use freed clusters.  False: the error is in *r.
 */
bool qcow2_try_again(struct qcow2 *s, int *r, uint64_t *seen) EXCLUDES(s->meta);

/* --- write.c, zero.c --- */

int qcow2_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                  const struct iovec *iov, int iovcnt, unsigned flags);
/* -EINVAL: not whole clusters. */
int qcow2_clone(struct node *n, uint64_t offset, uint64_t bytes,
                struct node *from, uint64_t at);
int qcow2_zero(struct node *n, uint64_t offset, uint64_t bytes, unsigned flags);
int qcow2_zero_part(struct node *n, uint64_t offset, uint64_t bytes);
int qcow2_discard(struct node *n, uint64_t offset, uint64_t bytes);

/* Free whole clusters (or the end of the disk), because the disk will end
 * before them.  What they read as is undefined. */
int qcow2_cut_off(struct qcow2 *s, uint64_t offset, uint64_t bytes);

/* --- flush.c --- */

/* Write all metadata to the file, and flush the file. */
int qcow2_flush(struct node *n);
/* As qcow2_flush(), for a parent: the file is told before its last flush. */
int qcow2_flush_to_disk(struct node *n);

/* Write back if too much is dirty or waits to be freed.  Call this after a
 * change, without locks. */
int qcow2_relieve(struct qcow2 *s);

/* --- encrypt.c --- */

/*
 * Read the LUKS header of an image that has one, and unlock it with the secret
 * that the options name (not where only headers are looked at).  -EINPROGRESS:
 * that is left to who opens (core/toil.h).  -EPERM: the secret opens no slot.
 */
int qcow2_luks_open(struct qcow2 *s, const struct qcow2_header *h,
                    struct opts *opts, struct error **errp);
void qcow2_luks_free(struct qcow2 *s);

/* Members of the option "encrypt". */
extern const struct option qcow2_encrypt_options[];

/* Add the LUKS header's clusters to overlap.h's set. */
int qcow2_luks_cover(struct qcow2 *s) REQUIRES(s->meta);

/* Is the image encrypted, and its key not known?  Its data cannot be moved. */
bool qcow2_is_locked(const struct qcow2 *s);

/* "encrypt" of the image's description. */
json_t *qcow2_luks_describe(const struct qcow2 *s);

/* Write to a place of the data file, encrypted if the image is.  The place and
 * the length are whole sectors then. */
int qcow2_write_data(struct qcow2 *s, uint64_t host, uint64_t bytes,
                     const struct iovec *iov, int cnt, unsigned flags);

/* driver.decode and driver.write_coded. */
int qcow2_decode(struct node *n, uint64_t host, const struct iovec *iov,
                 int cnt);
int qcow2_write_coded(struct node *n, uint64_t host, uint64_t bytes,
                      const struct iovec *iov, int cnt, unsigned flags);

/* A key that was just made: the next open of this image in the same list of
 * toils (core/toil.h) finds it. */
struct toil *qcow2_luks_known(const unsigned char *header,
                              const unsigned char *key);

/* --- snapshot-make.c --- */

/* An entry for guest @offset has led to *@was, and leads to *@is (whole
 * clusters; without bytes: to none).  For
 * `making`. */
void qcow2_making_follow(struct qcow2 *s, uint64_t offset,
                         const struct qcow2_run *was,
                         const struct qcow2_run *is) REQUIRES(s->meta);

/* --- compress.c --- */

/* preadv of OPAQUE extents. */
int qcow2_read_compressed(struct node *n, uint64_t offset, uint64_t bytes,
                          const struct iovec *iov, int iovcnt, unsigned flags);

/* driver.write_compressed: pack.c. */
int qcow2_write_compressed(struct node *n, uint64_t offset, uint64_t bytes,
                           const void *buf);

/* --- qcow2.c, for a reopen --- */

/* Take the driver's own options.  *l2_bytes, *refcount_bytes: 0 if not given.
 * *overlap: enum qcow2_meta. */
int qcow2_take_options(struct opts *o, uint64_t *l2_bytes,
                       uint64_t *refcount_bytes, unsigned *overlap,
                       struct error **errp);
int qcow2_make_caches(struct qcow2 *s, uint64_t l2_bytes,
                      uint64_t refcount_bytes, struct error **errp);

/* May this driver write to an image with this header?  And clear what has to be
 * cleared in it before that. */
int qcow2_check_writable(const struct qcow2_header *h, struct error **errp);
int qcow2_clear_autoclear(struct qcow2 *s, const struct qcow2_header *h,
                          struct error **errp);
void qcow2_round_up_file(struct qcow2 *s);

/* --- reopen.c --- */

int qcow2_reopen(struct node *n, const struct node_flags *to,
                 struct error **errp);
void qcow2_reopen_commit(struct node *n);
void qcow2_reopen_abort(struct node *n);
extern const char *const qcow2_reopen_options[];
int qcow2_reopen_take(struct node *n, struct opts *opts, struct error **errp);
void qcow2_file_changed(struct node *n);

/* --- backing.c --- */

int qcow2_change_backing(struct node *n, const char *name, const char *fmt,
                         struct error **errp);

/* --- create.c, track.c, resize.c --- */

int qcow2_create(const struct driver_table *t, const char *filename,
                 struct opts *opts, struct file_make *how, struct error **errp);
int qcow2_format(struct graph *g, struct node *file, struct opts *opts,
                 struct node **opened, struct error **errp);
extern const char *const qcow2_create_options[];

struct image_track;
/* image_track, in a graph that has the drivers @t. */
int qcow2_track(const struct driver_table *t, const char *filename,
                const char *raw, const struct image_track *how,
                struct error **errp);

int qcow2_resize(struct node *n, uint64_t size, struct error **errp);

/* shrink.c: start, or stop, discarding released clusters in spite of the
 * options. */
void qcow2_give_back(struct qcow2 *s, bool on);
/* The disk has @size bytes now, and had more. */
void qcow2_give_back_end(struct qcow2 *s, uint64_t size);

/* Map all unallocated clusters of [@offset, @offset + @bytes) to new host
 * clusters without writing their data (preallocation=metadata). */
int qcow2_preallocate(struct node *n, uint64_t offset, uint64_t bytes);

/* make-room.c */
int qcow2_make_room(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned how);

#endif /* NBDELTA_QCOW2_QCOW2_H */
