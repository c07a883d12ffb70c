/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_SNAPSHOT_ACCESS_H
#define NBDELTA_COPY_SNAPSHOT_ACCESS_H

/* The end of snapshot-access.c's nodes. */
struct node;

/*
 * The point in time that @n shows is not kept any more.  From now on, users of
 * @n get -EIO, also when the node below it will be one that keeps another point
 * in time.  In a control section; it drains @n.
 */
void snapshot_access_end(struct node *n);

/* The node below @n is of that instant itself: @n shows it, and takes discards,
 * which do nothing.  Nobody uses @n yet. */
void snapshot_access_plain(struct node *n);

#endif /* NBDELTA_COPY_SNAPSHOT_ACCESS_H */
