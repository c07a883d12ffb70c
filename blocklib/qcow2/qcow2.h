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
 * Locks: flush_lock, then meta, then the locks inside of the caches, then
 * copied.lock.
 *   range  (guest clusters) held while the mapping of a range is changed
 *   meta   held while L1, L2, refcounts are changed; no data I/O under it
 * Readers take none of them: they pin an L2 table and load its entries
 * atomically, and hold a ticket (extents in hand) until the bytes are moved.
 */
#include "core/node.h"
#include "nbdelta/bytes.h"
#include "nbdelta/option.h"
#include "qcow2/cache.h"
#include "qcow2/header.h"
#include "qcow2/overlap.h"
#include "qcow2/snapshots.h"

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
    bool through;              /* qcow2_entries_begin() */
    bool header_doubt;         /* it may lead to another directory, */
    bool size_doubt;           /* or have another size of the disk, */
    bool l1_doubt;             /* and another L1 table */
    struct qcow2_run *orphans; /* what states in doubt may lead to */
    size_t orphan_count;
    size_t orphan_room;

    /* --- Guarded by arm_lock. --- */
    struct qcow2_run reserve; /* clusters that count durably (bitmap-fresh.c) */
    bool reserve_sure;
    bool behind; /* a directory was stored without a flush */

    mutex_t queue_lock;

    /* --- Guarded by queue_lock. --- */
    struct list queue; /* of requests to arm regions */

    /* --- Atomic. --- */
    _Atomic bool relaxed;      /* bits went; see qcow2_bitmaps_sync */
    _Atomic unsigned relaxing; /* calls of qcow2_bitmaps_relax */
    _Atomic unsigned waiting;  /* requests that wait for arm_lock */
    _Atomic unsigned ahead;    /* how often a drained section was announced */
    _Atomic bool flush_failed; /* since the flag was last looked at */
    _Atomic uint64_t ahead_ns; /* what was written before is durable */
};

/* The last cluster that was unpacked: compress.c. */
struct qcow2_unpacked {
    mutex_t lock;

    /* --- Guarded by lock. --- */
    struct qcow2_run packed; /* what it was unpacked from; no bytes: none */
    unsigned char *cluster;
};

/* Where old data in a new cluster came from. */
enum qcow2_source {
    QCOW2_FROM_ZEROES,
    QCOW2_FROM_BACKING, /* the same guest bytes */
    QCOW2_FROM_PLACE,
    QCOW2_FROM_PACKED, /* a compressed cluster */
    QCOW2_FROM_ITSELF, /* nobody knows any more */
};

/* Old data in a new cluster, in a row. */
struct qcow2_copy {
    uint64_t offset; /* guest bytes */
    uint64_t host;   /* their new place */
    uint64_t bytes;
    enum qcow2_source source;
    struct qcow2_run from;   /* a place, or the compressed bytes */
    struct qcow2_copy *more; /* what was behind bytes that were overwritten */
    uint64_t older;          /* copied.c: the note before it in its slot */
};

/* Old data in new clusters: copied.c. */
struct qcow2_copied {
    mutex_t lock; /* taken last */

    /* --- Guarded by lock. --- */
    struct qcow2_copy *list; /* oldest first */
    size_t room;
    size_t cuts; /* pieces in the lists of `more` */

    /* --- Set when the first is noted. --- */
    _Atomic uint64_t *slots; /* the newest note of the slot's clusters */

    /* --- Atomic; changed under lock. --- */
    _Atomic size_t count;
    _Atomic uint64_t gone; /* notes that were there before list[0] */

    /* --- Atomic. --- */
    _Atomic uint64_t losses; /* how often all of it may have been lost, */
    _Atomic uint64_t mended; /* and up to which of these it was mended */
    _Atomic bool mending;    /* map() gives no place to overwrite */
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
    struct qcow2_asleep *asleep; /* what the node had before this state, while
                                    that may not stay; or NULL (wake.c) */

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
    uint64_t snapshots_serial; /* of the table; no other one has or had it */

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
    struct qcow2_making *making;     /* a snapshot, or NULL */
    struct qcow2_counting *counting; /* references to clusters, or NULL */
    struct list views;               /* of its snapshots: snapshot-view.c */

    /* --- Atomic. --- */
    _Atomic uint64_t epoch;
    _Atomic uint64_t users[2]; /* extents in hand, by parity of the epoch */
    _Atomic uint64_t released; /* clusters that became free out of limbo */
    _Atomic bool corrupt;      /* no more writes */
    flush_mark file_failed;    /* flushes of file, as far as we know of them */
    flush_mark data_failed;    /* the same of an external data file */
    struct qcow2_overlap *_Atomic overlap; /* NULL while read-only */
    _Atomic unsigned overlap_checked;      /* enum qcow2_meta: the option */
    _Atomic bool keep_clusters;            /* the option discard-no-unref */

    struct qcow2_bitmaps bitmaps;
    struct qcow2_copied copied;
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

/* --- map.c --- */

/* Under one ticket, and with one look for the table. */
int qcow2_map_many(struct node *n, uint64_t offset, uint64_t bytes,
                   unsigned flags, struct mapping *m, unsigned *count);
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
/* Make whole subclusters (or the end of the disk) zeroes, in clusters that the
 * caller has locked, and has found unallocated: copy-up.c. */
int qcow2_zero_copied_up(struct qcow2 *s, uint64_t offset, uint64_t bytes);

/* driver.copy_up: copy-up.c. */
int qcow2_copy_up(struct node *n, uint64_t offset, uint64_t bytes,
                  const void *buf, unsigned flags);

/* --- flush.c --- */

/* Write all metadata to the file, and flush the file. */
int qcow2_flush(struct node *n);
/* As qcow2_flush(), for a parent: the file is told before its last flush. */
int qcow2_flush_to_disk(struct node *n);

/* Write back if too much is dirty or waits to be freed.  Call this after a
 * change, without locks. */
int qcow2_relieve(struct qcow2 *s);
bool qcow2_is_pressed(struct qcow2 *s) REQUIRES(s->meta);

/* --- snapshot-make.c --- */

/* An entry for guest @offset has led to *@was, and leads to *@is (whole
 * clusters; without bytes: to none).  For
 * `making`. */
void qcow2_making_follow(struct qcow2 *s, uint64_t offset,
                         const struct qcow2_run *was,
                         const struct qcow2_run *is) REQUIRES(s->meta);

/* --- snapshot-counts.c --- */

/* The same, for `counting`. */
void qcow2_counting_follow(struct qcow2 *s, uint64_t offset,
                           const struct qcow2_run *was,
                           const struct qcow2_run *is) REQUIRES(s->meta);

/* --- compress.c --- */

/* preadv of OPAQUE extents. */
/* Bytes, from @in_cluster on, of the cluster that is compressed at @packed. */
int qcow2_read_packed(struct qcow2 *s, const struct qcow2_run *packed,
                      uint64_t in_cluster, uint64_t bytes, void *buf);
int qcow2_read_compressed(struct node *n, uint64_t offset, uint64_t bytes,
                          const struct iovec *iov, int iovcnt, unsigned flags);

/* driver.write_compressed: pack.c. */
int qcow2_write_compressed(struct node *n, uint64_t offset, uint64_t bytes,
                           const void *buf);

/* --- qcow2.c --- */

/* What each state needs, whatever the image is; and free all that it has. */
void qcow2_state_init(struct qcow2 *s);
void qcow2_state_free(struct qcow2 *s);
void qcow2_limits(struct node *n, struct limits *lim);

/* --- qcow2.c, for a reopen --- */

/* Take the driver's own options.  *l2_bytes, *refcount_bytes: 0 if not given.
 * *overlap: enum qcow2_meta.  *keep: discard-no-unref, which the image has to
 * allow (qcow2_check_keep, -EINVAL). */
int qcow2_take_options(struct opts *o, uint64_t *l2_bytes,
                       uint64_t *refcount_bytes, unsigned *overlap, bool *keep,
                       struct error **errp);
int qcow2_check_keep(const struct qcow2 *s, bool keep, struct error **errp);
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

/* --- wake.c, and what it needs of qcow2.c --- */

/* May the image be inactive?  It has been put away. */
int qcow2_check_rest(struct qcow2 *s, struct error **errp);
/* Take the persistent bitmaps off the node; the image keeps them. */
void qcow2_bitmaps_leave(struct qcow2 *s);

/* Read the image anew, as read-only, for a node that becomes active, and
 * @writable after that.  One of the other two follows, also after a failure. */
int qcow2_wake(struct node *n, bool writable, struct error **errp);
void qcow2_wake_commit(struct node *n);
void qcow2_wake_abort(struct node *n);

/* Fill in @s as an open does, with the options of @old. */
int qcow2_read_all(struct qcow2 *s, struct qcow2_header *h,
                   const struct qcow2 *old, struct error **errp);

/* --- backing.c --- */

int qcow2_change_backing(struct node *n, const char *name, const char *fmt,
                         struct error **errp);

/* --- amend.c --- */

struct image_amend;
int qcow2_amend(struct node *n, struct opts *opts,
                const struct image_amend *how, struct error **errp);
extern const char *const qcow2_amend_options[];

/* --- create.c, measure.c, track.c, resize.c --- */

int qcow2_create(const struct driver_table *t, const char *filename,
                 struct opts *opts, struct file_make *how, struct error **errp);
int qcow2_format(struct graph *g, struct node *file, struct opts *opts,
                 struct node **opened, struct error **errp);
extern const char *const qcow2_create_options[];
int qcow2_measure(struct opts *opts, const struct measure_source *source,
                  struct image_measure *m, struct error **errp);

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
/* Flush until limbo is empty; *empty: it is.  Requests in hand may keep
 * clusters there. */
int qcow2_empty_limbo(struct qcow2 *s, bool *empty);

/* Map all unallocated clusters of [@offset, @offset + @bytes) to new host
 * clusters without writing their data (preallocation=metadata). */
int qcow2_preallocate(struct node *n, uint64_t offset, uint64_t bytes);

/* make-room.c */
int qcow2_make_room(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned how);

/* leave.c */
int qcow2_leave_range(struct node *n, uint64_t offset, uint64_t bytes);
int qcow2_leave_end(struct node *n);

#endif /* NBDELTA_QCOW2_QCOW2_H */
