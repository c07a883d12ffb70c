/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_CREATE_H
#define NBDELTA_CORE_CREATE_H

#include <jansson.h>

struct error;

/* As image_create, with an option more that is not for users:
 * "data_file_exists" has the data file left as it is, and the image made only
 * where nothing is yet (-EEXIST). */
int image_make(const char *filename, const char *format,
               const json_t *options, struct error **errp);

#endif /* NBDELTA_CORE_CREATE_H */
