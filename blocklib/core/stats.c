/* SPDX-License-Identifier: BSD-3-Clause */
/* Counters of requests, in shards, and their sums as BlockStats. */
#include "core/stats.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "core/node.h"
#include "nbdelta/bytes.h"
#include "nbdelta/thread.h"

/* --- Counting --- */

static struct stats_shard *my_shard(struct stats *s)
{
    static _Atomic unsigned threads;
    static _Thread_local unsigned mine; /* its number + 1 */

    if (mine == 0) {
        mine = atomic_fetch_add(&threads, 1) % STATS_SHARDS + 1;
    }
    return &s->shard[mine - 1];
}

static void count(_Atomic uint64_t *counter, uint64_t n)
{
    (void)atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* The time, some milliseconds old, for a quarter of the price. */
static uint64_t about_now_ns(void)
{
    struct timespec ts = {0};

    (void)clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

void stats_begin(struct stats_timer *t, unsigned flags)
{
    static _Thread_local unsigned requests;

    t->weight = 1;
    if (flags & REQ_NOWAIT) {
        t->weight = requests++ % STATS_SAMPLE == 0 ? STATS_SAMPLE : 0;
    }
    t->start_ns = t->weight > 0 ? now_ns() : 0;
}

static unsigned bin_of(uint64_t ns)
{
    unsigned bits = ns == 0 ? 0 : 64 - (unsigned)__builtin_clzll(ns);

    /* STATS_NS(i) is the first number with 13 + 2 * i bits. */
    return bits < 13 ? 0 : (unsigned)min_u64((bits - 11) / 2, STATS_BINS - 1);
}

void stats_end(struct stats *s, enum stats_op op, uint64_t bytes,
               const struct stats_timer *t, int r)
{
    struct stats_shard *shard = my_shard(s);
    struct stats_count *c = &shard->op[op];
    uint64_t now;

    if (op == STATS_NONE || r == -EAGAIN || r == -ENOTSUP) {
        return;
    }
    if (r < 0) {
        count(&c->failed, 1);
    } else {
        count(&c->done, 1);
        count(&c->bytes, bytes);
    }
    if (t->weight > 0) {
        now = now_ns();
        count(&c->ns, (now - t->start_ns) * t->weight);
        if (r >= 0) {
            count(&c->bins[bin_of(now - t->start_ns)], t->weight);
        }
    } else {
        now = about_now_ns();
    }
    atomic_store_explicit(&shard->last_ns, now, memory_order_relaxed);
}

void stats_invalid(struct stats *s, enum stats_op op)
{
    struct stats_shard *shard = my_shard(s);

    if (op == STATS_NONE) {
        return;
    }
    count(&shard->op[op].invalid, 1);
    atomic_store_explicit(&shard->last_ns, now_ns(), memory_order_relaxed);
}

/* --- Telling --- */

static uint64_t get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void put_counter(json_t *o, const char *prefix, const char *op,
                        const char *suffix, uint64_t value)
{
    char key[40];

    (void)snprintf(key, sizeof(key), "%s%s%s", prefix, op, suffix);
    (void)json_object_set_new(o, key, json_integer((json_int_t)value));
}

static void describe_op(const struct stats *s, enum stats_op op,
                        const char *name, json_t *o)
{
    struct {
        uint64_t done;
        uint64_t bytes;
        uint64_t ns;
        uint64_t failed;
        uint64_t invalid;
    } sum = {0};

    for (unsigned i = 0; s && i < STATS_SHARDS; i++) {
        const struct stats_count *c = &s->shard[i].op[op];

        sum.done += get(&c->done);
        sum.bytes += get(&c->bytes);
        sum.ns += get(&c->ns);
        sum.failed += get(&c->failed);
        sum.invalid += get(&c->invalid);
    }
    if (op != STATS_FLUSH) {
        put_counter(o, "", name, "_bytes", sum.bytes);
        put_counter(o, "", name, "_merged", 0);
    }
    put_counter(o, "", name, "_operations", sum.done);
    put_counter(o, "", name, "_total_time_ns", sum.ns);
    put_counter(o, "failed_", name, "_operations", sum.failed);
    put_counter(o, "invalid_", name, "_operations", sum.invalid);
}

/* BlockLatencyHistogramInfo. */
static void describe_latency(const struct stats *s, enum stats_op op,
                             const char *name, json_t *o)
{
    json_t *boundaries = json_array();
    json_t *bins = json_array();
    char key[40];

    for (unsigned b = 0; b < STATS_BINS; b++) {
        uint64_t sum = 0;

        for (unsigned i = 0; i < STATS_SHARDS; i++) {
            sum += get(&s->shard[i].op[op].bins[b]);
        }
        if (b < STATS_BINS - 1) {
            (void)json_array_append_new(boundaries,
                                        json_integer((json_int_t)STATS_NS(b)));
        }
        (void)json_array_append_new(bins, json_integer((json_int_t)sum));
    }
    (void)snprintf(key, sizeof(key), "%s_latency_histogram", name);
    (void)json_object_set_new(
        o, key,
        json_pack("{s:o, s:o}", "boundaries", boundaries, "bins", bins));
}

static uint64_t last_access(const struct stats *s)
{
    uint64_t last = 0;

    for (unsigned i = 0; s && i < STATS_SHARDS; i++) {
        last = max_u64(last, get(&s->shard[i].last_ns));
    }
    return last;
}

/* BlockDeviceStats; @s NULL: a node counts nothing but the highest offset. */
static json_t *counters(const struct stats *s, bool device, uint64_t highest)
{
    static const char *const names[STATS_OPS] = {"rd", "wr", "flush", "unmap"};
    uint64_t last = last_access(s);
    json_t *o = json_pack("{s:b, s:b, s:[]}", "account_invalid", (int)device,
                          "account_failed", (int)device, "timed_stats");

    for (unsigned op = 0; op < STATS_OPS; op++) {
        describe_op(s, op, names[op], o);
        if (s && op != STATS_UNMAP) { /* QEMU has none of it */
            describe_latency(s, op, names[op], o);
        }
    }
    put_counter(o, "", "wr_highest_offset", "", highest);
    if (last > 0) {
        uint64_t now = now_ns();
        put_counter(o, "", "idle_time_ns", "", now > last ? now - last : 0);
    }
    return o;
}

static json_t *describe_stats(struct node *n, const struct stats *s,
                              bool device);

/* The node to show.  A device does not show the filters that jobs have put
 * there. */
static struct node *shown(struct node *n, bool device)
{
    return device ? node_skip_job_filters(n) : n;
}

static void add_stats_below(struct node *n, bool device, json_t *info)
{
    struct node *file = shown(node_child(n, CHILD_FILE), device);
    struct node *backing = shown(node_child(n, CHILD_BACKING), device);

    if (file) {
        (void)json_object_set_new(info, "parent",
                                  describe_stats(file, NULL, device));
    }
    if (n->drv->is_filter) {
        backing = file;
    }
    if (backing && device) {
        (void)json_object_set_new(info, "backing",
                                  describe_stats(backing, NULL, device));
    }
}

/* BlockStats of @n.  @device: for a device, with its counters @s, which a node
 * does not have. */
static json_t *describe_stats(struct node *n, const struct stats *s,
                              bool device)
{
    json_t *info = json_pack("{s:o, s:s}", "stats",
                             counters(s, s != NULL, atomic_load(&n->highest)),
                             "node-name", n->name);

    if (n->drv->stats) {
        json_t *own = json_pack("{s:s}", "driver", n->drv->name);
        n->drv->stats(n, own);
        (void)json_object_set_new(info, "driver-specific", own);
    }
    add_stats_below(n, device, info);
    return info;
}

json_t *node_device_stats(struct node *n, const struct stats *s)
{
    return describe_stats(shown(n, true), s, true);
}

json_t *node_query_stats(struct graph *g, struct node *n)
{
    graph_lock(g);
    json_t *info = describe_stats(n, NULL, false);
    graph_unlock(g);
    return info;
}

json_t *blk_no_stats(void)
{
    return json_pack("{s:o}", "stats", counters(NULL, true, 0));
}
