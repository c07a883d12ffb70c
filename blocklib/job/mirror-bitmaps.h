/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_MIRROR_BITMAPS_H
#define NBDELTA_JOB_MIRROR_BITMAPS_H

/* The bitmaps of the source come with the disk (mirror_options.bitmaps): see
 * mirror-bitmaps.c. */
#include <jansson.h>

#include "core/node.h"

struct error;
struct mirror;

/* What the mirror knows of its bitmaps.  All zero: they stay behind. */
struct mirror_bitmaps {
    /* Set before the start. */
    bool on;
    struct node *far; /* the target is this export; or NULL, then it keeps
                         bitmaps itself.  A reference; control lock */

    /* The job's thread, and then prepare and clean. */
    json_t *known; /* names of bitmaps that the far end was seen to have; NULL:
                      it was not asked */
    bool ahead;    /* the target has been told that bitmaps will be stored */

    struct bitmap **added; /* to the target, by prepare; control lock */
    size_t count;
};

/* Can the bitmaps be moved?  In a control section, at the start.  -ENOTSUP,
 * -EEXIST and others: the target can not take them. */
int mirror_bitmaps_begin(struct mirror *m, struct error **errp);

/* Users are about to be led to the target: see that the far end has all
 * bitmaps, or prepare to store them.  In the job's thread; blocks.  0, or as
 * run of a job. */
int mirror_bitmaps_ready(struct mirror *m);

/* Add them to the target, durably, or see that the far end has them still all;
 * or take them away again.  In the drained section at the end, when the ends
 * are equal. */
int mirror_bitmaps_add(struct mirror *m, struct error **errp);
void mirror_bitmaps_undo(struct mirror *m);

/* After it, outside of control sections. */
void mirror_bitmaps_end(struct mirror *m);

#endif /* NBDELTA_JOB_MIRROR_BITMAPS_H */
