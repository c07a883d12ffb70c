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

/* What a unit of the disk is (a cluster, or a subcluster if there are any);
 * else the host byte of its data. */
enum { GUEST_NOTHING = 0, GUEST_ZEROES = 1, GUEST_UNREADABLE = 2 };

#define GUEST_PLACE UINT64_C(0x00fffffffffffe00)

static inline uint64_t guest_cluster_size(const struct guest_image *g)
{
    return UINT64_C(1) << load_be32(g->bytes + 20);
}

static inline bool guest_is_extended(const struct guest_image *g)
{
    return load_be32(g->bytes + 4) >= 3 && load_be64(g->bytes + 72) & 16;
}

static inline uint64_t guest_unit_size(const struct guest_image *g)
{
    return guest_cluster_size(g) / (guest_is_extended(g) ? 32 : 1);
}

static inline bool guest_is_place(const struct guest_image *g, uint64_t host)
{
    return host != 0 && host % guest_cluster_size(g) == 0 && host <= g->end;
}

/* Where the entry for @unit stands, or GUEST_NOTHING, or GUEST_UNREADABLE. */
static inline uint64_t guest_entry(const struct guest_image *g, uint64_t unit)
{
    uint64_t stride = guest_is_extended(g) ? 16 : 8;
    uint64_t per_table = guest_cluster_size(g) / stride;
    uint64_t cluster = unit / (guest_cluster_size(g) / guest_unit_size(g));
    uint64_t l1 = load_be64(g->bytes + 40);
    uint64_t index = cluster / per_table;

    if (!guest_is_place(g, l1) || index >= load_be32(g->bytes + 36)) {
        return GUEST_UNREADABLE;
    }
    uint64_t table = load_be64(g->bytes + l1 + index * 8) & GUEST_PLACE;
    return table == 0                  ? GUEST_NOTHING
           : !guest_is_place(g, table) ? GUEST_UNREADABLE
                                       : table + cluster % per_table * stride;
}

/* A bit that says zero, and one that says data, is nothing that can be read;
 * but the other subclusters are as they are. */
static inline uint64_t guest_look_sub(const struct guest_image *g, uint64_t at,
                                      uint64_t sub)
{
    uint64_t host = load_be64(g->bytes + at) & GUEST_PLACE;
    bool data = load_be64(g->bytes + at + 8) >> sub & 1;
    bool zero = load_be64(g->bytes + at + 8) >> (sub + 32) & 1;

    if (!data) {
        return zero ? GUEST_ZEROES : GUEST_NOTHING;
    }
    return zero || !guest_is_place(g, host) ? GUEST_UNREADABLE
                                            : host + sub * guest_unit_size(g);
}

static inline uint64_t guest_look(const struct guest_image *g, uint64_t unit)
{
    uint64_t at = guest_entry(g, unit);

    if (at == GUEST_NOTHING || at == GUEST_UNREADABLE) {
        return at;
    }
    if (guest_is_extended(g)) {
        return guest_look_sub(g, at, unit % 32);
    }
    uint64_t e = load_be64(g->bytes + at);
    uint64_t host = e & GUEST_PLACE;
    if (e & 1 && load_be32(g->bytes + 4) >= 3) {
        return host == 0 || guest_is_place(g, host) ? GUEST_ZEROES
                                                    : GUEST_UNREADABLE;
    }
    return host == 0                 ? GUEST_NOTHING
           : guest_is_place(g, host) ? host
                                     : GUEST_UNREADABLE;
}

/* How many tables say that the cluster of @host is theirs, or a table that they
 * name? */
static inline unsigned guest_claims(const struct guest_image *g, uint64_t host)
{
    uint64_t size = guest_cluster_size(g);
    const uint64_t table[2] = {load_be64(g->bytes + 40),
                               load_be64(g->bytes + 48)};
    const uint64_t words[2] = {load_be32(g->bytes + 36),
                               load_be32(g->bytes + 56) * size / 8};
    unsigned claims = 0;

    host = align_down(host, size);
    for (unsigned t = 0; t < 2; t++) {
        if (!guest_is_place(g, table[t])) {
            continue;
        }
        claims += host >= table[t] && host < table[t] + words[t] * 8;
        for (uint64_t i = 0; i < words[t] && table[t] + i * 8 < g->end; i++) {
            claims += (load_be64(g->bytes + table[t] + i * 8) & GUEST_PLACE) ==
                      host;
        }
    }
    return claims;
}

/* Is the cluster of @host a table, or does the header say so?  What a guest
 * sees there is no data, and a repair may change it. */
static inline bool guest_is_table(const struct guest_image *g, uint64_t host)
{
    return guest_claims(g, host) > 0;
}

/* Does the entry for @unit stand in a cluster that is another table, too? */
static inline bool guest_is_disputed(const struct guest_image *g, uint64_t unit)
{
    uint64_t at = guest_entry(g, unit);

    return at > GUEST_UNREADABLE && guest_claims(g, at) > 1;
}

#endif /* NBDELTA_TESTS_QCOW2_GUEST_H */
