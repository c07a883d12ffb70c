/* SPDX-License-Identifier: BSD-3-Clause */
/* Loading modules: see module.h. */
#include "nbdelta/module.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

static _Atomic unsigned inside;

void module_enter(void)
{
    atomic_fetch_add(&inside, 1);
}

void module_leave(void)
{
    atomic_fetch_sub(&inside, 1);
}

bool module_entered(void)
{
    return atomic_load(&inside) > 0;
}

const char *module_dir(void)
{
    const char *dir = secure_getenv("NBDELTA_MODULES");

    return dir && *dir ? dir : NBDELTA_MODULES;
}

static int check(void *module, const char *path, const char *wanted,
                 const void **table, struct error **errp)
{
    const char *version = dlsym(module, "nbdelta_module_version");
    const void *const *found = dlsym(module, "nbdelta_module");

    if (!version || !found) {
        return error_set(errp, ENOTSUP, "'%s' is no module of nbdelta", path);
    }
    if (strcmp(version, wanted) != 0) {
        return error_set(errp, ENOTSUP,
                         "'%s' belongs to nbdelta %s, and this is %s", path,
                         version, wanted);
    }
    *table = *found;
    return 0;
}

int module_load(const char *name, const char *what, const char *version,
                const void **table, struct error **errp)
{
    CLEANUP_FREE char *path = NULL;

    if (asprintf(&path, "%s/%s.so", module_dir(), name) < 0) {
        path = NULL;
        return error_nomem(errp);
    }
    if (access(path, F_OK) < 0) {
        return error_set(errp, ENOTSUP,
                         "nbdelta's module for %s is not installed: '%s': %s",
                         what, path, strerror(errno));
    }
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!module) {
        const char *why = dlerror();
        return error_set(errp, ENOTSUP,
                         "nbdelta's module for %s cannot be loaded: %s", what,
                         why ? why : "?");
    }
    int r = check(module, path, version, table, errp);
    if (r < 0) {
        (void)dlclose(module);
    }
    return r;
}
