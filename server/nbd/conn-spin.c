/* SPDX-License-Identifier: BSD-3-Clause */
/* Waiting for a client, as long as nobody else has anything to send: spin, then
 * sleep (spin.h). */
#include <errno.h>
#include <sched.h>
#include <sys/resource.h>

#include "nbd/conn.h"

/* A look at the socket, and one for others that want the processor, take less
 * than this together. */
#define LOOK_NS 4000

/* How often has this thread lost its processor while it could run? */
static long switches(void)
{
    struct rusage u;

    return getrusage(RUSAGE_THREAD, &u) == 0 ? u.ru_nivcsw : 0;
}

/* How many processors this thread may run on.  An administrator can change that
 * at any time. */
static unsigned processors(void)
{
    cpu_set_t set;

    /* It fails where there are more than fit. */
    return sched_getaffinity(0, sizeof(set), &set) == 0
               ? (unsigned)CPU_COUNT(&set)
               : CPU_SETSIZE;
}

static bool may_spin(struct conn *c, struct spinners *all)
{
    if (c->has_slept) {
        c->has_slept = false;
        c->switches = switches();
        atomic_store(&all->most, processors() - 1);
    }
    return spinners_enter(all);
}

static bool was_switched(struct conn *c)
{
    long before = c->switches;

    c->switches = switches();
    return c->switches != before;
}

/* sched_yield() comes back at once if nobody else wants the processor. */
static ssize_t spin(struct conn *c, struct iovec *iov, int cnt)
{
    uint64_t before, now = c->spin.began;
    ssize_t n;

    do {
        before = now;
        n = transport_receive(&c->io, iov, cnt, false);
        if (n != -EAGAIN) {
            return n;
        }
        (void)sched_yield();
        now = now_ns();
    } while (spin_on(&c->spin, now - before > LOOK_NS && was_switched(c), now));
    return -EAGAIN;
}

ssize_t conn_receive_alone(struct conn *c, struct iovec *iov, int cnt)
{
    struct spinners *all = server_spinners(c->server);
    ssize_t n = -EAGAIN;

    if (spin_begin(&c->spin, all->limit, now_ns())) {
        if (may_spin(c, all)) {
            n = spin(c, iov, cnt);
            spinners_leave(all);
        } else {
            spin_refuse(&c->spin);
        }
    }
    if (n == -EAGAIN) {
        n = transport_receive(&c->io, iov, cnt, true);
        c->has_slept = true;
    }
    spin_end(&c->spin, all->limit, now_ns());
    return n;
}
