/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Snapshots of images, and what differs between two of them.
 *
 *     from        between         to: what the handle shows
 *      |  object map | object map  |
 *      +-------------+-------------+      librbd compares them one by one
 *
 * A diff by whole objects needs the object maps of all snapshots from one to
 * the other.  Where one is marked as invalid, librbd lists the objects instead,
 * and still tells of whole ones.  So the caller asks for that first, and then
 * for exact ranges.  With clones, striped images and images that had another
 * size in between, librbd before 1.17 goes wrong by whole objects.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ceph/priv.h"
#include "nbdelta/cleanup.h"

/* --- Making, removing, renaming --- */

int image_ready(struct ceph_image *i)
{
    int r = cluster_ready(i->cluster);

    r = r < 0 ? r : image_has_client(i, 0);
    return r < 0 ? r : 0;
}

int image_snapshot_create(struct ceph_image *i, const char *name)
{
    return (int)image_result(i, rbd_snap_create(i->rbd, name));
}

int image_snapshot_remove(struct ceph_image *i, const char *name)
{
    return (int)image_result(i, rbd_snap_remove(i->rbd, name));
}

int image_snapshot_rename(struct ceph_image *i, const char *from,
                          const char *to)
{
    return (int)image_result(i, rbd_snap_rename(i->rbd, from, to));
}

/* --- Listing --- */

/* *list: all of any kind; rbd_snap_list_end(*list) and free(*list). */
static int get_all(struct ceph_image *i, rbd_snap_info_t **list)
{
    int max = 32;
    int r;

    do {
        *list = calloc((size_t)max + 1, sizeof(**list));
        if (!*list) {
            return -ENOMEM;
        }
        r = rbd_snap_list(i->rbd, *list, &max);
        if (r < 0) {
            free(*list);
        }
    } while (r == -ERANGE);
    return (int)image_result(i, r);
}

static bool is_of_users(struct ceph_image *i, uint64_t id)
{
    rbd_snap_namespace_type_t type;

    return rbd_snap_get_namespace_type(i->rbd, id, &type) == 0 &&
           type == RBD_SNAP_NAMESPACE_TYPE_USER;
}

void image_snapshots_free(struct ceph_snapshot *list, size_t count)
{
    for (size_t k = 0; k < count; k++) {
        free(list[k].name);
    }
    free(list);
}

static int by_id(const void *va, const void *vb)
{
    const struct ceph_snapshot *a = va;
    const struct ceph_snapshot *b = vb;

    return a->id < b->id ? -1 : a->id > b->id;
}

static int copy_list(struct ceph_image *i, const rbd_snap_info_t *all, int n,
                     struct ceph_snapshot **list, size_t *count)
{
    *count = 0;
    *list = calloc((size_t)n + 1, sizeof(**list));
    if (!*list) {
        return -ENOMEM;
    }
    for (int k = 0; k < n; k++) {
        struct ceph_snapshot *s = &(*list)[*count];

        if (!is_of_users(i, all[k].id)) {
            continue;
        }
        *s = (struct ceph_snapshot){all[k].id, all[k].size,
                                    strdup(all[k].name)};
        if (!s->name) {
            image_snapshots_free(*list, *count);
            return -ENOMEM;
        }
        ++*count;
    }
    qsort(*list, *count, sizeof(**list), by_id);
    return 0;
}

int image_snapshots(struct ceph_image *i, struct ceph_snapshot **list,
                    size_t *count)
{
    rbd_snap_info_t *all;
    int n = get_all(i, &all);

    if (n < 0) {
        return n;
    }
    int r = copy_list(i, all, n, list, count);
    rbd_snap_list_end(all);
    free(all);
    return r;
}

/* --- Differences --- */

struct telling {
    ceph_diff_fn *fn;
    void *opaque;
};

static int tell(uint64_t offset, size_t bytes, int exists, void *arg)
{
    const struct telling *t = arg;

    (void)exists;
    return t->fn(offset, bytes, t->opaque);
}

int image_diff(struct ceph_image *i, const char *from, uint64_t offset,
               uint64_t bytes, bool whole, ceph_diff_fn *fn, void *opaque)
{
    struct telling t = {fn, opaque};

    return (int)image_result(
        i, rbd_diff_iterate2(i->rbd, from, offset, bytes, 1, whole, tell, &t));
}

static int flags_of(rbd_image_t rbd, enum ceph_maps *maps)
{
    const uint64_t invalid = RBD_FLAG_OBJECT_MAP_INVALID |
                             RBD_FLAG_FAST_DIFF_INVALID;
    uint64_t flags = 0;
    int r = rbd_get_flags(rbd, &flags);

    if (r == 0 && (flags & invalid)) {
        *maps = CEPH_MAPS_INVALID;
    }
    return r;
}

/* Look at the snapshots that are not older than @from and older than what @i
 * shows, by way of @other, the same image. */
static int look_at(struct ceph_image *i, rbd_image_t other,
                   const rbd_snap_info_t *all, int n, const char *from,
                   enum ceph_maps *maps)
{
    uint64_t first = UINT64_MAX;
    uint64_t size = 0;
    int r = rbd_get_size(i->rbd, &size);

    for (int k = 0; k < n; k++) {
        if (strcmp(all[k].name, from) == 0 && is_of_users(i, all[k].id)) {
            first = all[k].id;
        }
    }
    if (r == 0 && first == UINT64_MAX) {
        r = -ENOENT;
    }
    for (int k = 0; r == 0 && *maps == CEPH_MAPS_VALID && k < n; k++) {
        if (all[k].id < first) {
            continue;
        }
        if (all[k].size != size) {
            *maps = CEPH_MAPS_NONE;
            break;
        }
        r = rbd_snap_set_by_id(other, all[k].id);
        r = r < 0 ? r : flags_of(other, maps);
    }
    return r;
}

static int look_at_all(struct ceph_image *i, const char *from,
                       enum ceph_maps *maps)
{
    char id[256];
    rbd_snap_info_t *all;
    rbd_image_t other;
    int r = rbd_get_id(i->rbd, id, sizeof(id));

    r = r < 0 ? r : rbd_open_by_id_read_only(i->io, id, &other, NULL);
    if (r < 0) {
        return r;
    }
    int n = get_all(i, &all);
    r = n < 0 ? n : 0;
    if (r == 0) {
        r = look_at(i, other, all, n, from, maps);
        rbd_snap_list_end(all);
        free(all);
    }
    (void)rbd_close(other);
    return r;
}

/* A snapshot that is newer than what @i shows is looked at for nothing. */
int image_maps(struct ceph_image *i, const char *from, enum ceph_maps *maps)
{
    uint64_t features = 0;
    int r = rbd_get_features(i->rbd, &features);

    *maps = CEPH_MAPS_NONE;
    if (r < 0 || !(features & RBD_FEATURE_FAST_DIFF) ||
        (features & RBD_FEATURE_STRIPINGV2) || image_is_clone(i)) {
        return (int)image_result(i, r);
    }
    *maps = CEPH_MAPS_VALID;
    r = flags_of(i->rbd, maps);
    if (r == 0 && from) {
        r = look_at_all(i, from, maps);
    }
    return (int)image_result(i, r);
}

/* --- Clients --- */

uint64_t image_client(struct ceph_image *i)
{
    return cluster_client(i->cluster);
}

int image_watchers(struct ceph_image *i, rbd_image_watcher_t **list,
                   size_t *count)
{
    int r;

    *count = 16;
    do {
        *list = calloc(*count + 1, sizeof(**list));
        if (!*list) {
            return -ENOMEM;
        }
        r = rbd_watchers_list(i->rbd, *list, count);
        if (r < 0) {
            free(*list);
        }
    } while (r == -ERANGE);
    return r;
}

int image_has_client(struct ceph_image *i, uint64_t client)
{
    rbd_image_watcher_t *list;
    size_t count;
    int r = image_watchers(i, &list, &count);

    if (r < 0) {
        return (int)image_result(i, r);
    }
    for (size_t k = 0; k < count; k++) {
        r |= list[k].id >= 0 && (uint64_t)list[k].id == client;
    }
    rbd_watchers_list_cleanup(list, count);
    free(list);
    return r;
}
