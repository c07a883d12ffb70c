/* SPDX-License-Identifier: BSD-3-Clause */
#include "load.h"

/*
 * A number has a bucket of its own below 2^FINE; above, its highest bit and the
 * FINE bits after that choose one.
 */
enum { FINE = 5, ONE = 1 << FINE };

static unsigned bucket_of(uint64_t ns)
{
    if (ns < ONE) {
        return (unsigned)ns;
    }
    unsigned shift = 63 - (unsigned)__builtin_clzll(ns) - FINE;
    return (shift + 1) * ONE + ((unsigned)(ns >> shift) & (ONE - 1));
}

/* The largest number that is in this bucket. */
static uint64_t end_of(unsigned bucket)
{
    if (bucket < ONE) {
        return bucket;
    }
    return ((uint64_t)(ONE + bucket % ONE + 1) << (bucket / ONE - 1)) - 1;
}

void load_latency_add(struct load_latency *l, uint64_t ns)
{
    l->buckets[bucket_of(ns)]++;
    l->count++;
    if (ns > l->max_ns) {
        l->max_ns = ns;
    }
}

uint64_t load_latency_at(const struct load_latency *l, double share)
{
    uint64_t seen = 0, wanted = (uint64_t)(share * (double)l->count);

    for (unsigned i = 0; i < sizeof(l->buckets) / sizeof(l->buckets[0]); i++) {
        seen += l->buckets[i];
        if (seen > wanted) {
            return end_of(i) < l->max_ns ? end_of(i) : l->max_ns;
        }
    }
    return l->max_ns;
}
