/* SPDX-License-Identifier: BSD-3-Clause */
/* Work that opens leave to who opens: see toil.h. */
#include "core/toil.h"

#include <errno.h>

#include "core/graph-priv.h"
#include "nbdelta/error.h"

struct toil *toil_find(struct graph *g, const void *kind,
                       bool (*fits)(const struct toil *t, const void *opaque),
                       const void *opaque)
{
    if (!g->toils) {
        return NULL;
    }
    list_for_each (at, g->toils) {
        struct toil *t = list_entry(at, struct toil, in_set);

        if (t->done && t->kind == kind && fits(t, opaque)) {
            return t;
        }
    }
    return NULL;
}

int toil_leave(struct graph *g, struct toil *t, struct error **errp)
{
    if (!g->toils) {
        t->free(t);
        return error_set(errp, EBUSY,
                         "the image takes seconds to open: open it by a "
                         "command of its own");
    }
    list_append(g->toils, &t->in_set);
    return error_set(errp, EINPROGRESS, "the image takes seconds to open");
}

static bool is_ending(void *opaque)
{
    struct graph *g = opaque;

    return yank_set_ending(&g->yanks);
}

bool toil_run_all(struct graph *g, struct list *toils, int *r,
                  struct error **errp)
{
    bool ran = false;

    *r = 0;
    list_for_each (at, toils) {
        struct toil *t = list_entry(at, struct toil, in_set);

        if (!t->done && *r == 0) {
            ran = true;
            *r = t->run(t, is_ending, g, errp);
            t->done = *r == 0;
        }
    }
    return ran;
}

void toil_free_all(struct list *toils)
{
    list_for_each_safe (at, toils) {
        struct toil *t = list_entry(at, struct toil, in_set);

        list_remove(at);
        t->free(t);
    }
}
