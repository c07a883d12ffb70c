/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * null-co: a driver that takes every write and keeps none; for measuring.
 * Reads leave the buffer as it is unless read-zeroes=on.
 */
#include <errno.h>
#include <time.h>

#include "core/node.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "util/iov.h"

struct null {
    uint64_t latency_ns;
    bool read_zeroes;
};

static const struct option null_options[] = {
    OPTION("latency-ns", UINT, .type_name = "uint64"),
    OPTION("read-zeroes", BOOL),
    OPTION("size", UINT),
    OPTIONS_END,
};

static int null_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct null *s = n->state;
    uint64_t size = 1 * GiB;
    int r;

    if ((r = opts_uint(opts, "size", BLK_SIZE_MAX, &size, errp)) < 0 ||
        (r = opts_uint(opts, "latency-ns", UINT64_MAX, &s->latency_ns, errp)) <
            0 ||
        (r = opts_bool(opts, "read-zeroes", &s->read_zeroes, errp)) < 0) {
        return r;
    }
    if (s->latency_ns > INT64_MAX) {
        return error_set(errp, EINVAL, "latency-ns is invalid");
    }
    n->size = size;
    return 0;
}

static int wait_latency(const struct null *s, unsigned flags)
{
    struct timespec t = {(time_t)(s->latency_ns / 1000000000),
                         (long)(s->latency_ns % 1000000000)};

    if (s->latency_ns == 0) {
        return 0;
    }
    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    while (nanosleep(&t, &t) < 0 && errno == EINTR) {
    }
    return 0;
}

static int null_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    const struct null *s = n->state;

    (void)offset;
    if (s->read_zeroes) {
        iov_fill(iov, cnt, 0, 0, bytes);
    }
    return wait_latency(s, flags);
}

static int null_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    (void)offset;
    (void)bytes;
    (void)iov;
    (void)cnt;
    return wait_latency(n->state, flags);
}

static int null_zero(struct node *n, uint64_t offset, uint64_t bytes,
                     unsigned flags)
{
    (void)offset;
    (void)bytes;
    return wait_latency(n->state, flags);
}

static int null_flush(struct node *n)
{
    return wait_latency(n->state, 0);
}

static int null_map(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned flags, struct mapping *m)
{
    const struct null *s = n->state;

    (void)flags;
    m->kind = s->read_zeroes ? MAP_ZERO : MAP_DATA;
    m->file = n;
    m->host = offset;
    m->length = bytes;
    return 0;
}

static void null_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->fast_zero = true;
}

const struct driver driver_null_co = {
    .name = "null-co",
    .options = null_options,
    .is_protocol = true,
    .no_room = true,
    .no_details = true,
    .state_size = sizeof(struct null),
    .open = null_open,
    .limits = null_limits,
    .map = null_map,
    .preadv = null_preadv,
    .pwritev = null_pwritev,
    .zero = null_zero,
    .flush = null_flush,
};
