/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CEPH_PRIV_H
#define NBDELTA_CEPH_PRIV_H

/* Inside of the module: between its files. */
#include <errno.h>
#include <rados/librados.h>
#include <rbd/librbd.h>
#include <stdatomic.h>

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

/* Wait until a monitor has answered. */
int cluster_ready(struct cluster *c);

/* The number of this connection there. */
uint64_t cluster_client(struct cluster *c);

/* The pool and namespace of @p. */
int cluster_pool(struct cluster *c, const struct ceph_place *p,
                 rados_ioctx_t *io, struct error **errp);

struct ceph_image {
    _Atomic unsigned refs;
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

/*
 * librbd's threads see all that a thread of ours has written before it called
 * librbd, and the other way when librbd's call returns: librbd orders the two.
 * ThreadSanitizer, which does not see that, is told: handed_over() before the
 * call or at the end of a callback, taken_over() on the other side.
 */
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define handed_over(what) __tsan_release(what)
#define taken_over(what)  __tsan_acquire(what)
#else
#define handed_over(what) ((void)(what))
#define taken_over(what)  ((void)(what))
#endif

int image_extents(struct ceph_image *i, uint64_t offset, uint64_t bytes,
                  struct ceph_extent *e, unsigned *count);
bool image_is_clone(struct ceph_image *i);
int image_ready(struct ceph_image *i);
int image_snapshot_create(struct ceph_image *i, const char *name);
int image_snapshot_remove(struct ceph_image *i, const char *name);
int image_snapshot_rename(struct ceph_image *i, const char *from,
                          const char *to);
int image_snapshots(struct ceph_image *i, struct ceph_snapshot **list,
                    size_t *count);
void image_snapshots_free(struct ceph_snapshot *list, size_t count);
int image_diff(struct ceph_image *i, const char *from, uint64_t offset,
               uint64_t bytes, bool whole, ceph_diff_fn *fn, void *opaque);
int image_maps(struct ceph_image *i, const char *from, enum ceph_maps *maps);
uint64_t image_client(struct ceph_image *i);
int image_has_client(struct ceph_image *i, uint64_t client);
/* Clients that have the image open, and not just for reading: one that has died
 * does for 30 s.  rbd_watchers_list_cleanup() and free(*list). */
int image_watchers(struct ceph_image *i, rbd_image_watcher_t **list,
                   size_t *count);
int image_check_alone(struct ceph_image *i, struct error **errp);
int image_erase(const struct ceph_place *p, struct error **errp);

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
