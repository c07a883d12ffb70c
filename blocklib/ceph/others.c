/* SPDX-License-Identifier: BSD-3-Clause */
/* Who else has an image open; and taking one away. */
#include <stdlib.h>
#include <string.h>

#include "ceph/priv.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

int image_check_alone(struct ceph_image *i, struct error **errp)
{
    rbd_image_watcher_t *w;
    size_t count;
    uint64_t us = cluster_client(i->cluster);
    const char *other = NULL;
    unsigned ours = 0;
    int r = image_watchers(i, &w, &count);

    if (r < 0) {
        return error_set(errp, -(int)image_result(i, r),
                         "cannot ask who uses it: %s", strerror(-r));
    }
    for (size_t k = 0; k < count; k++) {
        if ((uint64_t)w[k].id != us || ours++ > 0) {
            other = w[k].addr;
        }
    }
    if (other) {
        r = error_set(errp, EBUSY,
                      "it is in use: a client at %s has it open ('rbd status')",
                      other);
    }
    rbd_watchers_list_cleanup(w, count);
    free(w);
    return r;
}

int image_erase(const struct ceph_place *p, struct error **errp)
{
    struct cluster *c;
    rados_ioctx_t io;
    int r = cluster_get(p, &c, errp);

    if (r < 0) {
        return r;
    }
    r = cluster_pool(c, p, &io, errp);
    if (r == 0) {
        r = rbd_remove(io, p->image);
        if (r < 0) {
            (void)error_set(errp, -r, "error rbd remove: %s", strerror(-r));
        }
        rados_ioctx_destroy(io);
    }
    cluster_put(c);
    return r;
}
