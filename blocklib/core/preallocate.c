/* SPDX-License-Identifier: BSD-3-Clause */
/* Giving a part of a disk room before anything is written to it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/create.h"
#include "core/graph.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"

/* Bytes that one request gives room to. */
#define STEP      (256 * MiB)
#define STEP_FULL (16 * MiB)

/* Of a disk that has nothing but its bytes. */
static int make_plain_room(struct node *n, uint64_t offset, uint64_t bytes,
                           unsigned how)
{
    if (how == IMAGE_ROOM_METADATA) {
        return -ENOTSUP;
    }
    if (how == IMAGE_ROOM_FALLOC) {
        return node_zero(n, offset, bytes, 0);
    }
    CLEANUP_FREE char *zeroes = calloc(1, bytes);
    return zeroes ? node_pwrite(n, zeroes, bytes, offset, 0) : -ENOMEM;
}

int node_preallocate(struct node *n, uint64_t offset, uint64_t bytes,
                     unsigned how)
{
    const struct driver_image *image = n->drv->image;
    uint64_t step = how == IMAGE_ROOM_FULL ? STEP_FULL : STEP;
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0; done += step) {
        uint64_t len = min_u64(step, bytes - done);
        struct tree *t = node_enter(n, false);

        r = image && image->make_room
                ? image->make_room(n, offset + done, len, how)
                : make_plain_room(n, offset + done, len, how);
        node_leave(t);
    }
    return r;
}

int image_preallocate(struct blk *b, uint64_t offset, uint64_t bytes,
                      enum image_room how, struct error **errp)
{
    static const char *const words[] = {"off", "metadata", "falloc", "full"};
    struct node *n = blk_node(b);
    int r = how == IMAGE_ROOM_NONE ? 0
                                   : node_preallocate(n, offset, bytes, how);

    if (r == -ENOTSUP) {
        return error_set(errp, ENOTSUP,
                         "Unsupported preallocation mode '%s' for '%s'",
                         words[how], node_filename(n));
    }
    return r < 0 ? error_set(errp, -r, "cannot preallocate '%s': %s",
                             node_filename(n), strerror(-r))
                 : 0;
}
