/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CEPH_CEPH_H
#define NBDELTA_CEPH_CEPH_H

/*
 * Images of Ceph's RBD, by librbd: a module
 * =========================================
 *
 *     nbdelta                                   nbdelta-block-rbd.so
 *     drivers/rbd.c  --struct ceph_module-->    ceph/ *.c --> librbd, librados
 *
 * librbd takes 60 MiB and a second.  So the module is loaded when a node asks
 * for it (drivers/rbd-open.c), and nbdelta itself knows these functions only.
 * The module knows nothing of nodes.
 *
 * Images that are reached in the same way share a connection to their cluster.
 * With the last one its threads and descriptors go; the code stays loaded.
 *
 * Sizes and offsets are bytes.  All functions block, except `submit`.  They
 * return 0 or -errno, and may be called by any thread at any time; open and
 * close of one image, once each, around all others.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct ceph_image;
struct error;

enum ceph_luks { CEPH_PLAIN, CEPH_LUKS1, CEPH_LUKS2 };

/* Which image, and how to get there.  A string that is not given is NULL. */
struct ceph_place {
    char *conf; /* a file; NULL: the usual ones, or none */
    char *user;
    char *key; /* base64 */
    char *auth_client_required;
    char *mon_host;
    char **pairs; /* name, value, name...: of the configuration */
    size_t pair_count;
    bool cache;

    char *pool;
    char *namespace;
    char *image;
    char *snapshot;
    bool read_only; /* nothing will be written */

    enum ceph_luks luks;
    char *passphrase;
    size_t passphrase_len;
};

enum ceph_op { CEPH_READ, CEPH_WRITE, CEPH_ZERO, CEPH_DISCARD, CEPH_FLUSH };

/* A request.  It and its buffers stay until it has ended. */
struct ceph_request {
    enum ceph_op op;
    uint64_t offset;
    uint64_t bytes;
    const struct iovec *iov; /* of read and write: exactly `bytes` */
    int iovcnt;

    /* Called when it has ended, by a thread of librbd, which must not wait.
     * @result: -errno, or of a read how many bytes there are. */
    void (*done)(struct ceph_request *q, int64_t result);

    struct ceph_image *image; /* the module's */
};

/* A range in which all is alike. */
struct ceph_extent {
    uint64_t bytes;
    bool zero; /* nothing is stored there */
};

/* A snapshot of an image, by its name. */
struct ceph_snapshot {
    uint64_t id;   /* later ones have larger ids */
    uint64_t size; /* of the image then */
    char *name;
};

/* May a diff be told by whole objects, from object maps alone? */
enum ceph_maps {
    CEPH_MAPS_NONE,    /* the image has none, or librbd goes wrong with them */
    CEPH_MAPS_INVALID, /* one of them is marked so */
    CEPH_MAPS_VALID,
};

/* A range differs.  Not 0: enough, and the diff returns that. */
typedef int ceph_diff_fn(uint64_t offset, uint64_t bytes, void *opaque);

struct ceph_module {
    /* -EROFS with a place that is not read-only: only reading is allowed.
     * Errors have QEMU's texts. */
    int (*open)(const struct ceph_place *p, struct ceph_image **imagep,
                struct error **errp);
    void (*close)(struct ceph_image *i);

    /* The image stays open until unref, too.  Close ends `watch` at once. */
    void (*ref)(struct ceph_image *i);
    void (*unref)(struct ceph_image *i);

    int (*create)(const struct ceph_place *p, uint64_t size,
                  uint64_t object_size, struct error **errp);

    /* -ENOENT; -EBUSY: somebody has it open, also a client that died less than
     * 30 s ago; -ENOTEMPTY: it has snapshots. */
    int (*remove)(const struct ceph_place *p, struct error **errp);

    uint64_t (*object_size)(const struct ceph_image *i);
    bool (*read_only)(const struct ceph_image *i);
    int (*size)(struct ceph_image *i, uint64_t *size);
    int (*resize)(struct ceph_image *i, uint64_t size);

    /* Begin a request.  -errno: it has not begun, and `done` is not called. */
    int (*submit)(struct ceph_image *i, struct ceph_request *q);

    /* A request from its beginning to its end; `done` is not looked at.  Of a
     * read: how many bytes there are. */
    int64_t (*request)(struct ceph_image *i, struct ceph_request *q);

    /* The extents from @offset on, at most *count, in order; they may cover
     * less than @bytes, never nothing.  They are told by whole objects where
     * the image has an object map that is valid. */
    int (*extents)(struct ceph_image *i, uint64_t offset, uint64_t bytes,
                   struct ceph_extent *e, unsigned *count);

    /* Call @fn, in a thread of librbd, when another client has changed the
     * image's header, its size for one.  Once, and until close. */
    int (*watch)(struct ceph_image *i, void (*fn)(void *opaque), void *opaque);

    /* -EBUSY: somebody else has the image open, and not just for reading. */
    int (*check_alone)(struct ceph_image *i, struct error **errp);

    /* --- Snapshots --- */

    /* Has the cluster a monitor that answers, and the image's header a place?
     * Else the others would wait. */
    int (*ready)(struct ceph_image *i);

    /* All that was written and acknowledged before is in it, by whichever
     * client.  The owner of the exclusive lock is asked to make it. */
    int (*snapshot_create)(struct ceph_image *i, const char *name);
    int (*snapshot_remove)(struct ceph_image *i, const char *name);
    int (*snapshot_rename)(struct ceph_image *i, const char *from,
                           const char *to);

    /* Those that users make, the oldest first.  snapshots_free(*list). */
    int (*snapshots)(struct ceph_image *i, struct ceph_snapshot **list,
                     size_t *count);
    void (*snapshots_free)(struct ceph_snapshot *list, size_t count);

    /* Ranges in which the image differs from what it was at the snapshot @from
     * (NULL: from nothing).  With @whole, of whole objects: see maps. */
    int (*diff)(struct ceph_image *i, const char *from, uint64_t offset,
                uint64_t bytes, bool whole, ceph_diff_fn *fn, void *opaque);
    int (*maps)(struct ceph_image *i, const char *from, enum ceph_maps *maps);

    /* The number by which the cluster knows this connection, and whether the
     * one of a number has the image open (1, 0): one that has died does for
     * half a minute. */
    uint64_t (*client)(struct ceph_image *i);
    int (*has_client)(struct ceph_image *i, uint64_t client);
};

/* What the module has to be found by. */
#define CEPH_MODULE         "nbdelta-block-rbd"
#define CEPH_MODULE_PACKAGE "nbdelta-rbd"

#endif /* NBDELTA_CEPH_CEPH_H */
