/* SPDX-License-Identifier: BSD-3-Clause */
/* Copying up: what there is to copy, and the door to the driver. */
#include "core/copy-up.h"

#include <errno.h>

#include "core/chain.h"

unsigned copy_up_layers(const struct node *from, const struct node *below)
{
    unsigned count = 0;

    for (const struct node *n = from; n && n != below; n = chain_next(n)) {
        count += !n->drv->is_filter;
    }
    return count;
}

bool copy_up_wants(const struct copy_up_scope *s, const struct extent *e)
{
    if ((e->flags & EXTENT_ALLOCATED) || !(e->flags & EXTENT_ZERO)) {
        return e->depth > 0 && e->depth < s->layers;
    }
    /* Zeroes that nobody has: there is no image below e->depth, or it is too
     * short.  The latter hides what the images further below have. */
    return s->all || (e->depth + 1 < s->layers && e->offset < s->hidden);
}

int node_copy_up(struct node *n, uint64_t offset, uint64_t bytes,
                 const void *buf)
{
    n = node_skip_filters(n);
    if (!n->drv->copy_up) {
        return 0; /* it leaves nothing to others */
    }
    return n->flags.read_only ? -EPERM : n->drv->copy_up(n, offset, bytes, buf);
}
