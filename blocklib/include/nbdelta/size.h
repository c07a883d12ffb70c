/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SIZE_H
#define NBDELTA_SIZE_H

/* Sizes as people write and read them. */
#include <stddef.h>
#include <stdint.h>

/*
 * Parse a size as qemu-img takes it: decimal digits, an optional fraction,
 * and one of b k M G T P E (powers of 1024, either case), also as KiB, MiB and
 * so on; 0x... without a suffix is hexadecimal.  The result is in bytes.
 * Returns 0, -EINVAL if @text is no size, or -ERANGE for more than INT64_MAX.
 */
int size_parse(const char *text, uint64_t *bytes);

/* Write @bytes as "512 B", "64 KiB" or "1.5 GiB" into @buf, of @len bytes (32
 * suffice).  Returns @buf. */
const char *size_human(uint64_t bytes, char *buf, size_t len);

#endif /* NBDELTA_SIZE_H */
