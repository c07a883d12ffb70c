/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_ACTION_H
#define NBDELTA_ACTION_H

/*
 * Actions: changes that happen together or not at all
 * ===================================================
 *
 *   prepare each            slow: create and open files
 *   images whose bitmaps will be stored write ahead what they can
 *   one control section
 *     drain each
 *     act each, in order    -- one fails --> undo those that acted, backwards
 *     bitmaps are stored    -- the same
 *   commit each, then finish each  | abort each
 *   free each
 *
 * Each act sees what those before it have done, so a bitmap may be added and
 * used in one go.  Everything happens at one drained instant.  How long that
 * lasts does not depend on the number of disks: their bitmaps are stored side
 * by side, by threads.
 */
#include "nbdelta/list.h"
#include "nbdelta/types.h"

struct action {
    const struct action_ops *ops;
    struct list link; /* in the list of its transaction */
    bool prepared;    /* prepare was called */
};

/* All of them are called as actions_run was: under the monitor lock where
 * there is one (job.h).  Members may be NULL but for free. */
struct action_ops {
    /* No control section.  What it leaves behind is for abort or commit; when
     * it fails, abort is called too. */
    int (*prepare)(struct action *a, struct error **errp);

    /* In the control section: graph_drain() what act will touch. */
    void (*drain)(struct action *a);

    /* In it, after all drains.  Changes everything or, failing, nothing. */
    int (*act)(struct action *a, struct error **errp);

    /* At any time: the node whose bitmaps it changes, or NULL; *more: one of
     * them will be stored that was not.  What act has noted there
     * (bitmaps_changed) is stored in the same section, after all acts, so that
     * it is durable.  When that fails, all is undone, and stored once more as
     * well as it goes. */
    struct node *(*changes)(struct action *a, bool *more);

    /* In the same section, only after act succeeded: its exact inverse. */
    void (*undo)(struct action *a);

    /* After the section, all succeeded: commit each, then finish each. */
    void (*commit)(struct action *a);
    void (*finish)(struct action *a);

    /* Something failed; for those whose prepare was called. */
    void (*abort)(struct action *a);

    void (*free)(struct action *a);
};

/* Append @a to @list and prepare it, so that the next one can be made of what
 * it has opened.  @a is on the list also when that fails; actions_cancel is
 * the end of it then. */
int actions_add(struct list *list, struct action *a, struct error **errp);
void actions_cancel(struct list *list); /* abort, free */

/* Run all actions of @list, then free them: it is empty afterwards. */
int actions_run(struct graph *g, struct list *list, struct error **errp);
int action_run(struct graph *g, struct action *a, struct error **errp);

/* As actions_run; writes to *drained_ns, unless prepare failed, for how many
 * nanoseconds requests were held back. */
int actions_run_timed(struct graph *g, struct list *list, uint64_t *drained_ns,
                      struct error **errp);

/* Is it the only one so far?  Then nothing before it changes what it sees. */
bool action_is_alone(const struct action *a);

#endif /* NBDELTA_ACTION_H */
