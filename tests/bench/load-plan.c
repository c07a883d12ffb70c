/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where the next request goes.  Each piece once in random order, without a list
 * of them: the number of a request is turned into the number of a piece by a
 * Feistel network, which is a permutation of 2^(2 * half) numbers:
 *
 *     n = (left, right)  ->  (right, left ^ mix(right, key)), four times
 *
 * What falls behind the last piece is turned again, until it does not: so this
 * is a permutation of the pieces, too.
 */
#include "load.h"
#include "nbd-raw.h"

enum { ROUNDS = 4 };

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static uint64_t next_random(struct load_plan *p)
{
    return mix(p->random += UINT64_C(0x9e3779b97f4a7c15));
}

/* A number below @n, each as likely as the next. */
static uint64_t below(struct load_plan *p, uint64_t n)
{
    return (uint64_t)((unsigned __int128)next_random(p) * n >> 64);
}

void load_plan_init(struct load_plan *p, const struct load_options *o,
                    uint64_t size)
{
    *p = (struct load_plan){.order = o->order,
                            .block = o->block,
                            .piece = o->order == LOAD_ONCE ? o->piece
                                                           : o->block,
                            .first = o->first,
                            .random = o->seed};
    if (o->first > size || o->size > size - o->first) {
        raw_fail("the disk is smaller than that", NULL);
    }
    p->places = (o->size > 0 ? o->size : size - o->first) / p->piece;
    if (p->places == 0 || p->piece < p->block) {
        raw_fail("a block is larger than where it goes", NULL);
    }
    while (UINT64_C(1) << (2 * p->half) < p->places) {
        p->half++;
    }
    for (int i = 0; i < ROUNDS; i++) {
        p->round_key[i] = next_random(p);
    }
}

static uint64_t permuted(const struct load_plan *p, uint64_t n)
{
    uint64_t mask = (UINT64_C(1) << p->half) - 1;

    do {
        uint64_t left = n >> p->half, right = n & mask;
        for (int i = 0; i < ROUNDS; i++) {
            uint64_t was = right;
            right = left ^ (mix(right ^ p->round_key[i]) & mask);
            left = was;
        }
        n = left << p->half | right;
    } while (n >= p->places);
    return n;
}

bool load_plan_next(struct load_plan *p, uint64_t *offset)
{
    uint64_t place;

    switch (p->order) {
    case LOAD_ONCE:
        if (p->next == p->places) {
            return false;
        }
        place = permuted(p, p->next++);
        *offset = p->first + place * p->piece +
                  below(p, p->piece / p->block) * p->block;
        return true;
    case LOAD_SEQUENTIAL:
        place = p->next++ % p->places;
        break;
    case LOAD_RANDOM:
    default:
        place = below(p, p->places);
        break;
    }
    *offset = p->first + place * p->block;
    return true;
}
