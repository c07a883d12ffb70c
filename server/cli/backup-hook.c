/* SPDX-License-Identifier: BSD-3-Clause */
/* The user's command, at certain moments of a run. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "cli/backup-priv.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

int run_hook(const struct run *r, const char *when, struct error **errp)
{
    CLEANUP_FREE char *command = NULL;

    if (!r->o->hook) {
        return 0;
    }
    (void)setenv("NBDELTA_WHEN", when, 1);
    (void)setenv("NBDELTA_POINT", r->point, 1);
    (void)setenv("NBDELTA_DIR", r->o->directory, 1);
    if (asprintf(&command, "%s %s", r->o->hook, when) < 0) {
        command = NULL;
        return error_nomem(errp);
    }
    int status = system(command);
    return status == 0
               ? 0
               : error_set(errp, ECHILD, "the hook failed (%s): status %d",
                           when,
                           WIFEXITED(status) ? WEXITSTATUS(status) : status);
}
