/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_DRIVER_TABLES_H
#define NBDELTA_CORE_DRIVER_TABLES_H

/* What some drivers can do beside I/O, a table for each: struct driver has
 * them, or NULL. */
#include <jansson.h>

#include "nbdelta/internal-snapshot.h"
#include "nbdelta/storage-snapshot.h"
#include "nbdelta/types.h"

struct driver_table;
struct file_make;
struct node_flags;
struct opts;
struct snapshot_found; /* the driver's own */

/*
 * Changing flags and options of an open node, as a step of several that succeed
 * or fail together (core/reopen.h).  A node that becomes writable comes after
 * its file child, any other node before it.
 */
struct driver_reopen {
    /* The driver's own options that may be changed; ends with NULL.  take takes
     * some or all of them from @opts, and keeps them for the prepare that
     * follows, or for abort.  Both NULL: there are none. */
    const char *const *options;
    int (*take)(struct node *n, struct opts *opts, struct error **errp);

    /* Change from n->flags to *@to (read_only, direct, no_flush, unmap may
     * differ), so that the change can be taken back. */
    int (*prepare)(struct node *n, const struct node_flags *to,
                   struct error **errp);

    /* One of these follows, and cannot fail: abort also after a failure, or
     * when it did not come to prepare.  NULL: nothing is left to do. */
    void (*commit)(struct node *n);
    void (*abort)(struct node *n);
};

/* Bytes that are being moved: what is left of them. */
struct moving {
    bool write;
    void *buf;
    uint64_t bytes;
    uint64_t offset; /* in the file */

    /* For launch: call it when they have been moved, in any thread.  @moved is
     * for `end`.  It does not wait. */
    void (*landed)(struct moving *t, int moved);
    void *room; /* FLIGHT_ROOM bytes for the driver's own use */
};

#define FLIGHT_ROOM 128

enum { MOVE_MORE = 1 };

/* Protocols whose bytes are moved without a thread that waits
 * (core/flights.c): by the kernel, by way of a descriptor, or (launch) by
 * something else that calls back. */
struct driver_flight {
    /* Begin to move the bytes of @t, which stays until `landed` was called.
     * -EAGAIN, and any other error: it has not begun, and preadv and pwritev
     * do it.  NULL: the kernel moves them, see `begin`.  Does not wait. */
    int (*launch)(struct node *n, struct moving *t);

    /* The descriptor, for a read or a @write of any length now; or -EAGAIN:
     * preadv and pwritev do it better.  It stays until `end`. */
    int (*begin)(struct node *n, bool write);

    /* @moved bytes were moved, or it failed (-errno).  MOVE_MORE, not after
     * launch: @t has what is left to be done.  Else 0 or -errno, as of preadv
     * or pwritev. */
    int (*end)(struct node *n, struct moving *t, int moved);
};

/* Images of a format as files: what they look like, how they are made, which
 * other files they name.  Each member may be NULL. */
struct image_check;
struct image_check_options;
struct image_amend;
struct image_measure;
struct measure_source;

struct driver_image {
    /* Is a file that has @head at its beginning and @tail at its end such an
     * image?  FORMAT_BYTES each (format.h), zeroes where the file is shorter.
     * NULL: no file looks like one. */
    bool (*probe)(const void *head, const void *tail);

    /* Create an image; see image.h.  @opts is complete but not checked.  A
     * graph that it opens the image with has the drivers @t. */
    int (*create)(const struct driver_table *t, const char *filename,
                  struct opts *opts, struct file_make *how,
                  struct error **errp);
    const char *const *create_options; /* of create; ends with NULL */

    /* Protocols: remove what create has made (image_remove()).  NULL: it is a
     * file. */
    int (*remove)(const char *filename, struct error **errp);

    /* image_measure() of a new image with these options of create, with "size".
     * It shall get the content of @source (core/measure.h), or none (NULL). */
    int (*measure)(struct opts *opts, const struct measure_source *source,
                   struct image_measure *m, struct error **errp);

    /* Write an empty image onto @file, an open node that the caller holds.  The
     * options are those of create, except that nothing is rounded.  Not in a
     * control section, and not in a request.  Durable when it returns 0.  The
     * caller closes *opened, a node that the method has opened for this. */
    int (*format)(struct graph *g, struct node *file, struct opts *opts,
                  struct node **opened, struct error **errp);

    /* Have the image, which is writable, name the file @name of format @fmt
     * (or NULL) as its backing file; @name NULL: none.  Durable when it
     * returns 0; at any moment the image names the old one or the new one.
     * Updates image_backing.  NULL: images of this format name none. */
    int (*change_backing)(struct node *n, const char *name, const char *fmt,
                          struct error **errp);

    /* image_amend() of an image that is writable and has no users; drained. */
    int (*amend)(struct node *n, struct opts *opts,
                 const struct image_amend *how, struct error **errp);
    const char *const *amend_options; /* of amend; ends with NULL */

    /* image_check() of the image in @file, in a request of the only user of
     * @file's tree.  NULL: this format cannot be checked. */
    int (*check)(struct node *file, const struct image_check_options *o,
                 struct image_check *c, struct error **errp);

    /* In a request: give room (enum image_room in image.h, not NONE) to a part
     * of the disk that reads as zeroes.  NULL: the format has only its
     * bytes. */
    int (*make_room)(struct node *n, uint64_t offset, uint64_t bytes,
                     unsigned how);

    /* Drained: leave the range, whole clusters or up to the end of the disk, to
     * the backing node, which has its content durably.  1: something was there.
     * leave_end, in a request after that: make it durable, and give the room
     * back.  NULL: the format has no backing files.  -ENOTSUP: this image has
     * none. */
    int (*leave_range)(struct node *n, uint64_t offset, uint64_t bytes);
    int (*leave_end)(struct node *n);
};

/* Bitmaps that an image keeps (core/dirty.h): all members are there. */
struct driver_bitmaps {
    /* Drained.  Store the list of the node's bitmaps in the image, enabled or
     * not, with at least the bits that they have.  Durable when it returns
     * 0. */
    int (*store)(struct node *n, struct error **errp);

    /* In a request: store will come soon, so write ahead what it would
     * write. */
    int (*store_ahead)(struct node *n, bool more);

    /* In a request, after a drained section: do what store has left over,
     * because nothing depends on it. */
    int (*store_behind)(struct node *n);

    /* Can one more bitmap be stored? */
    int (*check)(struct node *n, const char *name, uint64_t granularity,
                 struct error **errp);

    /* Drained.  The bits of a stored bitmap have become fewer. */
    void (*relaxed)(struct node *n, struct bitmap *bm);

    /* A stored bitmap is about to be freed, as it is. */
    void (*gone)(struct bitmap *bm);

    /* In a request, before the range is changed, after the bits of @bm were
     * set: let a crash not lose them.  For an inconsistent bitmap that would
     * record, say in the image that it is inconsistent.  -EAGAIN, only with
     * @nowait: it has to wait. */
    int (*arm)(struct node *n, struct bitmap *bm, uint64_t offset,
               uint64_t bytes, bool nowait);

    /* In a request, before data change while node->bitmaps_doubt is set: make
     * the image have the bitmaps that memory has, with at least their bits;
     * durable.  The driver sets the flag, in a drained section or here, and
     * clears it. */
    int (*heal)(struct node *n, bool nowait);
};

/*
 * Internal snapshots: a change in three parts.  begin and end are in a request,
 * and return 1 to be called once more, in another one; act and undo are
 * drained.  end comes after begin, whatever begin has returned; @done: act has
 * succeeded, and was not undone.  An error of end only wastes room.
 */
struct internal_change {
    enum internal_verb verb;
    const char *id;   /* NULL: any */
    const char *name; /* NULL: any, except of make */
    bool only;
    json_t *info; /* of remove: set by begin */
    void *state;  /* the driver's own, from begin to end */
};

struct driver_snapshots {
    int (*begin)(struct node *n, struct internal_change *c,
                 struct error **errp);
    int (*act)(struct node *n, struct internal_change *c, struct error **errp);
    void (*undo)(struct node *n, struct internal_change *c);
    int (*end)(struct node *n, struct internal_change *c, bool done);

    /*
     * A view is a node that shows a snapshot, for any number of users, and
     * keeps it from being removed.  look, in a request, reads what a view of
     * the snapshot @which needs; free *found with forget.  show, in a control
     * section, has a reference to the view in *view; -EAGAIN: the snapshots of
     * @n have changed since, so look again.
     */
    int (*look)(struct node *n, const char *which,
                struct snapshot_found **found, struct error **errp);
    int (*show)(struct node *n, struct snapshot_found *found,
                struct node **view, struct error **errp);
    void (*forget)(struct snapshot_found *found);

    /* In a request: the bytes of the snapshot's disk.  Errors as of look. */
    int (*measure)(struct node *n, const char *which, uint64_t *size,
                   struct error **errp);
};

/*
 * Snapshots that the storage makes (nbdelta/storage-snapshot.h has the rules).
 * The methods wait no longer than is said there, also while the storage hangs:
 * take is called in a drained section.
 */
struct driver_storage {
    /* Can a snapshot of the image be made by way of this node? */
    bool (*possible)(const struct node *n);

    /* Not in a section: does the storage answer? */
    int (*ready)(struct node *n, struct error **errp);

    /* Of all nodes or, after an error, of none. */
    int (*take)(const struct storage_ref *refs, unsigned count,
                struct error **errp);
    int (*remove)(struct node *n, const char *name, struct error **errp);
    int (*rename)(struct node *n, const char *from, const char *to,
                  struct error **errp);
    int (*list)(struct node *n, struct storage_snapshots *list,
                struct error **errp);
    /* Has all ended that has returned -ETIMEDOUT?  Does not wait. */
    bool (*settled)(const struct node *n);

    /* The ranges may overlap what is past the end of either. */
    int (*diff)(struct node *n, const char *from, storage_diff_fn *fn,
                void *opaque, enum storage_diff_how *how, struct error **errp);

    /* A number for this connection, and whether the one of a number is there:
     * 1, 0 or -errno. */
    uint64_t (*client)(const struct node *n);
    int (*has_client)(struct node *n, uint64_t client, struct error **errp);

    /* Change @options, those of @n, into ones of a node that reads the
     * snapshot. */
    int (*show)(json_t *options, const char *name);
};

#endif /* NBDELTA_CORE_DRIVER_TABLES_H */
