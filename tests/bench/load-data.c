/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The byte at a position X of a disk is table[X mod PERIOD], for random bytes
 * that the seed gives.  So the bytes of a request lie in the table as they are,
 * whatever its size and place: nothing is made or copied for it.  The period is
 * 64 times a prime, so blocks at multiples of 4096 differ for the next 16 MiB,
 * and the table stays in the cache of a processor.
 */
#include "load.h"
#include "nbd-raw.h"

#include <stdlib.h>

enum { PERIOD = 64 * 4093 };

static char *table;

void load_data_init(uint64_t seed, uint32_t block)
{
    size_t len = (size_t)PERIOD + block;

    table = malloc(len + sizeof(uint64_t));
    if (!table) {
        raw_fail("out of memory", NULL);
    }
    for (size_t at = 0; at < PERIOD; at += sizeof(seed)) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        uint64_t word = (seed ^ seed >> 29) * UINT64_C(0x94d049bb133111eb);
        memcpy(table + at, &word, sizeof(word));
    }
    for (size_t at = PERIOD; at < len; at++) {
        table[at] = table[at - PERIOD];
    }
}

const char *load_data(uint64_t offset)
{
    return table + offset % PERIOD;
}
