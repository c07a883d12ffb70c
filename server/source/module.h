/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_MODULE_H
#define NBDELTA_SERVER_SOURCE_MODULE_H

/* Kinds of source that are modules (nbdelta/module.h): each has a struct
 * source_ops for its table. */
struct error;
struct source_ops;

/* The table of "nbdelta-source-@name.so", which stays until the process ends.
 * Errors as of module_load(). */
int source_module_load(const char *name, const struct source_ops **opsp,
                       struct error **errp);

#endif /* NBDELTA_SERVER_SOURCE_MODULE_H */
