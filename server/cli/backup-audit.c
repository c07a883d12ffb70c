/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A sample of what a bitmap calls clean: see backup-audit.h.
 *
 * Units are taken in order, each with the probability that makes the number
 * come out: wanted of left.  So all samples of that number are alike.
 */
#include "cli/backup-audit.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/thread.h"
#include "nbdelta/transfer.h"
#include "store/compare.h"
#include "store/sums.h"

/* Ranges that are told one by one. */
#define TOLD_MAX 10

/* xorshift: what is wanted is another sample each night, no secret. */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t new_seed(void)
{
    uint64_t seed = 0;

    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != sizeof(seed)) {
        seed = now_ns();
    }
    return seed | 1;
}

static uint64_t unit_count(uint64_t size)
{
    return div_up(size, SUMS_UNIT);
}

/* Mark what is clean; the number of these. */
static uint64_t mark_clean(const struct transfer *set, uint64_t size,
                           uint8_t *units)
{
    uint64_t clean = unit_count(size);
    uint64_t at = 0;
    uint64_t bytes;

    memset(units, 1, (size_t)clean);
    while (transfer_next(set, at, &at, &bytes)) {
        for (uint64_t u = at / SUMS_UNIT; u <= (at + bytes - 1) / SUMS_UNIT;
             u++) {
            clean -= units[u];
            units[u] = 0;
        }
        at += bytes;
    }
    return clean;
}

int audit_choose(const struct transfer *set, uint64_t size, double percent,
                 uint8_t **units, uint64_t *bytes)
{
    uint64_t count = unit_count(size);
    uint64_t random = new_seed();
    uint8_t *all = malloc((size_t)count + 1);

    if (!all) {
        return -ENOMEM;
    }
    uint64_t left = mark_clean(set, size, all);
    uint64_t wanted = (uint64_t)ceil((double)left * percent / 100);
    *bytes = 0;
    for (uint64_t u = 0; u < count; u++) {
        if (!all[u]) {
            continue;
        }
        all[u] = next_random(&random) % left < wanted;
        left--;
        wanted -= all[u];
        *bytes += all[u] ? min_u64(size - u * SUMS_UNIT, SUMS_UNIT) : 0;
    }
    *units = all;
    return 0;
}

void audit_fill(struct transfer *t, uint64_t size, const uint8_t *units)
{
    for (uint64_t u = 0; u < unit_count(size); u++) {
        if (units[u]) {
            transfer_add(t, u * SUMS_UNIT,
                         min_u64(size - u * SUMS_UNIT, SUMS_UNIT));
        }
    }
}

int audit_tell(const struct compare *c, struct error **errp)
{
    struct error *list = NULL;
    unsigned count = 0;
    uint64_t all = 0;
    uint64_t at = 0;
    uint64_t bytes;

    for (; compare_next(c, at, &at, &bytes); at += bytes, all += bytes) {
        if (count++ < TOLD_MAX) {
            struct error *one = NULL;
            (void)error_set(&one, EUCLEAN, "%s%s%" PRIu64 "+%" PRIu64,
                            list ? error_message(list) : "", list ? ", " : "",
                            at, bytes);
            error_free(list);
            list = one;
        }
    }
    if (count == 0) {
        return 0;
    }
    (void)error_set(errp, EUCLEAN,
                    "a change that no bitmap saw: at %s%s; %" PRIu64
                    " bytes in all differ from the point before.  Make the "
                    "next point with --full",
                    error_message(list), count > TOLD_MAX ? ", ..." : "", all);
    error_free(list);
    return -EUCLEAN;
}
