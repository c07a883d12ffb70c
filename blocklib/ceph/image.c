/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening, making and changing images: the module's table. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ceph/priv.h"
#include "nbdelta/error.h"
#include "nbdelta/module.h"

/* --- Opening --- */

/* An image that is only read is opened as any other, so that it is told of
 * changes; unless the user may not even do that. */
static int open_rbd(struct ceph_image *i, const struct ceph_place *p)
{
    int r = rbd_open(i->io, p->image, &i->rbd, p->snapshot);

    if (p->read_only && (r == -EPERM || r == -EACCES || r == -EROFS)) {
        r = rbd_open_read_only(i->io, p->image, &i->rbd, p->snapshot);
        i->read_only = true;
    }
    return r;
}

static int unlock(struct ceph_image *i, const struct ceph_place *p,
                  struct error **errp)
{
    rbd_encryption_luks1_format_options_t luks1 = {
        .passphrase = p->passphrase,
        .passphrase_size = p->passphrase_len,
    };
    rbd_encryption_luks2_format_options_t luks2 = {
        .passphrase = p->passphrase,
        .passphrase_size = p->passphrase_len,
    };
    int r = p->luks == CEPH_LUKS1
                ? rbd_encryption_load(i->rbd, RBD_ENCRYPTION_FORMAT_LUKS1,
                                      &luks1, sizeof(luks1))
            : p->luks == CEPH_LUKS2
                ? rbd_encryption_load(i->rbd, RBD_ENCRYPTION_FORMAT_LUKS2,
                                      &luks2, sizeof(luks2))
                : 0;

    return r < 0 ? error_set(errp, -r, "encryption load fail: %s", strerror(-r))
                 : 0;
}

static int open_in_pool(struct ceph_image *i, const struct ceph_place *p,
                        struct error **errp)
{
    rbd_image_info_t info;
    int r = open_rbd(i, p);

    if (r < 0) {
        return error_set(errp, -r, "error reading header from %s: %s", p->image,
                         strerror(-r));
    }
    r = unlock(i, p, errp);
    if (r == 0 && (r = rbd_stat(i->rbd, &info, sizeof(info))) < 0) {
        (void)error_set(errp, -r, "error getting image info from %s: %s",
                        p->image, strerror(-r));
    }
    if (r < 0) {
        (void)rbd_close(i->rbd);
        return r;
    }
    i->object_size = info.obj_size;
    i->read_only |= p->snapshot != NULL;
    return 0;
}

static int image_open(const struct ceph_place *p, struct ceph_image **imagep,
                      struct error **errp)
{
    struct ceph_image *i = calloc(1, sizeof(*i));

    if (!i) {
        return error_nomem(errp);
    }
    i->refs = 1;
    int r = cluster_get(p, &i->cluster, errp);
    if (r < 0) {
        free(i);
        return r;
    }
    r = cluster_pool(i->cluster, p, &i->io, errp);
    if (r == 0 && (r = open_in_pool(i, p, errp)) < 0) {
        rados_ioctx_destroy(i->io);
    }
    if (r < 0) {
        (void)image_result(i, r);
        cluster_put(i->cluster);
        free(i);
        return r;
    }
    *imagep = i;
    return 0;
}

static void image_unref(struct ceph_image *i)
{
    if (atomic_fetch_sub(&i->refs, 1) > 1) {
        return;
    }
    (void)rbd_close(i->rbd);
    rados_ioctx_destroy(i->io);
    cluster_put(i->cluster);
    free(i);
}

static void image_close(struct ceph_image *i)
{
    if (i->watched) {
        (void)rbd_update_unwatch(i->rbd, i->watch); /* waits for the callback */
        taken_over(i);
        i->watched = false;
    }
    image_unref(i);
}

static void image_ref(struct ceph_image *i)
{
    (void)atomic_fetch_add(&i->refs, 1);
}

/* --- Making --- */

static int image_create(const struct ceph_place *p, uint64_t size,
                        uint64_t object_size, struct error **errp)
{
    int order = object_size > 0 ? __builtin_ctzll(object_size) : 0;
    struct cluster *c;
    rados_ioctx_t io;
    int r = cluster_get(p, &c, errp);

    if (r < 0) {
        return r;
    }
    r = cluster_pool(c, p, &io, errp);
    if (r == 0) {
        rados_set_pool_full_try(io);
        r = rbd_create(io, p->image, size, &order);
        if (r < 0) {
            (void)error_set(errp, -r, "error rbd create: %s", strerror(-r));
        }
        rados_ioctx_destroy(io);
    }
    cluster_put(c);
    return r;
}

/* --- Looking and changing --- */

static uint64_t image_object_size(const struct ceph_image *i)
{
    return i->object_size;
}

static bool image_read_only(const struct ceph_image *i)
{
    return i->read_only;
}

static int image_size(struct ceph_image *i, uint64_t *size)
{
    return (int)image_result(i, rbd_get_size(i->rbd, size));
}

static int image_resize(struct ceph_image *i, uint64_t size)
{
    return (int)image_result(i, rbd_resize(i->rbd, size));
}

static void header_changed(void *arg)
{
    struct ceph_image *i = arg;

    taken_over(i);
    i->changed(i->opaque);
    handed_over(i);
}

static int image_watch(struct ceph_image *i, void (*fn)(void *opaque),
                       void *opaque)
{
    i->changed = fn;
    i->opaque = opaque;
    handed_over(i);
    int r = rbd_update_watch(i->rbd, &i->watch, header_changed, i);
    i->watched = r == 0;
    return r;
}

static const struct ceph_module functions = {
    .open = image_open,
    .close = image_close,
    .ref = image_ref,
    .unref = image_unref,
    .create = image_create,
    .remove = image_erase,
    .object_size = image_object_size,
    .read_only = image_read_only,
    .size = image_size,
    .resize = image_resize,
    .submit = image_submit,
    .request = image_request,
    .extents = image_extents,
    .watch = image_watch,
    .check_alone = image_check_alone,
    .ready = image_ready,
    .snapshot_create = image_snapshot_create,
    .snapshot_remove = image_snapshot_remove,
    .snapshot_rename = image_snapshot_rename,
    .snapshots = image_snapshots,
    .snapshots_free = image_snapshots_free,
    .diff = image_diff,
    .maps = image_maps,
    .client = image_client,
    .has_client = image_has_client,
};

MODULE(NBDELTA_VERSION, &functions);
