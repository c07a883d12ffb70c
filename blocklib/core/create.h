/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_CREATE_H
#define NBDELTA_CORE_CREATE_H

#include <jansson.h>

#include "core/create-file.h"

struct driver_table;

/*
 * As image_create(), with the drivers @t, and with one more option, which is
 * not for users: with "data_file_exists" the data file stays as it is, and the
 * image is made only where there is no file yet (-EEXIST).  The new files give
 * no more access than how->access and, if it is looked at, the backing file.
 */
int image_make(const struct driver_table *t, const char *filename,
               const char *format, const json_t *options, struct file_make *how,
               struct error **errp);

/* As image_make(), without that option. */
int image_create_as(const struct driver_table *t, const char *filename,
                    const char *format, const json_t *options,
                    struct file_make *how, struct error **errp);

struct blk;
struct image_measure;

/* image_remove(), with the drivers @t. */
int image_remove_with(const struct driver_table *t, const char *filename,
                      struct error **errp);

/* image_measure(), with the drivers @t: measure.c. */
int image_measure_with(const struct driver_table *t, const char *format,
                       const json_t *options, struct blk *disk,
                       struct image_measure *m, struct error **errp);

/* Take away access that a user has not to all files that @n shows.  Bytes that
 * are in no file are for the owner alone. */
void node_access(const struct node *n, struct file_access *a);

/* image_preallocate(), without a user: not in a request. */
int node_preallocate(struct node *n, uint64_t offset, uint64_t bytes,
                     unsigned how);

/* Is the file of @n the one that was made?  -ESTALE, with @errp: @n has been
 * opened by its name since, which led elsewhere. */
int node_check_made(const struct node *n, const struct file_make *how,
                    struct error **errp);

#endif /* NBDELTA_CORE_CREATE_H */
