/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_IMAGE_OPEN_H
#define NBDELTA_SERVER_CLI_IMAGE_OPEN_H

/* Opening an image for a sub-command. */
#include <stdbool.h>

struct cli_command;
struct error;
struct graph;
struct node;

struct image_open {
    const char *image;    /* file name, json:... or driver=... */
    const char *format;   /* NULL: probed */
    const char *snapshot; /* of the image, by id or name; NULL: the disk */
    bool force_share;     /* also while another process writes to it */
    bool header_only;     /* leave files that it names alone */
    bool no_bitmaps;      /* do not load its bitmaps either */
    bool no_backing;      /* open no backing file */
    bool writable;        /* for more than looking at it */
    bool bytes_only;      /* the file below the format, not the disk in it */
    bool image_opts;      /* `image` is a list of options, as in QEMU's tools */
};

int image_open(struct graph *g, const struct image_open *o, struct node **nodep,
               struct error **errp);

/* May the image at @filename have the backing file @backing, as the image shall
 * name it?  An image that is its own backing file could never be opened again:
 * -EINVAL. */
int image_check_other(const struct node *image, const char *filename,
                      const char *backing, struct error **errp);

/* --allow-path=@dir of a command: 0, or CLI_USAGE with the error printed. */
int image_allow_path(const struct cli_command *c, struct graph *g,
                     const char *dir);

#endif /* NBDELTA_SERVER_CLI_IMAGE_OPEN_H */
