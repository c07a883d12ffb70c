/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_CORRUPTION_H
#define NBDELTA_SERVER_SERVE_CORRUPTION_H

/* The event BLOCK_IMAGE_CORRUPTED.  A request finds that an image contradicts
 * itself, in any thread and with any locks, so a thread of its own waits for
 * the monitor lock and sends the event. */
struct daemon;
struct corruptions;
struct error;

/* Listen to the graph of @d, which has no nodes yet.  NULL: no memory. */
struct corruptions *corruptions_new(struct daemon *d);

int corruptions_start(struct corruptions *c, struct error **errp);

/* Send what has come until now, and listen no more.  Monitors are there. */
void corruptions_stop(struct corruptions *c);

/* After the graph has gone.  NULL is fine. */
void corruptions_free(struct corruptions *c);

#endif /* NBDELTA_SERVER_SERVE_CORRUPTION_H */
