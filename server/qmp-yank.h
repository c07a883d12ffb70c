/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_YANK_H
#define NBDELTA_SERVER_QMP_YANK_H

#include <jansson.h>

struct daemon;

/*
 * Do what @request asks for if it is a "yank", before it waits for the monitor
 * lock: who holds that may wait for what is to be yanked.  It is run in its
 * turn, too, which checks it and makes the reply.  Without locks.
 */
void qmp_yank_early(struct daemon *d, const json_t *request);

#endif /* NBDELTA_SERVER_QMP_YANK_H */
