/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_YANK_H
#define NBDELTA_YANK_H

/*
 * Cutting connections to servers that never answer
 * ================================================
 *
 * A server that is there and does not answer holds up requests, and so it holds
 * up drains, and the holder of the monitor lock that waits for a drain.  So
 * these functions take neither that lock nor any lock of the graph: any thread
 * may call them at any time, and they do not wait.
 */
#include <jansson.h>

#include "nbdelta/types.h"

/* Is there a node of that name that can be yanked? */
bool graph_can_yank(struct graph *g, const char *name);

/* Cut the connections of the node: all its requests, and all later ones, fail.
 * It never connects again.  Does nothing if there is no node of that name. */
void graph_yank(struct graph *g, const char *name);

/* Yank all nodes that have requests in flight and have not had an answer for a
 * while.  @yanked is called with the name of each. */
void graph_yank_stuck(struct graph *g,
                      void (*yanked)(const char *name, void *opaque),
                      void *opaque);

/* The names of all nodes that can be yanked: a new array; NULL: no memory. */
json_t *graph_yank_names(struct graph *g);

#endif /* NBDELTA_YANK_H */
