/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_HBITMAP_H
#define NBDELTA_CORE_HBITMAP_H

/*
 * Hierarchical bitmap: bits over a byte range, found fast, set without locks
 * ==========================================================================
 *
 * One bit per granule; above it, levels of which one bit covers a word of the
 * level below and says "something may be set there".  Setting a bit that
 * is set costs one load.  The number of set bits is kept.
 *
 * _set, _get, _count, _run, _runs, _next_dirty and _merge may run in any number
 * of threads with each other: bits that a set has made when it returns are
 * found by all calls that begin later.  _reset may run beside them too: a bit
 * that is set and reset at once ends up as either, no other bit suffers; only
 * while it runs may a search overlook bits within 64 granules that are set just
 * then. For all other functions, no other thread may use the bitmap.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hbitmap;

/* NULL: no memory.  @granularity is a power of two.  @size may be 0.  Memory
 * that is never set is never touched. */
struct hbitmap *hbitmap_new(uint64_t size, uint64_t granularity);
void hbitmap_free(struct hbitmap *h); /* NULL is fine */

uint64_t hbitmap_size(const struct hbitmap *h);
uint64_t hbitmap_granularity(const struct hbitmap *h);

/* Set all granules that the range touches.  Range inside the size, bytes may be
 * 0.  A thread that sees what the caller does next sees the bits, too. */
void hbitmap_set(struct hbitmap *h, uint64_t offset, uint64_t bytes);

/* As hbitmap_set(), where no other thread uses the bitmap: much faster for a
 * large range. */
void hbitmap_set_alone(struct hbitmap *h, uint64_t offset, uint64_t bytes);

/* Reset all granules that the range touches. */
void hbitmap_reset(struct hbitmap *h, uint64_t offset, uint64_t bytes);
void hbitmap_reset_all(struct hbitmap *h);

bool hbitmap_get(const struct hbitmap *h, uint64_t offset);

/* Set bits times granularity.  Never less than what is set, unless the same
 * granules are set and reset at once. */
uint64_t hbitmap_count(const struct hbitmap *h);

/* Are all granules that the range touches set?  True for no bytes. */
bool hbitmap_all_set(const struct hbitmap *h, uint64_t offset, uint64_t bytes);

/* Is everything that is dirty in @inner dirty in @outer?  False when the sizes
 * differ.  No thread changes them meanwhile. */
bool hbitmap_covers(const struct hbitmap *outer, const struct hbitmap *inner);

/*
 * State at @offset (< @end <= size) and how long it lasts: returns the
 * length of the run from @offset, cut at @end.
 */
uint64_t hbitmap_run(const struct hbitmap *h, uint64_t offset, uint64_t end,
                     bool *dirty);

/*
 * The runs from @offset (< @end <= size) on, of what is dirty in @h or in @more
 * (NULL: there is no more; else of the same size and granularity): to @end, or
 * until there are @max (> 0) of them.  *dirty: is the first one?  The states
 * take turns.  Puts the length of each in bytes into @lengths, the last one cut
 * at @end, and returns how many there are.
 */
size_t hbitmap_runs(const struct hbitmap *h, const struct hbitmap *more,
                    uint64_t offset, uint64_t end, bool *dirty,
                    uint64_t *lengths, size_t max);

/* The next dirty area in [@offset, @end): false when there is none; else
 * *start >= offset and *bytes > 0, cut at the ends. */
bool hbitmap_next_dirty(const struct hbitmap *h, uint64_t offset, uint64_t end,
                        uint64_t *start, uint64_t *bytes);

/* dst |= src, across granularities: a granule of @dst becomes dirty when
 * one of @src that overlaps it is.  Equal sizes. */
void hbitmap_merge(struct hbitmap *dst, const struct hbitmap *src);

/* As hbitmap_merge(), where no other thread uses @dst yet: much faster. */
void hbitmap_fill(struct hbitmap *dst, const struct hbitmap *src);

/*
 * While two stamps of a bitmap are equal, nothing was reset between them: bits
 * were added at most, so with as many bits as then it has the same ones.  No
 * other bitmap has or had the same stamp.
 */
struct hbitmap_stamp {
    uint64_t bitmap;
    uint64_t resets;
};
struct hbitmap_stamp hbitmap_stamp(const struct hbitmap *h);

/* The memory of @h when all of it is touched. */
size_t hbitmap_bytes(const struct hbitmap *h);

/* A copy with the same granularity, or NULL.  Bits of @h may be set meanwhile:
 * they are in it or not; hbitmap_count(copy) is exact. */
struct hbitmap *hbitmap_copy(const struct hbitmap *h);

/*
 * The same where no other thread uses @h: the two share their bits, page by
 * page, until one of them changes a page.  So it takes hardly any time or
 * memory, and the copy is exact.  Afterwards each is used like any other.
 */
struct hbitmap *hbitmap_share(struct hbitmap *h);

uint64_t hbitmap_granules(const struct hbitmap *h); /* bits, set or not */

/*
 * Bits as bytes, the first granule in the lowest bit of the first byte, as
 * qcow2 stores them: div_up(@count, 8) of them, what is left of the last one
 * is zero.  @first is a multiple of 8.  or_in adds to what is in @buf; import
 * sets, and resets nothing (@first is a multiple of 64).
 */
void hbitmap_or_in(const struct hbitmap *h, uint64_t first, uint64_t count,
                   void *buf);
void hbitmap_import(struct hbitmap *h, uint64_t first, uint64_t count,
                    const void *buf);

/* Grow or shrink; new granules are clean.  Nothing is copied, and only bits
 * that go cost time.  0 or -ENOMEM, then unchanged.  Going back to a size that
 * it has had never fails. */
int hbitmap_resize(struct hbitmap *h, uint64_t size);

#endif /* NBDELTA_CORE_HBITMAP_H */
