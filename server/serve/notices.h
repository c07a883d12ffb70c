/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_NOTICES_H
#define NBDELTA_SERVER_SERVE_NOTICES_H

/*
 * Events that requests give rise to: BLOCK_IMAGE_CORRUPTED, BLOCK_IO_ERROR,
 * BLOCK_WRITE_THRESHOLD.  A request finds something in any thread and with any
 * locks, so a thread of its own waits for the monitor lock and sends the event.
 */
struct daemon;
struct error;
struct notices;

/* Listen to the graph and the exports of @d, which have no nodes and no clients
 * yet.  NULL: no memory. */
struct notices *notices_new(struct daemon *d);

int notices_start(struct notices *s, struct error **errp);

/* Send what has come until now, and listen no more.  Monitors are there. */
void notices_stop(struct notices *s);

/* After the graph has gone.  NULL is fine. */
void notices_free(struct notices *s);

#endif /* NBDELTA_SERVER_SERVE_NOTICES_H */
