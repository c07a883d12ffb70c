/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_BACKUP_LOOK_H
#define NBDELTA_SERVER_BACKUP_LOOK_H

/*
 * What storage has of some nodes
 * ==============================
 *
 *   look_add   the nodes are gathered      with the monitor lock
 *   look_ask   their storage is asked      without it
 *   look_of    the answers are used        with it
 *
 * Storage may be slow, or hang.  So it holds up the command that asks, and
 * nobody else.  What has changed in the graph meanwhile the caller finds out;
 * the nodes are there still, as they have references.  Hold the monitor lock
 * for all of these functions, except where it says otherwise.
 */
#include <stdbool.h>
#include <stddef.h>

#include "nbdelta/storage-snapshot.h"

struct daemon;

struct looked {
    struct node *node;
    struct node *storage; /* it, or the one below that makes snapshots; NULL:
                             there is none */
    struct storage_snapshots list; /* none before look_ask(), after its failure,
                                      and if its storage makes none */
};

struct look {
    struct daemon *daemon;
    struct looked *at;
    size_t count;
};

/* Give up the monitor lock while storage is asked, and take it again. */
void look_begin(struct daemon *d);
void look_end(struct daemon *d);

/* -ENOMEM. */
int look_add(struct look *l, struct node *n, struct error **errp);

/* Ask for the snapshots of all of them.  The monitor lock is given up
 * meanwhile, if there is anything to ask.  The first error is returned; the
 * nodes after it are asked, too, unless it is -ETIMEDOUT. */
int look_ask(struct look *l, struct error **errp);

/* What there is of @n; NULL: it was not added.  With any locks. */
const struct looked *look_find(const struct look *l, const struct node *n);
const struct storage_snapshots *look_of(const struct look *l,
                                        const struct node *n);

/* Wait until all of them can be drained.  Call it without the monitor lock. */
int look_settle(const struct look *l, struct error **errp);

void look_free(struct look *l);

#endif /* NBDELTA_SERVER_BACKUP_LOOK_H */
