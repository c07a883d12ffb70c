/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Counting references to clusters.
 *
 *   state   15 ... 9   8 ... 0
 *           flags      count; at COUNT_MAX the rest is in `more`
 *
 * Both arrays are address space for all clusters of the file.  The kernel gives
 * memory for the pages that are written to.
 */
#include "qcow2/census.h"

#include <stdlib.h>
#include <sys/mman.h>

#define FLAG_SHIFT 9
#define COUNT_MAX  ((1U << FLAG_SHIFT) - 1)

struct qcow2_census {
    uint64_t clusters;
    uint16_t *state;
    uint64_t *more; /* references beyond COUNT_MAX */
};

static void *reserve(uint64_t count, size_t each)
{
    if (count > SIZE_MAX / 2 / each) {
        return NULL;
    }
    void *at = mmap(NULL, count * each, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

struct qcow2_census *qcow2_census_new(uint64_t clusters)
{
    struct qcow2_census *c = calloc(1, sizeof(*c));

    if (!c) {
        return NULL;
    }
    c->clusters = clusters;
    c->state = reserve(clusters, sizeof(*c->state));
    c->more = c->state ? reserve(clusters, sizeof(*c->more)) : NULL;
    if (!c->more) {
        qcow2_census_free(c);
        return NULL;
    }
    return c;
}

void qcow2_census_free(struct qcow2_census *c)
{
    if (!c) {
        return;
    }
    if (c->state) {
        (void)munmap(c->state, c->clusters * sizeof(*c->state));
    }
    if (c->more) {
        (void)munmap(c->more, c->clusters * sizeof(*c->more));
    }
    free(c);
}

uint64_t qcow2_census_size(const struct qcow2_census *c)
{
    return c->clusters;
}

void qcow2_census_add(struct qcow2_census *c, uint64_t cluster, uint32_t times,
                      unsigned flags)
{
    const unsigned structure = CENSUS_REFCOUNT | CENSUS_META;

    if (cluster >= c->clusters) {
        return;
    }
    uint16_t *at = &c->state[cluster];
    uint32_t count = *at & COUNT_MAX;
    uint32_t room = COUNT_MAX - count;
    unsigned old = *at >> FLAG_SHIFT;

    if ((flags & structure) && (old & structure)) {
        flags |= CENSUS_TWICE;
    }
    if (times > room) {
        c->more[cluster] += times - room;
        times = room;
    }
    *at = (uint16_t)((old | flags) << FLAG_SHIFT | (count + times));
}

void qcow2_census_clear(struct qcow2_census *c, uint64_t cluster)
{
    if (cluster < c->clusters && c->state[cluster] != 0) {
        if ((c->state[cluster] & COUNT_MAX) == COUNT_MAX) {
            c->more[cluster] = 0;
        }
        c->state[cluster] = 0;
    }
}

void qcow2_census_drop(struct qcow2_census *c, uint64_t cluster)
{
    if (cluster >= c->clusters || (c->state[cluster] & COUNT_MAX) == 0) {
        return;
    }
    if ((c->state[cluster] & COUNT_MAX) == COUNT_MAX && c->more[cluster] > 0) {
        c->more[cluster]--;
    } else {
        c->state[cluster]--;
    }
}

uint64_t qcow2_census_count(const struct qcow2_census *c, uint64_t cluster)
{
    if (cluster >= c->clusters) {
        return 0;
    }
    uint64_t count = c->state[cluster] & COUNT_MAX;
    return count < COUNT_MAX ? count : count + c->more[cluster];
}

unsigned qcow2_census_flags(const struct qcow2_census *c, uint64_t cluster)
{
    return cluster < c->clusters ? c->state[cluster] >> FLAG_SHIFT : 0;
}

bool qcow2_census_clash(unsigned flags)
{
    unsigned owners = flags &
                      (CENSUS_DATA | CENSUS_L2 | CENSUS_REFCOUNT | CENSUS_META);

    return (owners & (owners - 1)) != 0 || (flags & CENSUS_TWICE);
}
