/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_BLK_PRIV_H
#define NBDELTA_CORE_BLK_PRIV_H

/* Between blk.c and flights.c. */
#include "core/graph-priv.h"
#include "core/stats.h"

struct blk {
    struct graph *graph;
    struct edge root; /* child changes under the tree lock */
    struct stats stats;
};

#endif /* NBDELTA_CORE_BLK_PRIV_H */
