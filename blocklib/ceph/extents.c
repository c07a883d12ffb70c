/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where an image has data: rbd_diff_iterate2() from nothing to now.
 *
 *     asked      |      offset ------------- bytes |
 *     callbacks  |  data |        | data |data|          by offset, with gaps
 *     told              data, zero, data, zero
 *
 * With an object map that is valid it looks at nothing else, and tells of whole
 * objects.  librbd before 1.17 then gets offsets wrong unless they begin an
 * object, and for clones and striped images at all.  So it is asked from the
 * beginning of an object, and not that way for the latter.  Without the map
 * every object is asked; so only some are, each time.
 */
#include <errno.h>

#include "ceph/priv.h"
#include "nbdelta/bytes.h"

/* How many objects are asked, each of which costs a message. */
#define ASKED_MAX 32

/* The callback has enough. */
#define ENOUGH (-9000)

struct walk {
    struct ceph_extent *e;
    unsigned count;
    unsigned max;
    uint64_t at;  /* everything before is told */
    uint64_t end; /* of what was asked */
};

/* False: there is no room for it. */
static bool add(struct walk *w, uint64_t end, bool zero)
{
    end = min_u64(end, w->end);
    if (end <= w->at) {
        return true;
    }
    if (w->count > 0 && w->e[w->count - 1].zero == zero) {
        w->e[w->count - 1].bytes += end - w->at;
    } else if (w->count < w->max) {
        w->e[w->count++] = (struct ceph_extent){end - w->at, zero};
    } else {
        return false;
    }
    w->at = end;
    return true;
}

static int one(uint64_t offset, size_t bytes, int exists, void *arg)
{
    struct walk *w = arg;

    if (!exists) {
        return 0;
    }
    return add(w, offset, true) && add(w, offset + bytes, false) ? 0 : ENOUGH;
}

bool image_is_clone(struct ceph_image *i)
{
    rbd_linked_image_spec_t parent;
    rbd_snap_spec_t snap;
    int r = rbd_get_parent(i->rbd, &parent, &snap);

    if (r == 0) {
        rbd_linked_image_spec_cleanup(&parent);
        rbd_snap_spec_cleanup(&snap);
    }
    return r != -ENOENT;
}

static bool map_is_valid(struct ceph_image *i)
{
    const uint64_t invalid = RBD_FLAG_OBJECT_MAP_INVALID |
                             RBD_FLAG_FAST_DIFF_INVALID;
    uint64_t features;
    uint64_t flags;

    return rbd_get_features(i->rbd, &features) == 0 &&
           rbd_get_flags(i->rbd, &flags) == 0 &&
           (features & RBD_FEATURE_FAST_DIFF) &&
           !(features & RBD_FEATURE_STRIPINGV2) && !(flags & invalid) &&
           !image_is_clone(i);
}

int image_extents(struct ceph_image *i, uint64_t offset, uint64_t bytes,
                  struct ceph_extent *e, unsigned *count)
{
    bool whole = map_is_valid(i);
    uint64_t from = whole ? align_down(offset, i->object_size) : offset;
    uint64_t end = offset + bytes;

    if (!whole) {
        end = min_u64(end, align_down(offset, i->object_size) +
                               ASKED_MAX * i->object_size);
    }
    struct walk w = {.e = e, .max = *count, .at = offset, .end = end};
    int r = rbd_diff_iterate2(i->rbd, NULL, from, end - from, 1, whole, one,
                              &w);
    if (r < 0 && r != ENOUGH) {
        return (int)image_result(i, r);
    }
    if (r == 0) {
        (void)add(&w, end, true);
    }
    *count = w.count;
    return 0;
}
