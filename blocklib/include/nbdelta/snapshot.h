/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SNAPSHOT_H
#define NBDELTA_SNAPSHOT_H

/*
 * External snapshots: a new image on top of a node
 * ===============================================
 *
 *     users                 users
 *       |                     |
 *      node       =>       overlay
 *                             | backing
 *                            node, read-only from now on
 *
 * Everybody who uses the node, but the monitor, uses the overlay afterwards.
 * Its bitmaps stay where they are: nothing that is written to the overlay is
 * recorded in them.
 */
#include "nbdelta/types.h"

struct action;

struct snapshot_options {
    struct node *node;
    struct node *overlay;  /* an open node, or NULL to open overlay_file */
    const char *overlay_file;
    const char *node_name; /* of the file's node, or NULL: generated */
    bool needs_name;       /* the user has called the node by its own */
    const char *format;    /* of the file, or NULL: qcow2 */
    bool existing;         /* do not create the file */
};

/*
 * The change as an action (action.h); the strings live until it has run.
 * An overlay that was opened here lives as long as its users.
 * -EBUSY: a job works on the node, or it is a backing node already; or the
 * overlay is in use.  -EINVAL: what cannot be an overlay.
 */
int snapshot_action(const struct snapshot_options *o, struct action **ap,
                    struct error **errp);

#endif /* NBDELTA_SNAPSHOT_H */
