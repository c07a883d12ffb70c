/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_SNAPSHOT_ACCESS_H
#define NBDELTA_COPY_SNAPSHOT_ACCESS_H

struct node;

/*
 * What @n shows is not kept any more: whoever still uses it gets -EIO from now
 * on, also when the node below it will be one that keeps another point in
 * time.  In a control section; @n is drained by it.
 */
void snapshot_access_end(struct node *n);

#endif /* NBDELTA_COPY_SNAPSHOT_ACCESS_H */
