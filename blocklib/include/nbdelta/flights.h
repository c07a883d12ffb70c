/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_FLIGHTS_H
#define NBDELTA_FLIGHTS_H

/*
 * Requests of one thread that are in flight
 * =========================================
 *
 * blk_pread() and blk_pwrite() block.  A thread that has many requests for
 * storage begins them here, hands all of them to the kernel at once
 * (flights_submit), does other things, and asks which have ended
 * (flights_next).
 *
 * Only what is simple flies: bytes that are in one piece of a file, to be read,
 * or to be overwritten in place.  Everything else is refused (-EAGAIN) before
 * anything has been done, and is for blk_pread() and blk_pwrite().
 *
 * While anything is in flight the thread is inside the disk: nobody can drain
 * it before all has ended, and all ends only by flights_next().  So the thread
 * calls it whenever flights_fd() or flights_kick_fd() is readable, whatever
 * else it waits for; and calls nothing of blocklib that may block (only what
 * takes REQ_NOWAIT).  A drain that waits has new requests refused.
 */
#include "nbdelta/types.h"

struct flights;

/* For this thread; any thread may free it, when nothing is in flight.  NULL: no
 * memory.  What it takes of the kernel (io_uring) comes with the first flight;
 * where that cannot be had, all requests are refused. */
struct flights *flights_new(void);
void flights_free(struct flights *fs); /* NULL is fine */

/*
 * Begin to read or write.  0: it is in flight, and belongs with @bytes of @buf
 * to it until it ends.  It then counts, and holds what it holds, as
 * blk_pread()'s does.  -EAGAIN: it is not simple, or a drain waits; nothing has
 * changed except that dirty bits may be set.
 */
int blk_fly_read(struct flights *fs, struct blk *b, void *buf, uint64_t bytes,
                 uint64_t offset, void *opaque);
int blk_fly_write(struct flights *fs, struct blk *b, void *buf, uint64_t bytes,
                  uint64_t offset, void *opaque);

/* How many are in flight. */
unsigned flights_count(const struct flights *fs);

/* Hand over to the kernel what was begun.  False: it does not take all of it
 * now, try again in some milliseconds. */
bool flights_submit(struct flights *fs);

/* Readable while flights_next() has something to tell.  -1: nothing is in
 * flight. */
int flights_fd(const struct flights *fs);
/* The same for what something else than the kernel carries out: look at
 * both. */
int flights_kick_fd(const struct flights *fs);

/* One that has ended: its @opaque, and 0 or -errno as of blk_pread() or
 * blk_pwrite().  False: none has. */
bool flights_next(struct flights *fs, void **opaque, int *result);

/* Submit, and wait until one has ended.  Something must be in flight. */
void flights_wait(struct flights *fs);

#endif /* NBDELTA_FLIGHTS_H */
