/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SIZE_H
#define NBDELTA_SIZE_H

#include <stddef.h>
#include <stdint.h>

/*
 * Parse a size as qemu-img takes it: decimal digits, an optional fraction,
 * and one of b k M G T P E (powers of 1024, either case); 0x... without a
 * suffix is hexadecimal.  The result is in bytes.
 * Returns 0, -EINVAL for what is no size, -ERANGE for more than INT64_MAX.
 */
int size_parse(const char *text, uint64_t *bytes);

/* "512 B", "64 KiB", "1.5 GiB" into @buf (32 bytes suffice); returns @buf. */
const char *size_human(uint64_t bytes, char *buf, size_t len);

#endif /* NBDELTA_SIZE_H */
