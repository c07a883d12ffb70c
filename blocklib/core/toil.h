/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_TOIL_H
#define NBDELTA_CORE_TOIL_H

/*
 * Toil: work of seconds that an open needs
 * ========================================
 *
 * A node is opened in a control section, which nobody may hold for seconds.  So
 * an open that needs much computing leaves it to the one that holds the section
 * and fails; the work is done outside, and the open begins once more, and finds
 * the result.
 *
 *   graph_open   section:  open -> no result yet -> toil_leave -> -EINPROGRESS
 *                outside:  toil->run
 *                section:  open -> toil_find: done -> 0
 */
#include "nbdelta/list.h"
#include "nbdelta/types.h"

struct toil {
    struct list in_set;
    const void *kind; /* address of something that only its makers know */
    bool done;
    /* Do it, with nothing locked.  @stop: asked now and then. */
    int (*run)(struct toil *t, bool (*stop)(void *opaque), void *opaque,
               struct error **errp);
    void (*free)(struct toil *t);
};

/* The first one of @kind that is done and that @fits, or NULL.  Control
 * lock. */
struct toil *toil_find(struct graph *g, const void *kind,
                       bool (*fits)(const struct toil *t, const void *opaque),
                       const void *opaque);

/* Leave it to the opener, who frees it.  -EINPROGRESS; -EBUSY with @errp: the
 * opener cannot do it, and @t is freed.  Control lock. */
int toil_leave(struct graph *g, struct toil *t, struct error **errp);

/* --- For those who open --- */

/* Do all that is left to do in @toils; false: there is nothing.  *r gets 0 or
 * the first error. */
bool toil_run_all(struct graph *g, struct list *toils, int *r,
                  struct error **errp);
void toil_free_all(struct list *toils);

#endif /* NBDELTA_CORE_TOIL_H */
