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
 * and its data file likewise.  Other names that QEMU takes name no file.
 */
#include <jansson.h>

#include "nbdelta/types.h"

struct image_name {
    char *path;         /* as the kernel takes it */
    const char *driver; /* of the format, if the name says it; or NULL */
    json_t *options;    /* holds @driver */
};

/*
 * Find what the file @image means by @named.  A relative name is relative to
 * the directory of @image.  QEMU takes a relative name of a data file, or in
 * JSON, as relative to where it runs.  Then both places are looked at, and two
 * different files are an error (-EINVAL).  @option ("backing", "data-file") is
 * the option that gives the file in another way.  -EPERM: @named names no file.
 */
int image_name_parse(const char *named, const char *image, const char *option,
                     struct image_name *nm, struct error **errp);
void image_name_free(struct image_name *nm);

/* The path of a plain name, malloc()ed, or NULL.  Looks at no file. */
char *image_name_path(const char *named, const char *image);

/*
 * The file name @name as images have to have it, malloc()ed.  QEMU takes a name
 * with a colon for the name of a protocol, so "./" is put before it.  A name
 * that is meant so, a URI for example, stays as it is.
 */
char *image_name_write(const char *name);

#endif /* NBDELTA_CORE_IMAGE_NAME_H */
