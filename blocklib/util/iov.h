/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_UTIL_IOV_H
#define NBDELTA_UTIL_IOV_H

/* Slices of scattered buffers. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "nbdelta/types.h"

/* What an iovec holds at the most inside of blocklib: the caller's elements
 * and a head and a tail that the core put around them. */
#define IOV_MAX_INNER (BLK_IOV_MAX + 4)

uint64_t iov_bytes(const struct iovec *iov, int cnt);

/*
 * Describe @bytes bytes from @offset on of (@src, @cnt) in @dst, which has
 * room for @cnt elements (at most IOV_MAX_INNER).  Both ends lie inside of
 * it.  Returns the number of elements.
 */
int iov_slice(struct iovec *dst, const struct iovec *src, int cnt,
              uint64_t offset, uint64_t bytes);

/* Fill, or copy from or to a flat buffer, starting @offset into the iov. */
void iov_fill(const struct iovec *iov, int cnt, uint64_t offset, int byte,
              uint64_t bytes);
void iov_from_buf(const struct iovec *iov, int cnt, uint64_t offset,
                  const void *buf, uint64_t bytes);
void iov_to_buf(const struct iovec *iov, int cnt, uint64_t offset, void *buf,
                uint64_t bytes);

/* Memory for data: aligned to 4096 so that O_DIRECT takes it; free() it. */
void *buf_alloc(size_t bytes);

#endif /* NBDELTA_UTIL_IOV_H */
