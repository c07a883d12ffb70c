/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_ARGS_NODE_H
#define NBDELTA_SERVER_ARGS_NODE_H

/*
 * Options of nodes as arguments
 * =============================
 *
 * Drivers take their options as texts, too, because images name others in that
 * way ("json:...").  In a monitor and with --blockdev they have the types that
 * query-qmp-schema says: these functions hold them against the drivers' tables
 * (nbdelta/option.h) before a driver sees them.
 */
#include <jansson.h>

struct error;

/* Check @options, an object that describes a node, in QEMU's words.  @where, ""
 * at the top, comes before names in texts. */
int args_check_node(json_t *options, const char *where, struct error **errp);

/* The same of the name of a node, or the options of a new one: @value, which is
 * called @name. */
int args_check_node_ref(json_t *value, const char *where, const char *name,
                        struct error **errp);

#endif /* NBDELTA_SERVER_ARGS_NODE_H */
