/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_IMAGE_H
#define NBDELTA_IMAGE_H

#include <jansson.h>

#include "nbdelta/types.h"

/* --- drivers/table.c, core/create.c --- */

/*
 * Create an image file of @format ("qcow2" or "raw") at @filename, replacing
 * what is there unless a process holds a lock on it.
 *
 * @options: an object of creation options as qemu-img's -o takes them, values
 * as strings, booleans or numbers: size, backing_file, backing_fmt, compat,
 * cluster_size, refcount_bits, lazy_refcounts, compression_type,
 * preallocation, data_file, data_file_raw (raw: size, preallocation).  Without
 * "size", the size of the backing file.  A relative backing_file is relative to
 * @filename's directory, and is opened to check it, unless "backing_unchecked"
 * is true. data_file is created, too, or emptied; its name is stored as it is
 * given, and is relative to the directory where we run, as in QEMU.
 *
 * -EINVAL names the bad option in @errp.  The new file is durable when this
 * returns 0; on failure a file that was created here is removed.
 */
int image_create(const char *filename, const char *format,
                 const json_t *options, struct error **errp);

/* --- core/create.c --- */

/*
 * Make what the node @file holds an empty image of @format ("qcow2"), with
 * @options as above, "size" among them; a backing file is not looked at.
 * @file: the name of a node of @g, or options to open one for this.  What the
 * node holds elsewhere stays, and is not seen in the image.  In the caller's
 * thread, without locks.  -EBUSY: somebody does not allow it to be written.
 *
 * "data_file" is the same for the node of an external data file: it is not
 * emptied, only made as long as the disk.
 *
 * In *left are nodes that stay, also after a failure, until image_release;
 * that closes them, so it needs the monitor lock as graph_close does.
 */
struct image_nodes {
    struct node *file;
    struct node *data;
    struct node *image;
};
int image_format(struct graph *g, const char *format, const json_t *file,
                 const json_t *options, struct image_nodes *left,
                 struct error **errp);
void image_release(struct graph *g, struct image_nodes *left);

/* --- qcow2/track.c, by way of drivers/table.c --- */

struct image_track {
    const json_t *options; /* of qcow2: cluster_size, ...; NULL: none */
    const char *bitmap;    /* add a persistent one of that name; or NULL */
    bool force;            /* @raw may look like an image of some format */
};

/*
 * Create a qcow2 image at @filename, where nothing is yet, with the file or
 * block device @raw as its raw data file: same disk, same bytes.  @raw is
 * neither written to nor changed in size.  A size that is no multiple of 512
 * bytes is rounded up in the image.
 *
 * -EEXIST: there is something at @filename.  -EAGAIN, -EBUSY: somebody uses
 * @raw.  -EINVAL: it is not raw, or empty, or an option is bad.
 */
int image_track(const char *filename, const char *raw,
                const struct image_track *how, struct error **errp);

/* --- drivers/table.c --- */

/* Option names that @format takes, NULL-terminated; NULL: no such format. */
const char *const *image_create_options(const char *format);

#endif /* NBDELTA_IMAGE_H */
