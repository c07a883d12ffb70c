/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_POINT_PRIV_H
#define NBDELTA_JOB_POINT_PRIV_H

/* Between point.c (points by copy-before-write, and what all have) and
 * point-stored.c (points that are snapshots of the storage). */
#include <stdatomic.h>

#include "nbdelta/point.h"

struct hbitmap;

struct point {
    /* Set by prepare. */
    struct graph *graph;
    struct copy *copy; /* NULL: of a storage snapshot */
    uint64_t quota;
    void (*lost)(void *opaque);
    void *opaque;

    /* Of a storage snapshot, set by prepare (point-stored.c). */
    char *snapshot; /* NULL: it is not one */
    char *since;    /* another one, or */
    char *bitmap;   /* a bitmap of the source */
    char *context;
    uint64_t id; /* of the snapshot */

    /* Set by act. */
    struct hbitmap *bits; /* of `bitmap` */

    /* References; control lock. */
    struct node *source;
    struct node *scratch;
    struct node *filter; /* NULL: not in place */
    struct node *access;
    /* Of a storage snapshot: whose it is, and what access reads; or NULL. */
    struct node *storage;
    struct node *view;

    /* Atomic. */
    const char *_Atomic why; /* NULL: whole; a constant text */
};

/* --- In a control section --- */

/* Give @bits to a new context bitmap of p->access, or free them. */
int point_add_context(struct point *p, const char *name, struct hbitmap *bits,
                      struct error **errp);

/* Make p->access, of p->source's size, above @below. */
int point_make_access(struct point *p, struct node *below, struct error **errp);

/* Undo all that act has done, or the part that it has done. */
void point_take_down(struct point *p);

/* --- Outside --- */

void point_free(struct point *p);
void point_free_stored(struct point *p); /* the members of such points */
json_t *point_query_stored(const struct point *p);

#endif /* NBDELTA_JOB_POINT_PRIV_H */
