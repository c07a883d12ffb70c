/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_IO_H
#define NBDELTA_CORE_IO_H

/* Between the files of core that do I/O. */
#include "core/node.h"

/* node_pwritev after the dirty bits are set; FUA only if the driver can. */
int node_write_unmarked(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags);

/* A growable node was written to up to @end. */
static inline void node_raise_size(struct node *n, uint64_t end)
{
    uint64_t size = n->size;

    while (size < end && !atomic_compare_exchange_weak(&n->size, &size, end)) {
    }
}

#endif /* NBDELTA_CORE_IO_H */
