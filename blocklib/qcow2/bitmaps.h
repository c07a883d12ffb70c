/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_BITMAPS_H
#define NBDELTA_QCOW2_BITMAPS_H

/*
 * Persistent bitmaps: what lies in the image, and what memory has beside it
 * =========================================================================
 *
 *   header extension --> directory --> table --> data clusters
 *    (number, place)      (name,        one entry a slice of the disk:
 *                          flags, ...)  zeroes, ones, or a cluster of bits
 *
 * Memory has the exact bits.  The image has at least these, at every instant
 * (bitmap-arm.c), and exactly these after a clean end (bitmap-store.c).  So
 * in_use is not set while the image is open: a program that opens it after a
 * crash may trust the bits.  There are two exceptions.  Bitmaps in quarantine
 * do not record.  They get in_use before the first change of data, because they
 * would be trusted when what is wrong with them has gone.  And a bitmap gets
 * in_use when writing has failed and cannot be mended in another way
 * (bitmap-doubt.c).
 *
 *   disk     |      slice (32 GiB at 64 KiB)       |     slice     | ...
 *            | region | region | (4 MiB) ...       |
 *   a region is armed: all its bits are ones in the image, durably
 *   a slice is stale:  the image may have more bits than memory
 *   a slice is loose:  it is stale, and not in its armed regions alone
 *   a slice is in doubt: the image may have another table entry than memory
 */
#include <jansson.h>

#include "core/dirty.h"
#include "qcow2/qcow2.h"

#define QCOW2_BITMAPS_MAX       65535
#define QCOW2_BITMAP_DIR_MAX    (64 * MiB)
#define QCOW2_BITMAP_TABLE_MAX  UINT32_C(0x8000000) /* entries */
#define QCOW2_BITMAP_BITS_MAX   (512 * MiB) /* bytes of one; QEMU's limit */
#define QCOW2_BITMAP_ENTRY_SIZE 24          /* of a directory entry, at least */
#define QCOW2_BITMAP_FLAGS_AT   12          /* in it */

#define QCOW2_BITMAP_IN_USE UINT32_C(1)
#define QCOW2_BITMAP_AUTO   UINT32_C(2)
#define QCOW2_BITMAP_EXTRA  UINT32_C(4) /* unknown extra data do no harm */

/* Table entries without a cluster. */
#define QCOW2_BITMAP_ZEROES UINT64_C(0)
#define QCOW2_BITMAP_ONES   UINT64_C(1)

/* In a table that is being made: to be found (qcow2_settle_slices). */
#define QCOW2_BITMAP_ANEW UINT64_MAX

typedef _Atomic uint64_t bitmap_word;

struct qcow2_bitmap {
    struct list in_image; /* in the order of the directory */

    /* What the directory says. */
    char *name;
    uint32_t name_len; /* bytes, without an end */
    uint32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    unsigned char *extra;
    uint32_t extra_len;
    uint64_t table_offset;
    uint32_t table_size; /* entries */

    const char *broken;  /* why it is in quarantine, or NULL */
    bool sound;          /* its table leads to clusters of its own; also of
                            some that are in quarantine */
    _Atomic bool voided; /* the image says in_use; one that is not in quarantine
                            becomes good when it is stored anew */
    struct bitmap *bm;   /* on the node, with this as `stored`; NULL: it is
                            removed, which the image does not know yet */
    uint32_t wanted;     /* flags that the image shall have; arm lock */

    uint64_t *table; /* if sound; host byte order; arm lock */
    const struct qcow2_bitmap *heir_of; /* while a new directory is made: the
                                           one whose clusters of bits it has,
                                           too; arm lock */

    /* Not in quarantine.  Tree lock for what is not atomic. */
    unsigned region_bits; /* log2 of a region in bytes of disk; not more than
                             a slice */
    uint64_t regions;
    uint64_t granules;      /* its bits */
    bitmap_word *armed;     /* a bit a region */
    bitmap_word *touched;   /* since the last look of the tightener */
    bitmap_word *stale;     /* a bit a slice */
    bitmap_word *loose;     /* a bit a slice; goes with stale */
    bitmap_word *doubt;     /* a bit a slice; arm lock */
    bitmap_word *unflushed; /* a bit a slice: its entry was written and may be
                               lost; arm lock */
    unsigned width;         /* log2 of the regions armed at once; arm lock */
    uint64_t armed_at;      /* ns, when that was last; arm lock */
};

/* --- bitmap-dir.c: the directory as bytes.  Pure. --- */

/*
 * Parse @count entries from @len bytes into @list (of struct qcow2_bitmap).
 * What can be told of one entry alone and makes it unusable is noted in
 * `broken`.  -EINVAL: the directory as a whole is not one.
 */
int qcow2_bitmap_dir_parse(const unsigned char *dir, uint64_t len,
                           uint32_t count, struct list *list);
uint64_t qcow2_bitmap_dir_size(struct qcow2_bitmap *const *dir,
                               uint32_t count); /* bytes */
void qcow2_bitmap_dir_write(struct qcow2_bitmap *const *dir, uint32_t count,
                            unsigned char *to);
uint64_t qcow2_bitmap_entry_bytes(uint64_t extra_len, uint64_t name_len);
uint64_t qcow2_bitmap_entry_size(const struct qcow2_bitmap *qb); /* bytes */
void qcow2_bitmap_free(struct qcow2_bitmap *qb); /* takes it off its list */

/* --- Sizes. --- */

/* Bytes of disk that one table entry stands for, as a power of two. */
static inline unsigned qcow2_slice_bits(const struct qcow2 *s,
                                        const struct qcow2_bitmap *qb)
{
    return qb->granularity_bits + s->cluster_bits + 3;
}
/* Log2 of the number of regions of a slice. */
static inline unsigned qcow2_regions_bits(const struct qcow2 *s,
                                          const struct qcow2_bitmap *qb)
{
    return qcow2_slice_bits(s, qb) - qb->region_bits;
}
/* Some regions: [first, end). */
struct qcow2_regions {
    uint64_t first;
    uint64_t end;
};
static inline struct qcow2_regions qcow2_regions_of(
    const struct qcow2 *s, const struct qcow2_bitmap *qb, uint64_t slice)
{
    unsigned per = qcow2_regions_bits(s, qb);

    return (struct qcow2_regions){slice << per,
                                  min_u64((slice + 1) << per, qb->regions)};
}
/* Table entries for a disk of @size bytes. */
static inline uint64_t qcow2_slices(const struct qcow2 *s,
                                    const struct qcow2_bitmap *qb,
                                    uint64_t size)
{
    return div_up(size, UINT64_C(1) << qcow2_slice_bits(s, qb));
}

/* --- bitmap-load.c --- */

/* Read the bitmaps of an image that is being opened.  What is broken is put
 * into quarantine; errors are of memory only. */
int qcow2_bitmaps_load(struct qcow2 *s, const struct qcow2_header *h,
                       struct error **errp);
void qcow2_bitmaps_init(struct qcow2 *s);
void qcow2_bitmaps_free(struct qcow2 *s); /* the memory */

/* As `qemu-img info` lists them; a new reference. */
json_t *qcow2_bitmaps_describe(const struct qcow2 *s);

/* Make room for the bitmap's marks of a disk of @size bytes.  -ENOMEM. */
int qcow2_bitmap_marks(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t size);

static inline bool bitmap_word_get(const bitmap_word *w, uint64_t i)
{
    return atomic_load(&w[i / 64]) >> i % 64 & 1;
}
/* The bits of word @word that are in [@first, @end). */
static inline uint64_t bitmap_word_mask(uint64_t word, uint64_t first,
                                        uint64_t end)
{
    uint64_t mask = UINT64_MAX;

    mask &= first > word * 64 ? UINT64_MAX << first % 64 : mask;
    return end < (word + 1) * 64 ? mask & ~(UINT64_MAX << end % 64) : mask;
}
static inline void bitmap_word_set(bitmap_word *w, uint64_t i)
{
    if (!bitmap_word_get(w, i)) {
        atomic_fetch_or(&w[i / 64], UINT64_C(1) << i % 64);
    }
}
static inline void bitmap_word_clear(bitmap_word *w, uint64_t i)
{
    atomic_fetch_and(&w[i / 64], ~(UINT64_C(1) << i % 64));
}

/* --- bitmap-doubt.c --- */

/* Write a table entry.  Memory takes it, or the entry is in doubt. */
int qcow2_put_entry(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t slice,
                    uint64_t entry) REQUIRES(s->bitmaps.arm_lock);
/* Write "all ones" as qcow2_put_entry() does.  What the entry led to becomes an
 * orphan. */
int qcow2_put_ones(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t slice)
    REQUIRES(s->bitmaps.arm_lock);
/* Write "zeroes" for some slices, up to QCOW2_ENTRIES_MAX, in the same way. */
#define QCOW2_ENTRIES_MAX 64
int qcow2_put_zeroes(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t first,
                     unsigned count) REQUIRES(s->bitmaps.arm_lock);
int qcow2_write_table(struct qcow2 *s, const struct qcow2_bitmap *qb,
                      const uint64_t *table);

/* Entries put after _begin are covered by the next _flush, which flushes them
 * as far as bitmap-durability wants it.  @through: each is durable, or in
 * doubt, when it has been put (through.c), if that is possible: true. */
bool qcow2_entries_begin(struct qcow2 *s, bool through)
    REQUIRES(s->bitmaps.arm_lock);
int qcow2_flush_entries(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock);

/* A flush of another caller has failed.  Takes no lock. */
void qcow2_flush_failed(struct qcow2 *s);
/* Flush the image's file; reports a failure to qcow2_flush_failed(). */
int qcow2_flush_file(struct qcow2 *s);
/* The files are other nodes, or are new. */
void qcow2_files_changed(struct qcow2 *s);

/* Does the image need a new directory to have what memory has? */
bool qcow2_needs_store(const struct qcow2 *s);

/* Have the header lead to @x, and state another disk unless that is NULL.
 * @through: as of qcow2_set_bitmaps_ext().  On failure the header is in doubt,
 * and is restored from memory if possible. */
int qcow2_switch_header(struct qcow2 *s, const struct qcow2_bitmaps_ext *x,
                        const struct qcow2_disk *to, bool through)
    REQUIRES(s->bitmaps.arm_lock);
int qcow2_switch_size(struct qcow2 *s, uint64_t size);

/* Call this when a directory that is sure and complete has been adopted. */
void qcow2_bitmaps_sure(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock);

/* Free @bytes at @host as soon as there is no doubt any more. */
void qcow2_orphan(struct qcow2 *s, uint64_t host, uint64_t bytes)
    REQUIRES(s->bitmaps.arm_lock);

/* End the doubt, if there is any; driver_bitmaps.heal. */
int qcow2_heal(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock);
int qcow2_bitmap_heal(struct node *n, bool nowait);

/* Mark the node as in doubt. */
void qcow2_bitmap_doubt(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock);

/* Set in_use in the image for bitmaps in quarantine. */
int qcow2_bitmap_void(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock);

/* --- bitmap-arm.c --- */

/* Bytes of disk in armed regions, of each bitmap; the control lock. */
uint64_t qcow2_armed_bytes(const struct qcow2 *s);

bool qcow2_any_armed(const struct qcow2_bitmap *qb,
                     struct qcow2_regions regions);

int qcow2_bitmap_arm(struct node *n, struct bitmap *bm, uint64_t offset,
                     uint64_t bytes, bool nowait);

/* Make a cluster with these bits, durably.  It counts, and nothing leads to
 * it. */
int qcow2_bits_cluster(struct qcow2 *s, const unsigned char *bits,
                       uint64_t *hostp);
/* Have the entry of a slice without a cluster lead to such a cluster. */
int qcow2_hook_up_bits(struct qcow2 *s, struct qcow2_bitmap *qb, uint64_t slice,
                       uint64_t host) REQUIRES(s->bitmaps.arm_lock);

/* --- bitmap-tighten.c --- */

/* Write exact bits for regions that have been quiet since the last call, and
 * what qcow2_bitmaps_relax() does. */
int qcow2_bitmaps_tighten(struct qcow2 *s);

/* Bits went from memory: have them go from the image, too, except in regions
 * that are armed beside bits that are there.  In a request; blocks as a flush
 * does.  What fails, or makes room for a drain, is done by the tightener. */
void qcow2_bitmaps_relax(struct qcow2 *s) EXCLUDES(s->bitmaps.arm_lock);

/* Make durable what was written before bits were cleared.  No bits go
 * meanwhile. */
int qcow2_bitmaps_sync(struct qcow2 *s);

/* One look at what the image has too much. */
struct qcow2_look {
    struct qcow2 *s;
    unsigned ahead; /* bitmaps.ahead when it began */
    bool quiet;     /* it writes armed regions that have been quiet, too */
};

/* Shall it end, because guests are about to be held up? */
bool qcow2_look_ends(const struct qcow2_look *k);

/* Lock it, when no guest waits for it, or has waited long enough. */
void qcow2_take_arm_lock(struct qcow2 *s) ACQUIRES(s->bitmaps.arm_lock);

/* Arm lock, or drained. */
void qcow2_disarm(struct qcow2_bitmap *qb, struct qcow2_regions r);

/* --- bitmap-empty.c --- */

/* Have loose slices without bits go from the image. */
int qcow2_empty_slices(const struct qcow2_look *k, struct qcow2_bitmap *qb);

/* Call qcow2_bitmaps_tighten() now and then while the image is open. */
int qcow2_tightener_start(struct qcow2 *s);
void qcow2_tightener_stop(struct qcow2 *s);

/* --- bitmap-store.c: drained. --- */

int qcow2_store_bitmaps(struct node *n, struct error **errp);
int qcow2_store_ahead(struct node *n, bool more);
int qcow2_store_behind(struct node *n);
int qcow2_check_bitmap(struct node *n, const char *name, uint64_t granularity,
                       struct error **errp);
/* Has it more bits than the format, or other readers of it, allow? */
bool qcow2_bitmap_too_large(uint64_t size, uint64_t granularity);
/* May the disk have @size bytes?  -EFBIG: a stored bitmap may not. */
int qcow2_check_bitmaps_fit(struct node *n, uint64_t size, struct error **errp);
void qcow2_bitmap_relaxed(struct node *n, struct bitmap *bm);
void qcow2_bitmap_gone(struct bitmap *bm);

/* Store bitmaps for a disk of another size; bitmaps in memory are not shorter.
 * One write makes the new directory and the disk count. */
int qcow2_bitmaps_resize(struct qcow2 *s, const struct qcow2_disk *to);

/* Store what only a new directory can say. */
int qcow2_store_directory(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock);

/* Free the cluster that a table entry leads to, if there is one; _shared: of an
 * entry that a directory may have to which the header may lead, too. */
void qcow2_free_bits(struct qcow2 *s, uint64_t entry);
void qcow2_free_shared_bits(struct qcow2 *s, uint64_t entry)
    REQUIRES(s->bitmaps.arm_lock);

/* --- bitmap-settle.c --- */

/* Write exact bits for all bitmaps, before the image is closed; drained. */
int qcow2_bitmaps_settle(struct qcow2 *s);

/*
 * Find the entries of @table that are "anew", and write their exact bits where
 * these need a cluster: the one of @old, whose bits may become more exact at
 * once, or a new one that nothing leads to.  Drained.  @ones: a slice without
 * room gets "all ones" and stays stale; else that is -ENOSPC.  On failure no
 * entry is "anew": some are new, the others as in @old.
 */
int qcow2_settle_slices(struct qcow2 *s, struct qcow2_bitmap *qb,
                        const uint64_t *old, uint64_t *table, uint32_t count,
                        bool ones);

/* The image may have more bits of the slice than memory, anywhere; it has the
 * same ones. */
void qcow2_mark_stale(struct qcow2_bitmap *qb, uint64_t slice);
void qcow2_mark_exact(struct qcow2_bitmap *qb, uint64_t slice);

/* Write exact bits of regions of a slice into its cluster at @host. */
int qcow2_write_exact(struct qcow2 *s, const struct qcow2_bitmap *qb,
                      uint64_t slice, uint64_t host,
                      struct qcow2_regions regions);

/* Copy the exact bits of one slice to @buf, a cluster; zeroes behind the
 * end. */
void qcow2_bitmap_slice(const struct qcow2 *s, const struct qcow2_bitmap *qb,
                        uint64_t slice, unsigned char *buf);

/* The table entry that says the bits of a slice without a cluster; else any
 * other value.  Bits that are all alike are found without looking at each of
 * them. */
uint64_t qcow2_plain_entry(const struct qcow2 *s, const struct qcow2_bitmap *qb,
                           uint64_t slice);

/* --- bitmap-fresh.c: drained. --- */

/* Does the directory lack new bitmaps only, which can be stored without a
 * flush? */
bool qcow2_store_is_fresh(const struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock);

/* Make the table of a bitmap that is new, and its clusters of bits, and write
 * them through.  *counts: they count durably. */
int qcow2_make_fresh_table(struct qcow2 *s, struct qcow2_bitmap *qb,
                           bool *counts) REQUIRES(s->bitmaps.arm_lock);

/* Allocate and write what such a store will need.  It is sure if a flush
 * succeeds after that.  What is not needed is given back by _drop. */
void qcow2_reserve_take(struct qcow2 *s) EXCLUDES(s->bitmaps.arm_lock);
void qcow2_reserve_flushed(struct qcow2 *s) EXCLUDES(s->bitmaps.arm_lock);
void qcow2_reserve_drop(struct qcow2 *s) REQUIRES(s->bitmaps.arm_lock);

/* Clusters of the reserve, or new ones; *counts says that they do durably. */
int qcow2_fresh_clusters(struct qcow2 *s, uint64_t count, uint64_t *host,
                         bool *counts) REQUIRES(s->bitmaps.arm_lock);

/* Where the clusters of such a bitmap are. */
struct qcow2_run qcow2_fresh_run(const struct qcow2 *s,
                                 const struct qcow2_bitmap *qb);

/* --- header-ext.c --- */

/* Make the extension @x count, and with it what the header says of the disk if
 * that changes (else NULL).  It is durable then.  A crash leaves the state
 * before or after.  @through: without a flush, because what it leads to is
 * durable (through.c). */
int qcow2_set_bitmaps_ext(struct qcow2 *s, const struct qcow2_bitmaps_ext *x,
                          const struct qcow2_disk *to, bool through);

/* --- through.c --- */

bool qcow2_can_write_through(const struct qcow2 *s);

/* Write metadata that are durable then, without a flush of anything else. */
int qcow2_write_through(struct qcow2 *s, const void *buf, uint64_t bytes,
                        uint64_t host);

/* Make durable that these clusters count, which were allocated. */
int qcow2_counts_through(struct qcow2 *s, const struct qcow2_run *runs,
                         size_t count) EXCLUDES(s->flush_lock);

#endif /* NBDELTA_QCOW2_BITMAPS_H */
