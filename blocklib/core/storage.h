/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_STORAGE_H
#define NBDELTA_CORE_STORAGE_H

/* Storage snapshots, for jobs: see nbdelta/storage-snapshot.h. */
struct node;

/* The node whose driver makes snapshots of what @n shows, or NULL. */
struct node *storage_below(const struct node *n);

#endif /* NBDELTA_CORE_STORAGE_H */
