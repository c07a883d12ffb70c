/* SPDX-License-Identifier: BSD-3-Clause */
/* Loading kinds of source that are modules: see module.h. */
#include "source/module.h"

#include <stdlib.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/module.h"

int source_module_load(const char *name, const struct source_ops **opsp,
                       struct error **errp)
{
    CLEANUP_FREE char *file = NULL;
    const void *ops = NULL;

    if (asprintf(&file, "nbdelta-source-%s", name) < 0) {
        file = NULL;
        return error_nomem(errp);
    }
    int r = module_load(file, name, NBDELTA_VERSION, &ops, errp);
    if (r == 0) {
        *opsp = ops;
    }
    return r;
}
