/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon.h"

#include <stdint.h>
#include <unistd.h>

#include "nbdelta/job.h"

void daemon_ask_quit(struct daemon *d)
{
    uint64_t one = 1;

    /* It fails only when it is at its limit, and then it is readable. */
    (void)!write(d->quit_fd, &one, sizeof(one));
}

void daemon_quit(struct daemon *d)
{
    daemon_ask_quit(d);
    mutex_is_held(&d->jobs->lock);
    while (!d->has_ended) {
        cond_wait(&d->ended, &d->jobs->lock);
    }
}

void daemon_ended(struct daemon *d)
{
    mutex_lock(&d->jobs->lock);
    d->has_ended = true;
    cond_broadcast(&d->ended);
    mutex_unlock(&d->jobs->lock);
}
