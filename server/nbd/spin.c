/* SPDX-License-Identifier: BSD-3-Clause */
/* When a connection spins, and for how long: arithmetic (spin.h). */
#include "nbd/spin.h"

#include "nbdelta/bytes.h"

/* A wait counts for 1/8 of the mean. */
#define MEAN_SHARE 8
#define WINDOW     4 /* means */

static uint32_t price_of(const struct spin *s)
{
    return s->price > 0 ? s->price : SPIN_PRICE_MIN;
}

static bool pays(const struct spin *s)
{
    return s->paid >= price_of(s);
}

bool spin_begin(struct spin *s, uint64_t limit, uint64_t now)
{
    s->began = now;
    s->end = now + min_u64(limit, max_u64(WINDOW * s->mean, SPIN_SHORTEST));
    s->missed = false;
    s->spinning = pays(s) && now - s->asleep < SPIN_STRETCH_NS;
    return s->spinning;
}

void spin_refuse(struct spin *s)
{
    s->spinning = false;
    s->missed = true;
}

bool spin_on(struct spin *s, bool taken, uint64_t now)
{
    s->missed = taken || now >= s->end;
    return !s->missed;
}

static void learn(struct spin *s, uint64_t took)
{
    s->mean = s->mean - s->mean / MEAN_SHARE + took / MEAN_SHARE;
}

void spin_end(struct spin *s, uint64_t limit, uint64_t now)
{
    uint64_t took = now - s->began;
    bool is_short = took < limit; /* no wait is, when nobody shall spin */

    if (is_short) {
        learn(s, took);
    }
    s->spins += s->spinning;
    s->misses += s->spinning && s->missed;
    if (s->missed) {
        s->price = (uint32_t)min_u64(UINT64_C(2) * price_of(s), SPIN_PRICE_MAX);
        s->paid = 0;
    } else if (s->spinning) {
        s->price = (uint32_t)max_u64(price_of(s) - 1, SPIN_PRICE_MIN);
    } else {
        s->paid = is_short ? (uint32_t)min_u64(s->paid + 1, SPIN_PRICE_MAX) : 0;
    }
    if (!s->spinning || s->missed) {
        s->asleep = now;
    }
    s->spinning = s->missed = false;
}

size_t spin_part(const struct spin *s, size_t requests)
{
    bool fits = requests >= SPIN_PART_MIN && requests <= SPIN_PART_MAX;

    return fits && pays(s) ? SPIN_PART : 0;
}

bool spinners_enter(struct spinners *all)
{
    unsigned n = atomic_load(&all->count);

    while (n < atomic_load(&all->most)) {
        if (atomic_compare_exchange_weak(&all->count, &n, n + 1)) {
            return true;
        }
    }
    return false;
}

void spinners_leave(struct spinners *all)
{
    atomic_fetch_sub(&all->count, 1);
}
