/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_EXPORT_H
#define NBDELTA_SERVER_EXPORT_H

/* Exports: what NBD clients can open, by name. */
#include <jansson.h>
#include <stdbool.h>

#include "nbdelta/list.h"

struct blk;
struct error;
struct graph;
struct node;
struct exports;

struct export
{
    /* Set at creation. */
    char *id;   /* of block-export-*; unique */
    char *name; /* on the wire; unique; "" is what a client gets by default */
    char *description; /* or NULL */
    struct node *node; /* as it was given: filters may stand above it now */
    struct blk *blk;
    bool writable;

    /* Guarded by the lock of the set. */
    struct list in_set; /* which has a reference */
    unsigned refs;
    bool removed;
};

struct exports *exports_new(void);
void exports_free(struct exports *s); /* no connection is left; NULL is fine */

/* Add an export of @n; the first one also answers to the name "".  -EEXIST:
 * the id or the name is taken. */
int exports_add(struct exports *s, struct graph *g, struct node *n,
                const char *id, const char *name, const char *description,
                bool writable, struct error **errp);

/* By its name, with a reference; NULL when there is none. */
struct export *exports_find(struct exports *s, const char *name);
void export_unref(struct exports *s, struct export *e);

/* Visit all under the set's lock, oldest first; what @fn returns other than 0
 * ends that and is returned. */
int exports_each(struct exports *s, int (*fn)(struct export *e, void *opaque),
                 void *opaque);

/* The export of node @n, or NULL, with a reference (query-block). */
struct export *exports_find_node(struct exports *s, const struct node *n);

#endif /* NBDELTA_SERVER_EXPORT_H */
