/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_DIRTY_H
#define NBDELTA_CORE_DIRTY_H

/* The inside of dirty bitmaps, for core and jobs.  See nbdelta/bitmap.h. */
#include "core/hbitmap.h"
#include "core/node.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"

/*
 * A bitmap in use by a job is *frozen*: it keeps its bits as they were, is
 * busy, and has a successor that collects the bits of new writes in its
 * place.  The job's end merges the two, or puts the successor in its place.
 *
 *      normal --freeze--> frozen + successor --abdicate--> successor's bits
 *                                            --reclaim---> old OR new bits
 */
struct bitmap {
    /* Set at creation. */
    char *name; /* NULL: a job's own, not listed by name */
    uint64_t granularity;

    /* Tree lock of the node. */
    struct node *node; /* NULL: removed */
    struct list on_node;
    bool enabled; /* also when frozen: does the successor collect? */
    bool persistent;
    bool loaded;       /* it was in the image when that was opened */
    bool rewrite;      /* its bits in the image have to become these */
    void *stored;      /* the driver's, when it is in the image already */
    const char *why;   /* it is inconsistent; a constant text, or NULL */
    bool recorded;     /* it is inconsistent, and was enabled before */
    unsigned users;    /* operations that keep it busy */
    uint64_t since_ns; /* when it was made, or had bits taken away; it has all
                          changes since */

    /* Tree lock: nests of recording bitmaps (core/bitmap-mark.c). */
    struct bitmap *outer; /* has all bits of this one; or NULL */
    struct bitmap *inner;
    struct bitmap *rest; /* of an innermost one: the next nest's */

    /*
     * Tree lock, and lock: a control section that changes these, or resets bits
     * in them, has drained the tree and holds lock for writing.  To read them,
     * one of the two is enough.  A request has the tree.  A user with nothing
     * but a reference takes lock, and so never waits for a drain.
     */
    rwlock_t lock;
    struct hbitmap *bits;
    struct hbitmap *successor; /* not NULL: frozen */

    /* Atomic. */
    _Atomic bool inconsistent;
    _Atomic bool removed;
    _Atomic unsigned refs; /* its node has one */
};

/* --- In a control section that has drained the node's tree. --- */

/* An own bitmap of a job, without name, enabled; NULL: no memory. */
struct bitmap *bitmap_new_anonymous(struct node *n, uint64_t granularity);
void bitmap_drop(struct bitmap *bm); /* take it off its node, for good */

/* Add a named bitmap, without a check of rules; for formats that load bitmaps.
 * Writes are recorded in it only after bitmap_nest(). */
int bitmap_attach(struct node *n, const char *name, uint64_t granularity,
                  struct bitmap **bmp, struct error **errp);

/* What the caller wants to do with a bitmap that it looks up. */
enum bitmap_use {
    BITMAP_USE_ANY,    /* -ENOENT */
    BITMAP_USE_READ,   /* also -EBUSY, -EINVAL: inconsistent */
    BITMAP_USE_REMOVE, /* also -EBUSY, -EPERM: in a read-only image */
    BITMAP_USE_CHANGE, /* all of these */
};

/* Add a bitmap that cannot be used, without bits; @why is a constant text. */
int bitmap_attach_broken(struct node *n, const char *name, uint64_t granularity,
                         const char *why, struct bitmap **bmp);

/* The bitmap (no new reference; it stays as long as it is busy), or an error
 * with QEMU's text. */
int bitmap_lookup(struct node *n, const char *name, enum bitmap_use use,
                  struct bitmap **bmp, struct error **errp);

/* May such a bitmap be added?  0, or the error that adding it would have.  Puts
 * a granularity where *granularity is 0.  A control section does. */
int bitmap_check_add(struct node *n, const char *name, uint64_t *granularity,
                     bool persistent, struct error **errp);

/* As bitmap_add(), in a control section. */
int bitmap_add_locked(struct node *n, const char *name, uint64_t granularity,
                      bool persistent, bool disabled, struct bitmap **bmp,
                      struct error **errp);

/* Add a bitmap that begins with @bits, and takes them over after success.
 * -EINVAL: they have another size than the disk. */
int bitmap_add_with_bits(struct node *n, const char *name, struct hbitmap *bits,
                         bool persistent, bool disabled, struct bitmap **bmp,
                         struct error **errp);

/* Take the bitmap off its node, and put it back where it was (@after: what came
 * before it then).  In between it belongs to the caller, which may
 * bitmap_drop() it.  Call bitmap_nest(n, NULL) after the last bitmap has gone
 * or come. */
struct list *bitmap_take_off(struct bitmap *bm);
void bitmap_put_back(struct bitmap *bm, struct node *n, struct list *after);

/* Exchange the bitmap's bits; returns the old ones. */
struct hbitmap *bitmap_swap_bits(struct bitmap *bm, struct hbitmap *bits);

/* A copy of what the bitmap has, also of what it has collected while it is
 * frozen.  The two share memory (hbitmap_share).  NULL: no memory. */
struct hbitmap *bitmap_share_bits(struct bitmap *bm);

/* Let bitmap_store() store this bitmap, too.  -ENOTSUP, -EACCES, -EINVAL: it
 * cannot. */
int bitmap_make_persistent(struct bitmap *bm, struct error **errp);

void bitmap_set_enabled(struct bitmap *bm, bool enabled);

/* Does an operation use it? */
bool bitmap_is_busy(const struct bitmap *bm);

/* The bits that writes set. */
struct hbitmap *bitmap_collecting(const struct bitmap *bm);

/* Put recording bitmaps into nests anew, because the bits of @changed (NULL: of
 * any), or the list, have changed.  Only formats that have loaded their bitmaps
 * call this; the functions here do it themselves. */
void bitmap_nest(struct node *n, const struct bitmap *changed);

/* The same after a change that leaves all nests nests: the order of the bitmaps
 * may be another.  What is nested is not compared. */
void bitmap_nest_again(struct node *n);

/* -EBUSY, -EINVAL (inconsistent), -ENOMEM. */
int bitmap_freeze(struct bitmap *bm, struct error **errp);
void bitmap_abdicate(struct bitmap *bm); /* the job succeeded */
void bitmap_reclaim(struct bitmap *bm);  /* it did not; keeps everything */

/* Store the node's persistent bitmaps in the image, durably.  Several threads
 * may store bitmaps of different nodes at once. */
int bitmap_store(struct node *n, struct error **errp);

/* Prepare a bitmap_store() that comes soon, so that it takes less time; @more:
 * a bitmap will be added.  Not in a control section.  -errno: the image cannot
 * be written. */
int bitmap_store_ahead(struct node *n, bool more, struct error **errp);

/* After bitmap_store(), when guests are not held up any more: what it has
 * freed is free in the image, too.  Until then a crash leaks clusters.  Blocks
 * as a flush does. */
void bitmap_store_behind(struct node *n);

/* The node changes its size from @old to @size: new granules become dirty
 * in enabled bitmaps.  All of them are resized or, -ENOMEM, none. */
int bitmap_resize_all(struct node *n, uint64_t old, uint64_t size,
                      struct error **errp);

/*
 * Mark a change of the range in two steps.  _ahead has persistent bitmaps ready
 * for a crash, or gives -errno: the image cannot be written.  _bits sets the
 * bits in all recording bitmaps, and cannot fail.  It is not needed for a range
 * that the disk loses.
 */
int bitmap_mark_ahead(struct node *n, uint64_t offset, uint64_t bytes);
void bitmap_mark_bits(struct node *n, uint64_t offset, uint64_t bytes);

/* Free the bitmaps of a node that is being closed. */
void bitmap_release_all(struct node *n);

/* Export the granules [@first, @first + @count) as hbitmap_or_in() into zeroes.
 * A frozen bitmap's successor counts, too. */
void bitmap_export(const struct bitmap *bm, uint64_t first, uint64_t count,
                   void *buf);

/* --- Tree lock held for reading: the I/O path. --- */

/*
 * Bitmaps that tell what changes on the disk @n: the bitmaps of @n and, if it
 * is a filter, of the nodes below it.  A bitmap of a backing file tells nothing
 * about writes to the image above.  The functions give the bitmap of a name,
 * with a reference, or NULL; the names of all, as a new reference, NULL: no
 * memory; and whether @bm is one of them.
 */
struct bitmap *bitmap_find_of_disk(struct node *n, const char *name);
json_t *bitmap_names_of_disk(struct node *n);
bool bitmap_is_of_disk(const struct node *n, const struct bitmap *bm);

/*
 * Set the bits of the range in all recording bitmaps of @n, and have persistent
 * ones ready for a crash.  -EAGAIN with @nowait when that has to wait; -errno
 * when the image cannot be written.
 */
int bitmap_mark_slow(struct node *n, uint64_t offset, uint64_t bytes,
                     bool nowait);
static inline int bitmap_mark(struct node *n, uint64_t offset, uint64_t bytes,
                              unsigned flags)
{
    return n->recording || atomic_load(&n->bitmaps_doubt)
               ? bitmap_mark_slow(n, offset, bytes, flags & REQ_NOWAIT)
               : 0;
}

#endif /* NBDELTA_CORE_DIRTY_H */
