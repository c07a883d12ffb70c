/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_DRIVER_H
#define NBDELTA_CORE_DRIVER_H

/*
 * Writing a block driver
 * ======================
 *
 * A driver is one `const struct driver` and the state behind node->state.
 * It calls its children through node_*() (node.h), never through their
 * driver, and never takes a tree lock.  There are three kinds:
 *
 *   protocol   holds its bytes itself: file, mem, null-co.  Core reads and
 *              writes through preadv and pwritev; map is for status only.
 *   format     maps its bytes into a child: qcow2, raw.  Core reads and
 *              overwrites through map and moves the bytes itself; preadv is
 *              called for OPAQUE extents, pwritev for all that map with
 *              MAP_WRITE does not answer with DATA.  The bytes are in
 *              child[CHILD_DATA] if there is one, else in child[CHILD_FILE].
 *   filter     shows the data of child[CHILD_FILE] (is_filter): a NULL
 *              method passes through; map is not called.
 *
 * What the core (core/io.c) promises to every I/O method:
 *
 *  - bytes > 0 and [offset, offset + bytes) lies inside the node's size;
 *    only a protocol node that has `growable` set is also written past it;
 *  - for preadv and pwritev, both are multiples of limits.align and bytes
 *    is at most limits.max_transfer; zero and discard get multiples of
 *    limits.zero_align (or the end of the node), of any length;
 *  - iov describes exactly `bytes` bytes, in at most IOV_MAX_INNER parts;
 *  - only flags listed in flags_write and flags_zero are passed; FUA that a
 *    driver does not list becomes a flush after the write (in a driver that
 *    lists it, see node_flush_begin() in core/flush.h);
 *  - the children exist and stay attached until the method returns;
 *  - dirty bits of the node are set already.
 *
 * What every I/O method promises:
 *
 *  - it may run in any number of threads at once;
 *  - it blocks until done, and returns 0 or -errno, never a short count;
 *  - with REQ_NOWAIT (MAP_NOWAIT) it returns -EAGAIN, and has changed
 *    nothing, where it would have to wait for a device or another request.
 *    Writing to the page cache does not count as waiting;
 *  - with -ERESTART, it had to wait for something else than a device, and makes
 *    room for a drain: the caller that has entered the tree leaves it and does
 *    it all again.  blk_*() and the copy engine do that; to other callers it is
 *    an error.  A request that has changed a part of its range goes on waiting
 *    instead (node_shall_restart(); a method that works in parts calls
 *    node_request_changed() between them);
 *  - when it fails, the contents of the range are undefined but nothing
 *    outside the range has changed.
 */
#include <jansson.h>

#include "core/driver-tables.h"
#include "nbdelta/types.h"

struct copy;
struct driver;
struct file_make;
struct stat;
struct bitmap_info;
struct opts;
struct node_flags;
enum node_event;

/* The drivers that a program has.  drivers/table.c makes the one table, and
 * each graph knows it: core names no driver. */
struct driver_table {
    const struct driver *const *drivers; /* ordered by name; ends with NULL */
};

/* A driver by the word in "driver": "...", or NULL. */
const struct driver *driver_find(const struct driver_table *t,
                                 const char *name);

enum { CHILD_FILE, CHILD_BACKING, CHILD_TARGET, CHILD_DATA, CHILD_MAX };

struct limits {
    uint32_t align;        /* of reads and writes; power of two, >= 1 */
    uint32_t zero_align;   /* of zero and discard; power of two, >= align */
    uint32_t max_transfer; /* multiple of align */
    uint32_t pref;         /* preferred size, e.g. the cluster size */
    bool fast_zero;        /* zero honours REQ_NO_FALLBACK */
    bool zero_unmaps;      /* zero with REQ_MAY_UNMAP, discard: free space */
    bool grows_zero;       /* protocol: bytes past the end, once written
                              around, read as zeroes */
    bool far;              /* each answer is a round trip to a cluster */
};

/* What a node does with a child, and lets others do; enum perm. */
struct perms {
    unsigned perm;
    unsigned shared;
    bool used; /* a user has the node itself */
};

enum map_flags {
    MAP_NOWAIT = 1 << 0,
    /* DATA only where the bytes may be overwritten in place; other ranges
     * come back as OPAQUE, with the length that pwritev shall do. */
    MAP_WRITE = 1 << 1,
    /* The caller asks for status, and moves no bytes: a protocol may take the
     * time to look for holes, and need not fill in file and host. */
    MAP_STATUS = 1 << 2,
};

enum map_kind {
    MAP_DATA,        /* the bytes are at `host` of `file` */
    MAP_ZERO,        /* reads as zeroes */
    MAP_UNALLOCATED, /* decided by the backing node; zeroes without one */
    MAP_OPAQUE,      /* data that only preadv and pwritev can get at */
};

/*
 * An answer of map.  `length` > 0 bytes from the asked offset on are alike;
 * it may be less, never more, than what was asked for.  The bytes stay where
 * they are, and belong to nobody else, until map_put().
 */
struct mapping {
    enum map_kind kind;
    uint64_t length;
    struct node *file; /* MAP_DATA; MAP_UNALLOCATED: a place, or NULL */
    uint64_t host;     /* the same */
    bool host_zero;    /* MAP_ZERO: space is reserved at `host` */
    bool compressed;   /* MAP_OPAQUE */
    bool no_data;      /* MAP_DATA, of status: not to be shown as data */
    bool coded;      /* with `host`: the bytes there are not those of the node:
                        driver.encode and decode */
    unsigned ticket; /* the driver's own, for map_put */
};

typedef void bitmap_fn(const struct bitmap_info *info, void *opaque);

struct driver {
    const char *name;             /* the word in "driver": "..." */
    const struct option *options; /* all that open takes, and "backing" */
    const char *const *features;  /* of these, in QEMU's schema; or NULL */
    bool is_filter;
    bool is_protocol;
    bool no_room;     /* what it has takes none anywhere */
    bool no_details;  /* a protocol that knows nothing of what has its bytes */
    bool has_backing; /* the images of this format can name a backing file */
    bool passive; /* nothing but reads of the user on top, which has it alone:
                     it comes and goes without a drain of what is below */
    bool passes_perms; /* a format that uses its file child as it is used
                          itself; filters always do */
    size_t state_size;
    unsigned flags_write; /* REQ_FUA if pwritev honours it itself */
    unsigned flags_zero;

    /* NULL reopen: nothing depends on the flags.  NULL image: no file is such
     * an image.  NULL bitmaps, snapshots, storage: there is no place for
     * them. */
    const struct driver_reopen *reopen;
    const struct driver_image *image;
    const struct driver_bitmaps *bitmaps;
    const struct driver_snapshots *snapshots;
    const struct driver_storage *storage;
    const struct driver_flight *flight; /* NULL: threads do all I/O */

    /* --- Control path: one thread, no I/O in flight. --- */

    /* Take the driver's own options from @opts, open children by
     * node_open_child(), set node->size.  After a failure close is not called:
     * open has cleaned up, except for the children. */
    int (*open)(struct node *n, struct opts *opts, struct error **errp);

    /* Write back what is in memory; errors can only be logged. */
    void (*close)(struct node *n);

    /* Adjust *lim.  On entry: for protocols and formats {1, 1, 1 GiB, 4096,
     * false...}, for filters what child[CHILD_FILE] has.  NULL: leave it. */
    void (*limits)(struct node *n, struct limits *lim);

    /* A child other than the backing one is another node now, of the same
     * content.  NULL: the driver keeps no pointer to its children. */
    void (*file_changed)(struct node *n);

    /* Turn *p, what the node's users want and share, into what the node wants
     * of its file child.  NULL: it wants the same. */
    void (*child_perms)(const struct node *n, struct perms *p);

    /* The size of @n when its file child has @below bytes.  NULL: the size of a
     * filter is @below, the size of another node does not depend on it. */
    uint64_t (*size_over)(const struct node *n, uint64_t below);

    /* Grow or shrink; the caller updates node->size and the bitmaps.  Grown
     * space reads as zeroes, or shows the backing node: the core hides
     * that.  NULL: the size is fixed. */
    int (*resize)(struct node *n, uint64_t size, struct error **errp);

    /* Formats: the child of which the node shows all bytes, as they are, and no
     * others, or NULL.  NULL: there is none. */
    const struct node *(*shows_all)(const struct node *n);

    /* Protocols of which others may change the size: ask for it.  -EAGAIN: it
     * is as this node has made it.  Called in no section, and in no request;
     * it blocks.  NULL: nobody does. */
    int (*size_there)(struct node *n, uint64_t *size);

    /* Protocols without locks: -EBUSY, with a text, while another client has
     * the bytes open, and not just for reading.  Called in no request; it
     * blocks.  NULL: the open has asked. */
    int (*check_alone)(struct node *n, struct error **errp);

    /* Protocols: stat(2) of the file that has the bytes.  0 or -errno; NULL:
     * they are in no file. */
    int (*fstat)(const struct node *n, struct stat *st);

    /* Protocols: say to all others that have the file open that this node reads
     * what @mark stands for, until it is closed; or ask whether one of them
     * does (core/imagelock.h).  In a control section, or a request.  NULL:
     * there are no marks. */
    void (*hold_mark)(struct node *n, uint64_t mark);
    bool (*has_mark)(struct node *n, uint64_t mark);

    /* Add "format-specific" and other members that only the format knows to
     * @info, an ImageInfo (node_image_info).  NULL: nothing to add. */
    void (*describe)(struct node *n, json_t *info);

    /* Add the driver's own members to "driver-specific" of BlockStats in
     * @own.  NULL: there are none. */
    void (*stats)(struct node *n, json_t *own);

    /* --- I/O path: any thread, at any time. --- */

    /* NULL: all data, for protocols; required for formats. */
    int (*map)(struct node *n, uint64_t offset, uint64_t bytes, unsigned flags,
               struct mapping *m);
    void (*map_put)(struct node *n, struct mapping *m); /* or NULL */

    /* As map, for the ranges that follow one another from @offset on: at most
     * *count (> 0), and as many as it takes no further look to tell.  Fills in
     * them and *count (> 0).  They are put back as one, the first.  NULL: map
     * is asked for each. */
    int (*map_many)(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned flags, struct mapping *m, unsigned *count);

    int (*preadv)(struct node *n, uint64_t offset, uint64_t bytes,
                  const struct iovec *iov, int iovcnt, unsigned flags);

    /* Of a mapping that is `coded`: turn bytes of the file, from @host on, into
     * the node's, in place; or write the node's bytes there.  Both are whole
     * units of limits.align.  NULL: no mapping is coded. */
    int (*decode)(struct node *n, uint64_t host, const struct iovec *iov,
                  int iovcnt);
    int (*write_coded)(struct node *n, uint64_t host, uint64_t bytes,
                       const struct iovec *iov, int iovcnt, unsigned flags);

    /* NULL: read-only, except for ranges that map gives as DATA with
     * MAP_WRITE. */
    int (*pwritev)(struct node *n, uint64_t offset, uint64_t bytes,
                   const struct iovec *iov, int iovcnt, unsigned flags);

    /* NULL or -ENOTSUP: the core writes zeroes, or returns -ENOTSUP when
     * REQ_NO_FALLBACK was given (which is passed on if it is listed). */
    int (*zero)(struct node *n, uint64_t offset, uint64_t bytes,
                unsigned flags);

    /* As zero, for a range that lies in one unit of limits.zero_align and is
     * not all of it.  NULL or -ENOTSUP: the core writes zeroes. */
    int (*zero_part)(struct node *n, uint64_t offset, uint64_t bytes);

    /* Write whole clusters (limits.pref; the last may be cut by the disk's
     * end), compressed as far as that makes them smaller.  NULL: the format
     * cannot. */
    int (*write_compressed)(struct node *n, uint64_t offset, uint64_t bytes,
                            const void *buf);

    /* Write @buf (NULL: zeroes) where the node leaves the range to its backing
     * node, and nowhere else: copy-up.h.  The range is aligned to nothing.  The
     * bytes can be read there already, so they are no data that the user has to
     * write again when a flush fails.  NULL: it never has a backing node. */
    int (*copy_up)(struct node *n, uint64_t offset, uint64_t bytes,
                   const void *buf, unsigned flags);

    /* As pwritev, of what @from, a protocol, has @at, without moving a byte
     * (node_clone).  The range is aligned to nothing.  -ENOTSUP: this driver
     * and @from have no way.  NULL: there never is one. */
    int (*clone)(struct node *n, uint64_t offset, uint64_t bytes,
                 struct node *from, uint64_t at);

    /* NULL: success; a discard is only a hint. */
    int (*discard)(struct node *n, uint64_t offset, uint64_t bytes);

    /* Everything completed before this call is durable after it.
     * NULL: flush child[CHILD_FILE] if there is one. */
    int (*flush)(struct node *n);

    /* The copy engine that keeps a point in time of the file child, for nodes
     * that read it (copy/copy.h).  NULL: there is none. */
    struct copy *(*snapshot)(const struct node *n);

    /* Call @tell for the bits that the node keeps for itself: bitmaps without
     * names.  NULL: none. */
    void (*tell_bits)(const struct node *n, bitmap_fn *tell, void *opaque);

    /* For filters that look at requests: a user asks for the range's status.
     * Not called for a question that must not wait, because it may be asked
     * once more.  NULL: the question passes. */
    int (*status)(struct node *n, uint64_t offset, uint64_t bytes);

    /* A parent tells what it is about to do (event.h).  NULL: nothing
     * listens. */
    void (*event)(struct node *n, enum node_event event);

    /* The tree is about to be drained: requests that wait here for anything
     * other than I/O have to go on, until node_is_draining() is false again.  A
     * request that cannot go on returns -ERESTART.  (The method is also called
     * without a drain, when a request may have become node_is_unwanted().) */
    void (*drain)(struct node *n);

    /* The user has given up: requests that wait here for anything other than
     * I/O have to go on or, if they cannot, fail soon.  Requests that come
     * later fail at once. */
    void (*cancel)(struct node *n);

    /* The tree is drained: no request is in it.  Wait for work that goes on
     * without a request.  NULL: there is none. */
    void (*drained)(struct node *n);

    /* Ask for the range to be read ahead.  NULL: nothing happens. */
    void (*prefetch)(struct node *n, uint64_t offset, uint64_t bytes);
};

/* The drivers that options can name. */
extern const struct driver driver_file;
extern const struct driver driver_host_device;
extern const struct driver driver_mem;
extern const struct driver driver_nbd;
extern const struct driver driver_null_co;
extern const struct driver driver_raw;
extern const struct driver driver_rbd;
extern const struct driver driver_qcow2;
extern const struct driver driver_cbw;
extern const struct driver driver_copy_on_read;
extern const struct driver driver_blkdebug;
extern const struct driver driver_compress;
extern const struct driver driver_snapshot_access;
extern const struct driver driver_logwrites;
extern const struct driver driver_throttle;

#endif /* NBDELTA_CORE_DRIVER_H */
