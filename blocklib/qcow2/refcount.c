/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Refcounts of 1, 2, 4, 8, 16, 32 and 64 bits in a block.  Refcounts of less
 * than a byte fill each byte from its least significant bit on; wider ones are
 * big-endian.
 */
#include "qcow2/alloc.h"
#include "qcow2/qcow2.h"

uint64_t qcow2_refcount_load(const void *block, unsigned order, uint64_t index)
{
    const unsigned char *b = block;

    switch (order) {
    case 3:
        return b[index];
    case 4:
        return load_be16(b + index * 2);
    case 5:
        return load_be32(b + index * 4);
    case 6:
        return load_be64(b + index * 8);
    default: {
        unsigned bits = 1U << order;
        unsigned at = (unsigned)(index << order) & 7;
        return (b[index << order >> 3] >> at) & ((1U << bits) - 1);
    }
    }
}

void qcow2_refcount_store(void *block, unsigned order, uint64_t index,
                          uint64_t count)
{
    unsigned char *b = block;

    switch (order) {
    case 3:
        b[index] = (unsigned char)count;
        return;
    case 4:
        store_be16(b + index * 2, (uint16_t)count);
        return;
    case 5:
        store_be32(b + index * 4, (uint32_t)count);
        return;
    case 6:
        store_be64(b + index * 8, count);
        return;
    default: {
        unsigned bits = 1U << order;
        unsigned at = (unsigned)(index << order) & 7;
        unsigned mask = ((1U << bits) - 1) << at;
        unsigned char *byte = &b[index << order >> 3];
        *byte = (unsigned char)((*byte & ~mask) | ((count << at) & mask));
    }
    }
}
