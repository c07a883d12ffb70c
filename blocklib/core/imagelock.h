/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_IMAGELOCK_H
#define NBDELTA_CORE_IMAGELOCK_H

/*
 * Image locks, the same bytes as QEMU locks, so that both respect each other
 * =========================================================================
 *
 * Each kind of access n has two bytes of the file.  A program that uses the
 * access holds a shared lock on byte 100 + n.  A program that does not tolerate
 * the access of others holds one on byte 200 + n.  A conflict is found by
 * asking whether another open file holds the opposite byte.  The locks belong
 * to the open file (OFD), so they also work between two opens of one process,
 * and end with the last descriptor, however the process ends.
 */
#include "nbdelta/types.h"

/*
 * Lock for reading, or for reading and writing; others may not write meanwhile.
 * -EAGAIN: a conflict, -ENOTSUP-like codes where the file system has no such
 * locks.  Closing @fd unlocks.
 */
int image_lock(int fd, const char *filename, bool writable,
               struct error **errp);

/*
 * Change what @fd, which holds a lock for reading, holds: for writing too
 * (as image_lock, but on failure the old lock stands), and back.
 */
int image_lock_widen(int fd, const char *filename, struct error **errp);
void image_lock_narrow(int fd);

/* Hold what the reader of an image needs that others may write to, and nothing
 * else that image_lock() locks.  Errors are of no account. */
void image_lock_idle(int fd);

/* Drop what image_lock() and image_mark() have locked, where @fd is not the
 * last descriptor of its open file. */
void image_unlock(int fd);

/* Lock @fd, another open of a file that the caller has locked already with the
 * same or more access.  So there is no conflict to look for. */
int image_lock_again(int fd, bool writable);

/*
 * Marks, which QEMU does not know: each is a byte far behind what it locks.  An
 * open file has a mark for what it reads, also without any other lock; a
 * program that wants to change that asks whether another open file has it.
 * @mark is below 2^61.  Where the file system has no such locks, there are no
 * marks: an error of image_mark() changes nothing.
 */
int image_mark(int fd, uint64_t mark);
bool image_is_marked(int fd, uint64_t mark);

#endif /* NBDELTA_CORE_IMAGELOCK_H */
