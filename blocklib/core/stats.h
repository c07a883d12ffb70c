/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_STATS_H
#define NBDELTA_CORE_STATS_H

/*
 * What a user of a disk has done with it so far.
 *
 * Counting must not show in the time of a request that is served from memory.
 * So a thread adds to one of several shards, which another thread seldom uses.
 * Of the requests that do not wait (REQ_NOWAIT), it looks at the clock for one
 * in STATS_SAMPLE, which stands for all of them in the total time.
 */
#include <jansson.h>
#include <stdatomic.h>

#include "nbdelta/types.h"

struct node;

#define STATS_SHARDS 8
#define STATS_SAMPLE 8

enum stats_op {
    STATS_READ,
    STATS_WRITE,
    STATS_FLUSH,
    STATS_UNMAP,
    STATS_OPS,
    STATS_NONE = STATS_OPS, /* not counted */
};

/* Requests by the time they took: bin i has those below STATS_NS(i), the last
 * one has the others (17 s and more). */
#define STATS_BINS  13
#define STATS_NS(i) (UINT64_C(1) << (12 + 2 * (i)))

/* Any thread, atomic; readers add up all shards. */
struct stats_count {
    _Atomic uint64_t done;
    _Atomic uint64_t bytes;
    _Atomic uint64_t ns;
    _Atomic uint64_t failed;
    _Atomic uint64_t invalid;
    _Atomic uint64_t bins[STATS_BINS]; /* of those whose time was taken; what
                                          stands for more counts as so many */
};

struct stats {
    struct stats_shard {
        struct stats_count op[STATS_OPS];
        _Atomic uint64_t last_ns; /* the end of the last request; 0: none */
        char apart[64];
    } shard[STATS_SHARDS];
};

struct stats_timer {
    uint64_t start_ns;
    unsigned weight; /* 0: the time is not taken */
};

void stats_begin(struct stats_timer *t, unsigned flags);

/* The request ended with @r.  -EAGAIN and -ENOTSUP: it comes again in another
 * way, and is not counted. */
void stats_end(struct stats *s, enum stats_op op, uint64_t bytes,
               const struct stats_timer *t, int r);

/* The request was refused before anything was done. */
void stats_invalid(struct stats *s, enum stats_op op);

/* BlockStats of a user of @n, with the nodes below; control lock.  A new
 * reference. */
json_t *node_device_stats(struct node *n, const struct stats *s);

#endif /* NBDELTA_CORE_STATS_H */
