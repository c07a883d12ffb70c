/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_MODULE_H
#define NBDELTA_MODULE_H

/*
 * Modules
 * =======
 *
 * A module is a shared object with a table of functions.  It is loaded when
 * something asks for what it has, so nbdelta starts without the libraries that
 * it needs.  It is linked with copies of what it uses of nbdelta, and belongs
 * to one version.
 *
 * Modules are in one directory: $NBDELTA_MODULES, else where `make install`
 * puts them.
 */
#include <stdbool.h>

struct error;

/* That directory.  It lives as long as the environment does. */
const char *module_dir(void);

/* The table of the module "@name.so", which stays until the process ends.
 * @what: what it is for, in errors; @version: the caller's.  -ENOTSUP: it is
 * not there, cannot be loaded, or is of another version.  Blocks. */
int module_load(const char *name, const char *what, const char *version,
                const void **table, struct error **errp);

/* A thread that nobody waits for is in a call of a library, from one to the
 * other.  Any thread. */
void module_enter(void);
void module_leave(void);

/* Is any there?  Then the process must not clear up when it ends (exit()):
 * libraries would take away what the call still uses. */
bool module_entered(void);

/* The module's own side: MODULE(NBDELTA_VERSION, &functions); */
#define MODULE_EXPORT __attribute__((visibility("default")))
#define MODULE(version, functions)                               \
    extern MODULE_EXPORT const char nbdelta_module_version[];    \
    MODULE_EXPORT const char nbdelta_module_version[] = version; \
    extern MODULE_EXPORT const void *const nbdelta_module;       \
    MODULE_EXPORT const void *const nbdelta_module = functions

#endif /* NBDELTA_MODULE_H */
