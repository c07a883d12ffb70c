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
 *     act each, in order    -- one fails --> undo the others, backwards
 *     bitmaps are stored    -- the same
 *   bits that went go from the images, too
 *   commit each, then finish each  | abort each
 *   free each
 *
 * Each act sees what the acts before it have done, so a bitmap may be added and
 * used in one go.  Everything happens at one drained instant.  The length of
 * that instant does not depend on the number of disks: threads store their
 * bitmaps side by side.
 */
#include "nbdelta/list.h"
#include "nbdelta/types.h"

struct action {
    const struct action_ops *ops;
    struct list link; /* in the list of its transaction */
    bool prepared;    /* prepare was called */
};

/* What an action changes of a node's bitmaps, as far as the image has them. */
enum action_bitmaps {
    ACTION_FEWER_BITS,   /* they go from the image after the section */
    ACTION_OTHER_BITS,   /* they are stored in it */
    ACTION_MORE_BITMAPS, /* and there is one bitmap more */
};

/* The caller of actions_run holds the monitor lock, where there is one (job.h);
 * so all members are called under it.  Members may be NULL, except free. */
struct action_ops {
    /* Outside of control sections; may block.  abort or commit clears up what
     * it leaves behind.  abort is called also when prepare itself fails. */
    int (*prepare)(struct action *a, struct error **errp);

    /* In the control section: call graph_drain() for what act will touch. */
    void (*drain)(struct action *a);

    /* In the same section, after all drains.  Changes everything; or it fails
     * and has changed nothing. */
    int (*act)(struct action *a, struct error **errp);

    /* At any time: the node whose bitmaps the action changes, or NULL.  When act
     * has set the node's bitmaps_changed, its bitmaps are stored in the same
     * section, after all acts, and are durable then.  When storing fails, all
     * acts are undone and the bitmaps are stored once more; a second failure is
     * not reported.  Bits that went have gone from the image, too, when
     * actions_run() returns.  Until then, and where the image could not be
     * written, a crash brings them back. */
    struct node *(*changes)(struct action *a, enum action_bitmaps *what);

    /* In the same section, only after act has succeeded: its exact inverse. */
    void (*undo)(struct action *a);

    /* After the section, when all actions have succeeded: commit is called for
     * each, then finish for each. */
    void (*commit)(struct action *a);
    void (*finish)(struct action *a);

    /* Something has failed.  Called if prepare was called, outside of control
     * sections. */
    void (*abort)(struct action *a);

    void (*free)(struct action *a);
};

/*
 * Append @a to @list and prepare it, so that the next action can use what this
 * one has opened.  The list owns @a, also when this fails; the caller ends a
 * list that will not run by actions_cancel, which aborts and frees all actions.
 * Both may block.  Errors are those of prepare.
 */
int actions_add(struct list *list, struct action *a, struct error **errp);
void actions_cancel(struct list *list);

/* Run all actions of @list, then free them: the list is empty afterwards, also
 * on failure.  Blocks, and holds back requests while the section lasts.  The
 * error is that of the first action that has failed. */
int actions_run(struct graph *g, struct list *list, struct error **errp);
int action_run(struct graph *g, struct action *a, struct error **errp);

/* As actions_run.  Unless a prepare fails, *drained_ns is for how many
 * nanoseconds requests were held back. */
int actions_run_timed(struct graph *g, struct list *list, uint64_t *drained_ns,
                      struct error **errp);

/* Is @a the only action of its list so far?  Then no action before it changes
 * what it sees. */
bool action_is_alone(const struct action *a);

#endif /* NBDELTA_ACTION_H */
