/* SPDX-License-Identifier: BSD-3-Clause */
/* Leaky buckets: how long a request has to wait. */
#include "core/throttle.h"

#include <errno.h>

#include "nbdelta/error.h"

#define VALUE_MAX UINT64_C(1000000000000000)
#define NS_PER_S  1e9
#define WAIT_MAX  3.6e12 /* an hour, then it is computed again */

static bool has(const struct throttle_config *c, enum throttle_bucket b,
                bool burst)
{
    return (burst ? c->limit[b].max : c->limit[b].avg) > 0;
}

static bool total_and_parts(const struct throttle_config *c,
                            enum throttle_bucket total, bool burst)
{
    return has(c, total, burst) &&
           (has(c, total + 1, burst) || has(c, total + 2, burst));
}

static int check_limit(const struct throttle_limit *l, struct error **errp)
{
    if (l->avg > VALUE_MAX || l->max > VALUE_MAX) {
        return error_set(errp, EINVAL,
                         "bps/iops/max values must be within [0, %lld]",
                         (long long)VALUE_MAX);
    }
    if (l->length == 0) {
        return error_set(errp, EINVAL, "the burst length cannot be 0");
    }
    if (l->length > 1 && l->max == 0) {
        return error_set(errp, EINVAL, "burst length set without burst rate");
    }
    if (l->max > 0 && l->length > VALUE_MAX / l->max) {
        return error_set(errp, EINVAL,
                         "burst length too high for this burst rate");
    }
    if (l->max > 0 && l->avg == 0) {
        return error_set(errp, EINVAL,
                         "bps_max/iops_max require corresponding bps/iops "
                         "values");
    }
    if (l->max > 0 && l->max < l->avg) {
        return error_set(errp, EINVAL,
                         "bps_max/iops_max cannot be lower than bps/iops");
    }
    return 0;
}

int throttle_check(const struct throttle_config *c, struct error **errp)
{
    if (total_and_parts(c, THROTTLE_BPS_TOTAL, false) ||
        total_and_parts(c, THROTTLE_IOPS_TOTAL, false) ||
        total_and_parts(c, THROTTLE_BPS_TOTAL, true) ||
        total_and_parts(c, THROTTLE_IOPS_TOTAL, true)) {
        return error_set(errp, EINVAL,
                         "bps/iops/max total values and read/write values "
                         "cannot be used at the same time");
    }
    if (c->iops_size > 0 && !has(c, THROTTLE_IOPS_TOTAL, false) &&
        !has(c, THROTTLE_IOPS_READ, false) &&
        !has(c, THROTTLE_IOPS_WRITE, false)) {
        return error_set(errp, EINVAL,
                         "iops size requires an iops value to be set");
    }
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        int r = check_limit(&c->limit[i], errp);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

bool throttle_limits_something(const struct throttle_config *c)
{
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        if (c->limit[i].avg > 0) {
            return true;
        }
    }
    return false;
}

void throttle_start(struct throttle *t, const struct throttle_config *c,
                    uint64_t now)
{
    *t = (struct throttle){.config = *c, .leaked = now};
}

static double less(double level, double by)
{
    return level > by ? level - by : 0;
}

static void leak(struct throttle *t, uint64_t now)
{
    double seconds = (double)(now - t->leaked) / NS_PER_S;

    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        const struct throttle_limit *l = &t->config.limit[i];
        t->level[i] = less(t->level[i], (double)l->avg * seconds);
        t->burst[i] = less(t->burst[i], (double)l->max * seconds);
    }
    t->leaked = now;
}

/* The time until a bucket of @size that leaks @rate per second is not
 * overfull. */
static double until(double level, double size, double rate)
{
    return level > size ? (level - size) / rate * NS_PER_S : 0;
}

static double wait_for(const struct throttle *t, enum throttle_bucket b)
{
    const struct throttle_limit *l = &t->config.limit[b];
    double avg = (double)l->avg;
    double max = (double)l->max;

    if (l->avg == 0) {
        return 0;
    }
    if (l->max == 0) {
        return until(t->level[b], avg / 10, avg);
    }
    double wait = until(t->level[b], max * (double)l->length, avg);
    return wait > 0 || l->length == 1 ? wait
                                      : until(t->burst[b], max / 10, max);
}

uint64_t throttle_wait(struct throttle *t, bool write, uint64_t now)
{
    const enum throttle_bucket buckets[] = {
        THROTTLE_BPS_TOTAL,
        THROTTLE_IOPS_TOTAL,
        write ? THROTTLE_BPS_WRITE : THROTTLE_BPS_READ,
        write ? THROTTLE_IOPS_WRITE : THROTTLE_IOPS_READ,
    };
    double longest = 0;

    leak(t, now);
    for (size_t i = 0; i < sizeof(buckets) / sizeof(buckets[0]); i++) {
        double wait = wait_for(t, buckets[i]);
        longest = wait > longest ? wait : longest;
    }
    if (longest >= WAIT_MAX) {
        return (uint64_t)WAIT_MAX;
    }
    return longest > 0 ? (uint64_t)longest + 1 : 0;
}

static void pour(struct throttle *t, enum throttle_bucket b, double amount)
{
    t->level[b] += amount;
    if (t->config.limit[b].length > 1) {
        t->burst[b] += amount;
    }
}

void throttle_account(struct throttle *t, bool write, uint64_t bytes)
{
    uint64_t unit = t->config.iops_size;
    double ops = unit > 0 && bytes > unit ? (double)bytes / (double)unit : 1;

    pour(t, THROTTLE_BPS_TOTAL, (double)bytes);
    pour(t, write ? THROTTLE_BPS_WRITE : THROTTLE_BPS_READ, (double)bytes);
    pour(t, THROTTLE_IOPS_TOTAL, ops);
    pour(t, write ? THROTTLE_IOPS_WRITE : THROTTLE_IOPS_READ, ops);
}
