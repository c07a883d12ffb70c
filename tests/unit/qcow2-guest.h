/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_QCOW2_GUEST_H
#define NBDELTA_TESTS_QCOW2_GUEST_H

/* What a guest sees of a qcow2 image without compressed clusters and without a
 * data file, worked out from the bytes of the file.  It shares no code with the
 * driver except for byte order. */
#include <stdbool.h>
#include <stdint.h>

#include "nbdelta/bytes.h"

struct guest_image {
    const unsigned char *bytes;
    uint64_t end; /* of the file; a cluster that begins there may be used */
};

/* What a cluster of the disk is; else the host byte of its data. */
enum { GUEST_NOTHING = 0, GUEST_ZEROES = 1, GUEST_UNREADABLE = 2 };

static inline uint64_t guest_cluster_size(const struct guest_image *g)
{
    return UINT64_C(1) << load_be32(g->bytes + 20);
}

static inline bool guest_is_place(const struct guest_image *g, uint64_t host)
{
    return host != 0 && host % guest_cluster_size(g) == 0 && host <= g->end;
}

static inline uint64_t guest_look(const struct guest_image *g, uint64_t cluster)
{
    const uint64_t mask = UINT64_C(0x00fffffffffffe00);
    uint64_t per_table = guest_cluster_size(g) / 8;
    uint64_t l1 = load_be64(g->bytes + 40);
    uint64_t index = cluster / per_table;

    if (!guest_is_place(g, l1) || index >= load_be32(g->bytes + 36)) {
        return GUEST_UNREADABLE;
    }
    uint64_t table = load_be64(g->bytes + l1 + index * 8) & mask;
    if (table == 0) {
        return GUEST_NOTHING;
    }
    if (!guest_is_place(g, table)) {
        return GUEST_UNREADABLE;
    }
    uint64_t e = load_be64(g->bytes + table + cluster % per_table * 8);
    uint64_t host = e & mask;
    if (e & 1 && load_be32(g->bytes + 4) >= 3) {
        return host == 0 || guest_is_place(g, host) ? GUEST_ZEROES
                                                    : GUEST_UNREADABLE;
    }
    return host == 0                 ? GUEST_NOTHING
           : guest_is_place(g, host) ? host
                                     : GUEST_UNREADABLE;
}

/* Is the cluster at @host a table, or does the header say so?  What a guest
 * sees there is no data, and a repair may change it. */
static inline bool guest_is_table(const struct guest_image *g, uint64_t host)
{
    const uint64_t mask = UINT64_C(0x00fffffffffffe00);
    uint64_t size = guest_cluster_size(g);
    const uint64_t table[2] = {load_be64(g->bytes + 40),
                               load_be64(g->bytes + 48)};
    const uint64_t words[2] = {load_be32(g->bytes + 36),
                               load_be32(g->bytes + 56) * size / 8};

    for (unsigned t = 0; t < 2; t++) {
        if (!guest_is_place(g, table[t])) {
            continue;
        }
        if (host >= table[t] && host < table[t] + words[t] * 8) {
            return true;
        }
        for (uint64_t i = 0; i < words[t] && table[t] + i * 8 < g->end; i++) {
            if ((load_be64(g->bytes + table[t] + i * 8) & mask) == host) {
                return true;
            }
        }
    }
    return false;
}

#endif /* NBDELTA_TESTS_QCOW2_GUEST_H */
