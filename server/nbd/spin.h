/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NBD_SPIN_H
#define NBDELTA_SERVER_NBD_SPIN_H

/*
 * Spinning: to look for the next request again and again before one sleeps
 * ========================================================================
 *
 * A thread that sleeps has to be woken.  Where its processor has gone idle
 * meanwhile, above all a virtual one, that takes longer than a small read; and
 * a client that waits for each reply pays it with each request.  So a
 * connection spins, as long as that pays:
 *
 *      slept            spun                       slept
 *     +-----+-----+----+------+------+------------+-----+---- ... ----+----
 *     |short|short| .. | hit  | hit  | miss       |short| 2 * price   | hit
 *     +-----+-----+----+------+------+------------+-----+---- ... ----+----
 *      `price` of them  until the request comes    then twice as many
 *
 * A wait is short if it would have been worth spinning for.  A miss is a spin
 * at whose end there was no request, or in which somebody else wanted the
 * processor: there a thread that sleeps costs nobody anything.  A miss doubles
 * the price, up to PRICE_MAX, and a hit takes one off it.  So misses are few
 * whatever a client does, and a client that does nothing costs one.
 *
 * A spin ends after four times what short waits took lately, and after the
 * limit of the administrator.  A thread that has not slept for STRETCH_NS
 * sleeps: others that want its processor, and that sched_yield() does not reach
 * (those of other cgroups), need not wait for longer than that.
 *
 * A client that waits for replies at once, with a processor of its own, is also
 * the one that gains when it gets the first replies of a batch while the others
 * are made.  So a short batch is replied to in parts, as long as spinning pays.
 * A long one is not: its client has enough to do meanwhile.
 *
 * All of this is arithmetic, with the time as an argument.  conn-spin.c does
 * it.  Times are in nanoseconds; a struct of zeroes is a new connection's.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPIN_PRICE_MIN  4
#define SPIN_PRICE_MAX  1024
#define SPIN_SHORTEST   UINT64_C(10000)
#define SPIN_STRETCH_NS UINT64_C(2000000)

struct spin {
    uint64_t began;  /* the wait */
    uint64_t end;    /* of the spin, at the latest */
    uint64_t asleep; /* when the thread slept last */
    uint64_t mean;   /* of short waits; they count the less, the older */
    uint32_t price;  /* 0: as SPIN_PRICE_MIN */
    uint32_t paid;   /* short waits since the last miss */
    bool spinning;   /* in this wait */
    bool missed;
    uint64_t spins; /* for the log */
    uint64_t misses;
};

/* A wait begins at @now.  True: spin, for at most @limit. */
bool spin_begin(struct spin *s, uint64_t limit, uint64_t now);

/* Nothing has come by @now.  True: go on.  @taken: somebody else has had the
 * processor. */
bool spin_on(struct spin *s, bool taken, uint64_t now);

/* There is no room for one more thread that spins. */
void spin_refuse(struct spin *s);

/* The wait that has begun is over.  @limit: as for spin_begin(). */
void spin_end(struct spin *s, uint64_t limit, uint64_t now);

/* @requests have come at once.  After how many of them shall replies be sent?
 * 0: when all are done. */
#define SPIN_PART     8
#define SPIN_PART_MIN 12
#define SPIN_PART_MAX 31
size_t spin_part(const struct spin *s, size_t requests);

/* --- The threads that spin. --- */

/* There are fewer of them than processors, so that one is left for what they
 * wait for. */
struct spinners {
    uint64_t limit; /* of a spin; 0: nobody spins.  Set at creation. */
    _Atomic unsigned most;
    _Atomic unsigned count;
};

bool spinners_enter(struct spinners *all);
void spinners_leave(struct spinners *all);

#endif /* NBDELTA_SERVER_NBD_SPIN_H */
