/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_IMAGES_H
#define NBDELTA_SERVER_SERVE_IMAGES_H

/*
 * The images of the command line
 * ==============================
 *
 * [NAME=]IMAGE is an image, and is exported as NAME.  [NAME=]DIR[@POINT] is a
 * backup directory: each disk of the point is exported, with the disk's own
 * name; as NAME if that is given and there is one disk, and else as NAME.DISK.
 * Disks of a point are never written to.
 *
 * With an overlay, all images are read-only, and what clients write goes to a
 * qcow2 file over them.
 */
#include <stdbool.h>

#include "nbdelta/graph.h"
#include "store/store.h"

struct error;
struct exports;

struct images {
    /* Given by the caller. */
    struct graph *graph;
    struct exports *exports;
    const char *format;  /* of image files, or NULL */
    const char *overlay; /* see images_open; NULL: none */
    bool read_only;
    enum graph_follow follow; /* of image files */

    /* Private; zeroes at first. */
    unsigned count;    /* of arguments */
    bool overlay_used; /* a file is the overlay of one disk */
    unsigned stores;
    struct {
        struct store *store;
        struct holds holds;
    } * store;
};

/*
 * Open and export what @arg names.  Blocks.
 *
 * The overlay is "temporary" (a file in $TMPDIR or /var/tmp that loses its
 * name), a directory (NAME.qcow2 in it), or a file, for one disk.  A file is
 * made if it is not there, and goes on if it was made over the same image:
 * -EINVAL: it was not, or it would be used twice. A point is held (store_hold)
 * until images_close: -EBUSY: it is being pruned.
 */
int images_open(struct images *im, const char *arg, struct error **errp);

/* After the nodes have been closed. */
void images_close(struct images *im);

#endif /* NBDELTA_SERVER_SERVE_IMAGES_H */
