/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_THROTTLE_H
#define NBDELTA_CORE_THROTTLE_H

/*
 * How fast requests may go
 * ========================
 *
 * Leaky buckets: a request pours itself in (its bytes, or one per operation),
 * what is inside leaks at the allowed rate, and while the bucket is more than
 * full nobody may go.  A request is never split: the bucket may be overfull
 * after it, and the next one waits longer.
 *
 *   avg        leaks per second; the bucket holds a tenth of that
 *   max        with a burst rate it holds max * length: so much can go at
 *              once.  With length > 1 a second bucket keeps the burst itself
 *              below max per second
 *
 * Pure computation: the time is an argument, nothing is locked.
 */
#include "nbdelta/types.h"

enum throttle_bucket {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_BUCKETS,
};

struct throttle_limit {
    uint64_t avg;    /* per second; 0: no limit */
    uint64_t max;    /* per second; 0: no bursts */
    uint64_t length; /* of a burst, seconds; >= 1 */
};

struct throttle_config {
    struct throttle_limit limit[THROTTLE_BUCKETS];
    uint64_t iops_size; /* bytes that count as one operation; 0: any */
};

struct throttle {
    struct throttle_config config;
    double level[THROTTLE_BUCKETS];
    double burst[THROTTLE_BUCKETS];
    uint64_t leaked; /* ns */
};

/* -EINVAL: the limits contradict each other. */
int throttle_check(const struct throttle_config *c, struct error **errp);

bool throttle_limits_something(const struct throttle_config *c);

/* From now on with @c, which is valid, and empty buckets. */
void throttle_start(struct throttle *t, const struct throttle_config *c,
                    uint64_t now);

/* For how many ns nothing of this direction may go; time does not run
 * backwards. */
uint64_t throttle_wait(struct throttle *t, bool write, uint64_t now);

/* Count a request that goes. */
void throttle_account(struct throttle *t, bool write, uint64_t bytes);

#endif /* NBDELTA_CORE_THROTTLE_H */
