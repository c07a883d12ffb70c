/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_COPY_UP_H
#define NBDELTA_CORE_COPY_UP_H

/*
 * Copying up: an image gets what it leaves to the images below it
 * ===============================================================
 *
 *      top      |    | aa |    |    |        |    | aa | bb |  0 |
 *      middle   | mm |    | bb |  0 |   =>   | mm | aa | bb |  0 |
 *      base     | cc | cc | cc | cc |          (a scope of two layers)
 *
 * Nobody who reads sees a change.  So no bitmap is told, and a guest may write
 * meanwhile: where it has written, nothing is copied up any more.
 */
#include "core/node.h"

/* How far down the images are that have what shall be copied up. */
struct copy_up_scope {
    unsigned layers; /* images, from the top on */
    uint64_t hidden; /* bytes of the image below these, which is hidden where
                        one of them is shorter; 0: there is none */
    bool all;        /* what no image has at all, too: it becomes zeroes */
};

/* Images from @from down to the one above @below (NULL: to the last one),
 * without filters.  Control section, or request. */
unsigned copy_up_layers(const struct node *from, const struct node *below);

/* Shall the extent, which node_extents() tells of the top image, be copied up?
 */
bool copy_up_wants(const struct copy_up_scope *s, const struct extent *e);

/*
 * Copy up the part of the range that @n, or what it filters, leaves to its
 * backing node at this moment.  @buf: what can be read there, NULL: zeroes.
 * What the image has, or is given meanwhile, stays as it is.  @flags:
 * REQ_UNCACHED, or 0.  Blocks.  -EPERM:
 * the image is read-only.  -ENOSPC, -EIO and others: of the storage; nobody
 * sees a change then, either.
 */
int node_copy_up(struct node *n, uint64_t offset, uint64_t bytes,
                 const void *buf, unsigned flags);

#endif /* NBDELTA_CORE_COPY_UP_H */
