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

struct ceph_module {
    /* -EROFS with a place that is not read-only: only reading is allowed.
     * Errors have QEMU's texts. */
    int (*open)(const struct ceph_place *p, struct ceph_image **imagep,
                struct error **errp);
    void (*close)(struct ceph_image *i);

    int (*create)(const struct ceph_place *p, uint64_t size,
                  uint64_t object_size, struct error **errp);

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
};

/* What the module has to be found by. */
#define CEPH_MODULE         "nbdelta-block-rbd"
#define CEPH_MODULE_PACKAGE "nbdelta-rbd"

#endif /* NBDELTA_CEPH_CEPH_H */
