/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_AMEND_H
#define NBDELTA_QCOW2_AMEND_H

/* Making a version 2 image of a version 3 one (amend-old.c). */
#include "qcow2/qcow2.h"

struct image_amend;

/* Could version 2 have all of the image, when its disk has @size bytes?  It may
 * have zero clusters on its disk now, but not in its snapshots.  -ENOTSUP names
 * what it could not have. */
int qcow2_check_old(struct qcow2 *s, uint64_t size, struct error **errp);

/* Let no cluster of the disk be a zero cluster; the disk reads the same at each
 * moment.  Drained.  Nothing is durable yet. */
int qcow2_expand_zeroes(struct qcow2 *s, const struct image_amend *how);

#endif /* NBDELTA_QCOW2_AMEND_H */
