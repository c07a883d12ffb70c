/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_MODULE_H
#define NBDELTA_SERVER_SOURCE_MODULE_H

/*
 * Kinds of source that are modules
 * ================================
 *
 * A module is a shared object with the table of one kind.  It is loaded when
 * that kind is named, so nbdelta starts without the libraries that it needs.
 * It is linked with copies of what it uses of nbdelta, and belongs to one
 * version.
 *
 * Modules are in one directory: $NBDELTA_MODULES, else where `make install`
 * puts them.
 */
struct error;
struct source_ops;

/* That directory.  It lives as long as the environment does. */
const char *module_dir(void);

/* The table of the module "nbdelta-source-@name.so", which stays until the
 * process ends.  -ENOTSUP: it is not there, cannot be loaded, or is of another
 * version. */
int module_load(const char *name, const struct source_ops **opsp,
                struct error **errp);

/* The module's own side: SOURCE_MODULE(NBDELTA_VERSION) = {.name = ...}; */
#define MODULE_EXPORT __attribute__((visibility("default")))
#define SOURCE_MODULE(version)                                  \
    extern MODULE_EXPORT const char source_module_version[];    \
    MODULE_EXPORT const char source_module_version[] = version; \
    extern MODULE_EXPORT const struct source_ops source_module; \
    MODULE_EXPORT const struct source_ops source_module

#endif /* NBDELTA_SERVER_SOURCE_MODULE_H */
