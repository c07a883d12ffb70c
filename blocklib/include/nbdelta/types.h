/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TYPES_H
#define NBDELTA_TYPES_H

/*
 * Words that all of nbdelta shares.  Offsets and lengths are bytes,
 * always; a "sector" appears nowhere.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct graph;  /* all nodes of a process: graph.h */
struct node;   /* one vertex of the graph: graph.h */
struct blk;    /* a user's door to a node: blk.h */
struct bitmap; /* a dirty bitmap on a node: bitmap.h */
struct error;  /* error.h */

enum req_flags {
    REQ_FUA = 1 << 0,         /* write, zero: durable before the call returns */
    REQ_MAY_UNMAP = 1 << 1,   /* zero: may deallocate */
    REQ_NO_FALLBACK = 1 << 2, /* zero: fail with -ENOTSUP rather than write */
    REQ_NOWAIT = 1 << 3,      /* -EAGAIN when the answer is not in memory */
    REQ_UNCACHED = 1 << 4,    /* write: the bytes are not read soon, and may go
                                 past the page cache */
};

/* The facts of a range of a node, over all layers below it. */
enum extent_flags {
    EXTENT_DATA = 1 << 0,       /* some layer holds bytes for it */
    EXTENT_ZERO = 1 << 1,       /* reads as zeroes */
    EXTENT_ALLOCATED = 1 << 2,  /* some layer of the chain decides it */
    EXTENT_COMPRESSED = 1 << 3, /* stored compressed */
    EXTENT_HOST_VALID = 1 << 4, /* host and host_file are known */
};

struct extent {
    uint64_t offset;
    uint64_t length;
    unsigned flags; /* enum extent_flags */
    unsigned depth; /* 0: the top layer decides it, 1: its backing, ... */
    uint64_t host;  /* offset in the file that holds the bytes */
    const char *host_file; /* that file's name, valid during the callback */
};

/*
 * Called for consecutive extents without gaps.  0 goes on; anything else
 * stops the walk and is returned by it.
 */
typedef int extent_fn(const struct extent *ext, void *opaque);

/* At most this many elements in an iovec that is passed to blk_*(). */
#define BLK_IOV_MAX 128

/* No node is larger: offsets must stay positive in an off_t. */
#define BLK_SIZE_MAX ((uint64_t)INT64_MAX & ~(uint64_t)0xfffff)

#endif /* NBDELTA_TYPES_H */
