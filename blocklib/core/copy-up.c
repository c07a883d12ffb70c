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

/* Of a plain window on another node (raw). */
static int copy_up_below(struct node *n, uint64_t offset, uint64_t bytes,
                         const char *buf, unsigned flags)
{
    struct mapping m;
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0; done += m.length) {
        r = node_map(n, offset + done, bytes - done, 0, &m);
        if (r < 0) {
            return r;
        }
        if (m.kind == MAP_DATA) {
            r = node_copy_up(m.file, m.host, m.length, buf ? buf + done : NULL,
                             flags);
        }
        node_map_put(n, &m);
    }
    return r;
}

int node_copy_up(struct node *n, uint64_t offset, uint64_t bytes,
                 const void *buf, unsigned flags)
{
    n = node_skip_filters(n);
    if (n->drv->is_protocol) {
        return 0; /* it leaves nothing to others */
    }
    if (n->flags.read_only) {
        return -EPERM;
    }
    return n->drv->copy_up ? n->drv->copy_up(n, offset, bytes, buf, flags)
                           : copy_up_below(n, offset, bytes, buf, flags);
}
