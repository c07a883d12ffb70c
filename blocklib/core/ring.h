/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_RING_H
#define NBDELTA_CORE_RING_H

/*
 * A ring of io_uring, of one thread: reads and writes of files that the kernel
 * carries out while the thread does other things.
 *
 * A program that was built without liburing, or is not allowed to make rings
 * (an old kernel, a container, seccomp), has none.  A ring is not used across a
 * fork.
 */
#include <stdbool.h>
#include <stdint.h>

#define RING_ENTRIES 256 /* operations that are under way at once */

struct ring;

/* 0 if rings can be made, else -errno: -ENOSYS, -EPERM... */
int ring_test(void);

/* NULL: none can be had now.  The thread that makes it is the only one that
 * uses it; any thread may free it, when no operation is under way. */
struct ring *ring_new(void);
void ring_free(struct ring *r); /* NULL is fine */

/* Readable while ring_next() has something to tell. */
int ring_fd(const struct ring *r);

struct ring_op {
    bool write;
    bool blocking; /* do not try at once what may have to wait */
    int fd;
    void *buf;
    uint32_t bytes;
    uint64_t offset;
};

/* Queue an operation.  @token (not NULL) comes back with its result.  At most
 * RING_ENTRIES operations are queued or under way. */
void ring_queue(struct ring *r, const struct ring_op *op, void *token);

/* Hand what is queued to the kernel.  False: it does not take all of it now,
 * try again soon. */
bool ring_submit(struct ring *r);

/* The result of an operation that has ended: its bytes, or -errno.  False: none
 * has. */
bool ring_next(struct ring *r, void **token, int *result);

/* Submit, and wait until an operation has ended. */
void ring_wait(struct ring *r);

#endif /* NBDELTA_CORE_RING_H */
