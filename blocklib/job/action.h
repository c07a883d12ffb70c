/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_ACTION_H
#define NBDELTA_JOB_ACTION_H

/*
 * Actions: changes that happen together or not at all
 * ===================================================
 *
 *   prepare each            slow, invisible: create and open files
 *   one control section
 *     drain each
 *     act each, in order    -- one fails --> undo those that acted, backwards
 *   commit each  | abort each
 *   free each
 *
 * Each act sees what those before it have done, so a bitmap may be added and
 * used in one go.  Everything happens at one drained instant.
 */
#include "nbdelta/job.h"
#include "nbdelta/list.h"

struct action {
    const struct action_ops *ops;
    struct list link; /* in the list of its transaction */
};

/* Under the monitor lock all of them.  Members may be NULL but for free. */
struct action_ops {
    /* No control section.  What it leaves behind is for abort or commit. */
    int (*prepare)(struct action *a, struct error **errp);

    /* In the control section: graph_drain() what act will touch. */
    void (*drain)(struct action *a);

    /* In it, after all drains.  Changes everything or, failing, nothing. */
    int (*act)(struct action *a, struct error **errp);

    /* In the same section, only after act succeeded: its exact inverse. */
    void (*undo)(struct action *a);

    /* After the section: all succeeded; or something failed (called for
     * those whose prepare was called, whether it succeeded or not). */
    void (*commit)(struct action *a);
    void (*abort)(struct action *a);

    void (*free)(struct action *a);
};

/* Run all of @list, which begins and ends as the caller made it; then free
 * them.  An empty list is a success. */
int actions_run(struct jobs *j, struct list *list, struct error **errp)
    REQUIRES(j->lock);

#endif /* NBDELTA_JOB_ACTION_H */
