/* SPDX-License-Identifier: BSD-3-Clause */
/* Points that go after a run that has made one. */
#include <errno.h>

#include "cli/backup-priv.h"
#include "log/log.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/prune.h"

static void tell_left(const char *point, const struct error *why)
{
    char shown[POINT_SHOWN_MAX];

    point_name_show(point, shown);
    log_line(TELL_WARNING, "point %s is left: %s", shown, error_message(why));
}

int run_prune(struct run *r)
{
    CLEANUP_FREE struct prune_point *points = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    struct prune_result result = {.removed = 0};

    if (!r->o->prune) {
        return 0;
    }
    int status = prune_plan(r->store, &r->o->keep, &points, &err);
    if (status == 0) {
        status = prune_all(r->store, points, store_count(r->store), tell_left,
                           &result, &err);
    }
    if (status < 0) {
        log_line(TELL_WARNING, "point %s was made, but: %s", r->point,
                 error_message(err));
    }
    return status == -EUCLEAN ? status : 0;
}
