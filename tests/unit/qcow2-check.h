/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TEST_QCOW2_CHECK_H
#define NBDELTA_TEST_QCOW2_CHECK_H

/*
 * A checker of qcow2 images in memory.  It counts all references from scratch
 * and compares them with the refcounts.  Except for byte order, it shares no
 * code with the driver.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"

struct image {
    const unsigned char *bytes;
    uint64_t size;
};

struct verdict {
    uint64_t corruptions; /* references that no refcount covers, bad COPIED */
    uint64_t leaks;       /* refcounts higher than references */
    uint64_t unmarked;    /* one reference, and no COPIED; in order after a
                             crash only */
};

static uint64_t image_be64(const struct image *i, uint64_t at)
{
    return at + 8 <= i->size ? load_be64(i->bytes + at) : 0;
}

static uint64_t image_refcount(const struct image *i, uint64_t cluster)
{
    unsigned bits = load_be32(i->bytes + 20);
    unsigned order = load_be32(i->bytes + 4) >= 3 ? load_be32(i->bytes + 96)
                                                  : 4;
    uint64_t table = load_be64(i->bytes + 48);
    uint64_t entries = (uint64_t)load_be32(i->bytes + 56) << bits >> 3;
    unsigned block_bits = bits + 3 - order;
    uint64_t index = cluster >> block_bits;

    if (index >= entries) {
        return 0;
    }
    uint64_t block = image_be64(i, table + index * 8);
    if (block == 0) {
        return 0;
    }
    uint64_t bit = (cluster & ((UINT64_C(1) << block_bits) - 1)) << order;
    uint64_t at = block + bit / 8;
    if (at + 8 > i->size && order >= 3) {
        return at < i->size ? 1 : 0;
    }
    switch (order) {
    case 3:
        return i->bytes[at];
    case 4:
        return load_be16(i->bytes + at);
    case 5:
        return load_be32(i->bytes + at);
    case 6:
        return load_be64(i->bytes + at);
    default:
        return at < i->size
                   ? i->bytes[at] >> (bit & 7) & ((1U << (1U << order)) - 1)
                   : 0;
    }
}

static void count_run(uint32_t *refs, uint64_t clusters, uint64_t from,
                      uint64_t bytes, unsigned bits)
{
    for (uint64_t c = from >> bits;
         bytes > 0 && c <= (from + bytes - 1) >> bits; c++) {
        ck_assert_uint_lt(c, clusters);
        refs[c]++;
    }
}

static void check_copied(const struct image *i, uint64_t entry, unsigned bits,
                         struct verdict *v)
{
    uint64_t host = entry & UINT64_C(0x00fffffffffffe00);
    bool copied = entry >> 63;
    bool alone = image_refcount(i, host >> bits) == 1;

    v->corruptions += copied && !alone;
    v->unmarked += alone && !copied;
}

/* What persistent bitmaps lead to, if they count. */
static void count_bitmaps(const struct image *i, uint32_t *refs,
                          uint64_t clusters, unsigned bits)
{
    const uint64_t mask = UINT64_C(0x00fffffffffffe00);
    uint64_t at = load_be32(i->bytes + 4) >= 3 ? load_be32(i->bytes + 100) : 0;

    if (at == 0 || !(load_be64(i->bytes + 88) & 1)) {
        return;
    }
    while (load_be32(i->bytes + at) != 0x23852875) {
        at += 8 + align_up(load_be32(i->bytes + at + 4), 8);
    }
    uint32_t count = load_be32(i->bytes + at + 8);
    uint64_t entry = load_be64(i->bytes + at + 24);
    count_run(refs, clusters, entry, load_be64(i->bytes + at + 16), bits);
    for (uint32_t n = 0; n < count; n++) {
        const unsigned char *e = i->bytes + entry;
        uint64_t table = load_be64(e);
        uint64_t entries = load_be32(e + 8);

        count_run(refs, clusters, table, entries * 8, bits);
        for (uint64_t k = 0; k < entries; k++) {
            uint64_t host = image_be64(i, table + k * 8) & mask;
            if (host) {
                count_run(refs, clusters, host, UINT64_C(1) << bits, bits);
            }
        }
        entry += align_up(24 + load_be32(e + 20) + load_be16(e + 18), 8);
    }
}

/* With a data file: each cluster at its own place, and never compressed. */
static void check_external(uint64_t entry, uint64_t guest, struct verdict *v)
{
    uint64_t host = entry & UINT64_C(0x00fffffffffffe00);
    bool copied = entry >> 63;

    if ((host || copied) && (host != guest || !copied)) {
        v->corruptions += host != 0 || !(entry & 1);
    }
    v->corruptions += entry >> 62 & 1;
}

/* Extended entries: the second word of one whose first is @entry. */
static void check_bits(uint64_t entry, uint64_t word, bool external,
                       struct verdict *v)
{
    bool cluster = (entry & UINT64_C(0x00fffffffffffe00)) != 0 ||
                   (external && entry >> 63);
    uint32_t alloc = (uint32_t)word;
    uint32_t zero = (uint32_t)(word >> 32);

    v->corruptions += entry & 1;
    v->corruptions += entry >> 62 & 1 ? word != 0
                      : cluster       ? (alloc & zero) != 0
                                      : alloc != 0;
}

struct count {
    const struct image *i;
    uint32_t *refs;
    uint64_t clusters;
    unsigned bits;
    bool external;
    bool extended;
    struct verdict v;
};

static void count_entry(struct count *c, uint64_t e, uint64_t guest,
                        bool active)
{
    const uint64_t mask = UINT64_C(0x00fffffffffffe00);

    if (c->external) {
        check_external(e, guest, &c->v);
    } else if (e >> 62 & 1) {
        unsigned shift = 62 - (c->bits - 8);
        uint64_t at = e & ((UINT64_C(1) << shift) - 1);
        uint64_t more = (e & ((UINT64_C(1) << 62) - 1)) >> shift;
        uint64_t end = align_down(at, 512) + (more + 1) * 512;
        count_run(c->refs, c->clusters, at, end - at, c->bits);
        c->v.corruptions += e >> 63;
    } else if (e & mask) {
        count_run(c->refs, c->clusters, e & mask, UINT64_C(1) << c->bits,
                  c->bits);
        if (active) {
            check_copied(c->i, e, c->bits, &c->v);
        }
    }
}

/* A disk: its L1 table, and all below. */
static void count_disk(struct count *c, uint64_t l1, uint64_t l1_size,
                       bool active)
{
    const uint64_t mask = UINT64_C(0x00fffffffffffe00);
    uint64_t cluster = UINT64_C(1) << c->bits;
    uint64_t stride = c->extended ? 16 : 8;

    count_run(c->refs, c->clusters, l1, l1_size * 8, c->bits);
    for (uint64_t a = 0; a < l1_size; a++) {
        uint64_t e1 = image_be64(c->i, l1 + a * 8);
        if (!(e1 & mask)) {
            continue;
        }
        count_run(c->refs, c->clusters, e1 & mask, cluster, c->bits);
        if (active) {
            check_copied(c->i, e1, c->bits, &c->v);
        }
        for (uint64_t b = 0; b < cluster / stride; b++) {
            uint64_t at = (e1 & mask) + b * stride;
            uint64_t e2 = image_be64(c->i, at);
            if (c->extended) {
                check_bits(e2, image_be64(c->i, at + 8), c->external, &c->v);
            }
            count_entry(c, e2, (a * (cluster / stride) + b) * cluster, active);
        }
    }
}

static void count_snapshots(struct count *c)
{
    uint64_t table = load_be64(c->i->bytes + 64);
    uint64_t at = table;

    for (uint32_t n = load_be32(c->i->bytes + 60); n > 0; n--) {
        const unsigned char *e = c->i->bytes + at;

        count_disk(c, load_be64(e), load_be32(e + 8), false);
        at += align_up(40 + load_be32(e + 36) + (uint64_t)load_be16(e + 12) +
                           load_be16(e + 14),
                       8);
    }
    count_run(c->refs, c->clusters, table, at - table, c->bits);
}

/* The LUKS header, where an extension says. */
static void count_luks(struct count *c)
{
    const unsigned char *head = c->i->bytes;
    uint64_t at = load_be32(head + 4) >= 3 ? load_be32(head + 100) : 72;

    while (load_be32(head + at) != 0) {
        if (load_be32(head + at) == 0x0537be77) {
            count_run(c->refs, c->clusters, load_be64(head + at + 8),
                      load_be64(head + at + 16), c->bits);
        }
        at += 8 + align_up(load_be32(head + at + 4), 8);
    }
}

static struct verdict check_image(const struct image *i)
{
    unsigned bits = load_be32(i->bytes + 20);
    uint64_t cluster = UINT64_C(1) << bits;
    uint64_t clusters = div_up(i->size, cluster) + 65536;
    uint32_t *refs = calloc(clusters, sizeof(*refs));
    uint64_t table = load_be64(i->bytes + 48);
    uint64_t table_bytes = (uint64_t)load_be32(i->bytes + 56) << bits;
    struct count c = {.i = i,
                      .refs = refs,
                      .clusters = clusters,
                      .bits = bits,
                      .external = load_be32(i->bytes + 4) >= 3 &&
                                  load_be64(i->bytes + 72) & 4,
                      .extended = load_be32(i->bytes + 4) >= 3 &&
                                  load_be64(i->bytes + 72) & 16};

    ck_assert_ptr_nonnull(refs);
    count_run(refs, clusters, 0, cluster, bits);
    count_run(refs, clusters, table, table_bytes, bits);
    for (uint64_t at = 0; at < table_bytes; at += 8) {
        uint64_t block = image_be64(i, table + at);
        if (block) {
            count_run(refs, clusters, block, cluster, bits);
        }
    }
    count_disk(&c, load_be64(i->bytes + 40), load_be32(i->bytes + 36), true);
    count_snapshots(&c);
    if (load_be32(i->bytes + 32) == 2) {
        count_luks(&c);
    }
    count_bitmaps(i, refs, clusters, bits);
    for (uint64_t n = 0; n < clusters; n++) {
        uint64_t count = image_refcount(i, n);
        c.v.corruptions += refs[n] > count;
        c.v.leaks += refs[n] < count;
    }
    free(refs);
    return c.v;
}

#endif /* NBDELTA_TEST_QCOW2_CHECK_H */
