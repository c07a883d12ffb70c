/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CEPH_PRIV_H
#define NBDELTA_CEPH_PRIV_H

/* Inside of the module: between its files. */
#include <errno.h>
#include <rados/librados.h>
#include <rbd/librbd.h>

#include "ceph/ceph.h"

struct cluster;

/* A connection to the cluster of @p, with a reference.  Images that have the
 * same way to it share one, until cluster_give_up(). */
int cluster_get(const struct ceph_place *p, struct cluster **clusterp,
                struct error **errp);
void cluster_put(struct cluster *c);

/* The cluster has put this connection on its blocklist: nobody else shall get
 * it. */
void cluster_give_up(struct cluster *c);

/* The pool and namespace of @p. */
int cluster_pool(struct cluster *c, const struct ceph_place *p,
                 rados_ioctx_t *io, struct error **errp);

struct ceph_image {
    struct cluster *cluster;
    rados_ioctx_t io;
    rbd_image_t rbd;
    uint64_t object_size;
    bool read_only;

    bool watched;
    uint64_t watch;
    void (*changed)(void *opaque);
    void *opaque;
};

int image_extents(struct ceph_image *i, uint64_t offset, uint64_t bytes,
                  struct ceph_extent *e, unsigned *count);
int image_submit(struct ceph_image *i, struct ceph_request *q);
int64_t image_request(struct ceph_image *i, struct ceph_request *q);

/* For all that a call of librbd has returned. */
static inline int64_t image_result(struct ceph_image *i, int64_t r)
{
    if (r == -ESHUTDOWN) {
        cluster_give_up(i->cluster);
    }
    return r;
}

#endif /* NBDELTA_CEPH_PRIV_H */
