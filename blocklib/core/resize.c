/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changing the size of a disk, in a drained section.
 *
 * Order when growing: bitmaps, driver, size, and zeroes over what a longer
 * backing file would show in the new space; when shrinking, bitmaps come last:
 * a bitmap is never shorter than its disk.  Nobody knows the length of a
 * backing file that the image names and that is not open.
 */
#include <errno.h>
#include <inttypes.h>

#include "core/blocker.h"
#include "core/dirty.h"
#include "core/graph.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

static int hide_backing(struct node *n, uint64_t old, uint64_t size,
                        struct error **errp)
{
    struct node *backing = node_child(n, CHILD_BACKING);
    uint64_t end = backing                    ? min_u64(size, backing->size)
                   : node_may_have_backing(n) ? size
                                              : 0;

    if (end <= old) {
        return 0;
    }
    int r = node_zero(n, old, end - old, 0);
    if (r < 0) {
        return error_set(errp, -r,
                         "cannot write zeroes over the backing file's data "
                         "in the new space of '%s'",
                         node_name(n));
    }
    return 0;
}

static int resize_driver(struct node *n, uint64_t size, struct error **errp)
{
    if (n->drv->is_filter && !n->drv->resize) {
        return node_resize(node_child(n, CHILD_FILE), size, errp);
    }
    if (!n->drv->resize) {
        return error_set(errp, ENOTSUP,
                         "Image format driver does not support resize");
    }
    return n->drv->resize(n, size, errp);
}

/* Can zeroes hide the backing file in the new space?  Zeroes over a part of a
 * unit would be written with the rest of it, which the backing file has.
 * Without fast zeroes, all of the new space would be written. */
static int check_hideable(const struct node *n, struct error **errp)
{
    bool hidden = node_may_have_backing(n) && !node_child(n, CHILD_BACKING);

    return hidden && (!n->limits.fast_zero ||
                      !is_aligned(n->size, n->limits.zero_align))
               ? error_set(errp, ENOTSUP,
                           "'%s' cannot grow while its backing file is not "
                           "open",
                           node_name(n))
               : 0;
}

static int grow(struct node *n, uint64_t size, struct error **errp)
{
    uint64_t old = n->size;
    int r = check_hideable(n, errp);

    if (r == 0) {
        r = bitmap_resize_all(n, old, size, errp);
    }
    if (r < 0) {
        return r;
    }
    r = resize_driver(n, size, errp);
    if (r < 0) {
        (void)bitmap_resize_all(n, size, old, NULL);
        return r;
    }
    n->size = size;
    return n->drv->is_filter ? 0 : hide_backing(n, old, size, errp);
}

static int shrink_node(struct node *n, uint64_t size, struct error **errp)
{
    uint64_t old = n->size;
    int r = resize_driver(n, size, errp);

    if (r < 0) {
        return r;
    }
    n->size = size;
    return bitmap_resize_all(n, old, size, errp);
}

int node_resize(struct node *n, uint64_t size, struct error **errp)
{
    if (size > BLK_SIZE_MAX) {
        return error_set(errp, EFBIG, "a size of %" PRIu64 " is too large",
                         size);
    }
    if (n->flags.read_only) {
        return error_set(errp, EACCES, "Block node is read-only: '%s'",
                         node_name(n));
    }
    int r = size < n->size ? shrink_node(n, size, errp) : grow(n, size, errp);

    node_refresh_above(n);
    return r;
}

/* --- Nodes that have the size of what is below them --- */

static bool follows(const struct node *n)
{
    return n->drv->is_filter || n->drv->size_over;
}

void node_follow_size(struct node *n)
{
    const struct node *file = node_child(n, CHILD_FILE);
    uint64_t old = n->size;

    if (!file || !follows(n)) {
        return;
    }
    uint64_t size = n->drv->size_over ? n->drv->size_over(n, file->size)
                                      : file->size;
    if (size > old && bitmap_resize_all(n, old, size, NULL) < 0) {
        return; /* it does not show all of it */
    }
    n->size = size;
    if (size < old) {
        (void)bitmap_resize_all(n, old, size, NULL);
    }
}

int node_check_shrink(const struct node *n, struct error **errp)
{
    int r = node_check_jobs(n, errp);

    list_for_each (at, &n->parents) {
        const struct node *parent =
            list_entry(at, struct edge, on_child)->parent;
        if (r == 0 && parent && follows(parent) &&
            node_child(parent, CHILD_FILE) == n) {
            r = node_check_shrink(parent, errp);
        }
    }
    return r;
}
