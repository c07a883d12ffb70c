/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_FUZZ_FILE_H
#define NBDELTA_TESTS_FUZZ_FILE_H

/* A protocol driver for fuzzers: a file in memory that is never larger than
 * FILE_MAX, and is not written to by what only reads. */
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "util/iov.h"

#define FILE_MAX (16 * MiB)
/* Of the memory, behind the file: a search for a table may look there. */
#define FILE_SLACK (4 * MiB)
#define INPUT_MAX  (256 * KiB)

static unsigned char *bytes_of_file; /* FILE_MAX, zeroes past the end */
static uint64_t used;                /* what may not be zero */
static unsigned long writes_left = ULONG_MAX; /* the ones after that are lost */

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static bool is_lost(void)
{
    if (writes_left == 0) {
        return true;
    }
    writes_left -= writes_left != ULONG_MAX;
    return false;
}

static int fuzz_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    uint64_t inside = offset < used ? min_u64(bytes, used - offset) : 0;

    (void)n;
    (void)flags;
    check(bytes > 0 && iov_bytes(iov, cnt) == bytes);
    if (inside > 0) {
        iov_from_buf(iov, cnt, 0, bytes_of_file + offset, inside);
    }
    iov_fill(iov, cnt, inside, 0, bytes - inside);
    return 0;
}

static int fuzz_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    (void)flags;
    check(!node_read_only(n));
    check(bytes > 0 && iov_bytes(iov, cnt) == bytes);
    if (!range_inside(offset, bytes, FILE_MAX)) {
        return -ENOSPC;
    }
    if (is_lost()) {
        return 0;
    }
    iov_to_buf(iov, cnt, 0, bytes_of_file + offset, bytes);
    used = max_u64(used, offset + bytes);
    return 0;
}

static int fuzz_zero(struct node *n, uint64_t offset, uint64_t bytes,
                     unsigned flags)
{
    (void)flags;
    check(!node_read_only(n));
    if (!range_inside(offset, bytes, FILE_MAX)) {
        return -ENOSPC;
    }
    if (is_lost()) {
        return 0;
    }
    memset(bytes_of_file + offset, 0, bytes);
    return 0;
}

static int fuzz_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    return fuzz_zero(n, offset, bytes, 0);
}

static int fuzz_resize(struct node *n, uint64_t size, struct error **errp)
{
    (void)n;
    if (size > FILE_MAX) {
        return error_set(errp, EFBIG, "too large");
    }
    if (size < used) {
        memset(bytes_of_file + size, 0, used - size);
        used = size;
    }
    return 0;
}

static void fuzz_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->grows_zero = true;
    lim->zero_unmaps = true;
}

static const struct driver fuzz_driver = {
    .name = "fuzz",
    .is_protocol = true,
    .limits = fuzz_limits,
    .resize = fuzz_resize,
    .preadv = fuzz_preadv,
    .pwritev = fuzz_pwritev,
    .zero = fuzz_zero,
    .discard = fuzz_discard,
};

static struct node *make_file(struct graph *g)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:I}", "driver", "null-co",
                                       "size", (json_int_t)used);
    struct node *like = NULL;
    struct node *file = NULL;

    check(graph_open(g, o, &like, NULL) == 0);
    graph_lock(g);
    check(node_new(g, &fuzz_driver, "image", like, &file, NULL) == 0);
    node_refresh_limits(file);
    graph_unlock(g);
    return file;
}

/* The bytes of an input become the file. */
static void fill_file(const uint8_t *data, size_t size)
{
    if (!bytes_of_file) {
        bytes_of_file = calloc(1, FILE_MAX + FILE_SLACK);
        check(bytes_of_file);
    }
    memcpy(bytes_of_file, data, size);
    used = size;
}

#endif /* NBDELTA_TESTS_FUZZ_FILE_H */
