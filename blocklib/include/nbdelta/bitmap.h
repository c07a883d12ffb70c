/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_BITMAP_H
#define NBDELTA_BITMAP_H

/*
 * Dirty bitmaps: which parts of a node changed
 * ============================================
 *
 * A bitmap belongs to a node and has one bit per granule (`granularity`
 * bytes, a power of two, 512 B to 2 GiB).  Every write, zero, discard or
 * growth that reaches the node sets bits, before the data is changed.  Names
 * and rules are those of QMP's block-dirty-bitmap-* commands:
 *
 *   recording     writes set bits (disabled bitmaps do not)
 *   busy          an operation uses it; it cannot be changed or removed
 *   inconsistent  it cannot be trusted; it can only be removed
 *
 * Each change of a bitmap is an action (action.h): on its own, or one of
 * several that happen together.
 */
#include <jansson.h>

#include "nbdelta/types.h"

struct action;

#define BITMAP_NAME_MAX 1023 /* bytes */

/* The caller keeps the name until the actions have run. */
struct bitmap_ref {
    struct node *node;
    const char *name;
};

/* --- job/bitmap-action.c --- */

/*
 * Functions that return an action in *ap only allocate it: -ENOMEM, or 0.  The
 * errors below are those of running it.
 *
 * Create an empty bitmap.  @granularity in bytes; 0: the cluster size of the
 * image, at least 4 KiB and at most 64 KiB.  -EINVAL: the granularity is bad,
 * or the name is empty or too long; -EEXIST: the name is taken; -ENOTSUP: the
 * bitmap is to be @persistent, and the node cannot store it.
 */
int bitmap_add_action(struct bitmap_ref ref, uint64_t granularity,
                      bool persistent, bool disabled, struct action **ap,
                      struct error **errp);

/* These fail with -ENOENT, and with -EBUSY for a busy bitmap.  All except
 * remove fail with -EINVAL for an inconsistent bitmap; remove takes all bitmaps
 * of that name.  Changes of persistent bitmaps are durable when the action has
 * run. */
int bitmap_remove_action(struct bitmap_ref ref, struct action **ap,
                         struct error **errp);
int bitmap_clear_action(struct bitmap_ref ref, struct action **ap,
                        struct error **errp);
int bitmap_enable_action(struct bitmap_ref ref, bool enable, struct action **ap,
                         struct error **errp);

/* Make the bitmap persistent, if it is not: it is in the image, with all its
 * bits and durably, when the action has run.  Errors as of clear, and -ENOTSUP:
 * the node cannot store it. */
int bitmap_persist_action(struct bitmap_ref ref, struct action **ap,
                          struct error **errp);

/*
 * Replace an inconsistent bitmap by a new one of the same name that has all
 * bits set.  The new bitmap records if the image says that the old one did.
 * @granularity 0: that of the old bitmap.  -EINVAL: the bitmap is not
 * inconsistent, or the granularity cannot be stored.
 */
int bitmap_repair_action(struct bitmap_ref ref, uint64_t granularity,
                         struct action **ap, struct error **errp);

/*
 * Add the bits of all @sources to a bitmap: granules that a source has dirty,
 * wholly or in part, become dirty.  The sizes of the nodes must be equal
 * (-EINVAL).  The array @sources is copied, the names in it are not.
 */
int bitmap_merge_action(struct bitmap_ref ref, const struct bitmap_ref *sources,
                        size_t count, struct action **ap, struct error **errp);

/* --- core/bitmap.c, core/bitmap-hold.c --- */

/* Has the image format of @n a place for bitmaps?
 * bitmap_check_persistent: could a new bitmap of the default granularity be
 * stored there?  0, or the error that bitmap_add_action would have. */
bool node_keeps_bitmaps(const struct node *n);
int bitmap_check_persistent(struct bitmap_ref ref, struct error **errp);

/* A bitmap by its name, with a new reference, or NULL.  It stays readable after
 * it is removed from its node.  Takes the tree lock of @n for a moment. */
struct bitmap *bitmap_find(struct node *n, const char *name);
void bitmap_ref(struct bitmap *bm);
void bitmap_unref(struct bitmap *bm); /* NULL is fine */

/*
 * Find the bitmap @name of @n and keep it busy until bitmap_release(): nobody
 * changes or removes it, but writes still set bits.  With @below, look at @n
 * and then at the images under it, and take the first bitmap of that name.
 * -ENOENT: there is none; -EBUSY: the bitmap is busy already; -EINVAL: it is
 * inconsistent.  Both functions drain, so they block.
 */
int bitmap_hold(struct graph *g, struct node *n, const char *name, bool below,
                struct bitmap **bmp, struct error **errp);
void bitmap_release(struct graph *g, struct bitmap *bm);

/* Of a bitmap that is held: does it record writes, and of which node? */
bool bitmap_enabled(const struct bitmap *bm);
struct node *bitmap_node(const struct bitmap *bm);

const char *bitmap_name(const struct bitmap *bm);
uint64_t bitmap_granularity(const struct bitmap *bm);

/* Dirty bytes: set bits times granularity. */
uint64_t bitmap_count(const struct bitmap *bm);

/*
 * Is @offset dirty, and for how long is that the same?  Writes to *dirty,
 * and returns the length of the run from @offset in bytes, at most to @end.
 * @offset < @end.  Bytes past the end of the bitmap (the disk has shrunk since)
 * are dirty.  Does not wait for a drain; concurrent writers may set bits in the
 * run meanwhile.  While a job uses the bitmap, changes since the job's start
 * are dirty, too.
 */
uint64_t bitmap_run(const struct bitmap *bm, uint64_t offset, uint64_t end,
                    bool *dirty);

/*
 * The same for many runs at once: to @end, or until there are @max (> 0).
 * *dirty: is the first one?  The states take turns.  Puts the length of each
 * into @lengths, and returns how many there are.  What changes bitmaps waits
 * meanwhile, so ask for some hundreds at most.  With @nowait, 0: the bitmap is
 * just being changed, and the call would have to wait.
 */
size_t bitmap_runs(const struct bitmap *bm, uint64_t offset, uint64_t end,
                   bool nowait, bool *dirty, uint64_t *lengths, size_t max);

/*
 * The bits of @bm as bytes: the first granule is the lowest bit of the first
 * byte.  *len, in bytes, is a multiple of 8 and at least 8.  The caller frees
 * the result; NULL: no memory.
 */
void *bitmap_bytes(const struct bitmap *bm, size_t *len);

/* Has it been removed from its node since bitmap_find?  Then it records nothing
 * any more.  So ask after bitmap_run, not before. */
bool bitmap_removed(const struct bitmap *bm);

/* May its bits be trusted: is it not inconsistent? */
bool bitmap_readable(const struct bitmap *bm);

/* What can be told of a bitmap: QMP's BlockDirtyInfo. */
struct bitmap_info {
    char *name; /* UTF-8; NULL: a job's own bitmap.  A name in an image can be
                   any bytes: U+FFFD replaces each byte that is not UTF-8 */
    uint64_t granularity;
    uint64_t count; /* dirty bytes */
    bool recording;
    bool persistent;
    bool busy;
    bool inconsistent;
    const char *why; /* the reason that it is inconsistent, or NULL */
};

/* All bitmaps of a node, newest first. */
struct bitmap_list {
    struct bitmap_info *at;
    size_t count;
};

/* The bitmaps of @n, as they are now.  Takes the tree lock of @n.  -ENOMEM:
 * *list is empty.  The caller calls bitmaps_free, which is also fine after a
 * failure. */
int bitmaps_get(struct node *n, struct bitmap_list *list);
void bitmaps_free(struct bitmap_list *list);
#define CLEANUP_BITMAPS __attribute__((cleanup(bitmaps_free)))

/* The same for QMP: a BlockDirtyInfo object, and an array of them for all
 * bitmaps of @n.  A new reference; NULL: no memory. */
json_t *bitmap_info_json(const struct bitmap_info *info);
json_t *bitmap_query(struct node *n);

/* The first image below the disk @n that has a bitmap of that name, or NULL.
 * It knows nothing of what is written to @n. */
struct node *bitmap_below(struct graph *g, struct node *n, const char *name);

/* --- core/blk.c --- */

/*
 * Bitmaps for threads that do not keep nodes from being replaced and closed.
 * "The bitmaps of @b" are the ones that record writes to the disk to which @b
 * is attached at the moment of the call.  Bitmaps of backing images are none of
 * them, because they know nothing of writes to the images above.
 *
 * blk_bitmap_find: the bitmap of this name, as by bitmap_find.
 * blk_bitmap_names: the names of all, a new array; NULL: no memory.
 * blk_bitmap_is_own: is @bm one of them?  1 or 0; with @nowait, -EAGAIN: it
 * would have to wait for a drain.
 */
struct bitmap *blk_bitmap_find(struct blk *b, const char *name);
json_t *blk_bitmap_names(struct blk *b);
int blk_bitmap_is_own(struct blk *b, const struct bitmap *bm, bool nowait);

/* --- drivers/dirty-view.c --- */

/*
 * Open a view of the disk to which @b is attached: the same bytes, read-only,
 * with other extents.  Where @bm is dirty they are data; elsewhere they are
 * holes that are said to be zeroes.  The extents are the bits of the moment of
 * this call.  The bytes, also those of the holes, are the disk's at the time of
 * reading.
 *
 * The caller keeps @b attached while this runs.  *viewp lives on its own until
 * blk_free().  Opening holds back no request, and views of bits that have not
 * changed share one copy of them.
 *
 * -ENOENT: @bm is not a bitmap of that disk any more, or @own was given and it
 * is a bitmap of an image below (see blk_bitmap_find); -EINVAL: @bm is
 * inconsistent; -EDQUOT: views have too many copies of bits.
 */
int blk_dirty_view(struct graph *g, struct blk *b, struct bitmap *bm, bool own,
                   const char *user, struct blk **viewp, struct error **errp);

#endif /* NBDELTA_BITMAP_H */
