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
 * What changes them is an action (action.h): on its own, or one of several
 * that happen together.
 */
#include <jansson.h>

#include "nbdelta/types.h"

struct action;

#define BITMAP_NAME_MAX 1023 /* bytes */

/* The names must live until the actions have run. */
struct bitmap_ref {
    struct node *node;
    const char *name;
};

/*
 * Create an empty bitmap.  @granularity 0: the cluster size of the image,
 * at least 4 KiB and at most 64 KiB.  -EINVAL: bad granularity, name empty
 * or too long; -EEXIST: the name is taken; -ENOTSUP: @persistent on a node
 * that cannot store it.
 */
int bitmap_add_action(struct bitmap_ref ref, uint64_t granularity,
                      bool persistent, bool disabled, struct action **ap,
                      struct error **errp);

/* These fail with -ENOENT, with -EBUSY for a busy bitmap, and (but for
 * remove, which takes all of that name) with -EINVAL for an inconsistent
 * one.  Of a persistent bitmap they are durable when they have run. */
int bitmap_remove_action(struct bitmap_ref ref, struct action **ap,
                         struct error **errp);
int bitmap_clear_action(struct bitmap_ref ref, struct action **ap,
                        struct error **errp);
int bitmap_enable_action(struct bitmap_ref ref, bool enable, struct action **ap,
                         struct error **errp);

/* Has the image format of @n a place for bitmaps?  And could a new one, of the
 * default granularity, be stored there: 0, or the error that it would be. */
bool node_keeps_bitmaps(const struct node *n);
int bitmap_check_persistent(struct bitmap_ref ref, struct error **errp);

/* Make it persistent, if it is not: it is in the image, with all its bits, when
 * the action has run.  Also -ENOTSUP: the node cannot store it. */
int bitmap_persist_action(struct bitmap_ref ref, struct action **ap,
                          struct error **errp);

/*
 * Replace an inconsistent bitmap by one of that name with all bits set, which
 * records if that one is said to do so.  @granularity 0: as it was.  -EINVAL:
 * it is not inconsistent, or has a granularity that cannot be stored.
 */
int bitmap_repair_action(struct bitmap_ref ref, uint64_t granularity,
                         struct action **ap, struct error **errp);

/*
 * Add the bits of all @sources to a bitmap: granules that one of them has
 * dirty, wholly or in part, become dirty.  The sizes of the nodes must be
 * equal (-EINVAL).  @sources is copied.
 */
int bitmap_merge_action(struct bitmap_ref ref, const struct bitmap_ref *sources,
                        size_t count, struct action **ap, struct error **errp);

/* A bitmap by name with a new reference, or NULL.  It stays readable after
 * it is removed from its node.  Takes the tree lock of @n for a moment. */
struct bitmap *bitmap_find(struct node *n, const char *name);
void bitmap_ref(struct bitmap *bm);
void bitmap_unref(struct bitmap *bm); /* NULL is fine */

/*
 * Find the bitmap @name of @n or, with @below, of the first node that has one
 * among @n and the images under it, and keep it busy until bitmap_release():
 * nobody changes or removes it, but writes still set bits.  -ENOENT; -EBUSY:
 * somebody else does so; -EINVAL: inconsistent.
 */
int bitmap_hold(struct graph *g, struct node *n, const char *name, bool below,
                struct bitmap **bmp, struct error **errp);
void bitmap_release(struct graph *g, struct bitmap *bm);

/* Of a bitmap that is held: does it record writes, and whose? */
bool bitmap_enabled(const struct bitmap *bm);
struct node *bitmap_node(const struct bitmap *bm);

const char *bitmap_name(const struct bitmap *bm);
uint64_t bitmap_granularity(const struct bitmap *bm);

/* Dirty bytes: set bits times granularity. */
uint64_t bitmap_count(const struct bitmap *bm);

/*
 * Is @offset dirty, and for how long is that the same?  Writes to *dirty,
 * and returns the length of the run from @offset, at most to @end.
 * @offset < @end; what lies past the bitmap (the disk has shrunk since) is
 * dirty.  Does not wait for a drain; concurrent writers may set bits in the
 * run meanwhile.  While a job uses the bitmap, what changes is dirty too.
 */
uint64_t bitmap_run(const struct bitmap *bm, uint64_t offset, uint64_t end,
                    bool *dirty);

/*
 * Its bits as bytes, malloc()ed: the first granule in the lowest bit of the
 * first one; *len is a multiple of 8, and at least that.  NULL: no memory.
 */
void *bitmap_bytes(const struct bitmap *bm, size_t *len);

/* Has it been removed from its node since bitmap_find?  It collects nothing
 * then; so ask after bitmap_run, not before. */
bool bitmap_removed(const struct bitmap *bm);

/* May it be used as it is: not inconsistent. */
bool bitmap_readable(const struct bitmap *bm);

/* What can be told of a bitmap: QMP's BlockDirtyInfo. */
struct bitmap_info {
    char *name; /* NULL: a job's own.  UTF-8: a name in an image can be any
                   bytes, and has U+FFFD here for those that are not */
    uint64_t granularity;
    uint64_t count; /* dirty bytes */
    bool recording;
    bool persistent;
    bool busy;
    bool inconsistent;
    const char *why; /* it is inconsistent; or NULL */
};

/* All bitmaps of a node, newest first. */
struct bitmap_list {
    struct bitmap_info *at;
    size_t count;
};

/* Those of @n, as they are now.  Takes the tree lock of @n.  -ENOMEM: there is
 * nothing in *list.  bitmaps_free: also after a failure. */
int bitmaps_get(struct node *n, struct bitmap_list *list);
void bitmaps_free(struct bitmap_list *list);
#define CLEANUP_BITMAPS __attribute__((cleanup(bitmaps_free)))

/* The same for QMP: BlockDirtyInfo, and an array of these.  A new reference;
 * NULL: no memory. */
json_t *bitmap_info_json(const struct bitmap_info *info);
json_t *bitmap_query(struct node *n);

/* The first image below the disk @n that has a bitmap of that name, or NULL.
 * It knows nothing of what is written to @n. */
struct node *bitmap_below(struct graph *g, struct node *n, const char *name);

/*
 * For threads that do not keep nodes from being replaced and closed.  Of the
 * bitmaps that tell what changes on the disk that @b is attached to then (so
 * none of images below: they know nothing of writes to those above): that of
 * this name, as bitmap_find; the names of all, a new array, NULL: no memory;
 * is @bm one of them?
 */
struct bitmap *blk_bitmap_find(struct blk *b, const char *name);
json_t *blk_bitmap_names(struct blk *b);
bool blk_bitmap_is_own(struct blk *b, const struct bitmap *bm);

/*
 * Open a view of the disk that @b is attached to: the same bytes, read-only,
 * but with extents that are data where @bm has dirty, and else holes that are
 * said to be zeroes.  They are the bits of now; the bytes, those of the holes
 * too, are the disk's at the time of reading.  @b stays attached while this
 * runs; *viewp lives on its own until blk_free().  No request waits for that,
 * and what does not change is copied once for all views.  -ENOENT: @bm is no
 * bitmap of that disk any more, or, with @own, of an image below it (see
 * blk_bitmap_find); -EINVAL: inconsistent; -EDQUOT: views have too many copies.
 */
int blk_dirty_view(struct graph *g, struct blk *b, struct bitmap *bm, bool own,
                   const char *user, struct blk **viewp, struct error **errp);

#endif /* NBDELTA_BITMAP_H */
