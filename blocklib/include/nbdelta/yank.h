/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_YANK_H
#define NBDELTA_YANK_H

/*
 * Cutting off what never answers
 * ==============================
 *
 * A server that is there and does not answer holds up requests, and through
 * them drains and whoever waits for these with the monitor lock.  So these
 * functions take neither that nor any lock of the graph: any thread may call
 * them at any time, and they do not wait.
 */
#include <jansson.h>

#include "nbdelta/types.h"

/* Is there such a node, by its name, that can be yanked? */
bool graph_can_yank(struct graph *g, const char *name);

/* Cut its connections: all its requests, and later ones, fail.  For good: it
 * does not connect again.  Nothing, where there is none of that name. */
void graph_yank(struct graph *g, const char *name);

/* Yank those that owe somebody an answer and have not given any for a while;
 * @yanked is called with the name of each. */
void graph_yank_stuck(struct graph *g,
                      void (*yanked)(const char *name, void *opaque),
                      void *opaque);

/* The names of all, an array; NULL: no memory. */
json_t *graph_yank_names(struct graph *g);

#endif /* NBDELTA_YANK_H */
