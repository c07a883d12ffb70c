/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_KICK_H
#define NBDELTA_KICK_H

/*
 * Kicks: a thread that sleeps in poll() is woken by another
 * =========================================================
 *
 * A kick is an eventfd.  It is readable from the first kick_raise() until
 * kick_clear(), however often it was raised.  None of these functions waits.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* A new descriptor, which the caller closes; -1, with errno, on failure. */
static inline int kick_new(void)
{
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

/* Any thread, with any lock. */
static inline void kick_raise(int fd)
{
    const uint64_t one = 1;

    /* At its limit a write fails, and then @fd can be read already. */
    while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

/* Clear the kick first, and then look for the reason it was raised: so
 * a reason that comes after the look raises it again. */
static inline void kick_clear(int fd)
{
    uint64_t count;

    while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR) {
    }
}

#endif /* NBDELTA_KICK_H */
