/* SPDX-License-Identifier: BSD-3-Clause */
/* Loading kinds of source that are modules: see module.h. */
#include "source/module.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

static int check_module(void *module, const char *path,
                        const struct source_ops **opsp, struct error **errp)
{
    const char *version = dlsym(module, "source_module_version");
    const struct source_ops *ops = dlsym(module, "source_module");

    if (!version || !ops) {
        return error_set(errp, ENOTSUP, "'%s' is no module of nbdelta", path);
    }
    if (strcmp(version, NBDELTA_VERSION) != 0) {
        return error_set(errp, ENOTSUP,
                         "'%s' belongs to nbdelta %s, and this is %s", path,
                         version, NBDELTA_VERSION);
    }
    *opsp = ops;
    return 0;
}

const char *module_dir(void)
{
    const char *dir = secure_getenv("NBDELTA_MODULES");

    return dir && *dir ? dir : NBDELTA_MODULES;
}

int module_load(const char *name, const struct source_ops **opsp,
                struct error **errp)
{
    CLEANUP_FREE char *path = NULL;

    if (asprintf(&path, "%s/nbdelta-source-%s.so", module_dir(), name) < 0) {
        path = NULL;
        return error_nomem(errp);
    }
    if (access(path, F_OK) < 0) {
        return error_set(errp, ENOTSUP,
                         "nbdelta's module for %s is not installed: '%s': %s",
                         name, path, strerror(errno));
    }
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!module) {
        const char *why = dlerror();
        return error_set(errp, ENOTSUP,
                         "nbdelta's module for %s cannot be loaded: %s", name,
                         why ? why : "?");
    }
    int r = check_module(module, path, opsp, errp);
    if (r < 0) {
        (void)dlclose(module);
    }
    return r;
}
