/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_DAEMONIZE_H
#define NBDELTA_SERVER_SERVE_DAEMONIZE_H

/* Going to the background, before there are threads. */

#include <stdbool.h>

struct error;

/*
 * Go on in a process of its own session.  Returns there, with *ready for
 * daemonize_ready(); the first process ends when that is called, with 0, or
 * when the new one ends before, with 1.  The working directory stays.
 */
int daemonize(int *ready, struct error **errp);

/* Let go of the terminal (of standard error only unless @log_stays), and of the
 * process that waits in daemonize().  Does nothing if @ready < 0. */
void daemonize_ready(int ready, bool log_stays);

#endif /* NBDELTA_SERVER_SERVE_DAEMONIZE_H */
