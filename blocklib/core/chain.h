/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_CHAIN_H
#define NBDELTA_CORE_CHAIN_H

/* Backing chains from the inside.  Control section. */
#include "core/node.h"
#include "nbdelta/chain.h"

/* No longer chain is opened: a file that names itself would be an endless
 * one. */
#define CHAIN_MAX 500

/* -ELOOP: with one more image on top of @n, the chain could not be opened any
 * more. */
int chain_check_room(const struct node *n, struct error **errp);

/* The child that decides what is read where @n does not: its filtered or its
 * backing child.  NULL: the chain ends. */
struct node *chain_next(const struct node *n);

/* Is @n in the chain of @top (which is in it, too)? */
bool chain_contains(struct node *top, const struct node *n);

/* node_set_read_only() for @n and, if it is a filter, for the nodes that it
 * filters. */
int chain_set_read_only(struct node *n, bool read_only, struct error **errp);

/* The node in the chain below @top whose file a user calls @name, as an image
 * in the chain names it, or as a path; or NULL. */
struct node *chain_find_file(struct node *top, const char *name);

/* The name by which an image in any directory has to name its backing file @n,
 * malloc()ed.  NULL with @errp: there is none.  And the format of the backing
 * file. */
char *chain_backing_name(const struct node *n, struct error **errp);
const char *chain_backing_format(const struct node *n);

/* Exchange the backing node of @n, which has one, for @backing (NULL: none).
 * The caller knows that nobody who reads sees a change.  When it fails, @n has
 * the old one.  @n and @backing are drained. */
int chain_set_backing(struct node *n, struct node *backing,
                      struct error **errp);

/* Write @name and @fmt (or NULL) into the image of @n, which may be read-only:
 * then it is writable for that time.  Its tree is drained. */
int chain_set_backing_name(struct node *n, const char *name, const char *fmt,
                           struct error **errp);

#endif /* NBDELTA_CORE_CHAIN_H */
