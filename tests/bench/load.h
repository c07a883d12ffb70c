/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The parts of nbd-load:
 *
 *   load-plan.c     where the next request goes
 *   load-data.c     what is written, and compared
 *   load-latency.c  a histogram of how long requests took
 *   load-run.c      the connections: send, receive, count
 *   nbd-load.c      options and output
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum load_order { LOAD_RANDOM, LOAD_SEQUENTIAL, LOAD_ONCE };

struct load_options {
    const char *address, *export;
    bool write, verify, flush;
    enum load_order order;
    uint32_t block;       /* bytes of a request */
    uint32_t piece;       /* LOAD_ONCE: bytes of which one request is made */
    uint64_t first, size; /* the part of the disk, bytes; size 0: to its end */
    unsigned depth, connections;
    double seconds;
    uint64_t count; /* of requests, at the most; 0: only time ends it */
    uint64_t seed;
};

/* Where the requests of a run go. */
struct load_plan {
    enum load_order order;
    uint32_t block, piece;
    uint64_t first;
    uint64_t places; /* blocks; LOAD_ONCE: pieces */
    uint64_t next;
    uint64_t random; /* state */
    unsigned half;   /* LOAD_ONCE: bits of half a place's number */
    uint64_t round_key[4];
};

/* For an export of @size bytes; the options must fit it. */
void load_plan_init(struct load_plan *p, const struct load_options *o,
                    uint64_t size);
/* The next offset.  Returns false when all pieces were taken. */
bool load_plan_next(struct load_plan *p, uint64_t *offset);

/* What the bytes of a disk are: a function of the seed and of the position. */
void load_data_init(uint64_t seed, uint32_t block);
const char *load_data(uint64_t offset);

/* Buckets are 1/32 of a power of two wide, so a percentile is 3 % off at most.
 */
struct load_latency {
    uint64_t buckets[64 * 32];
    uint64_t count, max_ns;
};
void load_latency_add(struct load_latency *l, uint64_t ns);
/* Nanoseconds that @share (0 to 1) of the requests did not exceed. */
uint64_t load_latency_at(const struct load_latency *l, double share);

struct load_result {
    uint64_t requests, export_size;
    double seconds; /* from the first request to the last reply (or flush) */
    double cpu;     /* our own, seconds, user and system */
    struct load_latency latency;
};
/* Ends the process when the server fails or has other bytes than load_data().
 */
void load_run(const struct load_options *o, struct load_result *result);
/* Have as many connections as asked for and do nothing, until standard input
 * ends. */
void load_idle(const struct load_options *o);
