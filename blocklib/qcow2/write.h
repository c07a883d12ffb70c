/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_WRITE_H
#define NBDELTA_QCOW2_WRITE_H

/* Between write.c and write-nowait.c. */
#include "qcow2/qcow2.h"

/* Can data be written at all?  -ENOMEDIUM: no data file, or no key.  -EIO: the
 * image is corrupt. */
int qcow2_check_data(const struct qcow2 *s);

/* Write what the guest sees there already, to clusters that the caller has
 * locked, and has found unallocated: copy-up.c. */
int qcow2_write_copied_up(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                          const void *buf, unsigned flags);

/*
 * As pwritev with REQ_NOWAIT (driver.h): all of the range, pieces that are to
 * be overwritten in place, too.  -EAGAIN has changed nothing.
 */
int qcow2_write_nowait(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt);

#endif /* NBDELTA_QCOW2_WRITE_H */
