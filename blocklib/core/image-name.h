/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_IMAGE_NAME_H
#define NBDELTA_CORE_IMAGE_NAME_H

/*
 * Names of files inside of images
 * ===============================
 *
 * An image names its backing file as
 *
 *   base.qcow2, /path/base.qcow2, ./with:colon.qcow2, file:base.qcow2
 *   json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}
 *
 * and its data file likewise.  All else that QEMU takes is no file.
 */
#include <jansson.h>

#include "nbdelta/types.h"

struct image_name {
    char *path;         /* as the kernel takes it */
    const char *driver; /* of the format, if the name says it; or NULL */
    json_t *options;    /* holds @driver */
};

/*
 * What the file @image means by @named.  A relative name is relative to the
 * directory of @image.  To QEMU, a relative name of a data file, or in JSON, is
 * relative to where it runs: then both places are looked at, and two files are
 * one too many (-EINVAL).  @option ("backing", "data-file") is what gives the
 * file in another way.  -EPERM: it names no file.
 */
int image_name_parse(const char *named, const char *image, const char *option,
                     struct image_name *nm, struct error **errp);
void image_name_free(struct image_name *nm);

/* The same, without looking at any file: the path of a plain name, malloc()ed,
 * or NULL. */
char *image_name_path(const char *named, const char *image);

/*
 * The file name @name as images have to have it, malloc()ed: what QEMU would
 * take for the name of a protocol, because of a colon, is put behind "./".
 * What is meant as one, a URI for example, stays as it is.
 */
char *image_name_write(const char *name);

#endif /* NBDELTA_CORE_IMAGE_NAME_H */
