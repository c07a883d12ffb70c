/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_GUARD_H
#define NBDELTA_SERVER_SOURCE_GUARD_H

/* The process between us and whatever freezes a guest's file systems: the other
 * side of agent.h. */
#include <stddef.h>
#include <stdint.h>

/* Commands to the guard, a byte each. */
enum { GUARD_FREEZE = 'F', GUARD_THAW = 'T' };

#define GUARD_WHY_MAX 512

/* Its answers. */
struct guard_answer {
    int64_t result; /* of GUARD_FREEZE: file systems; of both: -errno */
    char text[GUARD_WHY_MAX]; /* why */
};

struct guard {
    const char *name;     /* of the guest, for messages */
    int parent;           /* packets to and from it */
    uint64_t still_until; /* ns; 0: nothing stands still */
    char why[GUARD_WHY_MAX];
    void *opaque; /* of the kind */

    /*
     * Freeze all.  What may have frozen some writes still_until before, with
     * guard_begin_still(); after a failure then, thaw follows.  The number of
     * file systems, 0: nobody says, or -errno with `why`.
     */
    int64_t (*freeze)(struct guard *g);

    /* One try, until @end (ns).  0; -EREMOTEIO: it will not do; other errors
     * may pass. */
    int (*thaw)(struct guard *g, uint64_t end);
};

/* Do what comes from the packet socket g->parent, until it ends.  This is all
 * that the process does. */
void guard_serve(struct guard *g);

/* --- For kinds --- */

/* From now on file systems may stand still. */
void guard_begin_still(struct guard *g);

/* Write `why`; -@code. */
int guard_fail(struct guard *g, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Milliseconds until @end, rounded up; 0: it is over. */
int guard_ms_until(uint64_t end);

#endif /* NBDELTA_SERVER_SOURCE_GUARD_H */
