/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_YANK_H
#define NBDELTA_CORE_YANK_H

/* What of a graph can be yanked, from the inside. */
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "nbdelta/yank.h"

struct yank_set {
    mutex_t lock; /* before driver mutexes, after nothing */
    /* Guarded by lock. */
    struct list list; /* of struct yank */
    bool ending;      /* graph_stop_waiting was called */
};

/* Of a driver, in the state of its node. */
struct yank {
    struct list link;
    const char *name; /* of the node */
    /* None of these waits. */
    void (*fn)(void *opaque);
    bool (*is_stuck)(void *opaque); /* it owes an answer, and gives none */
    void (*give_up)(void *opaque); /* all is about to end: wait no more for what
                                      may never come */
    void *opaque;
};

void yank_set_init(struct yank_set *s);
void yank_set_destroy(struct yank_set *s);
void yank_register(struct graph *g, struct yank *y);
void yank_unregister(struct graph *g, struct yank *y);

/* Was graph_stop_waiting() called? */
bool yank_set_ending(struct yank_set *s);

#endif /* NBDELTA_CORE_YANK_H */
