/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_DRIVERS_RBD_H
#define NBDELTA_DRIVERS_RBD_H

/* Inside of the rbd driver: between rbd.c and rbd-*.c. */
#include "ceph/ceph.h"
#include "core/node.h"
#include "nbdelta/option.h"
#include "nbdelta/thread.h"

struct file_make;
struct opts;

struct rbd {
    struct node *node;
    const struct ceph_module *m;
    struct ceph_image *image;
    uint64_t object_size;
    enum ceph_luks luks;

    mutex_t grow_lock; /* held while the image grows */
    uint64_t size;     /* grow_lock: as we know it, of the image */

    /* Atomic. */
    _Atomic bool told_of_loss; /* of the right to write */
};

/* --- Options (rbd-options.c) --- */

extern const struct option rbd_node_options[];

/* Take all options of an image.  Secrets are those of @g.  Call
 * rbd_place_free() after a failure, too. */
int rbd_place_take(struct graph *g, struct opts *opts, struct ceph_place *p,
                   struct error **errp);
void rbd_place_free(struct ceph_place *p);

/* --- The module, and opening by it (rbd-open.c) --- */

/* The module's functions.  -ENOTSUP: it cannot be had. */
int rbd_module(const struct ceph_module **m, struct error **errp);

/* The image at *@p, which is taken.  -EINPROGRESS: later (core/toil.h). */
int rbd_open_image(struct node *n, struct ceph_place *p,
                   struct ceph_image **imagep, struct error **errp);

/* --- Requests in flight (rbd-flight.c) --- */

extern const struct driver_flight rbd_flight;

/* What a request has returned, as errors of requests are told. */
int rbd_result(struct node *n, int64_t r);

/* --- New images (rbd-create.c) --- */

extern const struct driver_image rbd_image_methods;

#endif /* NBDELTA_DRIVERS_RBD_H */
