/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_BYTES_H
#define NBDELTA_BYTES_H

/* Arithmetic and byte order on plain integers. */
#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define KiB (UINT64_C(1) << 10)
#define MiB (UINT64_C(1) << 20)
#define GiB (UINT64_C(1) << 30)
#define TiB (UINT64_C(1) << 40)

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}
static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}
static inline bool is_pow2(uint64_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}
/* @align is a power of two in the align_ functions. */
static inline uint64_t align_down(uint64_t n, uint64_t align)
{
    return n & ~(align - 1);
}
/* The caller knows that @n + @align does not overflow. */
static inline uint64_t align_up(uint64_t n, uint64_t align)
{
    return (n + align - 1) & ~(align - 1);
}
static inline bool is_aligned(uint64_t n, uint64_t align)
{
    return (n & (align - 1)) == 0;
}
static inline uint64_t div_up(uint64_t n, uint64_t d)
{
    return n / d + (n % d != 0);
}
/* Does [offset, offset + bytes) lie inside [0, size)? */
static inline bool range_inside(uint64_t offset, uint64_t bytes, uint64_t size)
{
    return bytes <= size && offset <= size - bytes;
}

/*
 * Are there none but zeroes?  If the first 16 bytes are zero, and every byte
 * equals the byte 16 before it, all are.  The overlap lets libc's memcmp do the
 * work, which uses the machine's vectors.  Data mostly differs from zero in the
 * first bytes.
 */
static inline bool bytes_are_zero(const void *buf, uint64_t bytes)
{
    const unsigned char *p = (const unsigned char *)buf;
    uint64_t head[2];

    if (bytes < sizeof(head)) {
        for (uint64_t i = 0; i < bytes; i++) {
            if (p[i] != 0) {
                return false;
            }
        }
        return true;
    }
    memcpy(head, p, sizeof(head));
    return (head[0] | head[1]) == 0 &&
           memcmp(p, p + sizeof(head), (size_t)bytes - sizeof(head)) == 0;
}

/* Big-endian integers in unaligned memory. */
#define ND_DEFINE_BE(bits)                                       \
    static inline uint##bits##_t load_be##bits(const void *p)    \
    {                                                            \
        uint##bits##_t v;                                        \
        memcpy(&v, p, sizeof(v));                                \
        return be##bits##toh(v);                                 \
    }                                                            \
    static inline void store_be##bits(void *p, uint##bits##_t v) \
    {                                                            \
        v = htobe##bits(v);                                      \
        memcpy(p, &v, sizeof(v));                                \
    }
ND_DEFINE_BE(16)
ND_DEFINE_BE(32)
ND_DEFINE_BE(64)
#undef ND_DEFINE_BE

#endif /* NBDELTA_BYTES_H */
