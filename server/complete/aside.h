/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMPLETE_ASIDE_H
#define NBDELTA_SERVER_COMPLETE_ASIDE_H

/* Looking at what is not ours, for a shell that waits. */

struct offers;

/* The most that a shell waits for an image, a monitor, a server; another number
 * of milliseconds, up to ASIDE_MS_MAX, is in NBDELTA_COMPLETE_TIMEOUT. */
#define ASIDE_MS     700
#define ASIDE_MS_MAX 60000
int aside_ms(void);

/*
 * Call @ask in a child process, and offer what it has offered after aside_ms()
 * at the latest.  The child is killed then; nobody waits for its end, because
 * storage that hangs would not let it end.  What it prints to standard output
 * and standard error goes nowhere.
 */
void aside(struct offers *o, void (*ask)(struct offers *o, const void *opaque),
           const void *opaque);

#endif /* NBDELTA_SERVER_COMPLETE_ASIDE_H */
