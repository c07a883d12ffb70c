/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_MIRROR_TOP_H
#define NBDELTA_COPY_MIRROR_TOP_H

/*
 * The filter of a mirror: it holds the two ends together
 * ======================================================
 *
 *      guests     the job's workers
 *           |      |
 *          mirror_top ---- TARGET --> target
 *              |
 *             FILE --> source
 *
 * In the background mode it looks at nothing: what guests change is noted by a
 * dirty bitmap of the source, and requests may fly through.  Write-blocking, it
 * has the copy engine write to both ends (copy/both.c), and lets nobody write
 * to the source past it.
 *
 * All of it in a control section.
 */
#include "copy/copy.h"
#include "core/graph.h"

/*
 * Insert the filter above @source.  All users of @source use the filter then.
 * @copy copies from now on.  It drains @source and @target, which become one
 * tree.  @name NULL: a generated node name.  The two are blocked for other
 * jobs.  On success the caller owns *filterp until mirror_top_remove(), and
 * keeps a reference to both ends so long.
 */
int mirror_top_insert(struct node *source, struct node *target,
                      struct copy *copy, const char *name,
                      struct node **filterp, struct error **errp);

/* From now on guests' writes go to both ends.  Takes over @late on success:
 * where the ends may differ, and what is not in the set of the copy.  -EBUSY:
 * somebody writes to the source past the filter.  Drained. */
int mirror_top_block_writes(struct node *filter, struct hbitmap *late,
                            struct error **errp);

/* Look at nothing any more, and want nothing of the target: it may get other
 * users.  Drained. */
void mirror_top_retire(struct node *filter);

/* Take it out: its users use the source again.  The ends are separate trees
 * again. */
void mirror_top_remove(struct node *filter);

#endif /* NBDELTA_COPY_MIRROR_TOP_H */
