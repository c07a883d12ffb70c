/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_DISK_ARG_H
#define NBDELTA_SERVER_CLI_DISK_ARG_H

/*
 * A disk that a command reads: an image, an export, or a disk of a point
 * ======================================================================
 *
 *     FILE | json:... | driver=...   as image-open.h has it
 *     nbd://... (a URI)              the export
 *     DIR[@POINT]                    a disk of the point; all points below it
 *                                    are held until disk_arg_close
 */
#include "cli/image-open.h"
#include "store/store.h"

struct blk;
struct error;

struct disk_arg {
    /* Set by the caller. */
    const char *arg;
    const char *format;   /* of an image, or NULL: probed */
    const char *disk;     /* of a point; NULL: its only one */
    bool force_share;     /* of an image: while another process writes to it */
    const char *snapshot; /* of an image, by id or name; NULL: the disk */
    bool image_opts;      /* it is a list of options */
    bool with_bitmaps;    /* load those of an image */

    struct blk *blk; /* what disk_arg_open has opened, for reading */

    /* Private; zeroes at first. */
    struct store *store;
    struct holds holds;
};

/*
 * Open it.  @user names the user in error texts.  Blocks.  Call disk_arg_close
 * after an error, too.  -EINVAL: there is more than one disk, or no such point;
 * -ENOENT; -EAGAIN, -EBUSY: in use; -EUCLEAN: the point is damaged; others.
 */
int disk_arg_open(struct graph *g, const char *user, struct disk_arg *d,
                  struct error **errp);

/* The disk's node stays open until graph_free, and so does its point: call this
 * first, and disk_arg_release afterwards. */
void disk_arg_close(struct disk_arg *d);
void disk_arg_release(struct disk_arg *d);

#endif /* NBDELTA_SERVER_CLI_DISK_ARG_H */
