/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_CREATE_H
#define NBDELTA_CORE_CREATE_H

#include <jansson.h>

#include "core/create-file.h"

struct driver_table;

/*
 * As image_create, with the drivers @t, and with an option more that is not
 * for users:
 * "data_file_exists" has the data file left as it is, and the image made only
 * where nothing is yet (-EEXIST).  Nobody gets more access to the new files
 * than how->access and, where it is looked at, the backing file give.
 */
int image_make(const struct driver_table *t, const char *filename,
               const char *format, const json_t *options, struct file_make *how,
               struct error **errp);

/* The same without that option. */
int image_create_as(const struct driver_table *t, const char *filename,
                    const char *format, const json_t *options,
                    struct file_make *how, struct error **errp);

/* Let nobody have access who has none to all files that @n shows.  What is in
 * no file is for the owner alone. */
void node_access(const struct node *n, struct file_access *a);

/* Is it the file of @n that was made?  -ESTALE, with @errp: @n has been opened
 * by its name since, and that led elsewhere. */
int node_check_made(const struct node *n, const struct file_make *how,
                    struct error **errp);

#endif /* NBDELTA_CORE_CREATE_H */
