/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon.h"

#include <stdint.h>
#include <unistd.h>

void daemon_quit(struct daemon *d)
{
    uint64_t one = 1;

    /* It fails only when it is at its limit, and then it is readable. */
    (void)!write(d->quit_fd, &one, sizeof(one));
}
