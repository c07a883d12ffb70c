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
 * All users of the node, except the monitor, use the overlay afterwards.  The
 * node keeps its bitmaps, which do not record writes to the overlay.
 */
#include "nbdelta/types.h"

struct action;

struct snapshot_options {
    struct node *node;
    struct node *overlay; /* an open node, or NULL to open overlay_file */
    const char *overlay_file;
    const char *node_name; /* of the file's node, or NULL: generated */
    bool needs_name;       /* without node_name it fails: -EINVAL */
    const char *format;    /* of the file, or NULL: qcow2 */
    bool existing;         /* do not create the file */
};

/*
 * The change as an action (action.h).  The caller keeps the strings until the
 * action has run.  An overlay that was opened here lives as long as its users.
 * -EBUSY: a job works on the node, or the overlay is in use.  -EINVAL: the node
 * cannot be an overlay.  -EEXIST: the node name is taken.  -EIO: the node
 * cannot be flushed.
 */
int snapshot_action(const struct snapshot_options *o, struct action **ap,
                    struct error **errp);

#endif /* NBDELTA_SNAPSHOT_H */
