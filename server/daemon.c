/* SPDX-License-Identifier: BSD-3-Clause */
/* How a daemon is asked to end, and tells that it has: see daemon.h. */
#include "daemon.h"

#include <stdatomic.h>

#include "nbdelta/job.h"
#include "nbdelta/kick.h"

void daemon_ask_quit(struct daemon *d, const char *why)
{
    const char *none = NULL;

    (void)atomic_compare_exchange_strong(&d->quit_why, &none, why);
    kick_raise(d->quit_fd);
}

void daemon_quit(struct daemon *d)
{
    daemon_ask_quit(d, "QMP's quit");
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
