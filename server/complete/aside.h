/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMPLETE_ASIDE_H
#define NBDELTA_SERVER_COMPLETE_ASIDE_H

/* Looking at what is not ours, for a shell that waits. */

struct offers;

/* The most that a shell waits for an image, a monitor, a server. */
#define ASIDE_MS 700

/*
 * Call @ask in a child process, and offer what it has offered after ASIDE_MS
 * at the latest.  The child is killed then; nobody waits for its end, because
 * storage that hangs would not let it end.  What it prints to standard output
 * and standard error goes nowhere.
 */
void aside(struct offers *o, void (*ask)(struct offers *o, const void *opaque),
           const void *opaque);

#endif /* NBDELTA_SERVER_COMPLETE_ASIDE_H */
