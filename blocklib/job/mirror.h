/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_MIRROR_H
#define NBDELTA_JOB_MIRROR_H

/* What mirror.c (the work) and mirror-start.c (the start) share. */
#include "copy/copy.h"
#include "core/node.h"
#include "job/follow.h"
#include "job/job.h"
#include "job/mirror-bitmaps.h"
#include "nbdelta/mirror.h"

struct mirror {
    struct job job;

    /* Set before the start. */
    struct graph *graph;
    struct copy *copy;
    struct follow follow; /* of the source */
    bool top;             /* copy what the source's own layer has */
    bool sizes_differ;    /* the job shall fail */
    bool maybe_blank;     /* if the target is, zeroes are left out */
    bool opens_backing;   /* the target gets the backing file that it names in
                             the end: others may make it meanwhile */
    char *replaces;       /* or NULL: the source */
    uint64_t failures;    /* flushes of the target that failed, at the start */

    struct mirror_bitmaps bitmaps;

    /* References; control lock. */
    struct node *source;
    struct node *target;
    struct node *filter;     /* NULL once it is removed */
    struct node *to_replace; /* from complete on, if `replaces`; blocked */

    /* Monitor lock. */
    bool write_blocking;

    /* Atomic. */
    _Atomic bool looked; /* what there is to copy is known */
};

extern const struct job_driver mirror_driver;

/* Fill in m->follow, except for what it follows. */
void mirror_follow(struct mirror *m);

/* May @n be replaced by a node that shows what @source shows? */
bool mirror_can_replace(struct node *source, const struct node *n);

/* Have guests' writes go to both ends from now on.  In a control section. */
int mirror_block_writes(struct mirror *m, struct error **errp);

/* Undo all that arming did, and drop the references.  Takes the control
 * lock. */
void mirror_disarm(struct mirror *m);

#endif /* NBDELTA_JOB_MIRROR_H */
